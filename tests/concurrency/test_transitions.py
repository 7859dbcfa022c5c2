"""Transitions by many at once: on one job, or on the same jobs in opposite order. Two on one job: test_race_matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from uuid import UUID, uuid4

import pytest
from django.db import transaction

from queues import actions, broker, contracts, lifecycle
from queues.accept import enqueue
from queues.lifecycle import End, Verdict
from queues.models import JobType
from queues.states import Reason
from tests.concurrency.rivals import outcomes, together
from tests.factories import (
    TYPE,
    WORKER,
    accept,
    claim,
    confirmed,
    failed,
    fold_all,
    make_type,
    sql,
    state_counts,
    true_counts,
)

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db", "kind")]


@pytest.fixture
def kind(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> JobType:
    """A job type; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    made = make_type()
    contracts.all_current()
    return made


def _dead() -> UUID:
    receipt = enqueue(TYPE, {"n": 1}, dedupe_key=f"k{uuid4()}")
    [run] = claim([receipt.job_id])
    lifecycle.settle([failed(run, reason="permanent_error")])
    return receipt.job_id


def test_a_job_is_claimed_once() -> None:
    """I-08: four claims of the same hundred jobs, in both orders: each job has one run."""
    ids = accept(100)
    found = outcomes(together(*[partial(lifecycle.claim, o, worker=WORKER) for o in (ids, ids[::-1]) * 2]))
    runs = [run.id for some in found for run in some]
    assert len(runs) == len(set(runs))
    assert set(runs) | {r.id for r in lifecycle.claim(ids, worker=WORKER)} == set(ids)
    assert sql("SELECT DISTINCT fence FROM queues_job") == [(1,)]


def test_twenty_clicks_make_one_replay() -> None:
    """I-30: twenty operators press replay at once: one child, one audit entry; the key points to it."""
    parent = _dead()

    def click() -> UUID | None:
        try:
            return actions.replay_job(parent, actor="me", reason="again", source="ui")
        except actions.NotReplayable:
            return None

    children = {child for child in outcomes(together(*[click] * 20)) if child is not None}
    assert len(children) == 1
    assert sql("SELECT id FROM queues_job WHERE replay_of IS NOT NULL") == [(*children,)]
    assert sql("SELECT job_id FROM queues_dedupekey") == [(*children,)]
    assert sql("SELECT count(*) FROM queues_auditentry WHERE action = 'job.replayed'") == [(1,)]


def test_batches_in_opposite_order_do_not_deadlock() -> None:
    """Scenario 21: every batch locks its rows in id order, whatever the order that it was given."""
    statements: dict[str, Callable[[list[UUID]], object]] = {
        "settle": lambda o: lifecycle.settle([End(id=i, fence=1, verdict=Verdict.FAILED) for i in o]),
        "heartbeat": lambda o: lifecycle.heartbeat([(i, 1, 15.0) for i in o]),
        "cancel": lambda o: lifecycle.cancel(o, reason=Reason.OPERATOR),
        "rescue": lambda o: lifecycle.rescue(o, dead_runs=[(i, 1) for i in o]),
        "claim": lambda o: lifecycle.claim(o, worker=WORKER),
    }
    for name, statement in statements.items():
        for other in statements.values():
            ids = accept(150)
            claim(ids)
            rivals = together(partial(statement, ids), partial(statement, ids[::-1]), partial(other, ids[::-1]))
            assert [rival.error for rival in rivals] == [None] * 3, name
    fold_all()
    assert state_counts() == true_counts()


def test_folding_in_three_threads_is_exact() -> None:
    """Scenario 19: folders beside writers, some of which roll back: nothing is lost, nothing counted twice."""

    def write() -> int:
        for n in range(15):
            with transaction.atomic():
                ids = accept(4)
                lifecycle.settle([confirmed(run) for run in lifecycle.claim(ids, worker=WORKER)])
                transaction.set_rollback(n % 3 == 0)
        return 0

    def fold() -> int:
        return sum(lifecycle.fold(limit=7) for _ in range(40))

    outcomes(together(write, write, fold, fold, fold))
    fold_all()
    truth = sql("SELECT count(*) FROM queues_job WHERE state = 'confirmed'")[0][0]
    assert truth == 80
    names = ("accepted", "runs", "confirmed", "ready", "in_window")
    sums = ", ".join(f"sum({name})::integer" for name in names)
    assert sql(f"SELECT {sums} FROM queues_outcomerollup GROUP BY grain") == [(80,) * 5] * 4
    assert state_counts() == {}
