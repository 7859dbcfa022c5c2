"""Runs a set of processes as one: starts them, restarts those that die, and leaves nothing running.

Not here: which processes (`postgres.py`, `valkey.py`, `processes.py`). It must be used from the main thread: signals
arrive there, and Linux ties PR_SET_PDEATHSIG to the thread that started the child.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from jobsboard.local import kernel, logs
from jobsboard.local.accounts import Account
from jobsboard.local.errors import LocalStackError, StopRequested

#: Restarts wait this long, doubled each time up to the last; a process that lived this long starts afresh.
FIRST_RESTART_SECONDS, LAST_RESTART_SECONDS, STABLE_SECONDS = 1.0, 10.0, 30.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOG_CHECK_SECONDS = 5.0
STDIN = 0
TERMINATE = ((signal.SIGTERM, 20.0),)


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """What a process is, and how it is started and ended."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    #: None: the process shares our terminal and process group, as a command in the foreground does.
    log: Path | None
    #: Lower stages start first and stop last.
    stage: int
    #: Signals to the process itself, each with the seconds it is given; then SIGKILL to its whole group.
    stop: tuple[tuple[signal.Signals, float], ...] = TERMINATE
    #: What the kernel sends when the supervisor dies without a chance to stop anything.
    death_signal: signal.Signals = signal.SIGKILL
    account: Account | None = None
    pass_fds: tuple[int, ...] = ()
    restart: bool = True
    #: Words in the log that say that it serves; "" asks only that it stays alive for a moment.
    ready_words: str = ""


@dataclass(eq=False)
class Child:
    """A process that was started from its spec, perhaps several times."""

    spec: ProcessSpec
    popen: subprocess.Popen[bytes]
    started_at: float
    restart: bool
    failures: int = 0
    restart_at: float | None = None
    exit_code: int | None = None
    log_offset: int = field(default=0)

    @property
    def alive(self) -> bool:
        return self.exit_code is None


def say(text: str) -> None:
    """Tell the person at the terminal; standard output is kept for what a program reads."""
    # The terminal may be gone, and the end must go on without it.
    with contextlib.suppress(OSError):
        print(f"jobsboard.local: {text}", file=sys.stderr, flush=True)


