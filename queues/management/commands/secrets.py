"""`manage.py secrets reseal`: every stored secret, of contracts and of the apps above, encrypted anew with the first
of ENCRYPTION_KEYS.

Run it after a new key was put first, and only then take the old key away. Exit code 1 when a secret cannot be opened;
the others are resealed all the same. Setting secrets is the admin's.
"""

from __future__ import annotations

import getpass
from argparse import ArgumentParser
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.db.models import Q

from queues import audit, secrets_box
from queues.contract_fields import SECRETS
from queues.contract_switches import database_now
from queues.models import JobType

_OLD: Final = "callback_secret_old"
_COLUMNS: Final = (*SECRETS, _OLD)


class Command(BaseCommand):
    """Rotates the key that stored secrets are encrypted with."""

    help = "Keep stored secrets: reseal encrypts each of them anew with the first of ENCRYPTION_KEYS."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        reseal = verbs.add_parser("reseal", help="encrypt every stored secret with the first of ENCRYPTION_KEYS")
        reseal.add_argument("--actor", default="", help="who, for the audit log (default: the system user)")
        reseal.add_argument("--reason", default="secrets reseal", help="why, for the audit log")

    def handle(self, *args: Any, **options: Any) -> None:
        stored = Q(*((f"{name}__isnull", False) for name in _COLUMNS), _connector=Q.OR)
        resealed = dict.fromkeys(_COLUMNS, 0)
        closed: list[str] = []
        actor, reason = options["actor"] or _system_user(), options["reason"]
        try:
            for name in JobType.objects.filter(stored).order_by("name").values_list("name", flat=True):
                done, failed = _reseal(name, actor=actor, reason=reason)
                closed += [f"{name} ({column})" for column in failed]
                for column in done:
                    resealed[column] += 1
            for keeper in secrets_box.keepers():
                more = keeper.reseal(actor=actor, reason=reason)
                resealed |= {kind: n for kind, n in more.counts.items() if n}
                closed += more.closed
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from None
        self.stdout.write("Resealed: " + ", ".join(f"{n} {column}" for column, n in resealed.items()) + ".")
        if closed:
            raise CommandError(
                f"Not opened by any of ENCRYPTION_KEYS, and left as they are: {', '.join(closed)}. Put the key that "
                "they were sealed with back, or set these secrets again in the admin."
            )


def _reseal(name: str, *, actor: str, reason: str) -> tuple[list[str], list[str]]:
    """Reseal the secrets of one type; return the columns that were, and those that could not be opened."""
    done: list[str] = []
    failed: list[str] = []
    with transaction.atomic():
        row = JobType.objects.select_for_update().get(pk=name)
        if row.callback_secret_old_until is not None and row.callback_secret_old_until <= database_now():
            # Not taken any more: nobody needs to open it again.
            row.callback_secret_old, row.callback_secret_old_until = None, None
        for column in _COLUMNS:
            sealed = getattr(row, column)
            if sealed is None:
                continue
            try:
                setattr(row, column, secrets_box.reseal(sealed))
                done.append(column)
            except secrets_box.CannotOpen:
                failed.append(column)
        row.save(update_fields=[*_COLUMNS, f"{_OLD}_until"])
        if done:
            audit.record(
                "secrets.resealed",
                actor=actor,
                object_type="job_type",
                object_id=name,
                after={"resealed": done},
                reason=reason,
                source="command",
            )
    return done, failed


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user without an entry in the user database.
        return "command"
