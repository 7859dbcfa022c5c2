"""What a review proved of the worker's side: open transactions, a hung heart, results with escapes, a hung broker."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import uuid4

import pytest
from django.db import Error, connection, transaction
from kombu import Producer

from queues import broker, contracts, handlers, lifecycle
from queues.handlers import Confirmed, JobContext, PermanentError
from queues.lifecycle import End, Run, Verdict
from queues.runtime import chunk as module
from queues.runtime.chunk import Runner, _without_data
from queues.runtime.context import context_of
from queues.runtime.execute import execute
from queues.runtime.heartbeat import Heart
from queues.runtime.leases import LeaseTable, now
from tests.concurrency.rivals import Rival
from tests.factories import TYPE, accept, claim, confirmed, evidence, get, make_type, sql

DEADLINE = 10.0


def _until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < give_up, what
        threading.Event().wait(0.01)


# A handler's transaction ends with its body.


@pytest.fixture
def runner(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """A runner whose members are never too late, and whose finisher gives its connection back."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    monkeypatch.setattr(module, "BEGIN_SECONDS", DEADLINE)
    real = module.write_ends

    def write(ends: Any, *, give_up_at: float) -> Any:
        try:
            return real(ends, give_up_at=give_up_at)
        finally:
            if threading.current_thread().name == "finisher":
                connection.close()

    monkeypatch.setattr(module, "write_ends", write)
    make_type()
    contracts.all_current()
    yield Runner(LeaseTable(), node="test")
    handlers._handlers.pop(TYPE, None)


def _begin_raw() -> None:
    sql("BEGIN")


def _begin_raw_and_fail() -> None:
    sql("BEGIN")
    with contextlib.suppress(Error):
        sql("SELECT 1 / 0")


def _enter_atomic() -> None:
    transaction.atomic().__enter__()


def _enter_atomic_twice() -> None:
    transaction.atomic().__enter__()
    transaction.atomic().__enter__()


def _enter_atomic_and_close() -> None:
    transaction.atomic().__enter__()
    connection.close()


def _autocommit_off() -> None:
    transaction.set_autocommit(False)


LEAVE_OPEN: Final[dict[str, Callable[[], None]]] = {
    "BEGIN": _begin_raw,
    "BEGIN, then an error": _begin_raw_and_fail,
    "atomic": _enter_atomic,
    "atomic in atomic": _enter_atomic_twice,
    "atomic, then close": _enter_atomic_and_close,
    "autocommit off": _autocommit_off,
}


@pytest.mark.concurrency
@pytest.mark.parametrize("how", LEAVE_OPEN)
def test_an_open_transaction_ends_with_its_body(how: str, runner: Runner) -> None:
    """I-13: the ends of its run and of its neighbours are there for another connection, what it wrote is not, and the
    next chunk of the process works."""

    @handlers.handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        if job.payload["n"] < 2:
            LEAVE_OPEN[how]()
            with contextlib.suppress(Error):
                sql("UPDATE queues_jobtype SET paused = true")
        if job.payload["n"] == 1:
            raise PermanentError("and it raises")
        return Confirmed("r")

    def outside() -> list[str]:
        return Rival(lambda: [s for (s,) in sql("SELECT state FROM queues_job ORDER BY id")]).outcome()

    assert runner.run(accept(3)) == 3
    _until(lambda: outside() == ["confirmed", "dead", "confirmed"], "an end was not committed")
    _until(lambda: not list(runner.table.held()), "a lease is kept for nobody")
    assert not connection.in_atomic_block
    assert connection.get_autocommit()
    again = Rival(lambda: accept(2)).outcome()
    handlers._handlers.pop(TYPE)
    handlers.handler(TYPE)(lambda job: Confirmed("again"))
    assert runner.run(again) == 2
    _until(lambda: outside()[3:] == ["confirmed"] * 2, "the next chunk's ends were not committed")


# The guard does not wait for the beat.


class Hung(Heart):
    """A heart whose database neither answers nor refuses, until the test is over."""

    def __init__(self, table: LeaseTable) -> None:
        super().__init__(table, parent=os.getppid(), node="node", queues=["tier2"], slots=1)
        self.beating = threading.Event()
        self.over = threading.Event()

    def beat(self) -> None:
        """Hang."""
        self.beating.set()
        self.over.wait()

    def stop_what_is_lost(self) -> None:
        """Park the guard's daemon thread after the test; it has no end of its own."""
        if self.over.is_set():
            threading.Event().wait()
        super().stop_what_is_lost()

    def _finished(self) -> bool:
        return self.over.is_set()

    def _sign_off(self) -> None:
        pass


@pytest.fixture
def hung() -> Iterator[Hung]:
    heart = Hung(LeaseTable())
    yield heart
    heart.over.set()


@pytest.fixture
def bodies() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that could be a worker's."""
    made = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield made
    for process in made:
        process.kill()
        process.wait()


