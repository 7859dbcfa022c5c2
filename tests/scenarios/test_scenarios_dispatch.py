"""Scenarios of what is published and when: 9, 10, 12 and 20."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from celery import current_app

from jobsboard.testing import run_pending
from queues import broker, contract_switches, handlers, lifecycle
from queues.accept import enqueue
from queues.handlers import Confirmed
from queues.scheduler.stage import Stage
from queues.states import JobState, Reason
from tests.factories import TYPE, accept, analyze, buckets, claim, fold_all, get, make_type, set_columns, sql
from tests.scenarios.conftest import until
from tests.scenarios.plans import Plan, Statement, explain, statements_of
from tests.scenarios.servers import OwnBroker, own_broker

S = JobState
MANY = 4000
SOON = 3.0
"""Seconds: a producer waits 0.2 s for a frozen broker; without a bound it would be more than 25 s."""


def insert_many(n: int, *, kind: str = TYPE, due: str = "now", priority: int = 0, group: str | None = None) -> None:
    """Insert accepted jobs with ids of today, in one statement. `due` is SQL over the column `now`."""
    sql(
        f"""
        INSERT INTO queues_job (id, type, tier, contract_version, attempt_limit, window_seconds, due_at, ready_at,
          expires_at, accepted_at, request_hash, idempotency_key, root, payload, priority, "group")
        SELECT id, %s, 2, 1, 5, 60, {due}, now, now + interval '7 days', now, '\\x00', 'jb_' || id, id, '{{}}', %s, %s
        FROM (SELECT jobs_uuid7() AS id, jobs_clock() AS now FROM generate_series(1, %s)) AS t
        """,
        kind, priority, group, n,
    )  # fmt: skip


# Scenario 9.


@pytest.fixture
def later(world: None) -> list[UUID]:
    """Thousands of jobs that act tomorrow, in every state that a loop walks, and one of each that is due."""
    make_type(success="check")
    insert_many(3 * MANY, due="now + interval '1 day'")
    ids = [i for (i,) in sql("SELECT id FROM queues_job ORDER BY id LIMIT %s", 2 * MANY)]
    running, awaiting = ids[:MANY], ids[MANY:]
    moved = "UPDATE queues_job SET state = %s, worker = 'w', started_at = jobs_clock(), fence = 1, polled = %s"
    sql(moved + " WHERE id = ANY(%s)", "processing", False, ids)
    sql(moved + " WHERE id = ANY(%s)", "awaiting_confirmation", True, awaiting)
    due = accept(2)
    [lost] = claim([due[0]])
    past = "jobs_now() - interval '1 s'"
    set_columns(lost.id, raw_due_at=past)
    set_columns(running[0], raw_due_at=past)
    set_columns(awaiting[0], raw_due_at=past)
    set_columns(awaiting[1], raw_expires_at=past)
    return due


LOOKS: dict[str, tuple[Callable[[], object], int]] = {
    "stage": (lambda: lifecycle.stageable([lifecycle.Ask(2, TYPE, 500)]), 1),
    "rescue": (lambda: lifecycle.lost(limit=500), 2),
    "checks": (lambda: lifecycle.due_checks([(TYPE, 500)]), 1),
    "expire": (lambda: lifecycle.stale(limit=500), 1),
}


@pytest.mark.parametrize("analyzed", [False, True])
def test_scenario_09_what_is_not_due_costs_nothing(analyzed: bool, later: list[UUID]) -> None:
    """Scenario 9: each loop's time is a condition of its index, whatever the statistics say: thousands of jobs that
    act tomorrow are neither read nor filtered. The same statement with a volatile clock reads them all."""
    if analyzed:
        analyze("queues_job")
    for name, (look, found) in LOOKS.items():
        [statement] = statements_of(look)
        sql("SET LOCAL enable_sort = off" if name == "stage" else "SET LOCAL enable_sort = on")
        plan = explain(statement)
        assert plan.root["Actual Rows"] == found, name
        assert "statement_timestamp()" in plan.conditions, (name, plan.conditions)
        assert plan.thrown_away < 50, (name, plan.thrown_away)
        wrong = explain(Statement(statement.sql.replace("jobs_now()", "clock_timestamp()"), statement.params))
        assert wrong.thrown_away >= MANY or wrong.buffers > 5 * plan.buffers, f"{name}: this test cannot fail"
        if int(sql("SHOW server_version_num")[0][0]) >= 180000 or name != "stage":
            # Before 18 the staging index is read past the later ones of a priority: its entries, never their rows.
            assert plan.buffers < MANY / 4, (name, plan.buffers)


# Scenario 10.


class Wire:
    """A broker as the stage sees it, which always has room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.published: list[UUID] = []
        monkeypatch.setattr(broker, "depth", lambda queue, *, max_age=0.2: 0)
        monkeypatch.setattr(broker, "publish", self._publish)

    def _publish(self, hints: list[tuple[str, list[UUID]]], *, task: str = broker.TASK) -> bool:
        self.published += [i for _, ids in hints for i in ids]
        return True


