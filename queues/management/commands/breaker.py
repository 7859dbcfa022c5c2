"""`manage.py breaker list | open | close | release`: circuit breakers from the command line.

What a breaker does by itself is `queues.scheduler.breakers`'; holding one is `queues.breaker_actions`'.
"""

from __future__ import annotations

import datetime as dt
import getpass
from argparse import ArgumentParser
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError

from queues import breaker_actions, breakers
from queues.breaker_actions import NotPossible
from queues.breakers import Standing
from queues.contract_switches import database_now
from queues.models import Breaker

_STATES: Final = {"open": Breaker.OPEN.value, "close": Breaker.CLOSED.value}


class Command(BaseCommand):
    """Lists breakers, holds one open or closed, lets one go."""

    help = "Show circuit breakers; hold one open or closed; let it go."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verbs.add_parser("list", help="every dependency: its state, its calls, who holds it")
        for verb, text in (
            ("open", "hold it open: no job of its types is started"),
            ("close", "hold it closed: jobs are started whatever becomes of them"),
            ("release", "let it decide by itself again; an open one lets trials through at once"),
        ):
            sub = verbs.add_parser(verb, help=text)
            sub.add_argument("name", help="the dependency")
            sub.add_argument("--reason", required=True, help="why, for the audit log")
            sub.add_argument("--actor", default="", help="who, for the audit log (default: the system user)")
            if verb != "release":
                sub.add_argument("--minutes", type=float, default=0.0, help="for so long (default: until released)")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["verb"] == "list":
            for standing in breakers.standings():
                self.stdout.write(_line(standing))
            return
        who = {"by": options["actor"] or _system_user(), "reason": options["reason"], "source": "command"}
        try:
            if options["verb"] == "release":
                standing = breaker_actions.let_go(options["name"], **who)
            else:
                until = _until(options["minutes"])
                state = _STATES[options["verb"]]
                standing = breaker_actions.force(options["name"], state=state, until=until, **who)
        except NotPossible as error:
            raise CommandError(error.words) from None
        self.stdout.write(_line(standing))


def _until(minutes: float) -> dt.datetime | None:
    if minutes == 0:
        return None
    try:
        return database_now() + dt.timedelta(minutes=minutes)
    except (OverflowError, ValueError):
        raise NotPossible("until", "This is not a number of minutes.") from None


def _line(one: Standing) -> str:
    words = [f"{one.name}: {one.state} since {one.since:%Y-%m-%d %H:%M:%S} UTC"]
    if one.forced:
        end = f" until {one.forced_until:%Y-%m-%d %H:%M} UTC" if one.forced_until else ""
        words.append(f"held by {one.forced_by}{end} ({one.forced_reason})")
    elif one.why:
        words.append(one.why.rstrip("."))
    bad = f", {one.failed} failed, {one.slow} slow" if one.failed or one.slow else ""
    words.append(f"{one.calls} calls in {one.window_seconds} s{bad}")
    words.append(f"types: {', '.join(one.types) or 'none'}")
    return "; ".join(words)


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user without an entry in the user database.
        return "command"
