"""Time limits, by our own means: Celery's act on a whole message, and its threads know none.

Soft limits are raised inside the body. Hard limits are enforced by the heartbeat process, which no body can starve;
here is only how such a run ends (`overrun`).
"""

import ctypes
import functools
import math
import os
import queue
import random
import signal
import threading
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Final

from queues import contracts, retry
from queues.fingerprint import fingerprint
from queues.handlers import SoftTimeLimitExceeded
from queues.lifecycle import End, RunInfo, Verdict
from queues.runtime import leases
from queues.states import Reason

HARD: Final = "HardTimeLimitExceeded"
UNKNOWN_CONTRACT_SECONDS: Final = 5.0
_NO_LIMIT: Final = nullcontext()

_raise_in_thread = ctypes.pythonapi["PyThreadState_SetAsyncExc"]
_raise_in_thread.argtypes = (ctypes.c_ulong, ctypes.py_object)
_take_back = ctypes.pythonapi["PyThreadState_SetAsyncExc"]
_take_back.argtypes = (ctypes.c_ulong, ctypes.c_void_p)


def soft_limit(seconds: float) -> AbstractContextManager[None]:
    """Raise SoftTimeLimitExceeded once inside the with-block when it takes longer; 0 is no limit.

    On the main thread of a process it interrupts what blocks, too. On other threads it comes when the body is back in
    Python: a call that blocks, `time.sleep` too, is not cut short.
    """
    if seconds <= 0:
        return _NO_LIMIT
    if threading.current_thread() is threading.main_thread():
        return _Alarm(seconds)
    return _Watched(seconds)


def words(kind: str, seconds: float) -> str:
    """Say that a limit passed."""
    return f"the {kind} limit of {seconds:g} s passed"


class _Alarm:
    """The limit of a main thread: a timer of the process."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.armed = False
        self.before: Any = None
        self.delay_before = self.interval_before = 0.0

    def __enter__(self) -> None:
        self.began = leases.now()
        self.before = signal.signal(signal.SIGALRM, self._ring)
        self.armed = True
        self.delay_before, self.interval_before = signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        if self.armed:
            self._disarm()

    def _ring(self, *_: object) -> None:
        if self.armed:
            # First: wherever the exception lands, in our own last lines too, nothing is left to be undone.
            self._disarm()
            raise SoftTimeLimitExceeded(words("soft", self.seconds))

    def _disarm(self) -> None:
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if self.before is None else self.before)
        if self.delay_before:
            # Somebody else's alarm waited meanwhile (a test runner's): late rather than never.
            left = max(self.delay_before - (leases.now() - self.began), 0.001)
            signal.setitimer(signal.ITIMER_REAL, left, self.interval_before)


class _Watcher:
    """Whose limit passes when, and the one thread that looks; a forked process has its own.

    The exception may hit the lines of `arm` and `disarm` too. They use what C code makes whole (a plain lock's `with`,
    a SimpleQueue), never a Condition: hit inside its `__enter__`, it would stay locked for ever.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.armed: dict[int, tuple[float, float]] = {}
        """Thread → when its limit passes, and the limit."""
        self.raised: set[int] = set()
        """Threads that were made to raise in the block that they are in."""
        self.wakes_at = math.inf
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.started = False

    def arm(self, thread: int, seconds: float) -> None:
        with self.lock:
            start, self.started = not self.started, True
        if start:
            threading.Thread(target=self.watch, name="soft-limits", daemon=True).start()
        with self.lock:
            self.raised.discard(thread)
            due = leases.now() + seconds
            self.armed[thread] = (due, seconds)
            too_late = due < self.wakes_at
        if too_late:
            self.wake.put(None)

    def disarm(self, thread: int) -> None:
        with self.lock:
            self.armed.pop(thread, None)
            if thread in self.raised:
                self.raised.discard(thread)
                # Set and perhaps not delivered yet: it must not land in what comes after the block.
                _take_back(thread, None)

    def watch(self) -> None:
        while True:
            with self.lock:
                now = leases.now()
                for thread, (due, seconds) in list(self.armed.items()):
                    if due <= now:
                        del self.armed[thread]
                        self.raised.add(thread)
                        _raise_in_thread(thread, _exception(seconds))
                # A limit that did not pass leaves its wake-up behind; so no body pays for taking it back.
                self.wakes_at = min((due for due, _ in self.armed.values()), default=math.inf)
            try:
                self.wake.get(timeout=None if self.wakes_at == math.inf else max(0.0, self.wakes_at - leases.now()))
            except queue.Empty:
                continue


@functools.cache
def _exception(seconds: float) -> type[SoftTimeLimitExceeded]:
    """Return a class that brings its message along: a thread can be made to raise a class, not an object."""

    class Exceeded(SoftTimeLimitExceeded):
        def __init__(self) -> None:
            super().__init__(words("soft", seconds))

    Exceeded.__name__ = Exceeded.__qualname__ = SoftTimeLimitExceeded.__qualname__
    Exceeded.__module__ = SoftTimeLimitExceeded.__module__
    return Exceeded


_watcher = _Watcher()


def _after_fork() -> None:
    # The thread did not come along, and its lock may have been held.
    global _watcher
    _watcher = _Watcher()


os.register_at_fork(after_in_child=_after_fork)


class _Watched:
    """The limit of any other thread: another thread looks at the clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        self.thread = threading.get_ident()
        _watcher.arm(self.thread, self.seconds)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            _watcher.disarm(self.thread)
        except SoftTimeLimitExceeded:
            # It hit our own lines: the body had ended before. It comes once, so this time nothing interferes.
            _watcher.disarm(self.thread)


def overrun(run: RunInfo, *, limit: float, seconds: float, replaced: bool, not_before: float = 0.0) -> End:
    """Return the end of a run that passed its hard limit: a failed attempt.

    `replaced` says that its process is replaced as a whole. Units: seconds; `not_before` is when its body is surely
    gone, the next attempt must not run beside it.
    """
    reason = Reason.TIME_LIMIT.value if run.attempt >= run.attempt_limit else None
    message = words("hard", limit) + (
        ": the run was given up and its process is being replaced"
        if replaced
        else ": the process that ran it was killed"
    )
    retry_in, on_stale, called = UNKNOWN_CONTRACT_SECONDS, "expire", None
    try:
        contract = contracts.of_version(run.type, run.contract_version)
    except contracts.UnknownContract:
        pass
    else:
        on_stale = contract.on_stale
        # What it waits for at the end of its time is as a rule what it depends on.
        called = "failed" if contract.dependency else None
        retry_in = retry.delay(
            run.attempt,
            backoff=contract.backoff,
            base=contract.backoff_base_seconds,
            cap=contract.backoff_cap_seconds,
            jitter=contract.jitter,
            draw=random.random,
        )
    return End(
        id=run.id,
        fence=run.fence,
        verdict=Verdict.FAILED,
        reason=reason,
        retry_in=max(retry_in, not_before),
        failure={"error_class": HARD, "message": message, "traceback": ""},
        fingerprint=fingerprint(run.type, reason=reason or "", error_class=HARD, message=message, frame=""),
        seconds=seconds,
        on_stale=on_stale,
        unknown=True,
        called=called,
    )
