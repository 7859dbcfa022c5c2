"""Scenarios of runs and leases: 1, 4, 5, 11 and 17."""

from __future__ import annotations

import datetime as dt
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from uuid import UUID

import pytest
from django.db import OperationalError, connection, transaction

from jobsboard.testing import run_pending
from queues import broker, confirmation, handlers, lifecycle
from queues.accept import enqueue
from queues.confirmation import Applied, Evidence
from queues.contract_fields import default_of
from queues.handlers import Confirmed, JobContext
from queues.histogram import bucket_of
from queues.lifecycle import End, Run, Verdict
from queues.runtime import heartbeat, leases
from queues.runtime.chunk import Runner
from queues.runtime.heartbeat import Heart
from queues.runtime.leases import LeaseTable, Slot
from queues.scheduler.stage import Stage
from queues.states import JobState, Reason
from tests.api.conftest import Api
from tests.concurrency.rivals import commit_then_lie
from tests.factories import (
    TYPE,
    accept,
    claim,
    confirmed,
    evidence,
    failed,
    get,
    lose_lease,
    make_job,
    make_type,
    put_buckets,
    released,
    set_columns,
    sql,
)
from tests.scenarios.conftest import until

S = JobState


# Scenario 1.


@pytest.mark.usefixtures("world")
def test_scenario_01_the_fence_is_not_reused_after_a_release() -> None:
    """Scenario 1, I-09: A claims, drains and releases while its child still runs the body; B claims. Both are attempt
    1, and yet nothing that A still writes, and no token that was given to A's run, changes the job of B."""
    make_type(success="reference")
    [job_id] = accept()
    [a] = claim([job_id], worker="A")
    lifecycle.settle([released(a)])
    [b] = claim([job_id], worker="B")
    assert (a.attempt, b.attempt) == (1, 1), "the attempt was given back"
    assert b.fence > a.fence
    before = get(job_id)
    assert lifecycle.settle([confirmed(a, "by A")]) == {}
    assert lifecycle.settle([failed(a, reason="permanent_error")]) == {}
    assert lifecycle.heartbeat([(a.id, a.fence, 15.0)]) == {}
    assert not lifecycle.set_progress(a.id, a.fence, share=0.5, text="A")
    assert get(job_id).__dict__.items() >= {k: v for k, v in before.__dict__.items() if k != "_state"}.items()
    said = confirmation.by_token(job_id, Evidence(outcome="rejected", run=a.fence))
    assert said.applied is Applied.SUPERSEDED
    assert lifecycle.settle([confirmed(b, "by B")]) == {(job_id, b.fence): S.CONFIRMED}
    assert (evidence(job_id)["ref"], evidence(job_id)["run"]) == ("by B", b.fence)


# Scenario 4.


class Clock:
    """CLOCK_MONOTONIC, as far as the heartbeat knows."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that only the test moves."""
    made = Clock()
    monkeypatch.setattr(heartbeat, "now", lambda: made.now)
    monkeypatch.setattr(leases, "now", lambda: made.now)
    return made


