"""Scenarios of statements and their locks: 14, 19, 21 and 22. Contracts (13) are in test_scenarios_interfaces.py."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection, transaction

from queues import lifecycle, outcomes
from queues.accept import enqueue
from queues.lifecycle import CheckEnd, End, Proof, Swap, Verdict
from queues.scheduler import prune
from queues.states import JobState, Reason
from tests.api.conftest import Api
from tests.concurrency.rivals import Rival, together
from tests.concurrency.rivals import outcomes as outcomes_of
from tests.factories import (
    TYPE,
    WORKER,
    accept,
    claim,
    confirmed,
    fold_all,
    get,
    lose_lease,
    make_job,
    make_type,
    set_columns,
    sql,
    state_counts,
    true_counts,
)
from tests.old_days import days, days_ago, ids_of, make_old_job, make_partition, part_of
from tests.scenarios.conftest import open_transaction
from tests.scenarios.plans import Statement, explain, statements_of

S = JobState
RETURNED = {"kind": "return", "ref": None, "late": False}


# Scenario 14.


@pytest.fixture
def old_day(committed: None) -> Iterator[dt.date]:
    """A day long past every retention, with its partition."""
    make_type()
    day = days_ago(60)
    make_partition(day)
    yield day
    sql(f"DROP TABLE IF EXISTS {part_of(day)}")


@pytest.mark.concurrency
def test_scenario_14_a_day_is_pruned_beside_a_reader_and_nobody_waits(
    old_day: dt.date, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 14, I-41: somebody reads the old partition in an open transaction. Prune gives up after 100 ms each time
    and comes again; accepts beside it never wait for the reader. Afterwards the day holds what must stay."""
    monkeypatch.setattr(prune, "SWAP_FROM", 1)
    for _ in range(20):
        make_old_job(old_day)
    stay = {
        make_old_job(old_day, S.ACCEPTED).id,
        make_old_job(old_day, S.RETRYING).id,
        make_old_job(old_day, S.DEAD).id,
        make_old_job(old_day, settled_days_ago=1).id,
    }
    service, slowest, enough = prune.Prune(), [0.0], threading.Event()

    def accepts() -> None:
        while not enough.is_set():
            began = time.monotonic()
            enqueue(TYPE, {})
            slowest[0] = max(slowest[0], time.monotonic() - began)

    with open_transaction(lambda: ids_of(old_day)):
        producer = Rival(accepts, lock_timeout="3s")
        for _ in range(3):
            while service.run_once():
                pass
        assert service.refused[old_day][1] == 3, "each round tried, and gave up"
        enough.set()
        producer.outcome()
        assert len(ids_of(old_day)) == 24
    assert slowest[0] < 1, "the reader stays for good, and accepts waited for it"
    while service.run_once():
        pass
    assert ids_of(old_day) == stay


@pytest.mark.usefixtures("world")
@pytest.mark.usefixtures("two_weeks")
def test_scenario_14_ids_come_from_the_database_and_have_their_partition(shift_clock: Callable[[str], None]) -> None:
    """Scenario 14: no host's clock makes an id; no default partition; two weeks ahead; and nothing refers to the jobs
    table, so that a day can be dropped. A day that anybody may still need is refused."""
    make_type()
    [job_id] = accept()
    at = dt.datetime.fromtimestamp((job_id.int >> 80) / 1000, tz=dt.UTC)
    assert abs((get(job_id).accepted_at - at).total_seconds()) < 1
    assert sql("SELECT count(*) FROM pg_constraint WHERE confrelid = 'queues_job'::regclass") == [(0,)]
    assert sql("SELECT partdefid FROM pg_partitioned_table WHERE partrelid = 'queues_job'::regclass") == [(0,)]
    assert {days_ago(-ahead) for ahead in range(14)} <= days()
    assert lifecycle.swap_day(days_ago(0), stay=[]) is Swap.GONE


# Scenario 19.


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
def test_scenario_19_a_delta_that_commits_late_is_counted() -> None:
    """Scenario 19: the lower id commits last, after the higher ones were folded. A watermark would lose it."""
    make_type()
    with open_transaction(lambda: accept(3)):
        accept(4)
        fold_all()
        assert state_counts() == {"accepted": 4}
    fold_all()
    assert state_counts() == true_counts() == {"accepted": 7}


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
def test_scenario_19_three_folders_beside_writers_that_roll_back() -> None:
    """Scenario 19, I-35: whoever deletes a delta adds it, in one statement: three folders, some of which die before
    their commit, and writers, some of which roll back, lose nothing and count nothing twice."""
    make_type()

    def write() -> int:
        for n in range(12):
            with transaction.atomic():
                lifecycle.settle([confirmed(run) for run in claim(accept(3))])
                accept(1)
                transaction.set_rollback(n % 3 == 0)
        return 0

    def fold() -> int:
        for n in range(25):
            with transaction.atomic():
                lifecycle.fold(limit=5)
                transaction.set_rollback(n % 4 == 0)
        return 0

    outcomes_of(together(write, write, fold, fold, fold))
    fold_all()
    assert state_counts() == true_counts() == {"accepted": 16}
    sums = ", ".join(f"sum({name})::int" for name in ("accepted", "ready", "runs", "confirmed", "in_window"))
    assert sql(f"SELECT {sums} FROM queues_outcomerollup GROUP BY grain") == [(64, 64, 48, 48, 48)] * 4


