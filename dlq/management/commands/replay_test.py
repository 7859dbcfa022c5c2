"""`manage.py replay_test`: does new code do with last week's payloads what the old code did?

The work is `dlq.replay_test`'s. Exit codes: 0 no regression, 1 regressions, 2 could not judge.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
import traceback
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any, Final, NoReturn

from django.core.management.base import BaseCommand, CommandError
from django.db import Error

from dlq.replay_test import run
from dlq.replay_test.database import SandboxFailed
from dlq.replay_test.report import COULD_NOT_JUDGE

_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}


class Command(BaseCommand):
    """Reads options, runs one replay test, prints its report."""

    help = (
        "Run a handler on historical payloads in a sandbox and compare with what is recorded. Exit code 0: no"
        " regression, 1: regressions, 2: could not judge."
    )
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--type", required=True, help="the job type")
        parser.add_argument("--since", type=_duration, default="7d", help="how far back: 7d, 12h, 30m (default 7d)")
        parser.add_argument("--sample", type=_count, default=500, help="how many payloads at most (default 500)")
        parser.add_argument("--handler", default="", metavar="MODULE:FUNCTION", help="default: the registered one")
        parser.add_argument(
            "--stub", default="", metavar="MODULE:FUNCTION",
            help="a context manager around every run, which stands in for a provider",
        )  # fmt: skip
        parser.add_argument(
            "--require", type=_share, default=0.5, help="least share that is judged, else exit code 2 (default 0.5)"
        )
        parser.add_argument("--least", type=_count, default=20, help="fewer jobs than these: exit code 2 (default 20)")
        parser.add_argument("--within", type=_duration, default="15m", help="end after this time (default 15m)")
        parser.add_argument(
            "--read-only", action="store_true", help="refuse database writes instead of rolling them back"
        )
        parser.add_argument("--memory-mib", type=_count, default=1024, help="memory of a run at most (default 1024)")
        parser.add_argument("--seed", type=int, default=0, help="another number chooses other jobs")
        parser.add_argument("--json", action="store_true", help="print the report as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        asked = run.Options(
            type=options["type"],
            back=options["since"],
            size=options["sample"],
            handler=options["handler"],
            stub=options["stub"],
            read_only=options["read_only"],
            require=options["require"],
            least=options["least"],
            within=options["within"],
            memory=options["memory_mib"] << 20,
            seed=options["seed"],
        )
        try:
            report = run.run(asked)
        except run.CannotJudge as error:
            self._could_not(str(error), as_json=options["json"])
        except (SandboxFailed, Error) as error:
            self._could_not(f"the sandbox could not be built: {error}".strip(), as_json=options["json"])
        except Exception:  # Python's own exit code 1 would be read as a regression
            self.stderr.write(traceback.format_exc())
            self._could_not("replay_test itself failed, see above", as_json=options["json"])
        if options["json"]:
            self.stdout.write(json.dumps(report.as_json(), indent=2))
        else:
            self.stdout.write("\n".join(report.lines()))
        if report.exit_code:
            sys.exit(report.exit_code)

    def _could_not(self, why: str, *, as_json: bool) -> NoReturn:
        if as_json:
            self.stdout.write(json.dumps({"verdict": f"could not judge: {why}", "exit_code": COULD_NOT_JUDGE}))
        raise CommandError(f"Could not judge: {why}.", returncode=COULD_NOT_JUDGE)


def _duration(text: str) -> dt.timedelta:
    found = re.fullmatch(r"(\d{1,5})([dhm])", text)
    if not found or not int(found[1]):
        raise ArgumentTypeError(f"{text!r} is not a time like 7d, 12h or 30m")
    return dt.timedelta(**{_UNITS[found[2]]: int(found[1])})


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise ArgumentTypeError(f"{text!r} is not a number from 1 to 999999")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return share
