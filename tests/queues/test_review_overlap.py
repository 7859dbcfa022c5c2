"""What the review of merging proved: turns, places and times that were lost, and work without a bound."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction

from dlq import preflight
from queues import broker, contracts, lifecycle
from queues.accept import Item, Receipt, enqueue, enqueue_many
from queues.lifecycle import Run
from queues.models import Job, JobType, OverlapState
from queues.states import JobState, Reason
from tests.concurrency.rivals import Rival, sqlstate
from tests.factories import (
    TYPE,
    WORKER,
    confirmed,
    failed,
    fold_all,
    get,
    lose_lease,
    make_type,
    sql,
    state_counts,
    true_counts,
)

S = JobState


@pytest.fixture(autouse=True)
def _no_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent after a commit would lie in the queue of the tests that follow."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)


def put(n: int = 1, *, group: str | None = "g", **more: Any) -> UUID:
    return enqueue(TYPE, {"n": n}, group=group, **more).job_id


def run(job_id: UUID) -> Run:
    [started] = lifecycle.claim([job_id], worker=WORKER)
    return started


def states(*ids: UUID) -> list[str]:
    return [get(job_id).state for job_id in ids]


def ready_in(job_id: UUID) -> float:
    """Return in how many seconds from now a job is ready."""
    return float(sql("SELECT extract(epoch FROM ready_at - jobs_clock()) FROM queues_job WHERE id = %s", job_id)[0][0])


def later(**ahead: float) -> dt.datetime:
    """Return a time of the database's clock."""
    now: dt.datetime = sql("SELECT jobs_clock()")[0][0]
    return now + dt.timedelta(**ahead)


def shift(seconds: float) -> None:
    """Let so much time pass for the groups and the jobs that wait."""
    step = dt.timedelta(seconds=seconds)
    sql("UPDATE queues_overlapstate SET ready_at = ready_at - %s, since = since - %s", step, step)
    sql("UPDATE queues_job SET ready_at = ready_at - %s, due_at = due_at - %s, accepted_at = accepted_at - %s,"
        " entered_at = entered_at - %s WHERE state = 'accepted'", step, step, step, step)  # fmt: skip


@pytest.mark.django_db
class TestTimes:
    """When jobs are ready, where their producers ask for later times, and where turns were given away for nothing."""

    def test_a_throttled_job_does_not_inherit_a_time_that_another_producer_asked_for(self) -> None:
        """It was ready with the job whose place it took: a day later, though nothing of its group ran."""
        make_type(overlap="throttle", overlap_seconds=60)
        tomorrow = put(1, run_at=later(days=1))
        now = put(2)
        assert states(tomorrow, now) == [S.CANCELLED, S.ACCEPTED]
        assert ready_in(now) <= 0

    def test_a_time_asked_for_is_no_turn_once_its_job_is_cancelled(self) -> None:
        """The next one was put off until a minute after that time."""
        make_type(overlap="throttle", overlap_seconds=60)
        tomorrow = put(1, run_at=later(days=1))
        lifecycle.cancel([tomorrow], reason=Reason.OPERATOR)
        assert ready_in(put(2)) <= 0

    def test_a_turn_that_nobody_used_is_given_again(self) -> None:
        """A person cancels the job that waits for its turn: the next one has that turn, and not one after it."""
        make_type(overlap="throttle", overlap_seconds=60)
        run(put(1))
        second = put(2)
        assert ready_in(second) == pytest.approx(60, abs=5)
        lifecycle.cancel([second], reason=Reason.OPERATOR)
        assert ready_in(put(3)) == pytest.approx(60, abs=5)

    def test_the_turn_after_a_time_asked_for_comes_after_it(self) -> None:
        """Ready at least so many seconds apart holds for a time that a producer asked for too."""
        make_type(overlap="throttle", overlap_seconds=60)
        run(put(1))
        put(2, run_at=later(seconds=300))
        shift(300)
        [(second,)] = sql("SELECT id FROM queues_job WHERE state = 'accepted'")
        run(second)
        assert ready_in(put(3)) == pytest.approx(60, abs=5)

    def test_a_shorter_throttle_holds_at_once(self) -> None:
        """The contract said an hour, and is edited to ten seconds: nothing waits for the hour."""
        make_type(overlap="throttle", overlap_seconds=3600)
        run(put(1))
        put(2)
        JobType.objects.filter(name=TYPE).update(overlap_seconds=10)
        contracts.forget()
        assert ready_in(put(3)) <= 10

    def test_debounce_waits_for_quiet_after_a_time_asked_for(self) -> None:
        """A job for tomorrow does not use up the time for which a stream may put jobs off."""
        make_type(overlap="debounce", overlap_seconds=10, max_age_seconds=86400)
        put(1, run_at=later(days=1))
        shift(200)
        assert ready_in(put(2)) == pytest.approx(10, abs=5)

    @pytest.mark.parametrize("overlap", ["keep_last", "replace"])
    def test_a_job_for_tomorrow_lets_no_stream_starve(self, overlap: str) -> None:
        """Its time was taken for the beginning of the wait of all that came after it."""
        make_type(overlap=overlap)
        put(0, run_at=later(days=1))
        for n in range(14):
            put(n)
            shift(0.5)
        newest = put(99)
        waiting = list(Job.objects.filter(state=S.ACCEPTED).order_by("id").values_list("id", flat=True))
        assert len(waiting) == 2, "what was due for five seconds keeps its place"
        assert waiting[1] == newest


