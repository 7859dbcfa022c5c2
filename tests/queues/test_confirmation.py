"""Evidence in every order: callbacks, deadlines, cancels and ends of runs, and the one result that they may have."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from queues import actions, broker, confirmation, lifecycle
from queues.confirmation import Applied, Evidence
from queues.lifecycle import End, Run, Verdict
from queues.models import AuditEntry, Callback, Job, JobReference, JobType
from queues.states import JobState, Reason
from tests.factories import (
    TYPE,
    accept,
    claim,
    confirmed,
    failed,
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

pytestmark = pytest.mark.django_db
S = JobState
WHO: Final[dict[str, Any]] = {"actor": "ada", "reason": "I looked", "source": "api"}


@pytest.fixture(autouse=True)
def kind(db: None, monkeypatch: pytest.MonkeyPatch) -> JobType:
    """A job type that is confirmed by a callback; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    return make_type(success="callback", backoff="fixed", backoff_base_seconds=1.0, confirm_within_seconds=60)


def awaiting(run: Run, ref: str | None = "ref-1", **overrides: Any) -> End:
    """Return the end of a run whose handler handed the work over."""
    values: dict[str, Any] = {"confirm_in": 60.0, "act_in": 60.0, **overrides}
    return End(id=run.id, fence=run.fence, verdict=Verdict.AWAITING, reference=ref, **values)


def finish(run: Run, ref: str | None = "ref-1", **overrides: Any) -> None:
    """End a run as the worker does: write, then look for callbacks that came before."""
    lifecycle.settle([awaiting(run, ref, **overrides)])
    confirmation.apply_pending(job_ids=[run.id])


def said(outcome: str = "confirmed", **values: Any) -> Evidence:
    """Return evidence."""
    return Evidence(outcome="confirmed" if outcome == "confirmed" else "rejected", **values)


def provider(ref: str | None = None, *, outcome: str = "confirmed", job_id: UUID | None = None, **values: Any) -> Any:
    """A provider's callback with an id of its own."""
    webhook_id = values.pop("webhook_id", f"msg_{uuid4().hex}")
    return confirmation.by_provider(
        TYPE, webhook_id=webhook_id, job_id=job_id, evidence=said(outcome, ref=ref, **values)
    )


def pass_deadline(*ids: UUID) -> None:
    """Let the time of awaited proofs run out, and sweep."""
    for job_id in ids:
        if get(job_id).state == S.AWAITING_CONFIRMATION:
            past = "jobs_now() - interval '1 s'"
            set_columns(job_id, raw_due_at=past, raw_confirm_by=past)
    lifecycle.give_up_waiting(lifecycle.overdue(limit=2000))


# All orders.

EVENTS: Final = ("finish", "ok", "rejected", "late", "cancel", "deadline")


def decided(order: tuple[str, ...], *, on_unconfirmed: str) -> tuple[JobState, str | None]:
    """Say by the rules of DESIGN.md section 5 where an order of events must lead. No database is asked."""
    before, after = order[: order.index("finish")], order[order.index("finish") + 1 :]
    # While the run goes on, each waits in its place for the end of the run.
    if "ok" in before:
        return S.CONFIRMED, None
    if "cancel" in before:
        return S.CANCELLED, "producer"
    if "rejected" in before:
        return S.DEAD, "rejected"
    if "late" in before:
        return S.CONFIRMED, None
    # Afterwards the first one decides; a deadline may leave the job open for the next one.
    for event in after:
        if event in ("ok", "late"):
            return S.CONFIRMED, None
        if event == "rejected":
            return S.DEAD, "rejected"
        if event == "cancel":
            return S.CANCELLED, "producer"
        if event == "deadline" and on_unconfirmed == "dead":
            return S.DEAD, "unconfirmed"
    return (S.RETRYING, None) if "deadline" in after else (S.AWAITING_CONFIRMATION, None)


def play(event: str, run: Run, ref: str) -> None:
    """Let one event happen to one job, through the front door that it comes by."""
    if event == "finish":
        finish(run, ref)
    elif event == "ok":
        confirmation.by_token(run.id, said(ref=ref, run=run.fence))
    elif event == "rejected":
        confirmation.by_token(run.id, said("rejected", detail="no such mailbox", run=run.fence))
    elif event == "late":
        # The provider names its own reference, which is not written down before the run ends.
        provider(ref)
    elif event == "cancel":
        try:
            actions.cancel_job(run.id, **WHO)
        except actions.NotCancellable:
            assert get(run.id).settled_at is not None
    else:
        pass_deadline(run.id)


