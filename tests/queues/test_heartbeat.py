"""What the process beside each worker does in one beat."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from uuid import UUID

import pytest
from django.db import OperationalError

from queues import broker, contracts, lifecycle, outcomes
from queues.lifecycle import Run
from queues.models import JobType, WorkerProcess
from queues.runtime import heartbeat, leases
from queues.runtime.heartbeat import Heart
from queues.runtime.leases import LeaseTable, Slot
from queues.states import JobState, Reason
from tests.factories import accept, claim, confirmed, get, lose_lease, make_job, make_type, set_columns, sql

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def kind(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    make_type()


class Clock:
    """CLOCK_MONOTONIC, as far as the heartbeat knows."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(heartbeat, "now", lambda: made.now)
    monkeypatch.setattr(leases, "now", lambda: made.now)
    return made


@pytest.fixture
def heart(clock: Clock) -> Heart:
    return Heart(LeaseTable(), parent=os.getppid(), node="node", queues=["tier2"], slots=2)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that could be a body's."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def hold(
    heart: Heart, run: Run, clock: Clock, *, pid: int | None = None, begun: bool = True, hard_limit: float = 0
) -> Slot:
    """Note a run in hand of this process or another one."""
    slot = heart.table.take_slot()
    slot.hold(run.id, run.fence, 15, since=clock.now)
    if begun:
        slot.begin(run.id, run.fence, hard_limit=hard_limit)
    if pid is not None:
        [offset] = [o for p, o in heart.table.slots() if p == os.getpid()]
        struct.pack_into("<q", heart.table._map, offset, pid)
    return slot


def _lapsed(job_id: UUID) -> bool:
    return lifecycle.lost(limit=10) == [job_id]


def test_only_old_leases_are_extended(heart: Heart, clock: Clock) -> None:
    """Scenario 4: a short run costs no beat; one older than a third of its lease does."""
    [run] = claim(accept())
    hold(heart, run, clock)
    lose_lease(run.id)
    clock.now += 4.9
    heart.beat()
    assert _lapsed(run.id)
    clock.now += 0.2
    heart.beat()
    assert not _lapsed(run.id)
    [held] = heart.table.held()
    assert held.renewed_at == clock.now


def test_a_cancel_reaches_the_body(heart: Heart, clock: Clock) -> None:
    """I-31: within a third of a lease, the body sees that somebody asked it to stop."""
    [run] = claim(accept())
    slot = hold(heart, run, clock)
    lifecycle.cancel([run.id], reason=Reason.OPERATOR)
    clock.now += 6
    heart.beat()
    assert slot.told_to_stop(run.id, run.fence)


def test_a_superseded_run_is_told_to_stop(heart: Heart, clock: Clock) -> None:
    """I-09: its successor's lease is not touched."""
    [run] = claim(accept())
    slot = hold(heart, run, clock)
    lose_lease(run.id)
    lifecycle.rescue([run.id])
    [successor] = claim([run.id])
    before = get(run.id).due_at
    clock.now += 6
    heart.beat()
    assert slot.told_to_stop(run.id, run.fence)
    assert (get(run.id).due_at, get(run.id).fence) == (before, successor.fence)


def test_the_death_of_a_body_is_reported_at_once(heart: Heart, clock: Clock, child: subprocess.Popen[bytes]) -> None:
    """I-14: its runs are due again in the same beat, and its slot is free; a neighbour's runs go on."""
    dead, living = claim(accept(2))
    hold(heart, dead, clock, pid=child.pid)
    hold(heart, living, clock)
    child.kill()
    child.wait()
    heart.beat()
    assert (get(dead.id).state, get(living.id).state) == (JobState.RETRYING, JobState.PROCESSING)
    assert [h.id for h in heart.table.held()] == [living.id]


