"""A chunk's members do not share a fate, and no run keeps its lease after its end."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from django.db import OperationalError, connection

from queues import broker, contracts, handlers, lifecycle
from queues.handlers import Confirmed, JobContext, PermanentError, Rejected, RetryLater
from queues.lifecycle import End, Run, Verdict
from queues.runtime import chunk as module
from queues.runtime import leases
from queues.runtime.chunk import BEGIN_SECONDS, FINISH_SECONDS, Chunk, Runner, write_ends
from queues.runtime.leases import ENTRIES, LeaseTable
from queues.states import JobState, Reason
from tests.factories import TYPE, accept, claim, confirmed, evidence, get, make_type, sql

S = JobState
DEADLINE = 10.0


class Clock:
    """CLOCK_MONOTONIC, as far as the runtime knows."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(leases, "now", lambda: made.now)
    return made


def _run() -> Run:
    return Run(uuid4(), 1, TYPE, 1, 1, 1, "{}", "jb_x", None, 0.0, 0.0, "[]", False, None, 15, uuid4(), None, 0)


def _chunk(n: int, clock: Clock) -> tuple[Chunk, list[Run]]:
    runs = [_run() for _ in range(n)]
    return Chunk(runs, LeaseTable().take_slot(), claimed_at=clock.now), runs


def _end(run: Run) -> End:
    return End(id=run.id, fence=1, verdict=Verdict.FAILED)


def test_members_begin_in_order_until_it_is_too_late(clock: Clock) -> None:
    """Scenario 5: what has not begun 250 ms after the claim does not begin."""
    chunk, runs = _chunk(3, clock)
    assert chunk.begin(draining=False) is runs[0]
    clock.now += BEGIN_SECONDS - 0.01
    assert chunk.begin(draining=False) is runs[1]
    clock.now += 0.02
    assert chunk.begin(draining=False) is None
    assert [(e.id, e.verdict) for e in chunk.take_due(draining=False)] == [(runs[2].id, Verdict.RELEASED)]
    assert chunk.take_all() == []


def test_a_single_job_is_never_too_late(clock: Clock) -> None:
    """It has no neighbour that it could keep waiting."""
    chunk, [run] = _chunk(1, clock)
    clock.now += 10
    assert chunk.take_due(draining=False) == []
    assert chunk.begin(draining=False) is run


def test_a_slow_claim_does_not_release_its_whole_chunk(clock: Clock) -> None:
    """A database under load takes longer than 250 ms for a claim: some member has to run all the same, or claims and
    releases go round for ever and make the load worse."""
    runs = [_run() for _ in range(3)]
    before_the_claim = clock.now
    clock.now += 0.4
    chunk = Chunk(runs, LeaseTable().take_slot(), claimed_at=before_the_claim)
    assert chunk.begin(draining=False) is runs[0]


def test_an_end_waits_fifty_milliseconds_at_most(clock: Clock) -> None:
    """Scenario 5: counted from the oldest that waits."""
    chunk, runs = _chunk(3, clock)
    chunk.end(_end(runs[0]))
    clock.now += FINISH_SECONDS - 0.001
    chunk.end(_end(runs[1]))
    assert chunk.take_due(draining=False) == []
    clock.now += 0.002
    assert [e.id for e in chunk.take_due(draining=False)] == [runs[0].id, runs[1].id]
    assert chunk.take_due(draining=False) == []


def test_draining_releases_what_has_not_begun(clock: Clock) -> None:
    """I-17: at once, while a body runs."""
    chunk, runs = _chunk(3, clock)
    assert chunk.begin(draining=False) is runs[0]
    assert chunk.begin(draining=True) is None
    assert [e.id for e in chunk.take_due(draining=True)] == [runs[1].id, runs[2].id]


# With a database that commits: the finisher has a connection of its own.


