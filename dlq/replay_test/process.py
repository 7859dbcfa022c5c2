"""The process around the sandbox: it forks the child, gives it payloads, ends it in time, and starts another."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import tempfile
import time
import warnings
from types import TracebackType
from typing import Final, Self

import msgspec
from django.db import connections

from dlq.replay_test import child, kernel
from dlq.replay_test.child import Candidate, Ready, Seen, Task
from dlq.replay_test.database import SandboxFailed
from dlq.replay_test.touches import Touches

START_SECONDS: Final = 20.0


class Sandbox:
    """A child for many payloads, replaced when it dies."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._touches = Touches()
        self._folder = tempfile.TemporaryDirectory(prefix="replay-test-")
        self._pid: int | None = None
        self._control: socket.socket | None = None
        self._listener: int | None = None
        self.kernel = False
        """Whether the kernel's wall stands."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def run(self, task: Task) -> Seen:
        """Run one payload; whatever it does to its process is told. Raises: SandboxFailed."""
        if self._control is None:
            self._start()
        control = self._control
        if control is None:
            raise SandboxFailed("the sandbox has no process")
        self._touches.clear()
        seen = None
        in_time = True
        with contextlib.suppress(ConnectionError):
            child.send(control, task)
            in_time = self._wait(control, self._candidate.hard_limit)
            seen = child.receive(control, Seen) if in_time else None
        if seen is None:
            # Read first: the kernel's wall may have been touched in its last moment.
            ended = self._end()
            seen = _lost(ended) if in_time else Seen(ended="over_time", error_class="HardTimeLimitExceeded")
        seen = msgspec.structs.replace(seen, touched=self._touches.all())
        if not seen.whole:
            self._end()
        return seen

    def close(self) -> None:
        """End the child and forget what it wrote."""
        self._end()
        self._folder.cleanup()

    def _start(self) -> None:
        # A forked child must not share a session with its parent.
        connections.close_all()
        ours, theirs = socket.socketpair()
        with warnings.catch_warnings():
            # Python 3.12 warns of threads that a handler's module may have started; the child uses none of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            ours.close()
            child.live(theirs, self._candidate, self._touches, self._folder.name)
        theirs.close()
        self._pid, self._control = pid, ours
        ready = child.receive(ours, Ready) if self._wait(ours, START_SECONDS) else None
        if ready is None:
            raise SandboxFailed(f"its process ended, or did not answer in {START_SECONDS:.0f} s")
        if ready.problem:
            raise SandboxFailed(ready.problem)
        self.kernel = ready.kernel
        if ready.kernel:
            _, found, _, _ = socket.recv_fds(ours, 1, 1)
            self._listener = found[0]

    def _wait(self, control: socket.socket, seconds: float) -> bool:
        """Wait for the child's next word, answering the kernel meanwhile; False when the time is up."""
        until = time.monotonic() + seconds
        poll = select.poll()
        poll.register(control, select.POLLIN)
        if self._listener is not None:
            poll.register(self._listener, select.POLLIN)
        while (left := until - time.monotonic()) > 0:
            ready = dict(poll.poll(left * 1000))
            if self._listener is not None and ready.get(self._listener, 0) & select.POLLIN:
                tried = kernel.answer(self._listener)
                if tried is not None:
                    self._touches.add(tried)
            elif self._listener is not None and self._listener in ready:
                # All that were behind that wall have gone.
                poll.unregister(self._listener)
            if control.fileno() in ready:
                return True
        return False

    def _end(self) -> int:
        """Kill the child with all that it started; returns its status as `os.waitstatus_to_exitcode` says it."""
        pid, self._pid = self._pid, None
        control, self._control = self._control, None
        listener, self._listener = self._listener, None
        if control is not None:
            control.close()
        if listener is not None:
            os.close(listener)
        if pid is None:
            return 0
        status = self._reap(pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        if status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)

    @staticmethod
    def _reap(pid: int) -> int | None:
        """Return the status of a child that has ended by itself, or ends within a moment."""
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status
            select.select([], [], [], 0.002)
        return None


def _lost(code: int) -> Seen:
    said = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}"
    return Seen(ended="crashed", error_class="WorkerLost", message=said)