@pytest.mark.usefixtures("world")
def test_scenario_10_held_jobs_do_not_block_the_head_of_their_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenario 10: thousands of jobs of a paused type are older and more urgent than three of another type of the
    tier. The first round publishes those three and nothing of the held type; nor does it look at that one's rows."""
    make_type("held.job")
    make_type()
    insert_many(MANY, kind="held.job", priority=100, due="now - interval '1 h'")
    contract_switches.set_switch("held.job", paused=True, actor="ada", reason="provider is down")
    free = accept(3)
    fold_all()
    wire, stage, plans = Wire(monkeypatch), Stage(), []
    for statement in statements_of(stage.run_once):
        sql("SET LOCAL enable_sort = off")
        plans.append(explain(statement))
    assert sorted(wire.published) == sorted(free)
    assert max(plan.buffers for plan in plans) < MANY / 4
    contract_switches.set_switch("held.job", paused=False, actor="ada", reason="it is back")
    Stage().run_once()
    assert len(wire.published) > len(free), "resumed, it is published at once"


@pytest.mark.usefixtures("world")
def test_scenario_10_a_claim_refuses_what_is_held_and_writes_nothing() -> None:
    """Scenario 10: hints that were out when the type was paused find nothing to claim, and leave the rows as they
    were: no churn of `published_at`, no new version of any row."""
    make_type()
    ids = accept(20)
    contract_switches.set_switch(TYPE, paused=True, actor="ada", reason="stop")
    before = sql("SELECT id, ctid::text FROM queues_job ORDER BY id")
    for _ in range(3):
        assert lifecycle.claim(ids, worker="w") == []
    assert sql("SELECT id, ctid::text FROM queues_job ORDER BY id") == before


@pytest.mark.usefixtures("world")
def test_scenario_10_a_backlog_is_read_as_far_as_there_is_room() -> None:
    """Scenario 10: a bounded number of each type; the best first, without looking at the rest of the backlog."""
    make_type()
    insert_many(MANY)
    [urgent] = accept(priority=50)
    [statement] = statements_of(lambda: lifecycle.stageable([lifecycle.Ask(2, TYPE, 20)]))
    sql("SET LOCAL enable_sort = off")
    plan: Plan = explain(statement)
    assert plan.root["Actual Rows"] == 20
    assert plan.buffers < MANY / 4
    assert lifecycle.stageable([lifecycle.Ask(2, TYPE, 20)])[TYPE][0].id == urgent


# Scenario 12.


@pytest.mark.usefixtures("world")
def test_scenario_12_a_job_for_tomorrow_keeps_its_promises(shift_clock: Callable[[str], None]) -> None:
    """Scenario 12: window of a minute, max age of an hour, due in a day. It is neither too old before it may start nor
    late when it ran; its cohort is the minute in which it became ready."""
    make_type(window_seconds=60, max_age_seconds=3600)
    handlers.handler(TYPE)(lambda job: Confirmed("r"))
    run_at = sql("SELECT jobs_now() + interval '1 day'")[0][0]
    receipt = enqueue(TYPE, {}, run_at=run_at)
    for elapsed in ("2 hours", "23 hours 59 minutes"):
        shift_clock(elapsed)
        assert run_pending() == []
    shift_clock("24 hours 10 seconds")
    run_pending()
    job = get(receipt.job_id)
    assert (job.state, job.ready_at) == (S.CONFIRMED, run_at)
    assert job.expires_at - job.ready_at == dt.timedelta(hours=1)
    fold_all()
    assert sql("SELECT at, ready, in_window FROM queues_outcomerollup WHERE grain = 'minute' AND ready > 0") == [
        (run_at.replace(second=0, microsecond=0), 1, 1)
    ]
    [bucket] = buckets("lag")
    assert bucket <= sql("SELECT jobs_bucket(30)")[0][0], "seconds late, not a day"