@pytest.mark.parametrize("first", EVENTS)
@pytest.mark.parametrize("on_unconfirmed", ["dead", "retry"])
def test_every_order_of_events_has_one_result(on_unconfirmed: str, first: str) -> None:
    """I-26: {finish, callback ok, rejected, late, cancel, deadline} in all 720 orders; terminal rows never change."""
    JobType.objects.update(on_unconfirmed=on_unconfirmed)
    sql("UPDATE queues_contractrevision SET fields = fields || jsonb_build_object('on_unconfirmed', %s::text)",
        on_unconfirmed)  # fmt: skip
    # A sixth of them at a time: rows that one transaction writes again and again are found ever more slowly.
    orders = [order for order in itertools.permutations(EVENTS) if order[0] == first]
    runs = claim(accept(len(orders)))
    ended: dict[UUID, tuple[Any, ...]] = {}
    final = "id", "state", "reason", "evidence", "settled_at", "failures"
    for step in range(len(EVENTS)):
        for number, (order, run) in enumerate(zip(orders, runs, strict=True)):
            play(order[step], run, f"ref-{number}")
        for row in Job.objects.exclude(settled_at=None).values_list(*final):
            assert ended.setdefault(row[0], row) == row
    wrong = []
    for order, run in zip(orders, runs, strict=True):
        job = get(run.id)
        if (job.state, job.reason) != decided(order, on_unconfirmed=on_unconfirmed):
            wrong.append((order, job.state, job.reason))
        assert (job.evidence is not None) is (job.state == S.CONFIRMED)
    assert wrong == []
    fold_all()
    assert state_counts() == true_counts()


def test_the_orders_lead_to_every_result() -> None:
    """The rules above are no constant: each result comes out of some order."""
    results = Counter(decided(order, on_unconfirmed="dead") for order in itertools.permutations(EVENTS))
    assert set(results) == {
        (S.CONFIRMED, None), (S.CANCELLED, "producer"), (S.DEAD, "rejected"), (S.DEAD, "unconfirmed"),
    }  # fmt: skip
    retried = {decided(order, on_unconfirmed="retry")[0] for order in itertools.permutations(EVENTS)}
    assert S.DEAD in retried and S.CONFIRMED in retried


# Positive evidence.


@pytest.mark.parametrize("state", [S.ACCEPTED, S.RETRYING, S.AWAITING_CONFIRMATION])
def test_positive_evidence_confirms_what_is_open_at_once(state: JobState) -> None:
    """Scenario 2a: "delivered" for run 1 arrives while the job waits for its second attempt."""
    job = make_job(state, fence=2, attempt=1)
    outcome = confirmation.by_token(job.id, said(ref="r", run=1))
    assert (outcome.applied, outcome.state) == (Applied.CONFIRMED, S.CONFIRMED)
    now = get(job.id)
    assert now.evidence is not None
    assert {k: now.evidence[k] for k in ("kind", "ref", "run", "late")} == {
        "kind": "callback", "ref": "r", "run": 1, "late": False,
    }  # fmt: skip
    assert (now.due_at, now.confirm_by, now.reason) == (None, None, None)


@pytest.mark.parametrize("ends", ["awaiting", "failed", "lost", "released", "put off"])
def test_evidence_of_a_running_job_counts_however_the_run_ends(ends: str) -> None:
    """Scenario 2: true evidence settles the job that it proves."""
    [run] = claim(accept())
    assert confirmation.by_token(run.id, said(ref="early", run=1)).applied is Applied.KEPT
    assert get(run.id).state == S.PROCESSING
    if ends == "lost":
        lose_lease(run.id)
        lifecycle.rescue([run.id])
    else:
        end = {
            "awaiting": awaiting(run, "other"),
            "failed": failed(run, reason=Reason.PERMANENT_ERROR.value),
            "released": End(id=run.id, fence=1, verdict=Verdict.RELEASED),
            "put off": End(id=run.id, fence=1, verdict=Verdict.PUT_OFF, retry_in=5.0),
        }[ends]
        lifecycle.settle([end])
    job = get(run.id)
    assert job.state == S.CONFIRMED
    assert job.evidence is not None and job.evidence["ref"] == "early"