@pytest.mark.django_db
class TestPlaces:
    def test_who_kept_its_place_and_failed_loses_it(self) -> None:
        """It had its run. Its retry waited on, and would have done older work after the newer ones."""
        make_type(overlap="keep_last")
        kept = put(1)
        shift(6)
        behind = put(2)
        assert states(kept, behind) == [S.ACCEPTED, S.ACCEPTED]
        lifecycle.settle([failed(run(kept), retry_in=300)])
        newest = put(3)
        assert states(kept, behind, newest) == [S.CANCELLED, S.CANCELLED, S.ACCEPTED]

    def test_who_kept_its_place_and_was_released_keeps_it(self) -> None:
        make_type(overlap="keep_last")
        kept = put(1)
        shift(6)
        put(2)
        started = run(kept)
        lifecycle.settle([lifecycle.End(id=kept, fence=started.fence, verdict=lifecycle.Verdict.RELEASED)])
        newest = put(3)
        assert states(kept, newest) == [S.ACCEPTED, S.ACCEPTED]

    def test_a_batch_of_many_groups_merges_a_bounded_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thousand groups with a thousand jobs each, from before the rule, were a million rows of one statement."""
        make_type()
        groups = [f"g{n}" for n in range(30)]
        enqueue_many([Item(type=TYPE, payload=n, group=group) for group in groups for n in range(8)])
        JobType.objects.filter(name=TYPE).update(overlap="keep_last")
        contracts.forget()
        monkeypatch.setattr(lifecycle.overlap, "MERGED_IN_ALL", 120, raising=False)
        fresh = [Item(type=TYPE, payload=99, group=group) for group in groups]
        enqueue_many(fresh)
        assert Job.objects.filter(state=S.CANCELLED).count() == 120
        enqueue_many(fresh)
        enqueue_many(fresh)
        assert Job.objects.filter(state=S.ACCEPTED).count() == 30, "and it goes on until one of each is left"

    def test_a_savepoint_that_is_rolled_back_gives_turn_and_places_back(self) -> None:
        make_type(overlap="throttle", overlap_seconds=60)
        first = put(1)
        with transaction.atomic():
            with pytest.raises(IntegrityError), transaction.atomic():
                undone = put(2)
                raise IntegrityError
            state = OverlapState.objects.get()
            assert state.newest == first
            again = put(3)
        assert states(first, again) == [S.CANCELLED, S.ACCEPTED]
        assert ready_in(again) <= 0
        assert not Job.objects.filter(id=undone).exists()

    def test_twice_in_one_transaction(self) -> None:
        make_type(overlap="keep_last")
        with transaction.atomic():
            first, second = put(1), put(2)
        assert states(first, second) == [S.CANCELLED, S.ACCEPTED]
        fold_all()
        assert state_counts() == true_counts() == {"accepted": 1}

    @pytest.mark.parametrize("dedupe_key", [None, "k"])
    def test_a_replay_of_older_work_is_not_called_safe(self, dedupe_key: str | None) -> None:
        """What took its place is newer: to do the older one now would undo it. The preflight said "Not superseded"."""
        make_type(overlap="keep_last")
        older = put(1, dedupe_key=dedupe_key)
        put(2)
        found = preflight.look(get(older), ask=False)
        [check] = [check for check in found.checks if check.name == "superseded"]
        assert check.result == "unknown"
        assert "newer" in check.evidence
        assert found.verdict != "safe"
        assert not found.final


@pytest.mark.django_db
class TestReplace:
    @pytest.mark.parametrize("ends", ["fails", "lost", "released", "proof"])
    def test_what_becomes_of_a_run_that_was_asked_to_stop(
        self, ends: str, django_capture_on_commit_callbacks: Any
    ) -> None:
        """It ends superseded however it fails, its own proof counts, and the counts hold (I-32)."""
        make_type(overlap="replace")
        started = run(put(1))
        with django_capture_on_commit_callbacks(execute=True):
            newer = put(2)
        assert get(started.id).cancel_requested
        if ends == "lost":
            lose_lease(started.id)
            lifecycle.rescue([started.id])
        else:
            end = {"fails": failed(started, retry_in=1), "proof": confirmed(started),
                   "released": lifecycle.End(id=started.id, fence=started.fence, verdict=lifecycle.Verdict.RELEASED),
                   }[ends]  # fmt: skip
            lifecycle.settle([end])
        job = get(started.id)
        expected = (S.CONFIRMED, None) if ends == "proof" else (S.CANCELLED, Reason.SUPERSEDED)
        assert (job.state, job.reason) == expected
        assert states(newer) == [S.ACCEPTED]
        fold_all()
        assert state_counts() == true_counts()

    def test_late_proof_of_a_job_that_lost_its_place_is_kept(self, django_capture_on_commit_callbacks: Any) -> None:
        make_type(overlap="replace")
        started = run(put(1))
        with django_capture_on_commit_callbacks(execute=True):
            put(2)
        lifecycle.settle([failed(started)])
        assert lifecycle.settle([confirmed(started)]) == {}
        lifecycle.confirm([lifecycle.Proof(id=started.id, positive=True, kind="callback", ref="r-1")])
        job = get(started.id)
        assert (job.state, job.reason) == (S.CANCELLED, Reason.SUPERSEDED)
        assert [one["ref"] for one in job.late_evidence or []] == ["r-1"]

    def test_a_run_that_fails_before_the_producer_commits_loses_its_place(
        self, django_capture_on_commit_callbacks: Any
    ) -> None:
        """It would have been asked to stop a moment later; its retry waited on beside the newer job."""
        make_type(overlap="replace")
        started = run(put(1))
        with django_capture_on_commit_callbacks() as callbacks:
            newer = put(2)
        lifecycle.settle([failed(started, retry_in=60)])
        for callback in callbacks:
            callback()
        assert states(started.id, newer) == [S.CANCELLED, S.ACCEPTED]


@pytest.fixture
def committing(transactional_db: None) -> Callable[..., None]:
    """Make a type that merges."""

    def make(**fields: Any) -> None:
        make_type(**fields)
        contracts.all_current()

    return make


@pytest.mark.concurrency
def test_replace_stops_a_run_that_was_faster(committing: Callable[..., None]) -> None:
    """The producer saw it wait, and a claim took it first. It is asked to stop as one that ran before."""
    committing(overlap="replace")
    waiting = put(1)
    with transaction.atomic():
        [started] = lifecycle.claim([waiting], worker=WORKER)
        newer = Rival(lambda: put(2))
        assert newer.waits()
    assert states(newer.outcome()) == [S.ACCEPTED]
    assert (get(started.id).state, get(started.id).cancel_requested) == (S.PROCESSING, True)


@pytest.mark.concurrency
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_caller_with_an_old_snapshot_is_told(committing: Callable[..., None], level: str) -> None:
    """It cannot see whose place to take: 40001, nothing is stored, and its next attempt sees."""
    committing(overlap="keep_last")

    def twice() -> list[UUID]:
        return [put(0)]

    twice()
    with pytest.raises(OperationalError) as caught, transaction.atomic():
        sql(f"SET TRANSACTION ISOLATION LEVEL {level}")
        sql("SELECT 1 FROM queues_jobtype")
        other = Rival(lambda: put(1))
        seen = other.outcome()
        put(2)
    assert sqlstate(caught.value) == "40001"
    assert states(seen) == [S.ACCEPTED]
    with transaction.atomic():
        sql(f"SET TRANSACTION ISOLATION LEVEL {level}")
        last = put(2)
    assert list(Job.objects.filter(state=S.ACCEPTED).values_list("id", flat=True)) == [last]


@pytest.mark.concurrency
def test_a_sweep_of_resting_lanes_disturbs_no_producer(committing: Callable[..., None]) -> None:
    """A lane that a producer holds is left; one that the sweep holds is made again."""
    committing(overlap="keep_last")
    first = put(1)
    sql("UPDATE queues_overlapstate SET touched_at = jobs_now() - interval '49 hours'")
    with transaction.atomic():
        second = put(2)
        sweep = Rival(lambda: lifecycle.forget_lanes(hours=48, limit=10))
        assert sweep.outcome() == 0
    sql("UPDATE queues_overlapstate SET touched_at = jobs_now() - interval '49 hours'")
    with transaction.atomic():
        assert lifecycle.forget_lanes(hours=48, limit=10) == 1
        third = Rival(lambda: put(3))
        assert third.waits()
    assert states(first, second, third.outcome()) == [S.CANCELLED, S.CANCELLED, S.ACCEPTED]
    assert OverlapState.objects.get().newest == third.outcome()


@pytest.mark.concurrency
def test_a_batch_with_repeats_and_conflicts_leaves_one_of_each_group(committing: Callable[..., None]) -> None:
    """Repeats are answered with their first, which lost its place; a conflict takes no place."""
    committing(overlap="keep_last")
    held = put(0, dedupe_key="held")
    answers = enqueue_many(
        [
            Item(type=TYPE, payload=1, group="g", dedupe_key="a"),
            Item(type=TYPE, payload=2, group="g"),
            Item(type=TYPE, payload=1, group="g", dedupe_key="a"),
            Item(type=TYPE, payload=3, group="g", dedupe_key="held"),
        ],
        on_error="return",
    )
    first, second, repeat, conflict = answers
    assert isinstance(first, Receipt) and isinstance(second, Receipt) and isinstance(repeat, Receipt)
    assert (repeat.job_id, repeat.duplicate, repeat.state) == (first.job_id, True, S.CANCELLED)
    assert not isinstance(conflict, Receipt)
    assert states(held, first.job_id, second.job_id) == [S.CANCELLED, S.CANCELLED, S.ACCEPTED]
    assert connection.in_atomic_block is False