@pytest.mark.usefixtures("world")
def test_scenario_12_cancelled_in_time_and_probes_are_in_no_cohort(shift_clock: Callable[[str], None]) -> None:
    """Scenario 12: a job cancelled inside its window is no miss, one cancelled after it is; a replay and a probe are in
    no cohort at all."""
    make_type(window_seconds=60)
    handlers.handler(TYPE)(lambda job: Confirmed("r"))
    early, late, probe = accept(3)
    set_columns(probe, probe=True)
    lifecycle.cancel([early], reason=Reason.OPERATOR)
    shift_clock("2 minutes")
    lifecycle.cancel([late], reason=Reason.OPERATOR)
    child = lifecycle.replay(early, by="ada")
    assert child is not None
    run_pending()
    fold_all()
    sums = "sum(ready)::int, sum(excluded)::int, sum(in_window)::int, sum(replayed)::int"
    [(ready, excluded, in_window, replayed)] = sql(f"SELECT {sums} FROM queues_outcomerollup WHERE grain = 'day'")
    assert (excluded, in_window, replayed) == (1, 0, 1)
    assert ready == 3


# Scenario 20.


@pytest.fixture
def broker_of_its_own(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnBroker]:
    """A Valkey that only this test and its accepts use."""
    with own_broker() as made:
        for name in ("broker_url", "broker_write_url", "broker_read_url"):
            monkeypatch.setitem(current_app.conf, name, made.url)
        channel = broker._Channel()
        monkeypatch.setattr(broker, "_channel", channel)
        make_type()
        yield made
        made.kill()
        channel._close()


def _again() -> bool:
    """Let this process try the broker again at once."""
    broker._channel._down_until = 0.0
    return True


def _with_hint(own: OwnBroker) -> UUID:
    """Accept jobs until one's own hint arrives: on a busy machine a healthy broker may need more than a producer's
    0.2 s."""
    for _ in range(50):
        _again()
        before = own.waiting("tier2")
        [job_id] = accept()
        if own.waiting("tier2") > before:
            return job_id
    raise AssertionError("no accept sends its hint")


def _slowest(n: int) -> float:
    """Accept jobs, each in a transaction of its own, and return how long the slowest took."""
    slowest = 0.0
    for i in range(n):
        began = time.monotonic()
        enqueue(TYPE, {"n": i})
        slowest = max(slowest, time.monotonic() - began)
    return slowest


@pytest.mark.concurrency
def test_scenario_20_a_frozen_broker_does_not_freeze_the_producer(broker_of_its_own: OwnBroker) -> None:
    """Scenario 20, I-42: Valkey stops answering with its connections open (SIGSTOP). A producer waits 0.2 s once, and
    not at all for the next two seconds; every job is stored, and published when the broker is back."""
    _with_hint(broker_of_its_own)
    before = sql("SELECT count(*) FROM queues_job")[0][0]
    broker_of_its_own.freeze()
    assert _slowest(1) < SOON
    assert _slowest(20) < SOON
    assert not broker.publish([("tier2", accept(1))])
    began = time.monotonic()
    assert broker.depth("tier2", max_age=0.0) is None
    assert not Stage().run_once()
    assert time.monotonic() - began < SOON
    assert sql("SELECT count(*) FROM queues_job") == [(before + 22,)]
    broker_of_its_own.go_on()
    sql("UPDATE queues_job SET published_at = jobs_now() - interval '11 s' WHERE published_at IS NOT NULL")
    sql("INSERT INTO queues_workerprocess (id, kind, hostname, pid, queues, slots, busy, memory_bytes, started_at, "
        "seen_at) VALUES ('w/1', 'worker', 'w', 1, '[\"tier2\"]', 20, 0, 0, jobs_now(), jobs_now())")  # fmt: skip
    until(lambda: _again() and Stage().run_once(), "nothing is published when it is back", seconds=30)
    assert broker_of_its_own.waiting("tier2") >= before + 22


@pytest.mark.concurrency
def test_scenario_20_a_direct_hint_is_not_doubled(broker_of_its_own: OwnBroker) -> None:
    """Scenario 20: accept says in its insert that it means to publish, so that the stage does not send the same again;
    after ten seconds without a claim it does."""
    job_id = _with_hint(broker_of_its_own)
    before = broker_of_its_own.waiting("tier2")
    assert get(job_id).published_at is not None
    assert job_id not in {due.id for due in lifecycle.stageable([lifecycle.Ask(2, TYPE, 100)]).get(TYPE, ())}
    set_columns(job_id, raw_published_at="jobs_now() - interval '11 s'")
    until(lambda: _again() and Stage().run_once(), "it is not sent again", seconds=30)
    assert broker_of_its_own.waiting("tier2") > before
