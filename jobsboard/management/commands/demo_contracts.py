"""`manage.py demo_contracts`: sync the demo's contracts, with the address of this stack's CRM, and its schedules."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any, Final

from django.core.management import call_command
from django.core.management.base import BaseCommand

from jobsboard import demo
from jobsboard.demo import place
from queues import breaker_actions, schedules
from queues.models import AuditEntry

FILE = Path(demo.__file__).with_name("contracts.toml")
WRITTEN = "http://127.0.0.1:8091/contacts"
"""The address that stands in the file, to send to and to ask."""

DEPENDENCIES: Final[dict[str, dict[str, Any]]] = {
    # It answers 503 to all alike when it is down: jobs wait for it. Some die before there are calls enough to tell.
    "crm": {"description": "The CRM: contacts, callbacks", "minimum_calls": 60},
    # Most messages that are deferred say something of a mailbox. In a storm its jobs die, as the dead letters show;
    # only one that takes next to nothing is down.
    "mail-provider": {"description": "The mail server", "error_ratio": 0.97, "minimum_calls": 30},
    "billing-partner": {"description": "The billing partner's books", "minimum_calls": 10, "slow_seconds": 5.0},
}
"""What the demo's contracts depend on. Whoever changed the settings by hand keeps them."""

_DIGEST: Final = '{{"until": "{{tick}}", "minutes": {minutes}}}'
SCHEDULES: Final[dict[str, dict[str, Any]]] = {
    "minute-digest": {
        "description": "Sign-ups and invoices of the last minute", "cron": "* * * * *",
        "payload": _DIGEST.format(minutes=1),
    },
    "nightly-report": {
        "description": "Sign-ups and invoices of a day, before the office opens", "cron": "0 3 * * *",
        "timezone": "Europe/Berlin", "payload": _DIGEST.format(minutes=24 * 60),
    },
    "weekly-report": {
        "description": "Sign-ups and invoices of a week", "cron": "30 6 * * MON", "timezone": "Europe/Berlin",
        "payload": _DIGEST.format(minutes=7 * 24 * 60),
    },
}  # fmt: skip
"""What the demo enqueues by the clock. Whoever changed or deleted one keeps it so."""
PAUSED: Final = {"weekly-report": "Nobody reads it before launch week is over"}


class Command(BaseCommand):
    """Write the contracts of this stack, and sync them."""

    help = "Sync the demo's contracts; the CRM of a local stack has a port of its own."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--crm-url", required=True)

    def handle(self, *args: Any, **options: Any) -> None:
        path = place.directory() / "contracts.toml"
        path.write_text(FILE.read_text(encoding="utf-8").replace(WRITTEN, options["crm_url"]), encoding="utf-8")
        call_command("contracts", "sync", str(path), actor="demo", reason="contracts of the demo")
        for name, settings in DEPENDENCIES.items():
            if self._is_new("dependency", name):
                breaker_actions.save_settings(
                    name, settings, actor="demo", reason="circuit breakers of the demo", source="command"
                )
        who: dict[str, Any] = {"actor": "demo", "source": "command"}
        for name, settings in SCHEDULES.items():
            if self._is_new("schedule", name):
                fields = {"job_type": "reports.digest", **settings}
                schedules.save(name, fields, reason="schedules of the demo", **who)
                if name in PAUSED:
                    schedules.pause(name, reason=PAUSED[name], **who)

    def _is_new(self, kind: str, name: str) -> bool:
        return not AuditEntry.objects.filter(object_type=kind, object_id=name).exists()
