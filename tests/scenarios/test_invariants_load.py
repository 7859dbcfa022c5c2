"""Invariants under load and disturbance that no other file plays: I-01, I-12, I-20, I-22."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from uuid import UUID

import pytest
import redis
from celery import current_app
from django.db import connection, transaction

from queues import broker, confirmation, contract_switches, handlers, lifecycle
from queues.accept import Receipt, enqueue
from queues.confirmation import Applied, Evidence
from queues.handlers import Confirmed
from queues.lifecycle import End, Run, Verdict
from queues.runtime.chunk import Runner
from queues.runtime.leases import LeaseTable
from queues.scheduler import confirmations, expire, housekeeping, prune, rescue, rollup, switches
from queues.scheduler.stage import Stage
from queues.states import JobState
from tests.concurrency.rivals import Rival, outcomes, together
from tests.factories import (
    TYPE,
    accept,
    claim,
    confirmed,
    fold_all,
    get,
    lose_lease,
    make_type,
    set_columns,
    sql,
    state_counts,
    true_counts,
)
from tests.scenarios.conftest import open_transaction, until
from tests.scenarios.plans import explain, statements_of
from tests.scenarios.servers import OwnBroker, own_broker

S = JobState
pytestmark = pytest.mark.concurrency


# I-01.


@pytest.fixture
def broker_of_its_own(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnBroker]:
    """A Valkey that only this test uses."""
    with own_broker() as made:
        for name in ("broker_url", "broker_write_url", "broker_read_url"):
            monkeypatch.setitem(current_app.conf, name, made.url)
        channel = broker._Channel()
        monkeypatch.setattr(broker, "_channel", channel)
        make_type(success="reference")
        yield made
        made.kill()
        channel._close()


def _again() -> bool:
    """Let this process try the broker again at once."""
    broker._channel._down_until = 0.0
    return True


def _work_off(runner: Runner) -> int:
    """Take every message that waits and run its ids as a worker does; returns how many bodies ran."""
    ran = 0
    with current_app.connection_for_read() as link:
        while (message := link.default_channel.basic_get("tier2", no_ack=True)) is not None:
            ran += runner.run([UUID(i) for i in message.payload[0][0]])
    return ran


def test_i_01_a_broker_that_loses_everything_loses_no_job(
    broker_of_its_own: OwnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-01, promise 1: jobs are accepted while the broker is flushed, dead, and back with nothing in it. Each accept
    returns soon, and with the stage alone every job runs, once."""
    monkeypatch.setitem(
        handlers._handlers, TYPE, handlers.Registered(function=lambda job: Confirmed("r"), atomic=False)
    )
    accepted: list[UUID] = []

    def accept_some() -> None:
        for _ in range(15):
            began = time.monotonic()
            accepted.extend(accept(1))
            assert time.monotonic() - began < 5

    accept_some()
    until(lambda: _again() and broker.publish([("tier2", accepted)]), "the broker takes no hint", seconds=30)
    assert broker_of_its_own.waiting("tier2") > 0
    with redis.Redis.from_url(broker_of_its_own.url) as client:
        client.flushall()
    assert broker_of_its_own.waiting("tier2") == 0
    accept_some()
    broker_of_its_own.kill()
    accept_some()
    assert not broker.publish([("tier2", accepted)])
    broker_of_its_own.start()
    accept_some()
    # Ten seconds later what accept had published counts as lost.
    sql("UPDATE queues_job SET published_at = jobs_now() - interval '11 s' WHERE published_at IS NOT NULL")
    runner, give_up = Runner(LeaseTable(), node="test"), time.monotonic() + 60
    while sql("SELECT 1 FROM queues_job WHERE state <> 'confirmed' LIMIT 1"):
        assert time.monotonic() < give_up
        _again()
        Stage().run_once()
        _work_off(runner)
    assert len(accepted) == 60
    assert {i for (i,) in sql("SELECT id FROM queues_job")} == set(accepted)
    assert sql("SELECT DISTINCT fence, begun FROM queues_job") == [(1, 1)]


# I-12.

CLIENTS, KEYS, ROUNDS = 50, 6, 3