@pytest.fixture
def bodies() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that could be children of a worker."""
    made = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    yield made
    for process in made:
        process.kill()
        process.communicate()


def _in_hand(heart: Heart, run: Run, clock: Clock, *, pid: int) -> Slot:
    known = {offset for _, offset in heart.table.slots()}
    slot = heart.table.take_slot()
    slot.hold(run.id, run.fence, 15, since=clock.now)
    slot.begin(run.id, run.fence, hard_limit=0.0)
    [offset] = {offset for _, offset in heart.table.slots()} - known
    struct.pack_into("<q", heart.table._map, offset, pid)
    return slot


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
def test_scenario_04_a_heartbeat_names_what_a_living_child_has_in_hand(
    clock: Clock, bodies: list[subprocess.Popen[bytes]]
) -> None:
    """Scenario 4, I-14, I-16: of one worker's four runs two are really in hand. The claim whose answer was lost and
    the run of a child that was killed are not extended, although the worker that is named in all rows lives."""
    make_type()
    kept, orphan, lied = accept(3)
    [mine], [childs] = claim([kept]), claim([orphan])
    with pytest.raises(OperationalError), commit_then_lie(), transaction.atomic():
        claim([lied])
    connection.close()
    assert {get(i).worker for i in (kept, orphan, lied)} == {"test/1.1"}
    heart = Heart(LeaseTable(), parent=os.getppid(), node="node", queues=["tier2"], slots=2)
    _in_hand(heart, mine, clock, pid=bodies[0].pid)
    _in_hand(heart, childs, clock, pid=bodies[1].pid)
    bodies[1].kill()
    bodies[1].wait()
    lose_lease(kept, orphan, lied)
    clock.now += 6
    heart.beat()
    assert (get(kept).state, get(kept).fence) == (S.PROCESSING, mine.fence)
    assert (get(orphan).state, get(orphan).crashes) == (S.RETRYING, 1), "the parent reports its child's death at once"
    assert lifecycle.lost(limit=10) == [lied]
    assert lifecycle.rescue([kept, lied]) == {lied: S.RETRYING}


@pytest.mark.usefixtures("world")
def test_scenario_04_a_worker_that_is_cut_off_stops_its_bodies(
    clock: Clock, bodies: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 4, I-08: two thirds of a lease without the database, and the body is stopped, before a successor may
    begin. The default lease leaves room for a start within 20 s."""
    make_type()
    [run] = claim(accept())
    heart = Heart(LeaseTable(), parent=os.getppid(), node="node", queues=["tier2"], slots=2)
    _in_hand(heart, run, clock, pid=bodies[0].pid)

    def no_database(*_: object) -> None:
        raise OperationalError("no route to host")

    monkeypatch.setattr(lifecycle, "heartbeat", no_database)
    clock.now += 9.9
    with pytest.raises(OperationalError):
        heart.beat()
    heart.stop_what_is_lost()
    assert bodies[0].poll() is None
    clock.now += 0.2
    heart.stop_what_is_lost()
    assert bodies[0].wait(10) == -9
    assert default_of("lease_seconds") == 15


# Scenario 5.


class Wire:
    """A broker as the stage sees it: hints are kept for whoever takes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hints: list[list[UUID]] = []
        monkeypatch.setattr(broker, "depth", lambda queue, *, max_age=0.2: 0)
        monkeypatch.setattr(broker, "publish", self._publish)

    def _publish(self, hints: list[tuple[str, list[UUID]]], *, task: str = broker.TASK) -> bool:
        self.hints += [ids for _, ids in hints]
        return True

    def next_round(self) -> list[list[UUID]]:
        """Let a stage without memory publish once, and return the messages."""
        self.hints = []
        Stage().run_once()
        return self.hints


def _fast() -> None:
    """Let the type have a history of quick runs, so that it goes in chunks."""
    put_buckets(TYPE, "run", {bucket_of(0.001): 100})


@pytest.mark.usefixtures("world")
def test_scenario_05_a_poison_job_takes_none_of_its_chunk_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenario 5, I-15: twenty jobs in one chunk, one of which kills whoever runs it. After the first death all go
    alone; the culprit is buried after three lone runs, and no neighbour is, nor runs more than twice."""
    make_type()
    _fast()
    wire = Wire(monkeypatch)
    ids = accept(20)
    poison = ids[7]
    [chunk] = wire.next_round()
    assert set(chunk) == set(ids)
    messages = [chunk]
    while messages:
        for message in messages:
            runs = lifecycle.claim(message, worker="w")
            if poison in {run.id for run in runs}:
                lose_lease(*message)
                lifecycle.rescue(lifecycle.lost(limit=100))
            else:
                lifecycle.settle([confirmed(run) for run in runs])
        messages = wire.next_round()
        assert all(len(message) == 1 for message in messages), "unfinished members are published alone"
    assert (get(poison).state, get(poison).reason, get(poison).crashes) == (S.DEAD, Reason.POISON, 3)
    assert sql("SELECT count(*), max(begun), max(crashes) FROM queues_job WHERE state = 'confirmed'") == [(19, 2, 0)]