@pytest.fixture
def kind(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A job type whose handler is the test's; the finisher gives its connection back after each write."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    real = module.write_ends

    def write(ends: Any, *, give_up_at: float) -> Any:
        try:
            return real(ends, give_up_at=give_up_at)
        finally:
            if threading.current_thread().name == "finisher":
                connection.close()

    monkeypatch.setattr(module, "write_ends", write)
    make_type(backoff="fixed", backoff_base_seconds=1.0)
    contracts.all_current()
    yield
    handlers._handlers.pop(TYPE, None)


@pytest.fixture
def runner(kind: None) -> Runner:
    return Runner(LeaseTable(), node="test")


def _until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        threading.Event().wait(0.01)


def _states() -> list[str]:
    return [state for (state,) in sql("SELECT state FROM queues_job ORDER BY id")]


@pytest.mark.concurrency
def test_a_chunk_runs(runner: Runner) -> None:
    """Claimed, run, confirmed; nothing is in hand afterwards; a second hint finds nothing."""
    seen: list[JobContext] = []

    @handlers.handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        seen.append(job)
        return Confirmed(f"ref-{job.payload['n']}", result={"n": job.payload["n"]})

    ids = accept(5)
    assert runner.run(ids) == 5
    assert _states() == ["confirmed"] * 5
    assert [(j.attempt, j.run, j.maybe_duplicate, j.payload) for j in seen] == [
        (1, 1, False, {"n": n}) for n in range(5)
    ]
    assert list(runner.table.held()) == []
    assert runner.run(ids) == 0
    assert evidence(ids[3])["ref"] == "ref-3"


@pytest.mark.concurrency
def test_a_blocking_body_holds_nobody(runner: Runner) -> None:
    """Scenario 5: while one body blocks, its elder neighbour is finished and its younger ones are released."""

    def states_from_outside() -> list[str]:
        try:
            return _states()
        finally:
            pass

    @handlers.handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        if job.payload["n"] == 1:
            _until(lambda: states_from_outside() == ["confirmed", "processing", "accepted", "accepted"])
            # Its slot is given back after the commit that is seen from outside.
            _until(lambda: [h.id for h in runner.table.held()] == [job.id])
        return Confirmed("r")

    ids = accept(4)
    assert runner.run(ids) == 2
    assert _states() == ["confirmed", "confirmed", "accepted", "accepted"]
    assert {(get(i).attempt, get(i).begun, get(i).fence) for i in ids[2:]} == {(0, 0, 1)}


@pytest.mark.concurrency
def test_a_draining_worker_finishes_and_releases(runner: Runner) -> None:
    """I-17: the running body ends, its neighbours go back unspent, a new hint is not taken."""

    @handlers.handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        runner.table.drain()
        return Confirmed("r")

    ids = accept(3)
    assert runner.run(ids) == 1
    assert _states() == ["confirmed", "accepted", "accepted"]
    assert runner.run(ids) == 0


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Moody:
    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


class Mute:
    def __str__(self) -> str:
        raise ValueError("no words")


def _raise(error: BaseException) -> Callable[[JobContext], Any]:
    def work(job: JobContext) -> Any:
        raise error

    return work


def _return(value: Any) -> Callable[[JobContext], Any]:
    return lambda job: value


ENDS: dict[str, tuple[Callable[[JobContext], Any], set[str]]] = {
    "error": (_raise(ValueError("bad")), {"retrying"}),
    "permanent": (_raise(PermanentError("never")), {"dead"}),
    "rejected": (_raise(Rejected("no")), {"dead"}),
    "later": (_raise(RetryLater(5)), {"retrying"}),
    "later, infinitely": (_raise(RetryLater(math.inf)), {"retrying"}),
    "later, not a number": (_raise(RetryLater(math.nan)), {"retrying"}),
    "later, after the sun": (_raise(RetryLater(1e15)), {"retrying"}),
    "later, after the year 9999": (_raise(RetryLater(3e11)), {"retrying"}),
    "exit": (_raise(SystemExit(1)), {"retrying"}),
    "interrupt": (_raise(KeyboardInterrupt()), {"retrying"}),
    "cancelled by asyncio": (_raise(asyncio.CancelledError()), {"retrying"}),
    "generator exit": (_raise(GeneratorExit()), {"retrying"}),
    "error without words": (_raise(Unspeakable()), {"retrying"}),
    "error with NUL": (_raise(ValueError("a\x00b\ud800")), {"retrying"}),
    "long error": (_raise(ValueError("x" * 100_000)), {"retrying"}),
    "deep error": (_raise(RecursionError("deep")), {"retrying"}),
    "nothing": (_return(None), {"confirmed"}),
    "a number": (_return(7), {"confirmed"}),
    "empty reference": (_return(Confirmed("")), {"confirmed"}),
    "reference with NUL": (_return(Confirmed("a\x00\ud800")), {"confirmed"}),
    "long reference": (_return(Confirmed("x" * 100_000)), {"confirmed"}),
    "reference that is a number": (_return(Confirmed(17)), {"confirmed"}),  # type: ignore[arg-type]
    "moody reference": (_return(Confirmed(Moody())), {"confirmed", "retrying"}),  # type: ignore[arg-type]
    "mute reference": (_return(Confirmed(Mute())), {"confirmed", "retrying"}),  # type: ignore[arg-type]
    "result that is no JSON": (_return(Confirmed("r", object())), {"confirmed"}),
    "result with NUL": (_return(Confirmed("r", {"a\x00": "\x00", "b": "\\u0000"})), {"confirmed"}),
    "result not a number": (_return(Confirmed("r", math.nan)), {"confirmed"}),
    "huge result": (_return(Confirmed("r", "x" * 1_000_000)), {"confirmed"}),
    "number beyond floats": (_return(Confirmed("r", 10**400)), {"confirmed"}),
}


@pytest.mark.concurrency
@pytest.mark.parametrize("name", ENDS)
def test_every_end_of_a_body_is_written(name: str, runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    """I-13: whatever a handler returns or raises, its job gets an outcome, its neighbours get theirs, and no lease is
    kept alive for a body that has ended."""
    caplog.set_level(logging.CRITICAL)
    work, wanted = ENDS[name]
    handlers.handler(TYPE)(lambda job: work(job) if job.payload["n"] == 1 else Confirmed("r"))
    accept(3)
    try:
        runner.run([i for (i,) in sql("SELECT id FROM queues_job ORDER BY id")])
    except BaseException as error:  # it must not even leave the runner
        pytest.fail(f"left the runner: {error!r}")
    # What ended more than 50 ms before its neighbours is the finisher's to write.
    _until(lambda: "processing" not in _states() and not list(runner.table.held()))
    first, middle, last = _states()
    assert (first, last) == ("confirmed", "confirmed")
    assert middle in wanted
    due_in = sql("SELECT extract(epoch FROM due_at - finished_at)::float8 FROM queues_job WHERE state = 'retrying'")
    assert all(0 <= seconds <= 367 * 86400 for (seconds,) in due_in)


@pytest.mark.concurrency
def test_an_end_that_cannot_be_stored_does_not_hold_its_neighbours(kind: None) -> None:
    """One bad result: its neighbours are written, and it is, with its evidence and without its data. Bad evidence,
    which nothing that we clean has: left to its lease, and its neighbours are written all the same."""
    good, bad, worse, other = claim(accept(4))
    ends = [
        confirmed(good),
        confirmed(worse, evidence={"kind": "reference", "ref": "\x00"}),
        confirmed(bad, ref="true", result={"n": "\x00"}),
        confirmed(other),
    ]
    written = write_ends(ends, give_up_at=leases.now() + 5)
    assert written == {(run.id, 1) for run in (good, bad, other)}
    assert get(worse.id).state == S.PROCESSING
    assert (evidence(bad.id)["ref"], get(bad.id).result) == ("true", None)


@pytest.mark.concurrency
def test_ends_are_written_again_until_the_lease_is_over(
    kind: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """I-03: a database that does not answer is asked again; after that the lease runs out and the job is rescued."""
    real, answers = lifecycle.settle, iter([OperationalError("gone"), OperationalError("still")])

    def flaky(ends: Any) -> Any:
        if (error := next(answers, None)) is not None:
            raise error
        return real(ends)

    [run] = claim(accept())
    monkeypatch.setattr(lifecycle, "settle", flaky)
    assert write_ends([confirmed(run)], give_up_at=leases.now() + 5) == {(run.id, 1)}
    answers = iter([OperationalError("gone")] * 100)
    assert write_ends([confirmed(run)], give_up_at=leases.now()) == set()


@pytest.mark.concurrency
def test_a_chunk_that_finds_its_slot_full_claims_no_more_than_it_can_hold(runner: Runner) -> None:
    """I-13: ends of the last chunk may still be on their way (a slow database): what is claimed is in hand."""
    handlers.handler(TYPE)(lambda job: Confirmed("r"))
    ids = accept(100)
    slot = runner._slot()
    for _ in range(ENTRIES - 40):
        slot.hold(uuid4(), 1, 15, since=leases.now())
    runner.run(ids)
    assert set(_states()) <= {"confirmed", "accepted"}
    assert "confirmed" in _states()


@pytest.mark.concurrency
def test_a_hint_with_more_ids_than_a_slot_holds(runner: Runner) -> None:
    """A forged message wakes at most what a slot can hold."""
    handlers.handler(TYPE)(lambda job: Confirmed("r"))
    ids = accept(ENTRIES + 10)
    runner.run(ids)
    assert _states().count("processing") == 0


@pytest.mark.concurrency
def test_a_handler_that_leaves_a_transaction_open_loses_it_not_its_job(runner: Runner) -> None:
    """The end of a run is not written into what the handler forgot to commit."""

    def work(job: JobContext) -> Confirmed:
        connection.set_autocommit(False)
        sql("SELECT 1")
        return Confirmed("r")

    handlers.handler(TYPE)(work)
    accept(2)
    runner.run([i for (i,) in sql("SELECT id FROM queues_job ORDER BY id")])
    assert connection.get_autocommit()
    connection.close()
    assert _states() == ["confirmed", "confirmed"]


@pytest.mark.concurrency
def test_an_unknown_handler_waits_for_the_new_release(runner: Runner) -> None:
    """I-24: an old worker does not bury a new type's jobs at the first attempt."""
    [job_id] = accept()
    runner.run([job_id])
    job = get(job_id)
    assert (job.state, job.failures[0]["error_class"]) == (S.RETRYING, "NoHandler")
    sql("UPDATE queues_job SET due_at = jobs_now(), attempt = attempt_limit - 1")
    runner.run([job_id])
    assert (get(job_id).state, get(job_id).reason) == (S.DEAD, Reason.NO_HANDLER)


def test_a_claim_whose_answer_is_lost_is_given_back(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-03: the claim was committed and its answer lost; that costs neither an attempt nor a crash, only a fence."""
    make_type()
    [job] = accept(1)
    claim_for_real = lifecycle.claim

    def commit_then_lie(ids: Any, *, worker: str, checked: Any) -> list[Run]:
        claim_for_real(ids, worker=worker, checked=checked)
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(lifecycle, "claim", commit_then_lie)
    with pytest.raises(OperationalError):
        Runner(LeaseTable(), node="here").run([job])
    row = get(job)
    assert (row.state, row.attempt, row.begun, row.crashes, row.fence) == (S.ACCEPTED, 0, 0, 0, 1)
