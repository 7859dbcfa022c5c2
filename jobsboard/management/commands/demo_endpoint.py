"""`manage.py demo_endpoint`: let alerts of a demo go to its own pager."""

import os
from argparse import ArgumentParser
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError
from django.db.models.functions import Now

from jobsboard.models import WebhookEndpoint
from queues import secrets_box

NAME: Final = "Demo pager"


class Command(BaseCommand):
    """Make the endpoint, or give it the address of this start."""

    help = "Set up the endpoint of the demo's pager."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--url", required=True)

    def handle(self, *args: Any, **options: Any) -> None:
        secret = os.environ.get("PAGER_SECRET", "")
        if not secret:
            raise CommandError("PAGER_SECRET is not set: the local stack draws it for `make demo`")
        url = options["url"]
        address = {"url_sealed": secrets_box.seal(url), "url_shown": url.rpartition("/")[0]}
        WebhookEndpoint.objects.update_or_create(
            name=NAME,
            defaults=address,
            create_defaults={
                **address, "secret_sealed": secrets_box.seal(secret), "secret_at": Now(), "created_by": "demo",
            },
        )  # fmt: skip
