"""What a review proved of callbacks and late evidence. A letter with a number names the finding."""

from __future__ import annotations

import time
from uuid import UUID

import pytest
from django.db import DataError, IntegrityError, connection

from queues import confirmation, lifecycle
from queues.confirmation import Applied, Evidence
from queues.lifecycle import Edit
from queues.runtime import leases
from queues.runtime.chunk import Chunk, Runner
from queues.runtime.leases import LeaseTable
from queues.scheduler import confirmations
from tests.factories import TYPE, accept, analyze, claim, evidence, failed, get, lose_lease, make_type, released, sql
from tests.queues.reviewed import CALL, S, World, awaiting, begun_before, provider, refuse

# A6: whose evidence it is.


def test_evidence_does_not_follow_a_replay_under_another_key(world: World) -> None:
    """A6: another key is another action; the proof of the first one stays late evidence of the first one."""
    make_type(**CALL)
    [job_id] = accept(dedupe_key="order-1")
    [run] = claim([job_id])
    lifecycle.settle([failed(run, reason="permanent_error")])
    digest = get(job_id).request_hash
    other = lifecycle.replay(
        job_id, by="ada", edit=Edit(payload=None, request_hash=bytes(digest).hex(), dedupe_key="order-2")
    )
    assert other is not None
    assert get(job_id).replayed_by == other
    outcome = confirmation.by_token(job_id, Evidence(outcome="confirmed", ref="r", run=1))
    assert (outcome.job_id, outcome.applied, outcome.state) == (job_id, Applied.LATE, S.DEAD)
    assert get(other).state == S.ACCEPTED
    assert get(job_id).late_evidence is not None


# B8, B9: rejections, and callbacks that cannot be applied.


@pytest.mark.parametrize("retryable", [False, True])
@pytest.mark.parametrize("run", [1, None])
def test_a_rejection_of_a_job_that_was_given_back_changes_nothing(world: World, retryable: bool, run: int) -> None:
    """B8, I-26: no body ran that it could be about; not an error either."""
    make_type(**CALL)
    [job_id] = accept()
    [claimed] = claim([job_id])
    lifecycle.settle([released(claimed)])
    outcome = confirmation.by_token(job_id, Evidence(outcome="rejected", retryable=retryable, run=run))
    assert (outcome.applied, outcome.state) == (Applied.SUPERSEDED, S.ACCEPTED)
    job = get(job_id)
    assert (job.state, job.rejection) == (S.ACCEPTED, None)
    assert job.due_at is not None


