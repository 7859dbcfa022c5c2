"""Runs a command against servers: those of the running stack, those of this checkout for its time, or its very own.

Not here: `up` and `demo` (`serve.py`).
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobsboard.local import layout, leftovers, logs, stack
from jobsboard.local.errors import LocalStackError, StopRequested, UsageError
from jobsboard.local.layout import CHECKOUT, Layout
from jobsboard.local.processes import MANAGE
from jobsboard.local.supervise import Child, ProcessSpec, Supervisor, say

#: How long a joined command waits for a stack that is just coming up or going down.
JOIN_SECONDS = 90.0
FOREGROUND_STAGE = 5
DEFAULT_URL = "http://127.0.0.1:8000"
NICE = "5"
#: So many parts of the tests run at a time: one more than there are processors, since the processes of some wait.
LANES = max(3, (os.cpu_count() or 1) + 1)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of all tests, which a pytest of their own runs on servers of their own."""

    arguments: tuple[str, ...]
    #: Tests that compute leave the processors to those that start processes and give them a time to act in.
    computes: bool = False


_STARTS, _COMPUTES = ("-m", "acceptance or browser"), ("-m", "not (acceptance or browser)")
_LONG = tuple(
    f"tests/acceptance/test_{name}.py"
    for name in ("chaos", "deaf", "fuzz_api", "mixed_release", "plan_kill", "rolling")
)
#: Where else tests start processes or a browser.
_ELSEWHERE = ("tests/browser", "tests/faults", "tests/local", "tests/scenarios")
_CORE = ("tests/faults", "tests/model", "tests/queues", "tests/scenarios")
_FAST = (
    Part(arguments=(*_COMPUTES, *_CORE), computes=True),
    Part(arguments=(*_COMPUTES, *(f"--ignore={path}" for path in _CORE)), computes=True),
)
#: On an older server too: not the searches and the fault stories, which play the same statements with other news.
OLDER_PARTS = (Part(arguments=(*_COMPUTES, "tests/queues", "tests/scenarios"), computes=True), _FAST[1])
#: All tests, in parts of like length; what has to wait for a free lane comes last.
PARTS = (
    Part(arguments=(*_STARTS, *_LONG)),
    Part(arguments=(*_STARTS, "tests/acceptance", *(f"--ignore={path}" for path in _LONG))),
    _FAST[0],
    Part(arguments=(*_STARTS, *_ELSEWHERE)),
    _FAST[1],
)


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """What an isolated run takes from outside."""

    programs: Path | None = None
    fsync: bool = True
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
                fsync=isolation.fsync,
                database_url=isolation.database_url,
                broker_url=isolation.broker_url,
            )
            env = stack.environment(servers, secrets, stack=home, url=DEFAULT_URL, foreign=False)
            return _foreground(supervisor, argv, env)
        except StopRequested:
            return 128 + (supervisor.stop_requested or 0)


def run_tests(arguments: Sequence[str], *, isolation: Isolation, older: Path | None = None) -> int:
    """Run pytest against servers of its own, and say loudly what it did not run.

    All tests run in PARTS, each on servers of its own; servers of the user's are not shared. `older` has the programs
    of another PostgreSQL: those fast tests that use a database run on it once more.

    Raises: UsageError when `older` comes with arguments.
    """
    if not (arguments or isolation.database_url or isolation.broker_url):
        return _run_parts(isolation, older=older)
    if older is not None:
        raise UsageError("--older-pg-bin is for all tests, on servers of their own")
    return _run_pytest(arguments, isolation=isolation)


def _run_parts(isolation: Isolation, *, older: Path | None) -> int:
    supervisor = Supervisor()
    folder = Path(tempfile.mkdtemp(prefix="jobsboard-parts-"))
    waiting = [_part_spec(part, programs=isolation.programs) for part in PARTS]
    if older is not None:
        waiting += [_part_spec(part, "--with-database", programs=older) for part in OLDER_PARTS]
    count, running, codes = len(waiting), list[Child](), list[int]()
    say(f"all tests in {count} parts, {min(count, LANES)} at a time; each tells at its end what it saw")
    try:
        with supervisor.signals():
            while waiting or running:
                while waiting and len(running) < LANES:
                    spec = waiting.pop(0)
                    running.append(supervisor.start(replace(spec, log=folder / f"{count - len(waiting)}.log")))
                supervisor.wait(lambda: not all(part.alive for part in running), seconds=None)
                for part in [one for one in running if not one.alive]:
                    running.remove(part)
                    codes.append(_part_ended(part))
                    say(f"{len(codes)} of {count} parts of the tests have ended")
        # By its absolute value: a part that was killed has failed.
        return max(map(abs, codes))
    except StopRequested:
        for part in running:
            _part_ended(part)
        return 128 + (supervisor.stop_requested or 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _part_spec(part: Part, *more: str, programs: Path | None) -> ProcessSpec:
    own = ["nice", "-n", NICE] if part.computes else []
    own += [sys.executable, "-m", "jobsboard.local", "test"]
    own += ["--no-fsync"] if part.computes else []
    own += [] if programs is None else ["--pg-bin", str(programs)]
    return ProcessSpec(
        name="tests",
        argv=(*own, *part.arguments, *more),
        env=dict(os.environ),
        cwd=Path.cwd(),
        log=None,
        stage=FOREGROUND_STAGE,
        restart=False,
        death_signal=signal.SIGTERM,
    )


def _part_ended(part: Child) -> int:
    """Print what a part said, under its command line, and return its exit code."""
    seconds, code = time.monotonic() - part.started_at, part.exit_code or 0
    print(f"\n== {' '.join(part.spec.argv)}: {'passed' if code == 0 else 'FAILED'} ({seconds:.0f} s)", flush=True)
    if part.spec.log is not None:
        print(part.spec.log.read_text(), flush=True)
    return code


def _run_pytest(arguments: Sequence[str], *, isolation: Isolation) -> int:
    folder = Path(tempfile.mkdtemp(prefix="jobsboard-report-"))
    report = folder / "report.xml"
    try:
        argv = [sys.executable, "-m", "pytest", f"--junitxml={report}", *arguments]
        code = run_isolated(argv, isolation=isolation)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        with contextlib.suppress(OSError, ElementTree.ParseError):
            say(f"{summary(report)}; {used.ru_utime + used.ru_stime:.0f} s of processor time, servers included")
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
