"""`manage.py schedule list | show | check | run | pause | resume`: schedules from the command line.

What the clock does is `queues.schedule_ticks`'; the acts are `queues.schedules`'. Settings are edited in the admin.
"""

from __future__ import annotations

import datetime as dt
import getpass
from argparse import ArgumentParser
from itertools import islice
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from queues import schedules
from queues.contract_switches import database_now
from queues.outcomes import schedules as read
from queues.outcomes.schedules import ScheduleNow, TickOf
from queues.schedule_lines import LineError, lint
from queues.schedules import NotPossible


class Command(BaseCommand):
    """Lists schedules, reads a line, runs one now, pauses and resumes."""

    help = "Show schedules; read a line of cron; run one now; pause and resume."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verbs.add_parser("list", help="every schedule: its line, its next tick, what is wrong with it")
        verbs.add_parser("show", help="one schedule and its newest ticks").add_argument("name")
        sub = verbs.add_parser("check", help="read a line as a schedule would: its words, its next ticks")
        sub.add_argument("line", help='five fields, in quotes. Example: "30 3 * * MON-FRI"')
        sub.add_argument("--timezone", default="UTC", help="Example: Europe/Berlin (default: UTC)")
        sub.add_argument("--count", type=int, default=5, choices=range(1, 101), metavar="1..100", help="so many ticks")
        for verb, text in (
            ("run", "enqueue its job now, beside its line"),
            ("pause", "let its ticks pass"),
            ("resume", "go on with its next tick; nothing is caught up"),
        ):
            sub = verbs.add_parser(verb, help=text)
            sub.add_argument("name", help="the schedule")
            sub.add_argument("--reason", required=True, help="why, for the audit log")
            sub.add_argument("--actor", default="", help="who, for the audit log (default: the system user)")
            if verb == "pause":
                sub.add_argument("--minutes", type=float, default=0.0, help="for so long (default: until resumed)")

    def handle(self, *args: Any, **options: Any) -> None:
        verb = options["verb"]
        if verb == "list":
            for one in read.board(limit=10_000):
                self.stdout.write(_line(one))
        elif verb == "check":
            self._check(options["line"], options["timezone"], options["count"])
        elif verb == "show":
            self._show(options["name"])
        else:
            self._act(verb, options)

    def _check(self, line: str, timezone: str, count: int) -> None:
        now = database_now()
        try:
            found = lint(line, timezone, now=now)
        except LineError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(found.words() or line)
        for tick in islice(found.after(now), count):
            self.stdout.write(f"{tick.astimezone(found.zone):%a %Y-%m-%d %H:%M %Z} ({tick:%Y-%m-%d %H:%M} UTC)")

    def _show(self, name: str) -> None:
        one = read.named(name)
        if one is None:
            raise CommandError(f"There is no schedule {name[:64]!r}.")
        self.stdout.write(_line(one))
        for tick in one.ticks:
            self.stdout.write(_tick(tick))

    def _act(self, verb: str, options: dict[str, Any]) -> None:
        name, who = options["name"], {"actor": options["actor"] or _system_user(), "reason": options["reason"]}
        try:
            if verb == "run":
                pressed = schedules.run_now(name, **who, source="command")
                if pressed.job_id is None:
                    raise CommandError(f"No job was accepted: {pressed.detail}")
                self.stdout.write(f"{name}: enqueued {pressed.job_id}")
                return
            if verb == "pause":
                schedules.pause(name, **who, until=_until(options["minutes"]), source="command")
            else:
                schedules.resume(name, **who, source="command")
        except NotPossible as error:
            raise CommandError(error.words) from None
        self._show_line(name)

    def _show_line(self, name: str) -> None:
        one = read.named(name)
        if one is not None:
            self.stdout.write(_line(one))


def _line(one: ScheduleNow) -> str:
    words = [f"{one.name}: {one.cron} {one.timezone} enqueues {one.type}"]
    if one.paused:
        end = f" until {one.paused_until:%Y-%m-%d %H:%M} UTC" if one.paused_until else ""
        words.append(f"paused by {one.paused_by}{end} ({one.paused_reason})")
    else:
        words.append(f"next {one.next_at:%Y-%m-%d %H:%M} UTC" if one.next_at else "names no time that comes")
    if one.last_at:
        words.append(f"last {one.last_at:%Y-%m-%d %H:%M} UTC")
    if one.refused:
        words.append(f"refused {one.refused} times since {one.refused_since:%Y-%m-%d %H:%M} UTC")
    if one.missed:
        words.append(f"missed {one.missed} in 24 h")
    if one.overdue:
        words.append("OVERDUE: no scheduler looks at it")
    return "; ".join(words)


def _tick(tick: TickOf) -> str:
    words = [f"  {tick.tick_at:%Y-%m-%d %H:%M:%S} UTC", tick.outcome]
    if tick.ticks > 1:
        words.append(f"{tick.ticks} ticks")
    if tick.job_id:
        words.append(f"job {tick.job_id} {tick.state or '(no longer kept)'}")
    words += [f"run by {tick.by}"] if tick.by else []
    return "  ".join([*words, tick.detail] if tick.detail else words)


def _until(minutes: float) -> dt.datetime | None:
    if minutes == 0:
        return None
    try:
        return database_now() + dt.timedelta(minutes=minutes)
    except (OverflowError, ValueError):
        raise NotPossible("until", "This is not a number of minutes.") from None


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user without an entry in the user database.
        return "command"
