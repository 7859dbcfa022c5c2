"""Transitions that meet on one job, or on the same jobs in opposite order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from django.db import OperationalError, connection, transaction

from queues import actions, broker, contracts, lifecycle
from queues.accept import enqueue
from queues.lifecycle import End, Verdict
from queues.models import JobType
from queues.states import JobState, Reason
from tests.concurrency.rivals import Rival, commit_then_lie, outcomes, together
from tests.factories import (
    TYPE,
    WORKER,
    accept,
    claim,
    confirmed,
    failed,
    fold_all,
    get,
    lose_lease,
    make_type,
    set_columns,
    sql,
    state_counts,
    true_counts,
)

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db", "kind")]
Act = Callable[[UUID], object]


@pytest.fixture
def kind(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> JobType:
    """A job type; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    made = make_type()
    contracts.all_current()
    return made


def _end(verdict: Verdict, **values: Any) -> Act:
    return lambda i: lifecycle.settle([End(id=i, fence=1, verdict=verdict, **values)])


ACTS: Final[dict[str, Act]] = {
    "confirm": _end(Verdict.CONFIRMED, evidence={"kind": "return", "ref": None, "late": False}),
    "fail": _end(Verdict.FAILED, failure={"error_class": "Boom"}),
    "bury": _end(Verdict.FAILED, reason="permanent_error"),
    "release": _end(Verdict.RELEASED),
    "rescue": lambda i: lifecycle.rescue([i]),
    "heartbeat": lambda i: lifecycle.heartbeat([(i, 1, 15.0)]),
    "cancel": lambda i: lifecycle.cancel([i], reason=Reason.OPERATOR),
    "claim": lambda i: lifecycle.claim([i], worker="other"),
    "expire": lambda i: lifecycle.expire([i]),
    "replay": lambda i: lifecycle.replay(i, by="me"),
    "close": lambda i: lifecycle.close_dead_letters([i], resolution="ignored", by="me"),
}


def _running() -> UUID:
    [job_id] = accept()
    claim([job_id])
    lose_lease(job_id)
    return job_id


def _waiting() -> UUID:
    return accept()[0]


def _stale() -> UUID:
    [job_id] = accept()
    set_columns(job_id, raw_expires_at="jobs_now() - interval '1 s'")
    return job_id


def _dead() -> UUID:
    receipt = enqueue(TYPE, {"n": 1}, dedupe_key=f"k{uuid4()}")
    [run] = claim([receipt.job_id])
    lifecycle.settle([failed(run, reason="permanent_error")])
    return receipt.job_id


CASES: Final = [
    *((_running, first) for first in ("confirm", "fail", "bury", "release", "rescue", "heartbeat", "cancel")),
    *((_waiting, first) for first in ("claim", "cancel")),
    *((_stale, first) for first in ("expire", "cancel")),
    *((_dead, first) for first in ("replay", "close")),
]


def _look(job_id: UUID) -> tuple[object, ...]:
    job = get(job_id)
    return (
        job.state, job.reason, job.resolution, job.cancel_requested, job.attempt, job.fence, job.begun, job.crashes,
        job.replayed_by is not None, job.evidence is not None, len(job.failures), job.due_at is None,
    )  # fmt: skip


@pytest.mark.parametrize(("make", "first"), CASES, ids=lambda v: v if isinstance(v, str) else v.__name__.strip("_"))
def test_two_transitions_on_one_job_have_one_winner(make: Callable[[], UUID], first: str) -> None:
    """I-09, I-10, I-30, I-31: while one statement holds the job every other one comes. Who waited acts on what the
    winner left, as if it had come later; who skipped changed nothing. The counts say the same."""
    waited = set()
    for second, act in ACTS.items():
        alone, one_by_one, raced = make(), make(), make()
        assert ACTS[first](alone)
        ACTS[first](one_by_one)
        act(one_by_one)
        with transaction.atomic():
            assert ACTS[first](raced)
            rival = Rival(partial(act, raced))
            blocked = rival.waits()
        answer = rival.outcome()
        if blocked:
            waited.add(second)
            assert _look(raced) == _look(one_by_one), f"{first} then {second}"
        else:
            assert not answer, f"{second} did not wait for {first} and did something"
            assert _look(raced) == _look(alone), f"{second} beside {first}"
    # Settling and cancelling wait for the row they name; claims and sweeps pass by and come again.
    if make is _running:
        assert {"confirm", "fail", "bury", "release", "cancel"} - {first} <= waited
    assert waited.isdisjoint({"claim", "rescue", "expire"})
    fold_all()
    assert state_counts() == true_counts()


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
    assert sql(f"SELECT {sums} FROM queues_outcomerollup GROUP BY grain") == [(80,) * 5] * 3
    assert state_counts() == {}


def _lied_to(work: Callable[[], object]) -> None:
    with pytest.raises(OperationalError), commit_then_lie(), transaction.atomic():
        work()
    connection.close()


def test_a_commit_whose_answer_was_lost_is_done_once() -> None:
    """I-03: accept, claim, finish, cancel and replay commit, the caller hears an error and does it again."""
    _lied_to(lambda: enqueue(TYPE, {"n": 1}, dedupe_key="k"))
    again = enqueue(TYPE, {"n": 1}, dedupe_key="k")
    assert again.duplicate
    [other] = accept()

    _lied_to(lambda: lifecycle.claim([again.job_id], worker=WORKER))
    assert lifecycle.claim([again.job_id], worker=WORKER) == []
    assert get(again.job_id).fence == 1, "nobody runs it: no heartbeat names it, its lease ends, it is rescued"

    end = End(id=again.job_id, fence=1, verdict=Verdict.FAILED, reason="rejected")
    _lied_to(lambda: lifecycle.settle([end]))
    assert lifecycle.settle([end]) == {}

    _lied_to(lambda: lifecycle.replay(again.job_id, by="me"))
    assert lifecycle.replay(again.job_id, by="me") is None

    _lied_to(lambda: actions.cancel_job(other, actor="me", reason="", source="ui"))
    told = actions.cancel_job(other, actor="me", reason="", source="ui")
    assert (told.state, told.changed) == (JobState.CANCELLED, False)

    assert sql("SELECT state, count(*) FROM queues_job GROUP BY 1 ORDER BY 1") == [
        ("accepted", 1), ("cancelled", 1), ("dead", 1),
    ]  # fmt: skip
    fold_all()
    assert state_counts() == true_counts() == {"accepted": 1}