class Race:
    """Clients that send the same keys, and workers that are killed; what happened, in order."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.starts: list[tuple[int, UUID]] = []
        self.ends: list[tuple[int, UUID]] = []
        self._events = itertools.count()

    def client(self, seed: int) -> list[tuple[str, Receipt]]:
        """Send every key in each round; the last one comes when all are confirmed."""
        draw, told = random.Random(seed), []
        for n in range(ROUNDS):
            if n == ROUNDS - 1:
                assert self.done.wait(50)
            for number in draw.sample(range(KEYS), KEYS):
                told.append((f"k{number}", enqueue(TYPE, {"key": number}, dedupe_key=f"k{number}")))
        return told

    def worker(self, seed: int) -> None:
        """Run what is due, one by one; some runs end with their process."""
        draw = random.Random(seed)
        while not self.done.is_set():
            for row in lifecycle.stageable([lifecycle.Ask(2, TYPE, 3)]).get(TYPE, ()):
                for run in lifecycle.claim([row.id], worker=f"w{seed}"):
                    self.starts.append((next(self._events), run.id))
                    self._run(run, killed=draw.random() < 0.4)
            if len(self.ends) >= KEYS:
                self.done.set()

    def _run(self, run: Run, *, killed: bool) -> None:
        if killed:
            lifecycle.rescue([run.id], dead_runs=[(run.id, run.fence)])
        elif lifecycle.settle([confirmed(run, f"{run.id}/{run.fence}")]):
            self.ends.append((next(self._events), run.id))


@pytest.mark.usefixtures("committed")
def test_i_12_a_confirmed_key_never_runs_again() -> None:
    """I-12, promise 2: fifty clients send each key again and again, before, while and after it is confirmed, and
    workers that run them are killed. Each key has one job, at most one confirmed effect, and no start after it."""
    make_type(success="reference", poison_after=100)
    race = Race()
    workers = [Rival(partial(race.worker, seed)) for seed in range(3)]
    try:
        found = outcomes(together(*[partial(race.client, seed) for seed in range(CLIENTS)]))
    finally:
        race.done.set()
        outcomes(workers)
    by_key: dict[str, set[UUID]] = {}
    for key, receipt in itertools.chain.from_iterable(found):
        by_key.setdefault(key, set()).add(receipt.job_id)
    assert {len(ids) for ids in by_key.values()} == {1}
    assert sum(not receipt.duplicate for some in found for _, receipt in some) == KEYS
    assert Counter(job_id for _, job_id in race.ends) == {job_id: 1 for ids in by_key.values() for job_id in ids}
    confirmed_at = {job_id: at for at, job_id in race.ends}
    assert all(at < confirmed_at[job_id] for at, job_id in race.starts)
    assert len(race.starts) > KEYS, "some workers were killed"
    assert all(receipt.evidence for some in found for _, receipt in some[-KEYS:]), "told with its evidence"


# I-20.


@pytest.mark.usefixtures("committed")
def test_i_20_a_foreign_long_transaction_does_not_stop_claims() -> None:
    """I-20: one session has written and holds its XID, another one scans the jobs in REPEATABLE READ; both stay open,
    so no dead row can be cleaned up. Claims and ends wait for nobody, and a claim costs what it cost before."""
    make_type()

    def claim_cost() -> int:
        [job_id] = accept()
        statements = statements_of(lambda: claim([job_id]))
        set_columns(job_id, raw_due_at="jobs_now()")
        cost = explain(statements[0]).buffers
        lifecycle.rescue([job_id], dead_runs=[(job_id, 1)])
        return cost

    def scan() -> None:
        sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        sql("SELECT count(*) FROM queues_job")

    first = claim_cost()
    with open_transaction(lambda: make_type("foreign.job")), open_transaction(scan):
        sql("SET lock_timeout = '200ms'")
        slowest, ids = 0.0, accept(300)
        for start in range(0, 300, 10):
            began = time.monotonic()
            runs = claim(ids[start : start + 10])
            lifecycle.heartbeat([(run.id, run.fence, 15.0) for run in runs])
            lifecycle.settle([End(id=run.id, fence=run.fence, verdict=Verdict.FAILED) for run in runs])
            lifecycle.settle([confirmed(run) for run in claim([run.id for run in runs])])
            slowest = max(slowest, time.monotonic() - began)
        last = claim_cost()
    assert slowest < 2
    assert last < 2 * first + 20, (first, last)
    assert sql("SELECT count(*) FROM queues_job WHERE state = 'confirmed'") == [(300,)]


# I-22.


def _awaiting() -> Run:
    [run] = claim(accept(kind="call.job"))
    end = End(id=run.id, fence=run.fence, verdict=Verdict.AWAITING, reference=f"re_{run.id}", confirm_in=60, act_in=60)
    lifecycle.settle([end])
    return run


@pytest.mark.usefixtures("committed")
def test_i_22_three_schedulers_do_each_due_action_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """I-22, I-16: all services of three schedulers at the same moment. Each lost run costs one crash, each old job
    expires once, each wait ends once, each callback applies once, each switch is turned back with one audit entry, each
    delta is counted once; doubled hints start nothing twice."""
    make_type()
    make_type("call.job", success="callback", on_unconfirmed="dead")
    past = "jobs_now() - interval '1 s'"
    lost = accept(20)
    for run in [claim([i])[0] for i in lost]:
        lose_lease(run.id)
    stale, overdue, matched = accept(20), [_awaiting().id for _ in range(10)], [_awaiting().id for _ in range(10)]
    for job_id in stale:
        set_columns(job_id, raw_expires_at=past)
    for job_id in overdue:
        set_columns(job_id, raw_due_at=past, raw_confirm_by=past)
    for job_id in matched:
        said = Evidence(outcome="confirmed", ref=f"re_{job_id}")
        assert confirmation._remember("call.job", f"wh_{job_id}", None, said)
    contract_switches.set_switch("call.job", paused=True, actor="ada", reason="an hour")
    sql(f"UPDATE queues_jobtype SET paused_until = {past} WHERE name = 'call.job'")
    hints: list[UUID] = []

    def publish(found: list[tuple[str, list[UUID]]], *, task: str = broker.TASK) -> bool:
        hints.extend(i for _, ids in found for i in ids)
        return True

    monkeypatch.setattr(broker, "depth", lambda queue, *, max_age=0.2: 0)
    monkeypatch.setattr(broker, "publish", publish)

    def scheduler() -> None:
        services = [
            rescue.run_once, expire.run_once, confirmations.end_waits, confirmations.Matching().run_once,
            confirmations.Checks().run_once, rollup.run_once, switches.run_once, prune.Prune().run_once,
            housekeeping.run_once, Stage().run_once,
        ]  # fmt: skip
        for _ in range(3):
            for run_once in services:
                run_once()

    outcomes(together(scheduler, scheduler, scheduler))
    crashes = "SELECT DISTINCT state, crashes, jsonb_array_length(failures) FROM queues_job WHERE id = ANY(%s)"
    assert sql(crashes, lost) == [(S.RETRYING, 1, 1)]
    assert sql(crashes, stale) == [(S.EXPIRED, 0, 0)]
    assert sql(crashes, overdue) == [(S.DEAD, 0, 1)]
    assert {get(i).state for i in matched} == {S.CONFIRMED}
    assert sql("SELECT applied, count(*) FROM queues_callback GROUP BY 1") == [(Applied.CONFIRMED, 10)]
    assert sql("SELECT count(*) FROM queues_auditentry WHERE action = 'contract.resumed'") == [(1,)]
    fold_all()
    assert state_counts() == true_counts()
    sums = "sum(lost)::int, sum(expired)::int, sum(dead)::int, sum(confirmed)::int"
    assert sql(f"SELECT {sums} FROM queues_outcomerollup WHERE grain = 'day'") == [(20, 20, 10, 10)]
    assert len(set(hints)) < len(hints), "here all three believe that they are the one that publishes"
    runs = [run.id for i in hints for run in lifecycle.claim([i], worker="w")]
    assert sorted(runs) == sorted(set(runs))
    assert connection.in_atomic_block is False
    with transaction.atomic():
        assert lifecycle.lost(limit=10) == []