# Scenario 21.


def _jobs_in(state: JobState, n: int = 6) -> list[UUID]:
    ids = [make_job(state, raw_expires_at="jobs_now() + interval '1 day'").id for _ in range(n)]
    return sorted(ids)


def _waiting() -> list[UUID]:
    return sorted(accept(6))


def _running() -> list[UUID]:
    ids = _waiting()
    claim(ids)
    return ids


def _lapsed() -> list[UUID]:
    ids = _running()
    lose_lease(*ids)
    return ids


def _due_checks() -> list[UUID]:
    ids = _jobs_in(S.AWAITING_CONFIRMATION)
    for job_id in ids:
        set_columns(job_id, polled=True, raw_due_at="'2026-01-01T00:00:00Z'")
    return ids


def _retrying() -> list[UUID]:
    ids = _jobs_in(S.RETRYING)
    for job_id in ids:
        set_columns(job_id, raw_due_at="jobs_now() + interval '1 hour'")
    return ids


def _stale() -> list[UUID]:
    ids = _waiting()
    for job_id in ids:
        set_columns(job_id, raw_expires_at="jobs_now() - interval '1 s'")
    return ids


DUE = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ACTS: dict[str, tuple[Callable[[], list[UUID]], Callable[[list[UUID]], object]]] = {
    "finish": (
        _running,
        lambda o: lifecycle.settle([End(id=i, fence=1, verdict=Verdict.CONFIRMED, evidence=RETURNED) for i in o]),
    ),
    "evidence": (
        _running,
        lambda o: lifecycle.confirm([Proof(id=i, positive=True, kind="callback", ref="r") for i in o]),
    ),
    "cancel": (_running, lambda o: lifecycle.cancel(o, reason=Reason.OPERATOR)),
    "retry now": (_retrying, lambda o: lifecycle.retry_now(o)),
    "close": (lambda: _jobs_in(S.DEAD), lambda o: lifecycle.close_dead_letters(o, resolution="ignored", by="me")),
    "end of checks": (
        _due_checks,
        lambda o: lifecycle.finish_checks([CheckEnd(id=i, fence=1, due_at=DUE, outcome="none") for i in o]),
    ),
}
SWEEPS: dict[str, tuple[Callable[[], list[UUID]], Callable[[list[UUID]], Any]]] = {
    "claim": (_waiting, lambda o: {run.id for run in lifecycle.claim(o, worker=WORKER)}),
    "heartbeat": (_running, lambda o: {pair[0] for pair in lifecycle.heartbeat([(i, 1, 15.0) for i in o])}),
    "rescue": (_lapsed, lambda o: set(lifecycle.rescue(o))),
    "expire": (_stale, lambda o: set(lifecycle.expire(o))),
    "claim of checks": (_due_checks, lambda o: {due.id for due in lifecycle.claim_checks(o)}),
}


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize("name", ACTS)
def test_scenario_21_a_batch_takes_its_rows_in_one_order(name: str) -> None:
    """Scenario 21: given its jobs last to first, a statement that must wait for the first of them holds none of the
    others yet: it takes them in the order of their ids, so two batches can never wait for each other."""
    make, act = ACTS[name]
    make_type()
    ids = make()
    with transaction.atomic():
        sql("SELECT id FROM queues_job WHERE id = %s FOR UPDATE", ids[0])
        rival = Rival(lambda: act(ids[::-1]))
        assert rival.waits()
        free = sql("SELECT id FROM queues_job WHERE id = ANY(%s) FOR UPDATE SKIP LOCKED", ids)
        assert {i for (i,) in free} == set(ids), "rows after the one it waits for are locked already"
    assert len(list(rival.outcome())) == len(ids)  # type: ignore[call-overload]


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize("name", SWEEPS)
def test_scenario_21_a_sweep_passes_by_what_is_locked_and_comes_again(name: str) -> None:
    """Scenario 21: claims, beats and sweeps wait for no row: the others are done at once, the locked one the next
    time."""
    make, sweep = SWEEPS[name]
    make_type()
    ids = make()
    with open_transaction(lambda: sql("SELECT id FROM queues_job WHERE id = %s FOR UPDATE", ids[2])):
        sql("SET lock_timeout = '100ms'")
        assert sweep(ids[::-1]) == set(ids) - {ids[2]}
    assert ids[2] in sweep(ids)


# Scenario 22.