def test_a_body_that_dies_during_the_beat_is_reported_by_the_next(
    heart: Heart, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-14: its slot is not given away before its runs were reported."""
    [run] = claim(accept())
    hold(heart, run, clock, pid=2**22)
    looks = iter([True])
    monkeypatch.setattr(heartbeat, "alive", lambda pid: next(looks, False))
    heart.beat()
    heart.beat()
    assert get(run.id).state == JobState.RETRYING


def test_what_never_began_is_given_back(heart: Heart, clock: Clock, child: subprocess.Popen[bytes]) -> None:
    """Scenario 5: the process of a chunk dies in one member's body; one that ended and is not written is lost, one that
    never began is not, and no later run of it is told that it may be a duplicate."""
    running, ended, unbegun = claim(accept(3))
    slot = heart.table.take_slot()
    for run in (running, ended, unbegun):
        slot.hold(run.id, run.fence, 15, since=clock.now)
    for run in (ended, running):
        slot.begin(run.id, run.fence, hard_limit=0)
    slot.ended(ended.id, ended.fence)
    [offset] = [o for _, o in heart.table.slots()]
    struct.pack_into("<q", heart.table._map, offset, child.pid)
    child.kill()
    child.wait()
    heart.beat()
    for run in (running, ended):
        job = get(run.id)
        assert (job.state, job.attempt, job.begun, job.failures[0]["error_class"]) == (
            JobState.RETRYING,
            0,
            1,
            "WorkerLost",
        )
    job = get(unbegun.id)
    assert (job.state, job.attempt, job.begun, job.alone, job.failures) == (JobState.ACCEPTED, 0, 0, False, [])
    assert list(heart.table.held()) == []


def test_a_death_is_reported_again_when_the_database_did_not_answer(
    heart: Heart, clock: Clock, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-16: the slot is kept until the report went through."""
    [run] = claim(accept())
    hold(heart, run, clock, pid=child.pid)
    child.kill()
    child.wait()

    def fail(*_: object, **__: object) -> None:
        raise OperationalError("gone")

    with monkeypatch.context() as broken:
        broken.setattr(lifecycle, "rescue", fail)
        with pytest.raises(OperationalError):
            heart.beat()
    heart.beat()
    assert get(run.id).state == JobState.RETRYING


def test_a_body_that_lost_its_lease_is_stopped(heart: Heart, clock: Clock, child: subprocess.Popen[bytes]) -> None:
    """I-08: not renewed for two thirds of a lease: the process is killed before its successor may begin."""
    [run] = claim(accept())
    hold(heart, run, clock, pid=child.pid)
    clock.now += 9.9
    heart.stop_what_is_lost()
    assert child.poll() is None
    clock.now += 0.2
    heart.stop_what_is_lost()
    assert child.wait(10) == -9
    heart.stop_what_is_lost()


def test_an_end_that_waits_to_be_written_stops_nobody(
    heart: Heart, clock: Clock, child: subprocess.Popen[bytes]
) -> None:
    """I-08: a body that has ended cannot harm its successor, and its process may serve others."""
    [run] = claim(accept())
    slot = hold(heart, run, clock, pid=child.pid)
    slot.ended(run.id, run.fence)
    clock.now += 14
    heart.stop_what_is_lost()
    assert child.poll() is None


def test_one_that_starts_late_renews_before_it_stops_anybody(heart: Heart, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-14: a lease that a new heartbeat process finds old may still be good; the database knows."""
    looked = threading.Event()

    def look() -> None:
        looked.set()
        threading.Event().wait()

    monkeypatch.setattr(heart, "stop_what_is_lost", look)
    threading.Thread(target=heart._guard, daemon=True).start()
    assert not looked.wait(heartbeat.FIRST_BEAT_SECONDS / 10)
    heart.beaten.set()
    assert looked.wait(10)


@pytest.mark.parametrize(("draining", "blamed"), [(None, True), (1.0, True), (10.0, False)])
def test_who_is_killed_while_the_worker_stops_is_not_to_blame(
    draining: float | None, blamed: bool, heart: Heart, clock: Clock, child: subprocess.Popen[bytes]
) -> None:
    """I-15: a supervisor that does not wait any longer is no crash of the job's; one that ends its own worker is."""
    [run] = claim(accept())
    if draining is not None:
        heart.table.drain()
        clock.now += draining
        heart.table.drain()
    hold(heart, run, clock, pid=child.pid)
    child.kill()
    child.wait(10)
    heart.beat()
    job = get(run.id)
    assert (job.state, job.attempt, job.crashes) == (JobState.RETRYING, 0, int(blamed))


# Hard limits.


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[str]]:
    """A process that could be a worker whose threads run bodies: SIGTERM does not end it, it only says so."""
    program = "import signal\nsignal.signal(15, lambda *_: print('term', flush=True))\nprint('up', flush=True)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program + "while True: signal.pause()"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.communicate()


def _waits(job_id: UUID) -> float:
    """Return the seconds between the end of a run and the next attempt."""
    [(seconds,)] = sql("SELECT extract(epoch FROM due_at - finished_at)::float8 FROM queues_job WHERE id = %s", job_id)
    return float(seconds)


def test_a_child_past_a_hard_limit_is_killed(heart: Heart, clock: Clock, child: subprocess.Popen[bytes]) -> None:
    """I-29: its run has failed by the contract's backoff, its neighbours are given back or lost without blame."""
    JobType.objects.update(backoff="fixed", backoff_base_seconds=100)
    contracts.forget()
    [run] = claim(accept())
    slot = hold(heart, run, clock, pid=child.pid, hard_limit=5)
    ended, unbegun = claim(accept(2))
    for other in (ended, unbegun):
        slot.hold(other.id, other.fence, 15, since=clock.now)
    slot.begin(ended.id, ended.fence, hard_limit=5)
    slot.ended(ended.id, ended.fence)
    clock.now += 4.9
    heart.stop_what_is_overdue()
    heart.beat()
    assert child.poll() is None
    clock.now += 0.2
    heart.stop_what_is_overdue()
    assert child.wait(10) == -9
    heart.beat()
    job = get(run.id)
    [failure] = job.failures
    assert (job.state, job.attempt, job.crashes, job.reason) == (JobState.RETRYING, 1, 0, None)
    assert _waits(run.id) == pytest.approx(100, abs=1)
    assert failure["error_class"] == "HardTimeLimitExceeded"
    assert failure["message"] == "the hard limit of 5 s passed: the process that ran it was killed"
    assert job.fingerprint
    assert (get(ended.id).state, get(ended.id).crashes, get(ended.id).begun) == (JobState.RETRYING, 0, 1)
    assert (get(unbegun.id).state, get(unbegun.id).begun) == (JobState.ACCEPTED, 0)
    assert list(heart.table.slots()) == []
    assert heart.trouble == ""


def test_the_last_attempt_past_a_hard_limit_is_a_dead_letter(
    heart: Heart, clock: Clock, child: subprocess.Popen[bytes]
) -> None:
    """Dead, `time_limit`."""
    [run] = claim(accept())
    set_columns(run.id, attempt=5, attempt_limit=5)
    hold(heart, run, clock, pid=child.pid, hard_limit=5)
    clock.now += 5.1
    heart.stop_what_is_overdue()
    child.wait(10)
    heart.beat()
    job = get(run.id)
    assert (job.state, job.reason, job.attempt, job.resolution) == (JobState.DEAD, Reason.TIME_LIMIT, 5, "open")


def test_a_check_that_hangs_is_stopped_and_its_job_left_as_it_is(
    heart: Heart, clock: Clock, child: subprocess.Popen[bytes]
) -> None:
    """An awaiting job has no lease and no run to fail: its check is claimed again when it is due."""
    job = make_job(JobState.AWAITING_CONFIRMATION, fence=3)
    slot = heart.table.take_slot()
    slot.hold(job.id, job.fence, 1e9, since=clock.now)
    slot.begin(job.id, job.fence, hard_limit=60)
    [(_, offset)] = heart.table.slots()
    struct.pack_into("<q", heart.table._map, offset, child.pid)
    clock.now += 59
    heart.stop_what_is_lost()
    heart.stop_what_is_overdue()
    heart.beat()
    assert child.poll() is None
    clock.now += 2
    heart.stop_what_is_overdue()
    assert child.wait(10) == -9
    heart.beat()
    after = get(job.id)
    assert (after.state, after.fence, after.due_at, after.failures) == (job.state, 3, job.due_at, [])
    assert list(heart.table.slots()) == []


@pytest.mark.parametrize("how", ["not begun", "ended", "no limit"])
def test_what_no_limit_holds_is_not_killed(
    how: str, heart: Heart, clock: Clock, child: subprocess.Popen[bytes]
) -> None:
    """Waiting for a turn, and for an end to be written, is not the body's time."""
    [run] = claim(accept())
    slot = hold(heart, run, clock, pid=child.pid, begun=how != "not begun", hard_limit=0 if how == "no limit" else 1)
    if how == "ended":
        slot.ended(run.id, run.fence)
    clock.now += 9
    heart.stop_what_is_overdue()
    assert [held.overdue for held in heart.table.held()] == [False]
    assert child.poll() is None


def test_a_body_that_ended_since_the_look_is_not_killed_for(
    heart: Heart, clock: Clock, child: subprocess.Popen[bytes]
) -> None:
    """The process may be at the next job already; that one must not pay."""
    run, following = claim(accept(2))
    slot = hold(heart, run, clock, pid=child.pid, hard_limit=1)
    clock.now += 2
    [seen] = heart.table.held()
    slot.drop(run.id, run.fence)
    slot.hold(following.id, following.fence, 15, since=clock.now)
    slot.begin(following.id, following.fence, hard_limit=1)
    heart._stop_overdue(seen)
    assert child.poll() is None
    assert [held.overdue for held in heart.table.held()] == [False]


def test_an_end_written_in_that_instant_stands(heart: Heart, clock: Clock, child: subprocess.Popen[bytes]) -> None:
    """The fence and the row decide: what was confirmed stays confirmed."""
    [run] = claim(accept())
    hold(heart, run, clock, pid=child.pid, hard_limit=1)
    clock.now += 2
    heart.stop_what_is_overdue()
    lifecycle.settle([confirmed(run)])
    child.wait(10)
    heart.beat()
    assert (get(run.id).state, get(run.id).failures) == (JobState.CONFIRMED, [])
    assert list(heart.table.slots()) == []


def test_a_limit_holds_without_a_database_and_is_told_by_the_next_heart(
    heart: Heart, clock: Clock, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill asks nobody; a heart that ends before it could write why leaves a mark for its successor."""
    [run] = claim(accept())
    hold(heart, run, clock, pid=child.pid, hard_limit=1)
    clock.now += 2

    def fail(*_: object, **__: object) -> None:
        raise OperationalError("gone")

    with monkeypatch.context() as broken:
        broken.setattr(lifecycle, "runs", fail)
        heart.stop_what_is_overdue()
        child.wait(10)
        with pytest.raises(OperationalError):
            heart.beat()
    clock.now += 60
    successor = Heart(LeaseTable(heart.table.fd), parent=heart.parent, node="node", queues=["tier2"], slots=2)
    successor.beat()
    assert [f["error_class"] for f in get(run.id).failures] == ["HardTimeLimitExceeded"]
    assert get(run.id).crashes == 0


def test_a_worker_with_a_body_that_hangs_in_a_thread_is_replaced(
    heart: Heart, clock: Clock, worker: subprocess.Popen[str]
) -> None:
    """I-29: the run is fenced, nothing new begins, its neighbour may end, the trouble is shown, then SIGKILL."""
    heart.parent = worker.pid
    [run], [neighbour], [unbegun] = claim(accept()), claim(accept()), claim(accept())
    hold(heart, run, clock, pid=worker.pid, hard_limit=5)
    slot = hold(heart, neighbour, clock, pid=worker.pid, hard_limit=60)
    clock.now += 5.1
    heart.stop_what_is_overdue()
    assert worker.stdout is not None
    assert worker.stdout.readline() == "term\n"
    assert heart.table.draining
    heart.beat()
    job = get(run.id)
    assert (job.state, job.attempt) == (JobState.RETRYING, 1)
    assert job.failures[0]["message"].endswith("the run was given up and its process is being replaced")
    # Its successor must not run beside what is left of it.
    assert _waits(run.id) > heartbeat.REPLACE_GRACE
    [(process, trouble)] = WorkerProcess.objects.exclude(trouble="").values_list("id", "trouble")
    assert outcomes.processes().trouble == [trouble]
    assert process == f"node/{worker.pid}"
    assert trouble.startswith(f"job {run.id} ran past its hard limit of 5 s at ")
    clock.now += 6
    heart.stop_what_is_overdue()
    heart.stop_what_is_lost()
    heart.beat()
    assert worker.poll() is None, "a neighbour is at work, and the lease of the run that was given up concerns nobody"
    assert heart.reported_at == clock.now
    slot.drop(neighbour.id, neighbour.fence)
    slot.hold(unbegun.id, unbegun.fence, 15, since=clock.now)
    clock.now += 3
    heart.stop_what_is_overdue()
    assert worker.poll() is None, "a member that waits for its release"
    clock.now += 1.1
    heart.stop_what_is_overdue()
    assert worker.wait(10) == -9
    before = get(run.id).failures
    heart.beat()
    assert get(run.id).failures == before
    assert (get(unbegun.id).state, get(unbegun.id).begun) == (JobState.ACCEPTED, 0)
    assert list(heart.table.slots()) == []


def test_neighbours_that_do_not_end_in_the_grace_are_lost_without_blame(
    heart: Heart, clock: Clock, worker: subprocess.Popen[str]
) -> None:
    """I-29: they ran, so their next run is told; no crash is counted."""
    heart.parent = worker.pid
    [run], [neighbour] = claim(accept()), claim(accept())
    hold(heart, run, clock, pid=worker.pid, hard_limit=5)
    hold(heart, neighbour, clock, pid=worker.pid)
    clock.now += 5.1
    heart.stop_what_is_overdue()
    clock.now += heartbeat.REPLACE_GRACE + 0.1
    heart.stop_what_is_overdue()
    assert worker.wait(10) == -9
    heart.beat()
    assert (get(run.id).attempt, [f["error_class"] for f in get(run.id).failures]) == (1, ["HardTimeLimitExceeded"])
    job = get(neighbour.id)
    assert (job.state, job.crashes, job.begun, job.attempt) == (JobState.RETRYING, 0, 1, 0)


def test_a_worker_alone_with_its_hanging_body_is_ended_soon(
    heart: Heart, clock: Clock, worker: subprocess.Popen[str]
) -> None:
    """Nobody to wait for: half a second for SIGTERM to stop the fetching."""
    heart.parent = worker.pid
    [run] = claim(accept())
    hold(heart, run, clock, pid=worker.pid, hard_limit=5)
    clock.now += 5.1
    heart.stop_what_is_overdue()
    clock.now += 0.4
    heart.stop_what_is_overdue()
    assert worker.poll() is None
    clock.now += 0.2
    heart.stop_what_is_overdue()
    assert worker.wait(10) == -9


def test_a_body_that_comes_to_its_end_after_all_leaves_a_warm_shutdown(
    heart: Heart, clock: Clock, worker: subprocess.Popen[str]
) -> None:
    """Then SIGTERM ends the worker in good order, however long its other bodies take."""
    heart.parent = worker.pid
    [run], [neighbour] = claim(accept()), claim(accept())
    slot = hold(heart, run, clock, pid=worker.pid, hard_limit=5)
    hold(heart, neighbour, clock, pid=worker.pid)
    clock.now += 5.1
    heart.stop_what_is_overdue()
    heart.beat()
    slot.ended(run.id, run.fence)
    clock.now += 60
    heart.stop_what_is_overdue()
    slot.drop(run.id, run.fence)
    heart.stop_what_is_overdue()
    assert worker.poll() is None


# Cancels.


def test_a_cancel_is_seen_within_a_second_or_two(heart: Heart, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-31: asked about once a second, only of runs that last; a lease is not extended for it."""
    asked: list[int] = []
    real = lifecycle.cancelled

    def ask(pairs: list[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
        asked.append(len(pairs))
        return real(pairs)

    monkeypatch.setattr(lifecycle, "cancelled", ask)
    heart.beat()
    [run], [other] = claim(accept()), claim(accept())
    slot = hold(heart, run, clock)
    hold(heart, other, clock, begun=False)
    lifecycle.cancel([run.id], reason=Reason.OPERATOR)
    clock.now += 0.4
    heart.beat()
    assert asked == []
    clock.now += 0.2
    heart.beat()
    assert asked == [1]
    assert slot.told_to_stop(run.id, run.fence)
    clock.now += 0.9
    heart.beat()
    assert asked == [1]
    clock.now += 0.2
    heart.beat()
    assert asked == [1, 1]
    assert {held.renewed_at for held in heart.table.held()} == {1000.0}


def test_a_worker_reports_itself_and_signs_off(heart: Heart, clock: Clock) -> None:
    """Every two seconds; afterwards nobody counts its slots any more."""
    heart.beat()
    [row] = WorkerProcess.objects.all()
    assert (row.id, row.kind, row.queues, row.slots, row.busy) == (f"node/{heart.parent}", "worker", ["tier2"], 2, 0)
    sql("UPDATE queues_workerprocess SET slots = 0")
    clock.now += 1.9
    heart.beat()
    assert WorkerProcess.objects.get().slots == 0
    clock.now += 0.2
    heart.beat()
    assert WorkerProcess.objects.get().slots == 2
    heart._sign_off()
    assert not WorkerProcess.objects.exists()


def test_it_ends_with_its_worker_but_after_its_bodies(heart: Heart, clock: Clock) -> None:
    """Orphans are waited for, not for ever."""
    assert not heart._finished()
    heart.parent = 1 if os.getppid() != 1 else 2
    [run] = claim(accept())
    slot = hold(heart, run, clock)
    assert not heart._finished()
    clock.now += heartbeat.ORPHAN_SECONDS + 1
    assert heart._finished()
    slot.drop(run.id, run.fence)
