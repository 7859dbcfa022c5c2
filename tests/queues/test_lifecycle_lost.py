"""Heartbeats, and the rescue of runs whose worker is gone. Races: tests/concurrency."""

from __future__ import annotations

import pytest

from queues import lifecycle
from queues.models import JobType
from queues.states import JobState, Reason
from tests.factories import TYPE, accept, claim, confirmed, get, lose_lease, make_job, set_columns
from tests.queues.lives import change_type, kind  # noqa: F401 (a fixture)

pytestmark = pytest.mark.django_db
S = JobState


def test_a_heartbeat_extends_only_what_it_names() -> None:
    """Scenario 4: (id, fence) pairs, never a worker's name; and it says which runs are to stop."""
    a, b, c = claim(accept(3))
    lose_lease(a.id, b.id, c.id)
    lifecycle.cancel([b.id], reason=Reason.OPERATOR)
    assert lifecycle.heartbeat([(a.id, 1, 15.0), (b.id, 1, 15.0), (c.id, 2, 15.0)]) == {
        (a.id, 1): False,
        (b.id, 1): True,
    }
    assert lifecycle.lost(limit=10) == [c.id]


@pytest.mark.parametrize("state", [s for s in JobState if s != S.PROCESSING])
def test_a_heartbeat_revives_nothing(state: JobState) -> None:
    """I-09: a run that is over has no lease to extend."""
    job = make_job(state, fence=1)
    assert lifecycle.heartbeat([(job.id, 1, 15.0)]) == {}
    assert get(job.id).due_at == job.due_at


@pytest.mark.parametrize("state", JobState)
def test_rescue_takes_lost_runs_only(state: JobState) -> None:
    """I-16: every other state stays; a live lease stays; a second rescue finds nothing."""
    job = make_job(state)
    assert lifecycle.rescue([job.id]) == {}
    if state == S.PROCESSING:
        lose_lease(job.id)
        assert lifecycle.lost(limit=10) == [job.id]
        assert lifecycle.rescue([job.id]) != {}
    assert lifecycle.lost(limit=10) == []
    assert lifecycle.rescue([job.id]) == {}


def test_a_lost_run_costs_a_crash_and_is_due_at_once() -> None:
    """I-14, I-15: crashes and attempts are counted apart; the loss is in the record and the next run is told."""
    [run] = claim(accept())
    lose_lease(run.id)
    assert lifecycle.rescue([run.id]) == {run.id: S.RETRYING}
    job = get(run.id)
    assert (job.attempt, job.crashes, job.begun, job.fence, job.alone) == (0, 1, 1, 1, True)
    assert [f["error_class"] for f in job.failures] == ["WorkerLost"]
    [again] = claim([run.id])
    assert (again.attempt, again.begun, again.fence) == (1, 2, 2)
    assert lifecycle.settle([confirmed(run)]) == {}, "I-09: the lost run's own end comes too late"


def test_a_run_named_dead_is_rescued_before_its_lease_ends() -> None:
    """I-14: a heartbeat process that saw its child die need not wait; the fence keeps a successor safe."""
    a, b = claim(accept(2))
    assert lifecycle.rescue([a.id, b.id], dead_runs=[(a.id, a.fence), (b.id, b.fence + 1)]) == {a.id: S.RETRYING}
    assert get(b.id).state == S.PROCESSING


def test_only_runs_that_were_alone_count_towards_poison() -> None:
    """I-15, scenario 5: a neighbour may have been the culprit; three lone losses bury the job."""
    ids = accept(2)
    for _ in range(2):
        runs = claim(ids)
        set_columns(ids[0], raw_due_at="jobs_now() - interval '1 s'")
        set_columns(ids[1], raw_due_at="jobs_now() - interval '1 s'")
        lifecycle.rescue(ids)
        assert {get(i).crashes for i in ids} == {0}
        for run in runs:
            set_columns(run.id, alone=False)
    for n in (1, 2, 3):
        claim([ids[0]])
        lose_lease(ids[0])
        lifecycle.rescue([ids[0]])
        assert get(ids[0]).crashes == n
    job = get(ids[0])
    assert (job.state, job.reason, job.resolution) == (S.DEAD, Reason.POISON, "open")
    assert (job.attempt, job.begun) == (0, 5)


def test_a_lost_worker_can_mean_the_end() -> None:
    """`on_worker_lost = dead`: what may have acted is not run again."""
    [run] = claim(accept())
    change_type(on_worker_lost="dead")
    lose_lease(run.id)
    assert lifecycle.rescue([run.id]) == {run.id: S.DEAD}


def test_a_job_is_rescued_by_the_promise_of_its_version() -> None:
    """I-44: the newest contract says dead, the job's own says retry."""
    [run] = claim(accept())
    JobType.objects.filter(name=TYPE).update(version=2, on_worker_lost="dead", poison_after=1)
    lose_lease(run.id)
    assert lifecycle.rescue([run.id]) == {run.id: S.RETRYING}


def test_losses_do_not_pile_up_without_end() -> None:
    """The record of failures is capped, also for lost runs."""
    [job_id] = accept()
    set_columns(job_id, attempt_limit=100, raw_failures="(SELECT jsonb_agg(n) FROM generate_series(1, 20) AS n)")
    claim([job_id])
    lose_lease(job_id)
    lifecycle.rescue([job_id])
    failures = get(job_id).failures
    assert len(failures) == 20
    assert failures[-1]["error_class"] == "WorkerLost"
