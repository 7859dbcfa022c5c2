"""Soft limits on a main thread and on any other, and how a run ends that passed its hard limit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import uuid4

import pytest

from queues.handlers import SoftTimeLimitExceeded
from queues.lifecycle import RunInfo, Verdict
from queues.runtime import limits
from queues.runtime.limits import overrun, soft_limit
from queues.states import Reason
from tests.factories import TYPE, make_type

LIMIT: Final = 0.1
DEADLINE: Final = 20.0


def _in_main(body: Callable[[], Any]) -> Any:
    return body()


def _in_thread(body: Callable[[], Any]) -> Any:
    """Run a body in a thread of its own; what it raises, is raised here."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(body())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    [found] = outcome
    if isinstance(found, BaseException):
        raise found
    return found


everywhere = pytest.mark.parametrize("place", [_in_main, _in_thread])


def _spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@everywhere
def test_a_body_that_takes_too_long_is_interrupted(place: Callable[..., Any]) -> None:
    """Soon after the limit, by an exception that says which limit it was and has the class that handlers know."""
    began = time.monotonic()

    def body() -> None:
        with soft_limit(LIMIT):
            _spin(DEADLINE)

    with pytest.raises(SoftTimeLimitExceeded) as raised:
        place(body)
    assert LIMIT <= time.monotonic() - began < LIMIT + 2
    assert str(raised.value) == "the soft limit of 0.1 s passed"
    kind = type(raised.value)
    assert (kind.__module__, kind.__qualname__) == ("queues.handlers", "SoftTimeLimitExceeded")


@everywhere
def test_it_comes_once_and_a_handler_may_clean_up(place: Callable[..., Any]) -> None:
    """Caught inside, the body goes on and returns; no second one interrupts its cleaning up."""

    def body() -> str:
        with soft_limit(LIMIT):
            try:
                _spin(DEADLINE)
            except SoftTimeLimitExceeded as error:
                _spin(3 * LIMIT)
                return str(error)
        return "not interrupted"

    assert place(body) == "the soft limit of 0.1 s passed"


@everywhere
def test_a_body_that_ends_in_time_is_left_alone(place: Callable[..., Any]) -> None:
    """Nothing comes when the limit would have passed, nor for the next body."""

    def body() -> str:
        with soft_limit(LIMIT):
            pass
        _spin(2 * LIMIT)
        with soft_limit(DEADLINE):
            _spin(2 * LIMIT)
        return "done"

    assert place(body) == "done"


@everywhere
def test_an_exception_of_the_body_comes_through(place: Callable[..., Any]) -> None:
    """And disarms the limit."""

    def body() -> None:
        try:
            with soft_limit(LIMIT):
                raise KeyError("mine")
        finally:
            _spin(2 * LIMIT)

    with pytest.raises(KeyError):
        place(body)


@everywhere
def test_no_limit_costs_nothing(place: Callable[..., Any]) -> None:
    """0 is none: no timer, no thread, the same object every time."""

    handler = signal.getsignal(signal.SIGALRM)

    def body() -> None:
        assert soft_limit(0) is soft_limit(0.0)
        with soft_limit(0):
            assert signal.getsignal(signal.SIGALRM) is handler
            assert limits._watcher.armed == {}

    place(body)


def test_on_a_main_thread_it_interrupts_what_blocks() -> None:
    """A sleep, a lock, and a regular expression that would take years: all of them let signals in."""
    waits: list[Callable[[], object]] = [
        lambda: time.sleep(DEADLINE),
        lambda: threading.Event().wait(DEADLINE),
        lambda: re.match(r"(a+)+$", "a" * 40 + "b"),
    ]
    for wait in waits:
        began = time.monotonic()
        with pytest.raises(SoftTimeLimitExceeded), soft_limit(LIMIT):
            wait()
        assert time.monotonic() - began < LIMIT + 2


def test_in_a_thread_it_waits_for_what_blocks() -> None:
    """It comes when the call returns, still inside the block."""
    began = time.monotonic()

    def body() -> None:
        with soft_limit(LIMIT):
            time.sleep(5 * LIMIT)
            _spin(DEADLINE)

    with pytest.raises(SoftTimeLimitExceeded):
        _in_thread(body)
    assert 5 * LIMIT <= time.monotonic() - began < 5 * LIMIT + 2


