"""`manage.py dlq list | groups | show | preflight | replay | cancel | ignore | export | plan`: dead letters.

What it does is in `dlq.cli`. Exit codes: 0 done, 1 refused (or not safe), 2 asked for in a way that means nothing.
"""

from __future__ import annotations

import getpass
import sys
from argparse import ArgumentParser
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError

from dlq import exporting, groups
from dlq.cli import acting, choosing, looking, planning
from dlq.cli.printing import Refused
from dlq.plans import create
from dlq.replaying import Who
from queues.actions import REASON_CHARACTERS
from queues.states import DEAD_REASONS

_VERBS: Final = {
    "list": "unresolved dead letters, by type and then newest first",
    "groups": "dead letters by what they died of",
    "show": "one job: why, attempts, payload (redacted)",
    "preflight": "is a replay safe? exit code 0 when it is, 1 when it is not or nobody knows",
    "replay": "replay one job, or make a plan that replays many",
    "cancel": "resolve dead letters without running them again, or cancel a job that waits",
    "ignore": "set dead letters aside",
    "export": "dead letters as CSV or JSON lines, redacted",
    "plan": "plans and how far they are; pause, resume, abort",
}


class Command(BaseCommand):
    """Looks at dead letters, replays, cancels and exports them."""

    help = "Dead letters: look, check, replay, cancel, ignore, export, follow plans."
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        made = {name: verbs.add_parser(name, help=text) for name, text in _VERBS.items()}
        for name, sub in made.items():
            if name != "export":
                sub.add_argument("--json", action="store_true", help="for programs")
            if name in ("list", "groups", "replay", "cancel", "ignore", "export"):
                _add_filters(sub)
        for name in ("list", "groups", "plan"):
            made[name].add_argument("--limit", type=_positive, default=50)
        for name in ("show", "preflight"):
            made[name].add_argument("id")
        made["groups"].add_argument("--state", choices=groups.STATES, default="open")
        made["preflight"].add_argument("--no-ask", action="store_true", help="do not have a worker ask the outside")
        for name in ("replay", "cancel", "ignore"):
            _add_plan(made[name])
        _add_replay(made["replay"])
        made["cancel"].add_argument(
            "--waiting", action="store_true", help="with a filter: jobs that wait, not dead ones"
        )
        made["export"].add_argument("--format", choices=exporting.FORMATS, default="csv")
        made["export"].add_argument("--output", metavar="FILE", help="default: standard output")
        made["plan"].add_argument("id", nargs="?")
        for name in ("pause", "resume", "abort"):
            made["plan"].add_argument(f"--{name}", action="store_true")
        made["plan"].add_argument("--reason", default="", help="why, for the audit log")
        _add_wait(made["plan"])
        for name in ("replay", "cancel", "ignore", "plan", "export"):
            made[name].add_argument("--as", dest="actor", default="", metavar="NAME", help="default: the system user")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            code = self._run(options["verb"], options)
        except Refused as refused:
            raise CommandError(str(refused), returncode=refused.code) from None
        if code:
            sys.exit(code)

    def _run(self, verb: str, options: dict[str, Any]) -> int:
        write = self.stdout.write
        if verb == "export":
            return looking.export(options, sys.stdout.buffer, actor=_actor(options))
        if verb == "preflight":
            return looking.preflight(options, write)
        if verb in ("list", "groups", "show"):
            look = {"list": looking.list_dead_letters, "groups": looking.list_groups, "show": looking.show}[verb]
            look(options, write)
            return 0
        who = Who(actor=_actor(options), reason=options["reason"], source="command")
        if verb == "plan":
            return planning.show(options, write, who=who)
        return self._act(options, who)

    def _act(self, options: dict[str, Any], who: Who) -> int:
        """Act on the one job that is named, or make a plan for several or for a filter."""
        if not who.reason.strip() or len(who.reason) > REASON_CHARACTERS:
            raise Refused(f"--reason says why, in 1 to {REASON_CHARACTERS:,} characters", code=2)
        filtered, edited = choosing.given(options), options.get("payload") or options.get("key")
        if not options["ids"] and not filtered:
            raise Refused("name a job, or say which by a filter as --type", code=2)
        if len(options["ids"]) == 1 and not filtered and not options["dry_run"]:
            act = acting.replay if options["verb"] == "replay" else acting.close
            act(options, self.stdout.write, who=who)
            return 0
        if edited:
            raise Refused("--payload and --key are for one job", code=2)
        return planning.make(options, self.stdout.write, who=who)


def _add_filters(sub: ArgumentParser) -> None:
    sub.add_argument("--type", help="job type")
    sub.add_argument("--tier", type=int, choices=(1, 2, 3))
    sub.add_argument("--why", dest="reason_code", choices=[str(reason) for reason in DEAD_REASONS], metavar="REASON",
                     help="what it died of: " + ", ".join(DEAD_REASONS))  # fmt: skip
    sub.add_argument("--fingerprint")
    sub.add_argument("--group", help="customer or any other group of jobs")
    sub.add_argument("--since", help="accepted since: a time, or 90m, 7d")
    sub.add_argument("--until", help="accepted before")


def _add_plan(sub: ArgumentParser) -> None:
    sub.add_argument("ids", nargs="*", metavar="ID", help="one: at once; several: a plan")
    sub.add_argument("--reason", default="", help="why, for the audit log")
    sub.add_argument("--expect", type=int, metavar="N", help="how many you saw; needed with a filter")
    sub.add_argument("--dry-run", action="store_true", help="judge each job and change none")
    _add_wait(sub)


def _add_wait(sub: ArgumentParser) -> None:
    sub.add_argument(
        "--wait", action="store_true", help="until the plan ends; exit code 1 when it stopped or jobs died"
    )
    sub.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="of --wait")


def _add_replay(sub: ArgumentParser) -> None:
    sub.add_argument("--payload", metavar="FILE", help="another payload (one job)")
    sub.add_argument("--key", help="another dedupe key (one job)")
    sub.add_argument("--anyway", action="store_true", help="also what something speaks against")
    sub.add_argument("--rate", type=float, metavar="N", help=f"replays a second, default {create.RATE:g}")
    sub.add_argument("--at-once", type=int, metavar="N", help=f"open replays, default {create.CONCURRENCY}")
    sub.add_argument("--stop", type=float, metavar="SHARE", help=f"of failed replays, default {create.STOP_RATIO:g}")
    sub.add_argument("--newest-first", action="store_true")


def _positive(text: str) -> int:
    number = int(text)
    if not 1 <= number <= exporting.MOST:
        raise ValueError(text)
    return number


def _actor(options: dict[str, Any]) -> str:
    if options["actor"]:
        return str(options["actor"])
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user without an entry in the user database.
        return "command"
