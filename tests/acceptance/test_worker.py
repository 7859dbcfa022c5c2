"""Real processes: what a worker does, and what becomes of its jobs when it dies."""

from __future__ import annotations

import os
import signal

import pytest

from queues import broker, lifecycle, workers
from queues.models import JobType
from queues.outcomes import pools
from queues.states import Reason
from tests.acceptance.conftest import Stack, limbo
from tests.acceptance.jobs import POISON, QUICK, SLOW
from tests.factories import accept, evidence, fold_all, get, sql, state_counts, true_counts

pytestmark = pytest.mark.acceptance
LEASE = 8
SLACK = 10.0
"""Starting processes on a busy machine."""


def _settled_truth(stack: Stack) -> None:
    """I-13, I-35: nothing is in limbo, and the counts are true, once the scheduler has committed what it folds."""
    assert limbo() == []
    fold_all()
    stack.until(lambda: state_counts() == true_counts(), seconds=5)


def test_a_job_runs_and_is_confirmed(stack: Stack) -> None:
    """Accepted, published at once, claimed, confirmed with its reference; no scheduler needed."""
    stack.worker()
    [job_id] = accept(kind=QUICK)
    took = stack.all_confirmed(1, seconds=10)
    job = get(job_id)
    assert evidence(job_id)["ref"] == f"ref-{job_id}"
    assert (job.attempt, job.fence) == (1, 1)
    assert took < 2
    [run] = stack.runs()
    assert run["maybe_duplicate"] is False
    _settled_truth(stack)


@pytest.mark.parametrize("heart", ["survives", "dies too"])
def test_killed_workers_jobs_run_again(heart: str, stack: Stack) -> None:
    """I-14, I-08: SIGKILL of the worker and its pool: the heartbeat process reports it at once; without that the leases
    end. Every job is confirmed, and every second run is told that it may be one."""
    if heart == "dies too":
        JobType.objects.update(lease_seconds=LEASE)
    stack.scheduler()
    first = stack.worker()
    ids = accept(6, kind=SLOW)
    stack.until(lambda: len(stack.runs()) == 2, seconds=20)
    begun = {run["id"] for run in stack.runs()}
    for pid in stack.hearts(first) if heart == "dies too" else ():
        os.kill(pid, signal.SIGKILL)
    stack.kill(first)
    if heart == "survives":
        stack.until(lambda: "processing" not in stack.states(), seconds=5)
    stack.worker()
    stack.go()
    stack.all_confirmed(6, seconds=LEASE + SLACK + 15)
    again = [run for run in stack.runs() if run["run"] > 1]
    assert {run["id"] for run in again} == begun
    assert all(run["maybe_duplicate"] and run["previous"] == ["WorkerLost"] for run in again)
    assert all(not run["maybe_duplicate"] for run in stack.runs() if run["id"] not in begun)
    assert {get(i).attempt for i in ids} == {1}
    _settled_truth(stack)


def test_a_killed_child_costs_a_moment(stack: Stack) -> None:
    """I-14: the worker lives on and its lease of a minute does not matter; the neighbour's run goes on."""
    stack.scheduler()
    stack.worker()
    accept(2, kind=SLOW)
    stack.until(lambda: len(stack.runs()) == 2, seconds=20)
    victim, neighbour = stack.runs()
    os.kill(victim["pid"], signal.SIGKILL)
    stack.until(lambda: len(stack.runs()) == 3, seconds=10)
    stack.go()
    stack.all_confirmed(2, seconds=10)
    assert [run["run"] for run in stack.runs() if run["id"] == victim["id"]] == [1, 2]
    assert [run["run"] for run in stack.runs() if run["id"] == neighbour["id"]] == [1]
    _settled_truth(stack)


def test_a_flushed_broker_loses_no_job(stack: Stack) -> None:
    """I-01, I-21: all hints are gone; every job runs once, within the hint's time-out and a moment."""
    accept(6, kind=QUICK)
    stack.scheduler()
    stack.until(lambda: stack.broker.llen("tier2") > 0, seconds=20)
    stack.broker.flushdb()
    stack.worker()
    stack.all_confirmed(6, seconds=10 + SLACK)
    assert sorted(run["run"] for run in stack.runs()) == [1] * 6
    _settled_truth(stack)


def test_sigterm_drains(stack: Stack) -> None:
    """I-17: the running body ends and is confirmed, its neighbours in the chunk are released unspent, nothing runs
    twice, and the worker ends in good order. Meanwhile the page of queues can say whose run it is, and that it drains.
    """
    worker = stack.worker(concurrency=1)
    ids = accept(20, kind=SLOW)
    assert broker.publish([("tier2", ids)])
    stack.until(lambda: stack.runs(), seconds=20)
    worker.send_signal(signal.SIGTERM)
    stack.until(lambda: stack.states() == {"processing": 1, "accepted": 19}, seconds=5)
    assert worker.poll() is None
    (run,) = pools.runs()
    assert run.worker.startswith(f"{workers.hostname()}/{worker.pid}."), "not its child's process id"
    stack.until(lambda: [one.draining for one in pools.fleet(gone_seconds=workers.GONE_SECONDS)] == [True], seconds=10)
    stack.go()
    assert worker.wait(20) == 0
    assert stack.states() == {"confirmed": 1, "accepted": 19}
    assert len(stack.runs()) == 1
    assert sql("SELECT DISTINCT attempt, begun, fence FROM queues_job WHERE state = 'accepted'") == [(0, 0, 1)]
    stack.until(lambda: sql("SELECT count(*) FROM queues_workerprocess") == [(0,)], seconds=10)
    stack.scheduler()
    stack.worker()
    stack.all_confirmed(20, seconds=20)
    assert len(stack.runs()) == 20
    assert not any(run["maybe_duplicate"] for run in stack.runs())
    _settled_truth(stack)


def test_poison_is_buried_and_its_neighbours_are_not(stack: Stack) -> None:
    """I-15, scenario 5: a job that kills its process takes nobody with it: three lone runs, then dead, `poison`."""
    stack.scheduler()
    stack.worker()
    before, [poison], after = accept(4, kind=QUICK), accept(kind=POISON), accept(4, kind=QUICK)
    # The worst case: all of them in one chunk, beside the hints that were sent already.
    assert broker.publish([("tier2", [*before, poison, *after])])
    stack.until(lambda: stack.states() == {"confirmed": 8, "dead": 1}, seconds=60)
    job = get(poison)
    assert (job.reason, job.crashes, job.attempt) == (Reason.POISON, 3, 0)
    assert len(stack.runs(POISON)) == job.begun in (3, 4)
    assert {f["error_class"] for f in job.failures} == {"WorkerLost"}
    _settled_truth(stack)


def test_a_running_job_is_told_of_its_cancel(stack: Stack) -> None:
    """I-31: asked to stop while it runs; it has its evidence all the same, and evidence wins."""
    stack.worker()
    [job_id] = accept(kind=SLOW)
    stack.until(lambda: stack.runs(), seconds=20)
    lifecycle.cancel([job_id], reason=Reason.PRODUCER)
    stack.go()
    stack.all_confirmed(1, seconds=10)
    _settled_truth(stack)
