"""Merging when many producers come at once: of each group one job is left, and nobody but a producer waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import OperationalError, transaction

from queues import broker, contracts, lifecycle
from queues.accept import Item, Receipt, enqueue, enqueue_many
from queues.models import Job
from queues.states import JobState
from tests.concurrency.rivals import Rival, outcomes, sqlstate, together
from tests.factories import TYPE, WORKER, confirmed, fold_all, get, make_type, state_counts, true_counts

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db", "kind")]

S = JobState


@pytest.fixture
def kind(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A type that keeps the last of each group; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    make_type(overlap="keep_last", concurrency=5)
    contracts.all_current()


def _put(n: int = 1, group: str = "g") -> Receipt:
    return enqueue(TYPE, {"n": n}, group=group)


def _waiting() -> list[object]:
    return list(Job.objects.filter(state=S.ACCEPTED).order_by("id").values_list("id", flat=True))


@pytest.mark.parametrize("commits", [True, False])
def test_the_second_producer_waits_for_the_first(commits: bool) -> None:
    """It sees what the first one left: its job, or the one that was there before."""
    before = _put()
    with transaction.atomic():
        first = _put()
        second = Rival(_put)
        assert second.waits()
        transaction.set_rollback(not commits)
    last = second.outcome().job_id
    assert _waiting() == [last]
    lost = {before.job_id, first.job_id} if commits else {before.job_id}
    assert set(Job.objects.filter(state=S.CANCELLED).values_list("id", flat=True)) == lost


def test_a_producer_waits_no_longer_than_the_lock_timeout() -> None:
    """I-42: then it is the caller's to try again, and nothing was stored."""
    with transaction.atomic():
        _put()
        second = Rival(_put, lock_timeout="100ms")
        with pytest.raises(OperationalError):
            second.outcome()
        assert sqlstate(second.error) == "55P03"
        other = Rival(lambda: _put(group="h"))
        assert other.outcome().state == S.ACCEPTED, "another group's producer does not wait"
    assert Job.objects.count() == 2


def test_claims_and_ends_do_not_wait_for_a_producer() -> None:
    """Its turn is no lock of theirs, though the type has a limit; who loses its place is not claimed."""
    [running] = lifecycle.claim_limited([_put().job_id], worker=WORKER)
    waiting = _put()
    with transaction.atomic():
        newer = _put()
        ends = Rival(lambda: lifecycle.settle([confirmed(running)]))
        ends.outcome()
        takes = Rival(lambda: lifecycle.claim_limited([waiting.job_id, newer.job_id], worker=WORKER))
        assert takes.outcome() == []
    assert get(running.id).state == S.CONFIRMED
    assert get(waiting.job_id).state == S.CANCELLED
    assert [run.id for run in lifecycle.claim_limited([newer.job_id], worker=WORKER)] == [newer.job_id]


def test_a_claim_that_was_faster_keeps_its_job() -> None:
    """The producer saw it wait and waits for its row; a run that has begun is left alone."""
    waiting = _put()
    with transaction.atomic():
        [run] = lifecycle.claim_limited([waiting.job_id], worker=WORKER)
        newer = Rival(_put)
        assert newer.waits()
    assert newer.outcome().state == S.ACCEPTED
    job = get(run.id)
    assert (job.state, job.cancel_requested) == (S.PROCESSING, False)


def test_batches_with_groups_in_opposite_order_do_not_deadlock() -> None:
    """Turns are taken in one order, and then keys are."""
    for round_ in range(4):
        names = [f"{n}" for n in range(30)]

        def batch(order: list[str], r: int = round_) -> Callable[[], list[Receipt]]:
            return lambda: enqueue_many(
                [Item(type=TYPE, payload={"r": r}, group=name, dedupe_key=f"{order[0]}-{r}-{name}") for name in order]
            )

        outcomes(together(batch(names), batch(names[::-1])))
    assert len(_waiting()) == 30
    assert Job.objects.count() == 4 * 60


def test_many_producers_leave_one_job_of_each_group() -> None:
    """However they come, all but the newest have lost their place, and the counts say so."""

    def produce() -> None:
        for n in range(12):
            _put(n, group="ab"[n % 2])

    outcomes(together(produce, produce, produce, produce))
    left = Job.objects.filter(state=S.ACCEPTED).exclude(group=None)
    assert sorted(str(job.group) for job in left) == ["a", "b"]
    newest = {group: Job.objects.filter(group=group).latest("accepted_at").id for group in "ab"}
    assert {str(job.group): job.id for job in left} == newest
    assert Job.objects.filter(reason="superseded").count() == 46
    fold_all()
    assert state_counts() == true_counts()