NAMED: dict[str, tuple[Callable[[], list[UUID]], Callable[[list[UUID]], object]]] = {
    **ACTS,
    **SWEEPS,
    "holding": (_running, lambda o: lifecycle.holding([(i, 1) for i in o])),
    "cancelled": (_running, lambda o: lifecycle.cancelled([(i, 1) for i in o])),
    "runs": (_running, lambda o: lifecycle.runs([(i, 1) for i in o])),
    "claimed by": (_running, lambda o: lifecycle.claimed_by(o, worker=WORKER)),
    "asked checks": (_due_checks, lambda o: lifecycle.asked_checks(o)),
    "count of superseded": (_running, lambda o: lifecycle.count_superseded([(i, 0) for i in o])),
    "find step": (_running, lambda o: lifecycle.find_step(o[0], 1, root=uuid4(), name="a")),
    "progress": (_running, lambda o: lifecycle.set_progress(o[0], 1, share=0.5, text="")),
    "give up waiting": (_due_checks, lambda o: lifecycle.give_up_waiting(o)),
    "replay": (lambda: _jobs_in(S.DEAD), lambda o: lifecycle.replay(o[0], by="me")),
}


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("name", NAMED)
def test_scenario_22_a_statement_that_names_jobs_plans_one_partition(name: str) -> None:
    """Scenario 22, promise 10: of more than two weeks of partitions the plan names the one that holds the jobs, so its
    cost does not grow with the days kept."""
    make, act = NAMED[name]
    make_type()
    ids = make()
    statements = statements_of(lambda: act(ids[:1]))
    assert len(statements) == 1
    plan = explain(statements[0])
    assert plan.partitions == {part_of(days_ago(0))}


@pytest.mark.usefixtures("world")
@pytest.mark.usefixtures("two_weeks")
def test_scenario_22_a_generic_plan_would_read_every_partition() -> None:
    """Scenario 22: the test above can fail: prepared with a parameter, the same look-up names all of them."""
    sql("SET LOCAL plan_cache_mode = force_generic_plan")
    sql("PREPARE look (uuid[]) AS SELECT state FROM queues_job WHERE id = ANY($1)")
    try:
        plan = explain(Statement("EXECUTE look ('{00000000-0000-7000-8000-000000000000}')", None))
        assert len(plan.partitions) == len(days()) >= 15
    finally:
        sql("DEALLOCATE look")


@pytest.mark.usefixtures("world")
def test_scenario_22_statements_on_jobs_are_never_prepared() -> None:
    """Scenario 22: the driver prepares what it has seen five times unless it is told not to; PgBouncer wants none."""
    make_type(backoff="fixed", backoff_base_seconds=0.0)
    for _ in range(12):
        for run in claim(accept(1)):
            lifecycle.heartbeat([(run.id, run.fence, 15.0)])
            lifecycle.settle([confirmed(run)])
        lifecycle.stageable([lifecycle.Ask(2, TYPE, 10)])
        lifecycle.lost(limit=10)
    assert sql("SELECT statement FROM pg_prepared_statements") == []
    assert connection.connection.prepare_threshold is None


@pytest.fixture
def history(world: None) -> None:
    """Three old jobs of a rare type, one of them in a group, under eleven thousand of a common one."""
    make_type("rare.job")
    make_type()
    for number in range(3):
        make_job(S.CONFIRMED, type="rare.job", group="g" if number == 1 else None)
    sql(
        """
        INSERT INTO queues_job (id, type, tier, contract_version, attempt_limit, window_seconds, due_at, ready_at,
          expires_at, accepted_at, request_hash, idempotency_key, root, payload)
        SELECT id, 'test.job', 2, 1, 5, 60, now, now, now + interval '7 days', now, '\\x00', 'jb_' || id, id, '{}'
        FROM (SELECT jobs_uuid7() AS id, jobs_clock() AS now FROM generate_series(1, 11000)) AS t
        """
    )


def test_scenario_22_a_list_costs_the_same_whatever_lies_above(history: None, make_api: Callable[..., Api]) -> None:
    """Scenario 22, promise 10: a rare type is read from its index. A filter without one looks at 10,000 rows at most,
    says so, and hands back a cursor by which the one job that fits is found in the end."""
    api = make_api()
    rare: list[Any] = []
    statements = statements_of(lambda: rare.extend(api.get("/jobs", type="rare.job").json()["items"]))
    assert len(rare) == 3
    # Which jobs are no probes, and these.
    assert len(statements) == 2
    assert all(explain(statement).buffers < 1000 for statement in statements)
    first = api.get("/jobs", state="confirmed", group="g").json()
    assert first["searched"] == {"rows": 10_000, "complete": False}
    found, cursor, requests = first["items"], first["next"], 1
    while cursor is not None:
        page = api.get("/jobs", state="confirmed", group="g", cursor=cursor).json()
        found, cursor, requests = found + page["items"], page["next"], requests + 1
    assert (len(found), requests) == (1, 2)


def test_scenario_22_the_boards_list_is_bounded_too(history: None) -> None:
    """Scenario 22: the page looks no further in one request than the API does."""
    assert outcomes.LOOK_AT_MOST == 10_000
    wanted = outcomes.JobFilter(state="confirmed", group="g")
    page = outcomes.jobs(wanted, types=[TYPE, "rare.job"], counts={})
    assert (page.looked, page.complete, len(page.rows)) == (10_000, False, 0)
    rest = outcomes.jobs(wanted, types=[TYPE, "rare.job"], counts={}, after=page.older)
    assert (rest.complete, len(rest.rows)) == (True, 1)
