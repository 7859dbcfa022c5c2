"""Who gets a dedupe key when two want it at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from django.db import OperationalError, transaction

from queues import broker, contracts, lifecycle
from queues.accept import DedupeConflict, Item, Receipt, enqueue, enqueue_many
from queues.models import DedupeKey, Job, JobType
from tests.concurrency.rivals import Rival, outcomes, sqlstate, together
from tests.factories import TYPE, claim, confirmed, fold_all, make_type, sql, state_counts, true_counts

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db", "kind")]


@pytest.fixture
def kind(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> JobType:
    """A job type; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    made = make_type()
    contracts.all_current()
    return made


def _same() -> Receipt:
    return enqueue(TYPE, {"n": 1}, dedupe_key="k")


def test_the_loser_gets_the_winners_job() -> None:
    """I-06, scenario 6: the winner commits while the loser waits: duplicate, with the winner's id."""
    with transaction.atomic():
        winner = _same()
        loser = Rival(_same)
        assert loser.waits()
    answer = loser.outcome()
    assert (answer.duplicate, answer.job_id) == (True, winner.job_id)
    assert Job.objects.count() == 1


def test_the_loser_creates_the_job_when_the_winner_rolls_back() -> None:
    """I-06: the loser is never told "duplicate" of a job that then goes away."""
    with transaction.atomic():
        winner = _same()
        loser = Rival(_same)
        assert loser.waits()
        transaction.set_rollback(True)
    answer = loser.outcome()
    assert (answer.duplicate, answer.job_id != winner.job_id) == (False, True)
    assert [job.id for job in Job.objects.all()] == [answer.job_id] == [DedupeKey.objects.get().job_id]


def test_the_loser_with_another_payload_is_refused() -> None:
    """I-07, scenario 6: 422 can be told only by a second snapshot."""
    with transaction.atomic():
        winner = _same()
        loser = Rival(lambda: enqueue(TYPE, {"n": 2}, dedupe_key="k"))
        assert loser.waits()
    with pytest.raises(DedupeConflict) as refused:
        loser.outcome()
    assert refused.value.job_id == winner.job_id


def test_a_loser_waits_no_longer_than_the_lock_timeout() -> None:
    """Scenario 6, I-42: then it is the caller's to try again (503)."""
    with transaction.atomic():
        _same()
        loser = Rival(_same, lock_timeout="100ms")
        with pytest.raises(OperationalError):
            loser.outcome()
        assert sqlstate(loser.error) == "55P03"
    assert _same().duplicate


def test_a_waiting_batch_stores_its_other_jobs_once() -> None:
    """Scenario 6: winner of one key, loser of another, in one batch."""
    with transaction.atomic():
        winner = _same()
        batch = Rival(lambda: enqueue_many([Item(type=TYPE, payload={"n": n}, dedupe_key=f"k{n or ''}") for n in (3, 2)]
                                           + [Item(type=TYPE, payload={"n": 1}, dedupe_key="k")]))  # fmt: skip
        assert batch.waits()
    answers = batch.outcome()
    assert [a.duplicate for a in answers] == [False, False, True]
    assert answers[2].job_id == winner.job_id
    assert Job.objects.count() == 3


def test_batches_with_keys_in_opposite_order_do_not_deadlock() -> None:
    """Scenario 6: keys are taken in one order, whatever the order of the items."""
    for round_ in range(5):
        keys = [f"r{round_}-{n}" for n in range(60)]

        def batch(order: list[str]) -> Callable[[], list[Receipt]]:
            return lambda: enqueue_many([Item(type=TYPE, payload={"k": key}, dedupe_key=key) for key in order])

        first, second = outcomes(together(batch(keys), batch(keys[::-1])))
        assert [r.job_id for r in first] == [r.job_id for r in second[::-1]]
        assert sum(r.duplicate for r in (*first, *second)) == 60
    assert Job.objects.count() == 300
    fold_all()
    assert state_counts() == true_counts()
    assert sql("SELECT accepted, duplicates FROM queues_outcomerollup WHERE grain = 'day'") == [(300, 300)]


def test_open_transactions_in_opposite_order_deadlock_once() -> None:
    """Scenario 6: two single accepts in two transactions, keys in opposite order: one 40P01, which is the caller's."""
    met = threading.Barrier(2)

    def caller(first: str, second: str) -> Callable[[], None]:
        def run() -> None:
            with transaction.atomic():
                enqueue(TYPE, {}, dedupe_key=first)
                met.wait(5)
                enqueue(TYPE, {}, dedupe_key=second)

        return run

    rivals = together(caller("a", "b"), caller("b", "a"))
    assert sorted(str(sqlstate(rival.error)) for rival in rivals) == ["40P01", "None"]
    assert sorted(DedupeKey.objects.values_list("key", flat=True)) == ["a", "b"]
    assert Job.objects.count() == 2


def test_one_taker_of_a_key_that_is_free_again() -> None:
    """Scenario 7: window over, job settled: of four takers one gets the key, the others get its job."""
    JobType.objects.update(dedupe_window_seconds=1)
    contracts.forget()
    [run] = claim([_same().job_id])
    lifecycle.settle([confirmed(run)])
    sql("UPDATE queues_dedupekey SET expires_at = jobs_now() - interval '1 s'")
    answers = outcomes(together(*[_same] * 4))
    assert sorted(a.duplicate for a in answers) == [False, True, True, True]
    assert len({a.job_id for a in answers}) == 1
    assert Job.objects.count() == 2
