"""Runs a command against servers: those of the running stack, those of this checkout for its time, or its very own.

Not here: `up` and `demo` (`serve.py`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobsboard.local import layout, leftovers, logs, stack
from jobsboard.local.errors import LocalStackError, StopRequested
from jobsboard.local.layout import CHECKOUT, Layout
from jobsboard.local.processes import MANAGE
from jobsboard.local.supervise import Child, ProcessSpec, Supervisor, say

#: How long a joined command waits for a stack that is just coming up or going down.
JOIN_SECONDS = 90.0
FOREGROUND_STAGE = 5
DEFAULT_URL = "http://127.0.0.1:8000"
#: All tests, in parts that run side by side: those that start processes mostly wait. The first ones' output comes last.
PARTS = (
    ("-m", "acceptance or browser", "tests/acceptance"),
    ("-m", "acceptance or browser", "--ignore=tests/acceptance"),
    ("-m", "not (acceptance or browser)"),
)


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """What an isolated run takes from outside."""

    programs: Path | None = None
    database_url: str = ""
    broker_url: str = ""


def run_joined(argv: Sequence[str]) -> int:
    """Run a command against this checkout's stack: the running one, else one for the time of the command.

    Raises: LocalStackError when a stack neither comes up nor ends in time.
    """
    home = layout.of_checkout()
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        held = home.lock()
        if held is not None:
            try:
                return _run_as_owner(home, argv)
            finally:
                os.close(held)
        # First a hold on the stack, then the note: whoever runs it removes the note and then waits for the holds.
        user = home.lock_users(exclusive=False)
        found = home.read_note()
        if user is not None and found is not None:
            os.set_inheritable(user, True)
            _become(argv, stack.joined_environment(found))
        if user is not None:
            os.close(user)
        if time.monotonic() > deadline:
            raise LocalStackError(f"the stack in {home.root} neither serves nor ends; its logs are in {home.logs}")
        time.sleep(0.1)


def _run_as_owner(home: Layout, argv: Sequence[str]) -> int:
    home.remove_note()
    supervisor = Supervisor()
    with supervisor.signals():
        try:
            logs.begin(home.logs / "setup.log")
            secrets = home.secrets()
            servers = stack.start_servers(supervisor, home, secrets)
            env = stack.environment(servers, secrets, stack=home, url=DEFAULT_URL)
            if (CHECKOUT / "manage.py").exists():
                stack.run_step(supervisor, (*MANAGE, "migrate", "--no-input"), stack=home, env=env)
            home.write_note(stack.note(env, url=env["PUBLIC_URL"], supervisor=supervisor))
            code = _foreground(supervisor, argv, env)
            home.remove_note()
            _wait_for_users(supervisor, home)
            return code
        except StopRequested:
            return 128 + (supervisor.stop_requested or 0)
        finally:
            home.remove_note()


def _wait_for_users(supervisor: Supervisor, home: Layout) -> None:
    """Let the commands that joined us end before their servers do."""
    told = False
    while (held := home.lock_users(exclusive=True)) is None:
        if not told:
            say("waiting for other commands that use these servers")
            told = True
        supervisor.wait(lambda: False, seconds=0.2)
    os.close(held)


def run_isolated(argv: Sequence[str], *, isolation: Isolation) -> int:
    """Run a command against new servers of its own in a directory that is removed afterwards."""
    leftovers.remove_abandoned()
    supervisor = Supervisor()
    with layout.private() as home, supervisor.signals():
        try:
            secrets = layout.draw_secrets()
            servers = stack.start_servers(
                supervisor,
                home,
                secrets,
                programs=isolation.programs,
                throwaway=True,
                database_url=isolation.database_url,
                broker_url=isolation.broker_url,
            )
            env = stack.environment(servers, secrets, stack=home, url=DEFAULT_URL, foreign=False)
            return _foreground(supervisor, argv, env)
        except StopRequested:
            return 128 + (supervisor.stop_requested or 0)


def run_tests(arguments: Sequence[str], *, isolation: Isolation) -> int:
    """Run pytest against servers of its own, and say loudly what it did not run.

    All tests run in PARTS side by side, each on servers of its own; servers of the user's are not shared.
    """
    if arguments or isolation.database_url or isolation.broker_url:
        return _run_pytest(arguments, isolation=isolation)
    return _run_parts(isolation)


def _run_parts(isolation: Isolation) -> int:
    supervisor = Supervisor()
    own = [sys.executable, "-m", "jobsboard.local", "test"]
    own += [] if isolation.programs is None else ["--pg-bin", str(isolation.programs)]
    folder = Path(tempfile.mkdtemp(prefix="jobsboard-parts-"))
    kept = [folder / f"{number}.log" for number in range(len(PARTS) - 1)]
    try:
        with supervisor.signals():
            parts = [
                supervisor.start(
                    ProcessSpec(
                        name=" ".join(chosen),
                        argv=(*own, *chosen),
                        env=dict(os.environ),
                        cwd=Path.cwd(),
                        log=log,
                        stage=FOREGROUND_STAGE,
                        restart=False,
                        death_signal=signal.SIGTERM,
                    )
                )
                for chosen, log in zip(PARTS, [*kept, None], strict=True)
            ]
            supervisor.wait(lambda: not any(part.alive for part in parts), seconds=None)
        for log in kept:
            print(log.read_text(), flush=True)
        # By its absolute value: a part that was killed has failed.
        return max(abs(part.exit_code or 0) for part in parts)
    except StopRequested:
        return 128 + (supervisor.stop_requested or 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_pytest(arguments: Sequence[str], *, isolation: Isolation) -> int:
    folder = Path(tempfile.mkdtemp(prefix="jobsboard-report-"))
    report = folder / "report.xml"
    try:
        argv = [sys.executable, "-m", "pytest", f"--junitxml={report}", *arguments]
        code = run_isolated(argv, isolation=isolation)
        with contextlib.suppress(OSError, ElementTree.ParseError):
            say(summary(report))
        return code
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def summary(report: Path) -> str:
    """Sum a JUnit report up in one line, with what was skipped and why."""
    # The report is our own pytest's, written a moment ago: no stranger's XML.
    root = ElementTree.parse(report).getroot()
    suites = list(root.iter("testsuite"))
    total, failed, errors, skipped = (
        sum(int(suite.get(name, "0")) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    line = f"{total - failed - errors - skipped} passed, {failed} failed, {errors} errors, "
    if not skipped:
        return line + "nothing skipped"
    reasons: dict[str, int] = {}
    for found in root.iter("skipped"):
        reason = found.get("message") or "no reason given"
        reasons[reason] = reasons.get(reason, 0) + 1
    listed = "; ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
    return f"{line}{skipped} SKIPPED: {listed}"


def _foreground(supervisor: Supervisor, argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a command in our terminal's foreground and return its exit code as a shell would."""
    spec = ProcessSpec(
        name="command", argv=tuple(argv), env=env, cwd=Path.cwd(), log=None, stage=FOREGROUND_STAGE, restart=False
    )
    try:
        child = supervisor.start(spec)
    except OSError as error:
        say(f"{argv[0]}: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    while child.alive:
        try:
            supervisor.wait(lambda: not child.alive, seconds=None)
        except StopRequested:
            _pass_on(supervisor, child)
    code = child.exit_code or 0
    return 128 - code if code < 0 else code


def _pass_on(supervisor: Supervisor, child: Child) -> None:
    """Hand a signal to the command; it decides what Ctrl-C means to it, any other ends it."""
    number = supervisor.stop_requested
    supervisor.stop_requested = None
    if number is None:
        return
    if number is not signal.SIGINT:
        supervisor.stop(child)
        supervisor.stop_requested = number
    elif not _in_foreground():
        # With a terminal, Ctrl-C has reached the command already.
        child.popen.send_signal(number)


def _in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _become(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Turn into the command: its exit code and its signals are then its own."""
    try:
        os.execvpe(argv[0], list(argv), dict(env))
    except OSError as error:
        say(f"{argv[0]}: {error.strerror}")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