def test_the_parents_evidence_confirms_the_waiting_replay() -> None:
    """Scenario 2b: the mail of the dead parent did arrive; its replay is confirmed without being sent."""
    [run] = claim(accept(dedupe_key="k-1"))
    finish(run)
    pass_deadline(run.id)
    assert get(run.id).reason == "unconfirmed"
    child = actions.replay_job(run.id, **WHO)
    grandchild = actions.replay_job(_dies(child), **WHO)
    outcome = confirmation.by_token(run.id, said(ref="ref-1", run=1))
    assert (outcome.job_id, outcome.applied) == (grandchild, Applied.CONFIRMED)
    assert get(grandchild).state == S.CONFIRMED
    for ended in (run.id, child):
        job = get(ended)
        assert job.state == S.DEAD and job.late_evidence is not None
        assert [note["outcome"] for note in job.late_evidence] == ["confirmed"]


def _dies(job_id: UUID) -> UUID:
    [run] = claim([job_id])
    lifecycle.settle([failed(run, reason=Reason.PERMANENT_ERROR.value)])
    return job_id


def test_a_reference_of_an_older_run_still_proves_the_job() -> None:
    """Scenario 2: run 1 got "first", run 2 "second"; the provider calls back about "first"."""
    JobType.objects.update(on_unconfirmed="retry")
    sql('UPDATE queues_contractrevision SET fields = fields || \'{"on_unconfirmed": "retry"}\'')
    [run] = claim(accept())
    finish(run, "first")
    pass_deadline(run.id)
    [again] = claim([run.id])
    assert again.reference == "first"
    finish(again, "second")
    assert provider("first").applied is Applied.CONFIRMED
    job = get(run.id)
    assert job.evidence is not None and (job.evidence["ref"], job.evidence["run"]) == ("first", 1)
    assert list(JobReference.objects.order_by("id").values_list("ref", "fence")) == [("first", 1), ("second", 2)]


@pytest.mark.parametrize("state", [S.DEAD, S.EXPIRED, S.CANCELLED])
def test_late_evidence_is_kept_and_counted(state: JobState) -> None:
    """I-29: the row stays as it ended, and says what came."""
    job = make_job(state, fence=1)
    first = confirmation.by_token(job.id, said(ref="r", run=1))
    assert (first.applied, first.state) == (Applied.LATE, state)
    assert confirmation.by_token(job.id, said(ref="r", run=1)).applied is Applied.LATE
    now = get(job.id)
    assert now.state == state and now.late_evidence is not None
    assert len(now.late_evidence) == 1, "the same word a second time is no second evidence"
    fold_all()
    assert sql("SELECT sum(late_evidence) FROM queues_outcomerollup WHERE grain = 'day'") == [(1,)]


def test_a_second_reference_for_one_action_is_kept() -> None:
    """Two references for one business action may mean that it happened twice."""
    job = make_job(S.AWAITING_CONFIRMATION, fence=1)
    confirmation.by_token(job.id, said(ref="a", run=1))
    assert confirmation.by_token(job.id, said(ref="a", run=1)).applied is Applied.DUPLICATE
    assert get(job.id).late_evidence is None
    assert confirmation.by_token(job.id, said(ref="b", run=1)).applied is Applied.DUPLICATE
    notes = get(job.id).late_evidence
    assert notes is not None and [note["ref"] for note in notes] == ["b"]


def test_a_flood_of_late_evidence_fills_no_row() -> None:
    """Twenty notes are kept, however many come."""
    job = make_job(S.DEAD, fence=1)
    for number in range(30):
        confirmation.by_token(job.id, said(ref=f"r{number}", run=1))
    notes = get(job.id).late_evidence
    assert notes is not None and len(notes) == 20


# Rejections.


@pytest.mark.parametrize("retryable", [False, True])
@pytest.mark.parametrize("when", ["awaiting", "running", "lost"])
def test_a_rejection_ends_the_run_that_it_names(retryable: bool, when: str) -> None:
    """Dead, `rejected`, or another attempt where the provider allows one."""
    [run] = claim(accept())
    word = said("rejected", detail="card declined", retryable=retryable, run=1)
    if when == "awaiting":
        finish(run)
        applied = confirmation.by_token(run.id, word).applied
        assert applied is (Applied.RETRYING if retryable else Applied.REJECTED)
    else:
        assert confirmation.by_token(run.id, word).applied is Applied.KEPT
        if when == "running":
            finish(run)
        else:
            lose_lease(run.id)
            lifecycle.rescue([run.id])
    job = get(run.id)
    assert (job.state, job.reason) == ((S.RETRYING, None) if retryable else (S.DEAD, "rejected"))
    if when != "lost":
        assert (job.failures[-1]["error_class"], job.failures[-1]["message"]) == ("Rejected", "card declined")
    assert confirmation.by_token(run.id, word).applied is Applied.DUPLICATE