def test_a_main_threads_alarm_and_its_handler_come_back() -> None:
    """Somebody else's alarm (a test runner's) is neither lost nor taken for ours."""
    rung: list[int] = []
    handler_before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    timer_before = signal.setitimer(signal.ITIMER_REAL, 2 * LIMIT)
    try:
        ours = signal.getsignal(signal.SIGALRM)
        with soft_limit(DEADLINE):
            pass
        assert signal.getsignal(signal.SIGALRM) is ours
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 2 * LIMIT
        with pytest.raises(SoftTimeLimitExceeded), soft_limit(LIMIT):
            _spin(DEADLINE)
        assert signal.getsignal(signal.SIGALRM) is ours
        _spin(3 * LIMIT)
        assert rung == [1]
    finally:
        signal.signal(signal.SIGALRM, handler_before)
        signal.setitimer(signal.ITIMER_REAL, *timer_before)


@pytest.mark.parametrize("threads", [0, 1, 8])
def test_it_never_lands_behind_the_block(threads: int) -> None:
    """Bodies that end at the very moment of their limit: it hits them or it does not, and never what comes after.
    No threads: on the main one."""
    landed: list[str] = []
    hits = misses = 0
    lock = threading.Lock()

    def run() -> None:
        nonlocal hits, misses
        try:
            for n in range(400):
                seconds = 0.0005 + (n % 20) * 0.0001
                hit = False
                try:
                    with soft_limit(seconds):
                        _spin(0.0015)
                except SoftTimeLimitExceeded:
                    hit = True
                # From here on it would be an error of the runner's.
                _spin(0.0005)
                with lock:
                    hits, misses = hits + hit, misses + (not hit)
        except BaseException as error:
            landed.append(repr(error))

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    if not threads:
        run()
    assert landed == []
    assert hits + misses == 400 * max(threads, 1)
    assert hits > 0
    assert limits._watcher.armed == {}


FORKS: Final = """
import os, sys, threading, time
from queues.handlers import SoftTimeLimitExceeded
from queues.runtime.limits import soft_limit

def body():
    with soft_limit(0.2):
        until = time.monotonic() + 10
        while time.monotonic() < until:
            pass

def interrupted():
    said = []
    def run():
        try:
            body()
        except SoftTimeLimitExceeded:
            said.append(1)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return said == [1]

assert interrupted()
child = os.fork()
if child == 0:
    os._exit(0 if interrupted() else 1)
assert os.waitpid(child, 0)[1] == 0
assert interrupted()
"""


def test_a_forked_process_has_a_watcher_of_its_own() -> None:
    """The one of its parent did not come along."""
    program = "import django; django.setup()\n" + FORKS
    environment = {**os.environ, "PYTHONPATH": ".", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


@pytest.fixture
def kind(db: None) -> Iterator[None]:
    make_type(backoff="fixed", backoff_base_seconds=7, max_attempts=3, on_stale="dead")
    yield


def _info(**values: Any) -> RunInfo:
    known = {"id": uuid4(), "fence": 4, "type": TYPE, "contract_version": 1, "attempt": 1, "attempt_limit": 3}
    return RunInfo(**{**known, **values})


def test_a_run_past_its_hard_limit_has_failed(kind: None) -> None:
    """It costs an attempt and is tried again by its contract; after the last attempt it is dead, `time_limit`."""
    run = _info()
    end = overrun(run, limit=60, seconds=60.2, replaced=False)
    assert (end.id, end.fence, end.verdict, end.reason, end.retry_in) == (run.id, 4, Verdict.FAILED, None, 7)
    assert (end.on_stale, end.seconds) == ("dead", 60.2)
    assert end.failure == {
        "error_class": "HardTimeLimitExceeded",
        "message": "the hard limit of 60 s passed: the process that ran it was killed",
        "traceback": "",
    }
    assert end.fingerprint == overrun(_info(), limit=60, seconds=60.9, replaced=False).fingerprint
    assert overrun(run, limit=60, seconds=61, replaced=True, not_before=10.5).retry_in == 10.5
    last = overrun(_info(attempt=3), limit=60, seconds=60.2, replaced=False)
    assert last.reason == Reason.TIME_LIMIT


def test_a_run_without_its_contract_ends_all_the_same(kind: None) -> None:
    """Its type was deleted."""
    end = overrun(_info(type="gone"), limit=60, seconds=60.2, replaced=False)
    assert (end.verdict, end.retry_in, end.on_stale) == (Verdict.FAILED, limits.UNKNOWN_CONTRACT_SECONDS, "expire")
