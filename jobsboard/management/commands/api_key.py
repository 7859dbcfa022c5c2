"""`manage.py api_key create | list | revoke`: API keys from the command line. The rules are in `jobsboard.api.keys`."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.db.models.functions import Now

from jobsboard.api import keys
from jobsboard.models import SCOPES, ApiKey
from queues import audit

ACTOR = "command"


class Command(BaseCommand):
    """Create, list and revoke API keys."""

    help = "Create, list and revoke API keys."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the three actions."""
        actions = parser.add_subparsers(dest="action", required=True)
        create = actions.add_parser("create", help="Create a key; it is printed once.")
        create.add_argument("--label", required=True, help="Who or what uses the key.")
        create.add_argument("--scopes", default=",".join(SCOPES), help=f"Some of {','.join(SCOPES)}; default: all.")
        create.add_argument("--types", default="*", help="Comma-separated patterns of job types; default: *.")
        create.add_argument(
            "--rate", type=float, metavar="N", help="Jobs a second that it may send; default: no limit."
        )
        create.add_argument(
            "--burst",
            type=int,
            default=0,
            metavar="N",
            help="Jobs that it may send at once; default: of a second.",
        )
        actions.add_parser("list", help="List keys, without the keys themselves.")
        revoke = actions.add_parser("revoke", help="End a key within five seconds.")
        revoke.add_argument("prefix", help="The eight characters after jb_live_.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one of the actions."""
        {"create": self._create, "list": self._list, "revoke": self._revoke}[options["action"]](options)

    def _create(self, options: dict[str, Any]) -> None:
        try:
            with transaction.atomic():
                row, text = keys.issue_key(
                    label=options["label"],
                    scopes=_words(options["scopes"]),
                    type_patterns=_words(options["types"]),
                    created_by=ACTOR,
                    rate_per_second=options["rate"],
                    rate_burst=options["burst"],
                )
                audit.record(
                    "api_key.created",
                    actor=ACTOR,
                    object_type="api_key",
                    object_id=row.prefix,
                    after={
                        "label": row.label,
                        "scopes": row.scopes,
                        "types": row.type_patterns,
                        "rate_per_second": row.rate_per_second,
                        "rate_burst": row.rate_burst,
                    },
                    source="command",
                )
        except ValueError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(text)

    def _list(self, options: dict[str, Any]) -> None:
        for row in ApiKey.objects.order_by("created_at"):
            state = "revoked" if row.revoked_at else f"expires {row.expires_at:%F}" if row.expires_at else "active"
            used = f"used {row.last_used_at:%F %R}" if row.last_used_at else "never used"
            what = f"{','.join(row.scopes)} on {','.join(row.type_patterns)}"
            rate = keys.rate_words(keys.rate_of(row))
            self.stdout.write(f"{row.prefix}  {state}  {used}  {what}  {rate}  {row.label}")

    def _revoke(self, options: dict[str, Any]) -> None:
        with transaction.atomic():
            known = ApiKey.objects.filter(prefix=options["prefix"])
            if known.filter(revoked_at=None).update(revoked_at=Now()):
                audit.record(
                    "api_key.revoked",
                    actor=ACTOR,
                    object_type="api_key",
                    object_id=options["prefix"],
                    source="command",
                )
            elif not known.exists():
                raise CommandError(f"There is no key jb_live_{options['prefix']}_…")
        self.stdout.write("Revoked.")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