class Supervisor:
    """The processes that belong to this one."""

    def __init__(self, *, on_change: Callable[[], None] = lambda: None) -> None:
        self.children: list[Child] = []
        self.stop_requested: signal.Signals | None = None
        self.stopping = False
        self.on_change = on_change
        self._again = False
        self._logs_checked_at = 0.0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._events = select.poll()
        self._events.register(self._wake_read, select.POLLIN)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Take over the signals that end us, and stop everything at the end of the block, however it ends."""
        kernel.adopt_orphans()
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in STOP_SIGNALS:
            # nohup ignores SIGHUP on purpose; a shell's `&` ignores SIGINT, yet we want to hear it.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_stop)
        if signal.getsignal(signal.SIGHUP) == self._on_stop and os.isatty(STDIN):
            # A terminal that closes tells only the head of its session: `make`, say, which tells nobody.
            self._events.register(STDIN, 0)
        try:
            yield
        finally:
            self.stop_all()

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self._again = self.stop_requested is not None
        self.stop_requested = signal.Signals(number)

    def start(self, spec: ProcessSpec) -> Child:
        """Start a process."""
        child = Child(spec=spec, popen=_spawn(spec), started_at=time.monotonic(), restart=spec.restart)
        self.children.append(child)
        return child

    def run(self, spec: ProcessSpec) -> int:
        """Run a process to its end and return its exit code.

        Raises: StopRequested when we are asked to end first.
        """
        child = self.start(spec)
        self.wait(lambda: not child.alive, seconds=None)
        self.children.remove(child)
        return child.exit_code or 0

    def wait(self, condition: Callable[[], bool], *, seconds: float | None) -> bool:
        """Supervise until the condition holds; False when it does not hold in time.

        Raises: StopRequested.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not condition():
            if self.stop_requested is not None and not self.stopping:
                raise StopRequested
            if deadline is not None and time.monotonic() >= deadline:
                return False
            self.tick()
        return True

    def tick(self, seconds: float = 0.05) -> None:
        """Wait a moment for a signal, then see to processes that ended, restarts that are due, and logs."""
        # Nothing is polled fast once all is up: a signal, also SIGCHLD, ends the wait at once.
        for descriptor, _ in self._events.poll(seconds * 1000):
            if descriptor == STDIN:
                self._events.unregister(STDIN)
                self._on_stop(signal.SIGHUP, None)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 512):
                pass
        self._reap()
        now = time.monotonic()
        if not self.stopping:
            for child in self.children:
                if child.restart_at is not None and now >= child.restart_at:
                    self._restart(child)
        if now - self._logs_checked_at > LOG_CHECK_SECONDS:
            self._logs_checked_at = now
            for child in self.children:
                if child.spec.log is not None and logs.bound(child.spec.log):
                    child.log_offset = 0

    def _reap(self) -> None:
        while True:
            try:
                # WNOWAIT: while the leader is unreaped, its group's number cannot be given to strangers.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            child = next((one for one in self.children if one.alive and one.popen.pid == ended.si_pid), None)
            if child is None:
                # An orphan that came to us because we adopt them.
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(ended.si_pid, 0)
                continue
            _kill_group(child)
            child.exit_code = child.popen.wait()
            self._ended(child)

    def _ended(self, child: Child) -> None:
        if self.stopping or not child.restart:
            return
        now = time.monotonic()
        child.failures = 0 if now - child.started_at >= STABLE_SECONDS else child.failures + 1
        delay = min(LAST_RESTART_SECONDS, FIRST_RESTART_SECONDS * 2.0 ** max(0, child.failures - 1))
        child.restart_at = now + delay
        say(
            f"{child.spec.name} ended ({describe(child.exit_code)}); restarting in {delay:.0f} s; log: {child.spec.log}"
        )

    def _restart(self, child: Child) -> None:
        child.restart_at = None
        child.exit_code = None
        child.started_at = time.monotonic()
        child.log_offset = child.spec.log.stat().st_size if child.spec.log and child.spec.log.exists() else 0
        try:
            child.popen = _spawn(child.spec)
        except OSError as error:
            child.exit_code = 1
            say(f"{child.spec.name}: {error}")
            self._ended(child)
        self.on_change()

    def stop_all(self) -> None:
        """End every process, stage by stage, and whatever they left behind."""
        self.stopping = True
        for stage in sorted({child.spec.stage for child in self.children}, reverse=True):
            self.stop(*(child for child in self.children if child.spec.stage == stage))
        self._end_orphans()

    def stop(self, *children: Child) -> None:
        """End some processes side by side: their own signals first, SIGKILL to the group at last."""
        was_stopping, self.stopping = self.stopping, True
        steps = {child: list(child.spec.stop) for child in children if child.alive}
        deadlines = dict.fromkeys(steps, 0.0)
        while waiting := [child for child in steps if child.alive]:
            for child in waiting:
                if time.monotonic() < deadlines[child]:
                    continue
                if steps[child]:
                    number, seconds = steps[child].pop(0)
                    with contextlib.suppress(ProcessLookupError):
                        child.popen.send_signal(number)
                else:
                    number, seconds = signal.SIGKILL, 1.0
                    _kill_group(child)
                deadlines[child] = time.monotonic() + seconds
            self.tick()
            if self._again:
                # Asked twice: whoever waits is hurried to its next step.
                self._again = False
                deadlines = dict.fromkeys(steps, 0.0)
        self.children = [child for child in self.children if child not in children]
        self.stopping = was_stopping

    def _end_orphans(self, *, seconds: float = 5.0) -> None:
        """Kill what our processes left behind: a grandchild that outlives its parent becomes our child."""
        deadline = time.monotonic() + seconds
        while (orphans := kernel.children_of(os.getpid())) and time.monotonic() < deadline:
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self.tick(0.02)


def require_success(code: int, *, what: str, log: Path) -> None:
    """Raises: LocalStackError with the end of the log when a preparing step failed."""
    if code:
        raise LocalStackError(f"{what} failed ({describe(code)}); the end of {log}:\n{logs.tail(log)}")


def describe(exit_code: int | None) -> str:
    """Put an exit code into words."""
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"


def _spawn(spec: ProcessSpec) -> subprocess.Popen[bytes]:
    supervisor = os.getpid()
    death_signal = spec.death_signal

    def tie_to_supervisor() -> None:
        # Runs after the change of account, which would have cleared it.
        kernel.die_with_parent(death_signal, parent=supervisor)

    account = spec.account
    output = None if spec.log is None else logs.appended(spec.log)
    try:
        return subprocess.Popen(
            spec.argv,
            env=dict(spec.env),
            cwd=spec.cwd,
            stdin=None if spec.log is None else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Its own session: Ctrl-C in the terminal reaches the supervisor alone, which then stops all in order.
            start_new_session=spec.log is not None,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
            pass_fds=spec.pass_fds,
            preexec_fn=tie_to_supervisor,  # noqa: PLW1509 - the supervisor has one thread
        )
    finally:
        if output is not None:
            os.close(output)


def _kill_group(child: Child) -> None:
    if child.spec.log is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.popen.pid, signal.SIGKILL)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.popen.pid, signal.SIGKILL)
