"""The command line of the local stack: `python -m jobsboard.local up | demo | test | isolated | clean | -- CMD...`.

Not here: what the commands do.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from jobsboard.local import commands, kernel, layout, leftovers, serve
from jobsboard.local.commands import Isolation
from jobsboard.local.errors import LocalStackError, UsageError
from jobsboard.local.supervise import say


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    own, command = _split(arguments)
    parser = _parser()
    if command is not None and not any(word in ("isolated", "test") for word in own):
        own = [*own, "join"]
    options, rest = parser.parse_known_args(own)
    if rest and options.name != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if options.die_with_parent:
        # `make` may be killed in a way that lets it tell nobody.
        kernel.die_with_parent(signal.SIGTERM, parent=os.getppid())
    try:
        return _run(options, [*rest, *(command or [])])
    except LocalStackError as error:
        say(str(error))
        return error.exit_code


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Cut at the first `--`: what follows is another program's business."""
    given = list(arguments)
    if "--" not in given:
        return given, None
    cut = given.index("--")
    return given[:cut], given[cut + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobsboard.local",
        description="Runs Jobsboard on this machine with PostgreSQL and Valkey of its own.",
        epilog="`-- CMD...` runs a command against the stack of this checkout, starting its servers when none run.",
        allow_abbrev=False,
    )
    parser.add_argument("--die-with-parent", action="store_true", help="end when the caller is killed")
    names = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    names.add_parser("up", help="servers, migrations, web, scheduler and workers; no sample data")
    demo = names.add_parser("demo", help="the same with sample contracts and live traffic")
    demo.add_argument("--no-traffic", action="store_true", help="leave the traffic out")
    for name, text in (("test", "run pytest on new servers"), ("isolated", "run `-- CMD...` on new servers")):
        isolated = names.add_parser(name, help=text, allow_abbrev=False)
        isolated.add_argument("--pg-bin", type=Path, help="the programs of another PostgreSQL than the wheel's")
        if name == "test":
            isolated.add_argument("--older-pg-bin", type=Path, help="run what uses a database on this one once more")
            isolated.add_argument("--no-fsync", action="store_true", help="let the server wait for no disk")
    names.add_parser("clean", help="remove this checkout's stack and its data")
    names.add_parser("join", help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    match options.name:
        case "up":
            return serve.serve(demo=False, traffic=False)
        case "demo":
            return serve.serve(demo=True, traffic=not options.no_traffic)
        case "test":
            return commands.run_tests(rest, isolation=_isolation(options), older=options.older_pg_bin)
        case "clean":
            return _clean()
    if not rest:
        raise UsageError("name a command after --")
    if options.name == "isolated":
        return commands.run_isolated(rest, isolation=_isolation(options))
    return commands.run_joined(rest)


def _isolation(options: argparse.Namespace) -> Isolation:
    return Isolation(
        programs=options.pg_bin,
        fsync=not getattr(options, "no_fsync", False),
        database_url=os.environ.get("TEST_DATABASE_URL", ""),
        broker_url=os.environ.get("TEST_BROKER_URL", ""),
    )


def _clean() -> int:
    home = layout.of_checkout()
    held = home.lock()
    if held is None:
        raise UsageError("the local stack of this checkout runs; end it first")
    leftovers.end_processes(home)
    layout.remove_tree(home.root)
    os.close(held)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