@pytest.mark.usefixtures("world")
def test_scenario_05_contracts_that_bury_a_lost_run_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenario 5: with `on_worker_lost = dead` one kill would make false dead letters of a whole chunk."""
    make_type(on_worker_lost="dead")
    _fast()
    ids = accept(5)
    messages = Wire(monkeypatch).next_round()
    assert sorted(messages) == sorted([i] for i in ids)


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
def test_scenario_05_a_slow_member_holds_nobody() -> None:
    """Scenario 5: while the second of three bodies blocks, the first is confirmed and the third given back unspent,
    so that another worker has it done."""
    make_type(success="reference")
    blocked, go = threading.Event(), threading.Event()

    @handlers.handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        if job.payload["n"] == 1:
            blocked.set()
            assert go.wait(30)
        return Confirmed(f"ref-{job.payload['n']}")

    first, slow, third = accept(3)
    runner = Runner(LeaseTable(), node="test")

    def body() -> None:
        try:
            runner.run([first, slow, third])
        finally:
            connection.close()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        assert blocked.wait(10)
        until(lambda: get(first).state == S.CONFIRMED, "the end of a neighbour waits for the slow one")
        until(lambda: get(third).state == S.ACCEPTED and get(third).fence, "the last one is kept waiting")
        assert (get(third).attempt, get(third).begun, get(slow).state) == (0, 0, S.PROCESSING)
        [run] = claim([third])
        assert (run.attempt, run.begun, run.fence) == (1, 1, 2)
    finally:
        go.set()
        thread.join(20)
    assert get(slow).state == S.CONFIRMED


# Scenario 11.


def _lost(run: Run) -> None:
    lose_lease(run.id)
    lifecycle.rescue([run.id])


ENDS: dict[str, tuple[Callable[[Run], object], JobState]] = {
    "fails": (lambda run: lifecycle.settle([failed(run)]), S.CANCELLED),
    "is released": (lambda run: lifecycle.settle([released(run)]), S.CANCELLED),
    "is lost": (_lost, S.CANCELLED),
    "has evidence": (lambda run: lifecycle.settle([confirmed(run)]), S.CONFIRMED),
}


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("how", ENDS)
def test_scenario_11_a_cancelled_run_ends(how: str, make_api: Callable[..., Api]) -> None:
    """Scenario 11, I-31: asked to stop, the run ends in one of four ways, and each ends the job: no second attempt, no
    limbo. Asked again, before and after, the answer is never an error."""
    end, state = ENDS[how]
    make_type()
    api, [job_id] = make_api(), accept()
    [run] = claim([job_id])
    cancel = partial(api.post, f"/jobs/{job_id}/cancel", {"reason": "not wanted"})
    for _ in range(2):
        answer = cancel()
        assert (answer.status_code, answer.json()["status"]) == (202, "cancel_requested")
        assert answer.json()["effect"] == "possible"
    end(run)
    assert (get(job_id).state, get(job_id).due_at) == (state, None)
    again = cancel()
    if state == S.CANCELLED:
        assert (again.status_code, again.json()["status"], get(job_id).reason) == (200, "cancelled", Reason.PRODUCER)
    else:
        assert (again.status_code, again.json()["code"]) == (409, "not_cancellable")
    assert run_pending() == []


@pytest.mark.usefixtures("world")
def test_scenario_11_a_cancel_says_whether_the_effect_may_be_out(make_api: Callable[..., Api]) -> None:
    """Scenario 11: cancelled while it awaits its proof, the mail may have gone out; before its first run it has not."""
    make_type(success="callback")
    api, [never, sent] = make_api(), accept(2)
    [run] = claim([sent])
    lifecycle.settle([End(id=sent, fence=run.fence, verdict=Verdict.AWAITING, confirm_in=60.0, act_in=60.0)])
    for job_id, effect in ((never, "none"), (sent, "possible")):
        for _ in range(2):
            answer = api.post(f"/jobs/{job_id}/cancel", {"reason": "x"}).json()
            assert (answer["status"], answer["effect"]) == ("cancelled", effect)


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(("on_stale", "state"), [("expire", S.EXPIRED), ("dead", S.DEAD)])
def test_scenario_11_too_old_ends_as_the_contract_says(on_stale: str, state: JobState) -> None:
    """Scenario 11: `accepted` goes to `dead` as well, which the first table of transitions did not have."""
    make_type(on_stale=on_stale)
    [job_id] = accept()
    set_columns(job_id, raw_expires_at="jobs_now() - interval '1 s'")
    assert lifecycle.expire(lifecycle.stale(limit=10)) == {job_id: state}
    assert get(job_id).reason == Reason.STALE


# Scenario 17.

LIMBO = (
    "SELECT id FROM queues_job WHERE state IN ('processing', 'awaiting_confirmation')"
    " AND due_at < jobs_now() - interval '30 s' OR state IN ('accepted', 'retrying', 'awaiting_confirmation')"
    " AND (expires_at < jobs_now() - interval '30 s' OR due_at IS NULL)"
)


@pytest.mark.usefixtures("world")
def test_scenario_17_waiting_for_capacity_is_not_limbo(shift_clock: Callable[[str], None]) -> None:
    """Scenario 17, I-13: an hour of backlog, held or not, is no limbo; a lease that ran out and nobody saw is, and so
    is what nobody expired. One round of the sweeps, and there is none."""
    make_type()
    make_type("held.job", paused=True)
    backlog = accept(50) + accept(50, kind="held.job")
    [lost] = claim(accept())
    old = make_job(raw_expires_at="jobs_now() + interval '1 min'").id
    shift_clock("1 hour")
    assert {i for (i,) in sql(LIMBO)} == {lost.id, old}
    lifecycle.rescue(lifecycle.lost(limit=10))
    lifecycle.expire(lifecycle.stale(limit=10))
    assert sql(LIMBO) == []
    assert {get(i).state for i in backlog} == {S.ACCEPTED}


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("without", ["a worker", "a proof", "an answer of its check"])
def test_scenario_17_every_job_ends_by_its_max_age(without: str) -> None:
    """Scenario 17: a type that nobody runs, a proof that never comes, a check that says "not so far" for ever under
    `check_again`: max age ends each, and the deadline of the proof is not the time of the next check."""
    success = "return" if without == "a worker" else "check"
    make_type(success=success, on_unconfirmed="check_again", confirm_within_seconds=600, check_every_seconds=300)
    asked = []

    @handlers.check(TYPE)
    def check(job: JobContext) -> None:
        asked.append(job.id)
        if without == "an answer of its check":
            raise ConnectionError("cannot find out")

    if without != "a worker":
        handlers.handler(TYPE)(lambda job: Confirmed("r"))
    receipt = enqueue(TYPE, {}, max_age=1800)
    if without == "a worker":
        sql("UPDATE queues_jobtype SET paused = true")
    run_pending()
    job = get(receipt.job_id)
    if without != "a worker":
        assert job.state == S.AWAITING_CONFIRMATION
        assert job.due_at is not None and job.due_at - job.accepted_at < dt.timedelta(minutes=6)
    run_pending(ahead=dt.timedelta(hours=1))
    job = get(receipt.job_id)
    ends = {"a worker": (S.EXPIRED, Reason.STALE)}
    assert (job.state, job.reason) == ends.get(without, (S.DEAD, Reason.UNCONFIRMED))
    if without == "a proof":
        assert len(asked) > 3
    [(age,)] = sql("SELECT extract(epoch FROM settled_at - ready_at)::float8 FROM queues_job")
    assert age < 1860