def test_a_retryable_rejection_of_the_last_attempt_is_the_end() -> None:
    """No attempt is left."""
    [run] = claim(accept())
    set_columns(run.id, attempt=5)
    finish(run)
    assert confirmation.by_token(run.id, said("rejected", retryable=True, run=1)).applied is Applied.REJECTED


def test_a_rejection_of_an_older_run_changes_nothing() -> None:
    """I-27, K-07: kept as a note, nothing else."""
    job = make_job(S.AWAITING_CONFIRMATION, fence=2, attempt=2)
    assert confirmation.by_token(job.id, said("rejected", run=1)).applied is Applied.SUPERSEDED
    now = get(job.id)
    assert (now.state, now.rejection, now.failures) == (S.AWAITING_CONFIRMATION, None, [])
    assert now.late_evidence is not None and now.late_evidence[0]["outcome"] == "rejected"
    # The next run of the same job does not inherit the rejection of this one.
    confirmation.by_token(job.id, said("rejected", retryable=True, run=2))
    set_columns(job.id, raw_due_at="jobs_clock()")
    [run] = claim([job.id])
    finish(run)
    assert get(job.id).state == S.AWAITING_CONFIRMATION


def test_a_contradiction_is_kept_and_counted() -> None:
    """Confirmed stays confirmed; that somebody said otherwise is on record."""
    job = make_job(S.AWAITING_CONFIRMATION, fence=1)
    confirmation.by_token(job.id, said(ref="r", run=1))
    assert confirmation.by_token(job.id, said("rejected", detail="bounced", run=1)).applied is Applied.CONTRADICTION
    now = get(job.id)
    assert now.state == S.CONFIRMED and now.late_evidence is not None
    assert (now.late_evidence[0]["outcome"], now.late_evidence[0]["detail"]) == ("rejected", "bounced")
    fold_all()
    assert sql("SELECT sum(contradictions) FROM queues_outcomerollup WHERE grain = 'day'") == [(1,)]


def test_nobody_rejects_a_job_that_never_ran() -> None:
    """There is no run that it could name."""
    [job_id] = accept()
    assert confirmation.by_token(job_id, said("rejected", run=None)).applied is Applied.SUPERSEDED
    assert get(job_id).state == S.ACCEPTED


# The inbox.


def test_a_callback_before_its_reference_waits_for_it() -> None:
    """Scenario 3: the provider answers in milliseconds, the reference is written at the end of the chunk."""
    [run] = claim(accept())
    assert provider("ref-1").applied is Applied.PENDING
    finish(run)
    assert get(run.id).state == S.CONFIRMED
    assert Callback.objects.get().applied == "confirmed"


def test_the_scheduler_looks_again() -> None:
    """Scenario 3: both sides died between their write and their look."""
    [run] = claim(accept())
    provider("ref-1")
    lifecycle.settle([awaiting(run)])
    assert get(run.id).state == S.AWAITING_CONFIRMATION
    assert confirmation.apply_pending() == 1
    assert get(run.id).state == S.CONFIRMED
    assert confirmation.apply_pending() == 0


def test_a_repeated_callback_does_not_reach_a_later_run() -> None:
    """K-03: our answer got lost; the provider repeats a rejection that has led to another attempt by then."""
    [run] = claim(accept())
    finish(run)
    word: dict[str, Any] = {"outcome": "rejected", "retryable": True, "webhook_id": "msg_1", "job_id": run.id}
    assert provider(**word).applied is Applied.RETRYING
    set_columns(run.id, raw_due_at="jobs_clock()")
    [again] = claim([run.id])
    finish(again, "ref-2")
    assert provider(**word).applied is Applied.DUPLICATE
    assert get(run.id).state == S.AWAITING_CONFIRMATION


def test_a_reference_names_its_run() -> None:
    """A provider's rejection of what run 1 got is none of run 2."""
    [run] = claim(accept())
    finish(run, "first")
    confirmation.by_token(run.id, said("rejected", retryable=True, run=1))
    set_columns(run.id, raw_due_at="jobs_clock()")
    [again] = claim([run.id])
    finish(again, "second")
    assert provider("first", outcome="rejected").applied is Applied.SUPERSEDED
    assert provider("first", outcome="rejected", job_id=run.id).applied is Applied.SUPERSEDED
    assert provider("second", outcome="rejected").applied is Applied.REJECTED