@pytest.mark.parametrize("error", [DataError, IntegrityError])
def test_a_callback_that_cannot_be_applied_keeps_no_other_waiting(
    world: World, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B8, I-13: the others are applied; the provider of the bad one is told that it is kept, not a server error."""
    make_type(**CALL)
    [bad, good] = accept(2)
    runs = {run.id: run for run in claim([bad, good])}
    refuse(bad, error, monkeypatch)
    assert provider("a", job_id=bad).applied is Applied.PENDING
    assert provider("b", ref="R").applied is Applied.PENDING
    lifecycle.settle([awaiting(runs[good], "R")])
    assert confirmation.apply_pending() == 1
    assert get(good).state == S.CONFIRMED
    assert get(bad).state == S.PROCESSING


def test_a_rejection_without_a_run_does_not_hit_the_next_run(world: World) -> None:
    """B9, I-27, K-07: run 1 got "A" and died before it could say so; the provider rejects "A" while run 2 goes on."""
    make_type(**CALL)
    [job_id] = accept()
    begun_before(job_id)
    [two] = claim([job_id])
    assert provider("w", "rejected", job_id=job_id, ref="A").applied is Applied.SUPERSEDED
    lifecycle.settle([awaiting(two, "B")])
    assert provider("x", "rejected", job_id=job_id).applied is Applied.SUPERSEDED
    assert get(job_id).state == S.AWAITING_CONFIRMATION
    assert provider("y", "rejected", job_id=job_id, ref="B").applied is Applied.REJECTED


@pytest.mark.parametrize("ends", ["running", "awaiting", "failed", "lost"])
def test_a_rejection_without_a_run_is_about_the_only_one(world: World, ends: str) -> None:
    """B9: only one body began, so it cannot be about another one."""
    make_type(**CALL)
    [job_id] = accept()
    [run] = claim([job_id])
    if ends == "lost":
        lose_lease(job_id)
        lifecycle.rescue([job_id])
    elif ends != "running":
        lifecycle.settle([awaiting(run) if ends == "awaiting" else failed(run)])
    applied = provider("w", "rejected", job_id=job_id, ref="unknown").applied
    assert applied is (Applied.KEPT if ends == "running" else Applied.REJECTED)
    if ends == "running":
        lifecycle.settle([awaiting(run)])
    assert (get(job_id).state, get(job_id).reason) == (S.DEAD, "rejected")


# B10: the reference of a run that came too late.


@pytest.mark.parametrize("when", ["before its successor", "while it runs", "after it"])
def test_the_reference_of_a_superseded_run_proves_its_job(world: World, when: str) -> None:
    """B10, I-26: its end came too late, and what it handed over is on its way all the same."""
    make_type(**CALL)
    [job_id] = accept()
    [one] = claim([job_id])
    lose_lease(job_id)
    lifecycle.rescue([job_id])
    end = awaiting(one, "A")
    if when == "before its successor":
        assert lifecycle.settle([end]) == {}
    [two] = claim([job_id])
    if when == "while it runs":
        assert lifecycle.settle([end]) == {}
    lifecycle.settle([awaiting(two, "B")])
    if when == "after it":
        assert lifecycle.settle([end]) == {}
    assert get(job_id).reference == "B"
    assert provider("r", "rejected", ref="A").applied is Applied.SUPERSEDED
    assert provider("w", ref="A").applied is Applied.CONFIRMED
    assert (evidence(job_id)["ref"], evidence(job_id)["run"]) == ("A", 1)


def test_the_early_callback_of_a_superseded_run_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """B10, scenario 3: the worker looks for callbacks of all that it wrote a reference of, not of its ends only."""
    make_type(**CALL)
    [job_id] = accept()
    [one] = claim([job_id])
    lose_lease(job_id)
    lifecycle.rescue([job_id])
    assert provider("w", ref="A").applied is Applied.PENDING
    monkeypatch.setattr(Runner, "_finisher", lambda self: None)
    runner = Runner(LeaseTable(), node="test")
    chunk = Chunk([one], runner._slot(), claimed_at=leases.now())
    runner._write([awaiting(one, "A")], chunk)
    assert get(job_id).state == S.CONFIRMED


# B13: what is looked at again.


def cross(ref: str, *, callback_age: int, reference_age: int) -> UUID:
    """Let a job and its callback miss each other, so many seconds ago."""
    [run] = claim(accept())
    provider(f"msg {ref}", ref=ref)
    lifecycle.settle([awaiting(run, ref)])
    sql("UPDATE queues_callback SET received_at = jobs_now() - make_interval(secs => %s) WHERE ref = %s",
        callback_age, ref)  # fmt: skip
    sql("UPDATE queues_jobreference SET at = jobs_now() - make_interval(secs => %s) WHERE ref = %s",
        reference_age, ref)  # fmt: skip
    return run.id


@pytest.mark.parametrize(("callback_age", "reference_age"), [(5, 3000), (3000, 5), (5, 5)])
def test_what_crossed_is_found_by_whichever_side_is_new(world: World, callback_age: int, reference_age: int) -> None:
    """B13, scenario 3: the newer side is what is looked at, the older one may be of any age."""
    make_type(**CALL)
    job_id = cross("A", callback_age=callback_age, reference_age=reference_age)
    service = confirmations.Matching(caught_up=True, looked_at=time.monotonic())
    assert service.run_once() is False
    assert get(job_id).state == S.CONFIRMED


def test_the_first_look_goes_back_as_far_as_callbacks_are_kept(world: World) -> None:
    """B13: no scheduler ran for an hour; afterwards only what is new is looked at."""
    make_type(**CALL)
    first = cross("A", callback_age=3000, reference_age=3000)
    service = confirmations.Matching()
    service.run_once()
    assert get(first).state == S.CONFIRMED
    assert service.caught_up
    second = cross("B", callback_age=3000, reference_age=3000)
    service.run_once()
    assert get(second).state == S.AWAITING_CONFIRMATION, "it had been looked at an hour ago"


def test_who_did_not_look_for_a_while_looks_further_back(world: World) -> None:
    """B13: the database was away for longer than the window, and what came before it is older than that."""
    make_type(**CALL)
    job_id = cross("A", callback_age=125, reference_age=125)
    late = time.monotonic() - confirmations.LOOK_SECONDS / 2 - 1
    confirmations.Matching(caught_up=True, looked_at=late).run_once()
    assert get(job_id).state == S.CONFIRMED


def test_a_bad_callback_does_not_end_the_catching_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """B13, B8: after an outage a batch of which one could not be applied is followed by the next batch."""
    make_type(**CALL)
    ids = [cross(f"ref {n}", callback_age=3000, reference_age=3000) for n in range(3)]
    monkeypatch.setattr(confirmations, "BATCH", 2)
    refuse(ids[0], DataError, monkeypatch)
    service = confirmations.Matching()
    for _ in range(5):
        service.run_once()
    assert [get(job_id).state for job_id in ids[1:]] == [S.CONFIRMED] * 2


def test_looking_again_does_not_read_the_inbox(world: World) -> None:
    """B13: callbacks that are nobody's and references of the last day are many; each second they must not cost."""
    make_type(**CALL)
    sql(
        "INSERT INTO queues_callback (type, webhook_id, ref, outcome, retryable, detail, received_at, keep_until,"
        " applied) SELECT %s, 'w' || n, 'theirs ' || n, 'confirmed', false, '', jobs_now() - interval '1 h',"
        " jobs_now() + interval '1 day', '' FROM generate_series(1, 20000) AS n", TYPE,
    )  # fmt: skip
    sql(
        "INSERT INTO queues_jobreference (type, ref, job_id, fence, at) SELECT %s, 'ours ' || n, gen_random_uuid(), 1,"
        " jobs_now() - interval '1 h' FROM generate_series(1, 20000) AS n", TYPE,
    )  # fmt: skip
    analyze("queues_callback", "queues_jobreference")
    with connection.cursor() as cursor:
        cursor.execute(
            "EXPLAIN (COSTS OFF) " + confirmation._MATCHED,
            {"within": confirmations.LOOK_SECONDS, "limit": 500, "after": 0},
        )
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "Seq Scan" not in plan, plan
    assert "callback_recent" in plan and "reference_recent" in plan, plan