def _hold(table: LeaseTable, pid: int, *, since: float) -> None:
    known = {offset for _, offset in table.slots()}
    slot = table.take_slot()
    [offset] = {offset for _, offset in table.slots()} - known
    # The owner first: the guard must not see a lost run of this process.
    struct.pack_into("<q", table._map, offset, pid)
    slot.hold(uuid4(), 1, 15, since=since)


def test_a_hung_beat_does_not_keep_lost_bodies_alive(hung: Hung, bodies: list[subprocess.Popen[bytes]]) -> None:
    """I-08, I-16: a database that does not even refuse holds the beat; what lost its lease is stopped all the same,
    also when that happens later, and what has its lease goes on."""
    lost, living = bodies
    _hold(hung.table, living.pid, since=now() + 1000)
    thread = threading.Thread(target=hung.run, daemon=True)
    thread.start()
    assert hung.beating.wait(DEADLINE)
    _hold(hung.table, lost.pid, since=now() - 10.1)
    assert lost.wait(DEADLINE) == -9
    assert hung.stopped == {lost.pid}
    assert living.poll() is None
    hung.over.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()


# What a handler returned freely does not cost its evidence.


def _ended(outcome: Any) -> tuple[Run, End]:
    handlers.handler(TYPE)(lambda job: outcome)
    try:
        [run] = claim(accept())
        context = context_of(run)
        return run, execute(run, context, begin=lambda limit: None).end
    finally:
        handlers._handlers.pop(TYPE)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("result", "stored"),
    [
        ({"path": "C:\\u0000"}, {"path": "C:\\u0000"}),
        ({"path": "C:\\\\u0000", "\\u0000": 1}, {"path": "C:\\\\u0000", "\\u0000": 1}),
        ({"n": "a\x00b"}, {"n": "a\\x00b"}),
        ({"a\x00": ["\x00", {"\x00": "\\u0000"}]}, {"a\\x00": ["\\x00", {"\\x00": "\\u0000"}]}),
        ("\\u0000\x00", "\\u0000\\x00"),
    ],
)
def test_a_result_with_nul_or_its_escape_is_stored(result: Any, stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-13: what only looks like an escape stays what it is, NUL is written out, the evidence is the handler's."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    make_type()
    run, end = _ended(Confirmed("true-ref", result=result))
    lifecycle.settle([end])
    assert (get(run.id).state, evidence(run.id)["ref"], get(run.id).result) == ("confirmed", "true-ref", stored)


def test_an_end_without_its_data_keeps_its_evidence() -> None:
    """I-13: the proof of what happened outside is not exchanged for a note that something could not be stored."""
    run = Run(uuid4(), 3, TYPE, 1, 1, 1, "{}", "jb_x", None, 0.0, 0.0, "[]", False, None, 15, uuid4(), None, 0)
    end = confirmed(run, ref="true-ref", result={"n": "\x00"})
    kept = _without_data(end, ValueError("bad"))
    assert (kept.id, kept.fence, kept.verdict) == (run.id, 3, Verdict.CONFIRMED)
    assert kept.evidence == {"kind": "reference", "ref": "true-ref", "late": False}
    assert kept.result is None


# A hung broker holds nobody.


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[broker._Channel]:
    """A connection of this test's own."""
    made = broker._Channel()
    monkeypatch.setattr(broker, "_channel", made)
    yield made
    made._close()


class Caller(threading.Thread):
    """Asks for a depth in a thread, so that a call that hangs does not hang the test."""

    def __init__(self, name: str) -> None:
        super().__init__(daemon=True)
        self._queue = name
        self._answer: list[tuple[int | None, float]] = []
        self.start()

    def run(self) -> None:
        """Ask."""
        began = time.monotonic()
        self._answer.append((broker.depth(self._queue, max_age=0.0), time.monotonic() - began))

    def outcome(self) -> tuple[int | None, float]:
        """Return the depth and how long it took."""
        self.join(2)
        assert self._answer, "the caller hangs"
        return self._answer[0]


def test_a_broker_call_that_hangs_holds_nobody(channel: broker._Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-42: a resolver takes no time limit. Callers return, leave the broker alone, and find it again later."""
    answers, hangs = threading.Event(), threading.Event()
    real = channel._ready_producer

    def ready() -> Producer:
        hangs.set()
        answers.wait()
        return real()

    monkeypatch.setattr(channel, "_ready_producer", ready)
    name = f"test-{uuid4().hex}"
    try:
        callers = [Caller(name) for _ in range(5)]
        assert hangs.wait(DEADLINE)
        for caller in callers:
            found, seconds = caller.outcome()
            assert found is None
            assert seconds < 0.5
        assert channel.down
        found, seconds = Caller(name).outcome()
        assert found is None
        assert seconds < 0.1, "it was to be left alone"
        monkeypatch.setattr(channel, "_down_until", 0.0)
        assert broker.publish([(name, [uuid4()])]) is False, "still hung"
        assert channel.down, "and it steps back once more"
    finally:
        answers.set()
    monkeypatch.setattr(broker, "LEAVE_SECONDS", 0.05)
    monkeypatch.setattr(channel, "_down_until", 0.0)
    _until(lambda: broker.depth(name, max_age=0.0) == 0, "it never came back; or sent what was given up long before")