def test_a_provider_names_only_jobs_of_its_own_type() -> None:
    """K-06: the id of another type's job is as unknown as any other."""
    make_type("test.other", success="callback")
    [other] = accept(kind="test.other")
    for job_id in (other, uuid4()):
        with pytest.raises(actions.JobNotFound):
            provider("r", job_id=job_id)
    assert Callback.objects.count() == 0


def test_a_long_reference_is_found() -> None:
    """Longer than an index entry may be."""
    [run] = claim(accept())
    ref = "ü" * 1000
    finish(run, ref)
    assert provider(ref).applied is Applied.CONFIRMED


def test_old_callbacks_are_forgotten() -> None:
    """They are kept for the confirmation deadline, a day at least."""
    provider("nobody's")
    assert lifecycle.prune_callbacks(limit=10) == 0
    Callback.objects.update(keep_until="2020-01-01T00:00Z")
    assert confirmation.apply_pending() == 0
    assert lifecycle.prune_callbacks(limit=10) == 1


# By hand.


def test_a_person_confirms_and_the_audit_says_so() -> None:
    """The audit entry stands exactly if the change does; a repeat adds none."""
    [run] = claim(accept())
    finish(run)
    for applied in (Applied.CONFIRMED, Applied.DUPLICATE):
        outcome = confirmation.confirm_job(run.id, said(ref="seen by eye", kind="manual"), **WHO)
        assert outcome.applied is applied
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.object_id) == ("job.confirmed_by_hand", "ada", str(run.id))
    job = get(run.id)
    assert job.evidence is not None and (job.evidence["kind"], job.evidence["by"]) == ("manual", "ada")


def test_nobody_confirms_a_job_that_is_not_there() -> None:
    """I-27: 0 rows changed."""
    with pytest.raises(actions.JobNotFound):
        confirmation.confirm_job(uuid4(), said(), **WHO)
    assert AuditEntry.objects.count() == 0


def test_confirming_twice_the_same_end_changes_nothing() -> None:
    """I-03: a commit whose answer got lost is tried again."""
    [run] = claim(accept())
    end = confirmed(run)
    assert lifecycle.settle([end]) == {(run.id, 1): S.CONFIRMED}
    assert lifecycle.settle([end]) == {}
    assert confirmation.by_token(run.id, said(ref="ref-1", run=1)).applied is Applied.DUPLICATE


# Deadlines.


@pytest.mark.parametrize(
    ("policy", "attempts", "state", "reason"),
    [("dead", 1, S.DEAD, "unconfirmed"), ("retry", 1, S.RETRYING, None), ("retry", 5, S.DEAD, "unconfirmed")],
)
def test_a_deadline_does_what_the_contract_says(
    policy: str, attempts: int, state: JobState, reason: str | None
) -> None:
    """on_unconfirmed; the contract of the job's own version."""
    sql("UPDATE queues_contractrevision SET fields = fields || jsonb_build_object('on_unconfirmed', %s::text)", policy)
    [run] = claim(accept())
    set_columns(run.id, attempt=attempts)
    finish(run)
    pass_deadline(run.id)
    job = get(run.id)
    assert (job.state, job.reason, job.failures[-1]["error_class"]) == (state, reason, "Unconfirmed")
    if state == S.RETRYING:
        [again] = claim([run.id])
        assert again.begun == 2, "the next run knows that it may repeat the effect"


def test_a_deadline_is_never_later_than_max_age(shift_clock: Callable[[str], None]) -> None:
    """I-13: max age ends every open state."""
    [run] = claim(accept(max_age=30.0))
    finish(run)
    job = get(run.id)
    assert job.confirm_by == job.due_at == job.expires_at
    shift_clock("31 s")
    assert lifecycle.expire(lifecycle.stale(limit=10)) == {run.id: S.DEAD}
    assert get(run.id).reason == "unconfirmed"


# Superseded writes.


def test_superseded_ends_are_counted_once_somebody_else_has_the_job() -> None:
    """I-09: never silent."""
    [run] = claim(accept())
    lose_lease(run.id)
    lifecycle.rescue([run.id])
    assert lifecycle.settle([confirmed(run)]) == {}
    lifecycle.count_superseded([(run.id, run.fence)])
    [again] = claim([run.id])
    lifecycle.settle([confirmed(again)])
    # The same end written twice is no rival's: its first write arrived.
    lifecycle.count_superseded([(again.id, again.fence)])
    fold_all()
    assert sql("SELECT sum(superseded) FROM queues_outcomerollup WHERE grain = 'day'") == [(1,)]
