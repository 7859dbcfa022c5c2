"""`manage.py demo_contracts`: sync the demo's contracts, with the address of this stack's CRM."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand

from jobsboard import demo
from jobsboard.demo import place

FILE = Path(demo.__file__).with_name("contracts.toml")
WRITTEN = "http://127.0.0.1:8091/contacts"
"""The address that stands in the file, to send to and to ask."""


class Command(BaseCommand):
    """Write the contracts of this stack, and sync them."""

    help = "Sync the demo's contracts; the CRM of a local stack has a port of its own."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--crm-url", required=True)

    def handle(self, *args: Any, **options: Any) -> None:
        path = place.directory() / "contracts.toml"
        path.write_text(FILE.read_text(encoding="utf-8").replace(WRITTEN, options["crm_url"]), encoding="utf-8")
        call_command("contracts", "sync", str(path), actor="demo", reason="contracts of the demo")
