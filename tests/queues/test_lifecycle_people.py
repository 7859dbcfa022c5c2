"""What people do to a job: cancel, replay, close a dead letter. Races: tests/concurrency."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID, uuid4

import pytest

from queues import lifecycle
from queues.accept import enqueue
from queues.models import DedupeKey, Job, JobType
from queues.states import REPLAYABLE, TERMINAL, JobState, Reason
from tests.factories import TYPE, WORKER, accept, claim, failed, get, make_job, sql
from tests.queues.lives import kind  # noqa: F401 (a fixture)

pytestmark = pytest.mark.django_db
S = JobState


@pytest.mark.parametrize("state", JobState)
def test_cancel_in_every_state(state: JobState) -> None:
    """I-31: waiting → cancelled, running → asked to stop, settled → nothing; a second cancel changes nothing."""
    job = make_job(state)
    answer = lifecycle.cancel([job.id], reason=Reason.PRODUCER)
    now = get(job.id)
    if state in TERMINAL:
        assert answer == []
        assert now.state == state
        return
    [one] = answer
    assert one.state == (S.PROCESSING if state == S.PROCESSING else S.CANCELLED) == now.state
    assert now.cancel_requested
    assert now.reason == Reason.PRODUCER
    assert lifecycle.cancel([job.id], reason=Reason.PRODUCER) == []
    assert lifecycle.claim([job.id], worker=WORKER) == []


def test_cancel_says_whether_something_may_have_happened() -> None:
    """Scenario 11: `effect` is possible as soon as a run may have begun."""
    [fresh] = accept()
    [run] = claim(accept())
    lifecycle.settle([failed(run, retry_in=60)])
    answers = {c.id: c.may_have_acted for c in lifecycle.cancel([fresh, run.id], reason=Reason.OPERATOR)}
    assert answers == {fresh: False, run.id: True}


@pytest.mark.parametrize("state", JobState)
def test_replay_in_every_state(state: JobState) -> None:
    """I-30: dead, expired and cancelled jobs have one child, whatever is clicked; the others none."""
    job = make_job(state)
    child = lifecycle.replay(job.id, by="me")
    if state not in REPLAYABLE:
        assert child is None
        assert Job.objects.count() == 1
        return
    assert child is not None
    assert lifecycle.replay(job.id, by="you") is None
    parent, new = get(job.id), get(child)
    assert (parent.state, parent.resolution, parent.replayed_by, parent.resolved_by) == (state, "replayed", child, "me")
    assert (new.state, new.replay_of, new.root, new.payload) == (S.ACCEPTED, job.id, job.id, job.payload)
    assert (new.idempotency_key, bytes(new.request_hash)) == (job.idempotency_key, bytes(job.request_hash))
    assert (new.attempt, new.fence, new.crashes, new.failures) == (0, 0, 0, [])


def _dead(**overrides: Any) -> UUID:
    receipt = enqueue(TYPE, {"n": 1}, **overrides)
    [run] = claim([receipt.job_id])
    lifecycle.settle([failed(run, reason="permanent_error")])
    return receipt.job_id


def test_a_replay_is_told_of_its_parents_runs() -> None:
    """Scenario 15: the dangerous run is the first one of a replay; one whose parent never ran is not."""
    child = lifecycle.replay(_dead(), by="me")
    assert child is not None
    [run] = claim([child])
    assert (run.attempt, run.fence) == (1, 1)
    assert run.begun == 2, "maybe_duplicate"
    [fresh] = accept()
    lifecycle.cancel([fresh], reason=Reason.OPERATOR)
    unborn = lifecycle.replay(fresh, by="me")
    assert unborn is not None
    [run] = claim([unborn])
    assert run.begun == 1


def test_a_replay_moves_the_key_along_the_lineage() -> None:
    """Scenario 15: only the newest is replayed; the key follows it and keeps its first hash; root is the first job."""
    first = _dead(dedupe_key="k")
    kept = bytes(DedupeKey.objects.get().request_hash)
    second = lifecycle.replay(first, by="me")
    assert second is not None
    assert DedupeKey.objects.get().job_id == second
    [run] = claim([second])
    lifecycle.settle([failed(run, reason="permanent_error")])
    assert lifecycle.replay(first, by="me") is None, "a fork of the lineage"
    third = lifecycle.replay(second, by="me")
    assert third is not None
    assert DedupeKey.objects.get().job_id == third
    assert bytes(DedupeKey.objects.get().request_hash) == kept
    assert (get(third).root, get(third).replay_of) == (first, second)
    assert {get(i).idempotency_key for i in (first, second, third)} == {get(first).idempotency_key}


def test_a_replay_is_refused_when_its_key_moved_on() -> None:
    """Scenario 15: the key belongs to a newer job: nothing is written, nothing is marked."""
    first = _dead(dedupe_key="k")
    sql("UPDATE queues_dedupekey SET job_id = %s", uuid4())
    assert lifecycle.replay(first, by="me") is None
    assert (get(first).resolution, get(first).replayed_by, Job.objects.count()) == ("open", None, 1)


def test_a_replay_needs_its_payload_and_an_enabled_type() -> None:
    """An erased payload cannot be replayed; a disabled type takes no jobs, replays neither."""
    erased, off = make_job(S.DEAD), make_job(S.DEAD)
    sql("UPDATE queues_job SET payload = NULL, erased_at = jobs_clock() WHERE id = %s", erased.id)
    assert lifecycle.replay(erased.id, by="me") is None
    JobType.objects.update(enabled=False)
    assert lifecycle.replay(off.id, by="me") is None


def test_a_replay_is_accepted_under_the_newest_promise() -> None:
    """A new job, a new promise: tier, version, window and attempts are those of now."""
    first = _dead()
    JobType.objects.update(version=2, tier_id=1, window_seconds=9, max_attempts=2, max_age_seconds=100)
    child = lifecycle.replay(first, by="me")
    assert child is not None
    new = get(child)
    assert (new.contract_version, new.tier, new.window_seconds, new.attempt_limit) == (2, 1, 9, 2)
    assert new.expires_at - new.ready_at == dt.timedelta(seconds=100)


@pytest.mark.parametrize("state", JobState)
def test_close_resolves_dead_letters_once(state: JobState) -> None:
    """I-30: one action; a closed dead letter is not replayed either."""
    job = make_job(state)
    closed = lifecycle.close_dead_letters([job.id], resolution="ignored", by="me")
    assert closed == ({job.id} if state == S.DEAD else set())
    assert lifecycle.close_dead_letters([job.id], resolution="cancelled", by="you") == set()
    if state == S.DEAD:
        assert (get(job.id).resolution, get(job.id).resolved_by) == ("ignored", "me")
        assert lifecycle.replay(job.id, by="you") is None
