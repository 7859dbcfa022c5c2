"""Scenarios of evidence: 2, 3 and 16."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import transaction

from jobsboard.testing import expire_lease, run_pending
from queues import actions, confirmation, handlers, lifecycle
from queues.accept import enqueue
from queues.confirmation import Applied, Evidence, Outcome
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext
from queues.lifecycle import End, Run, Verdict
from queues.models import Job
from queues.runtime import checks
from queues.scheduler import confirmations
from queues.states import JobState, Reason
from tests.concurrency.rivals import Rival, outcomes, together
from tests.factories import TYPE, accept, claim, evidence, failed, get, make_type, set_columns, sql
from tests.scenarios.conftest import open_transaction

S = JobState
HOUR = dt.timedelta(hours=1)


def delivered(job_id: UUID, run: int | None, ref: str = "msg-1") -> Outcome:
    """The provider says by the token of a run that the work was done."""
    return confirmation.by_token(job_id, Evidence(outcome="confirmed", ref=ref, run=run))


def refused(job_id: UUID, run: int | None) -> Outcome:
    """The provider says by the token of a run that it refused the work."""
    return confirmation.by_token(job_id, Evidence(outcome="rejected", run=run))


def by_reference(ref: str, webhook_id: str = "") -> Outcome:
    """The provider names its own reference."""
    said = Evidence(outcome="confirmed", ref=ref)
    return confirmation.by_provider(TYPE, webhook_id=webhook_id or uuid4().hex, job_id=None, evidence=said)


def handed_over(run: Run, ref: str | None = None) -> End:
    """The end of a run whose handler handed the work over."""
    return End(id=run.id, fence=run.fence, verdict=Verdict.AWAITING, reference=ref, confirm_in=60.0, act_in=60.0)


def finish(run: Run, ref: str | None = None) -> None:
    """End a run as a worker does: write, commit, then look for callbacks that came before."""
    lifecycle.settle([handed_over(run, ref)])
    if ref:
        confirmation.apply_pending(job_ids=[run.id])


# Scenario 2.


@pytest.fixture
def mails(world: None) -> list[UUID]:
    """A type whose outcome the provider confirms; what was sent so far."""
    sent: list[UUID] = []
    make_type(
        success="callback", on_unconfirmed="retry", confirm_within_seconds=60, backoff="fixed",
        backoff_base_seconds=600.0,
    )  # fmt: skip

    @handlers.handler(TYPE)
    def send(job: JobContext) -> AwaitingConfirmation:
        sent.append(job.id)
        return AwaitingConfirmation()

    return sent


def test_scenario_02_evidence_of_the_first_run_confirms_a_job_that_waits_to_retry(mails: list[UUID]) -> None:
    """Scenario 2a: the deadline passes, the job waits for its second attempt, and only now the provider says
    "delivered" for the first one: confirmed, and no second mail."""
    job_id = enqueue(TYPE, {}).job_id
    run_pending()
    set_columns(job_id, raw_due_at="jobs_now() - interval '1 s'", raw_confirm_by="jobs_now() - interval '1 s'")
    lifecycle.give_up_waiting(lifecycle.overdue(limit=10))
    assert get(job_id).state == S.RETRYING
    assert delivered(job_id, 1).applied is Applied.CONFIRMED
    assert run_pending(ahead=HOUR) == []
    assert (get(job_id).state, evidence(job_id)["run"], mails) == (S.CONFIRMED, 1, [job_id])


@pytest.mark.parametrize("state", ["accepted", "retrying", "awaiting_confirmation"])
def test_scenario_02_the_parents_evidence_stops_its_replay(state: str, mails: list[UUID]) -> None:
    """Scenario 2b: the dead job was replayed, and the parent's "delivered" arrives while the child waits, whatever it
    waits for: the child is confirmed; where it had not run it never does."""
    parent = enqueue(TYPE, {}, dedupe_key="k").job_id
    run_pending()
    refused(parent, 1)
    child = actions.replay_job(parent, actor="ada", reason="again", source="ui")
    if state != "accepted":
        [run] = claim([child])
        lifecycle.settle([failed(run, retry_in=60.0) if state == "retrying" else handed_over(run)])
    assert get(child).state == state
    outcome = delivered(parent, 1)
    assert (outcome.applied, outcome.job_id) == (Applied.CONFIRMED, child)
    assert run_pending(ahead=HOUR) == []
    assert (get(child).state, get(parent).state) == (S.CONFIRMED, S.DEAD)
    assert get(parent).late_evidence, "kept beside the parent and shown"
    assert mails == [parent]
    assert enqueue(TYPE, {}, dedupe_key="k").evidence is not None


LATER: dict[str, Callable[[Run], object]] = {
    "returns": lambda run: finish(run),
    "fails": lambda run: lifecycle.settle([failed(run)]),
    "fails for good": lambda run: lifecycle.settle([failed(run, reason="permanent_error")]),
    "is lost": lambda run: expire_lease(run.id),
}


@pytest.mark.parametrize("how", LATER)
def test_scenario_02_a_running_job_is_confirmed_when_its_run_ends(how: str, mails: list[UUID]) -> None:
    """Scenario 2: the second run is under way when the first one's evidence comes: it is confirmed when that run ends,
    however it ends."""
    [job_id] = accept()
    lifecycle.settle([failed(claim([job_id])[0])])
    [second] = claim([job_id])
    assert delivered(job_id, 1).applied is Applied.KEPT
    assert get(job_id).state == S.PROCESSING
    LATER[how](second)
    assert (get(job_id).state, evidence(job_id)["run"]) == (S.CONFIRMED, 1)


def test_scenario_02_a_rejection_counts_for_its_run_only(mails: list[UUID]) -> None:
    """Scenario 2, I-27: what refused the first run says nothing about the second, which is awaited on."""
    [job_id] = accept()
    lifecycle.settle([failed(claim([job_id])[0])])
    [second] = claim([job_id])
    finish(second)
    assert refused(job_id, 1).applied is Applied.SUPERSEDED
    assert get(job_id).state == S.AWAITING_CONFIRMATION
    assert refused(job_id, 2).applied is Applied.REJECTED


# Scenario 3.


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize("first", ["finish", "callback"])
def test_scenario_03_evidence_and_finish_meet_in_the_row(first: str) -> None:
    """Scenario 3: one of them holds the job's row, uncommitted, when the other one comes. The second waits, sees what
    the first one wrote, and the job is confirmed, never awaiting with its proof beside it."""
    make_type(success="callback")
    [run] = claim(accept())
    acts: dict[str, Callable[[], object]] = {
        "finish": lambda: lifecycle.settle([handed_over(run)]),
        "callback": lambda: delivered(run.id, run.fence),
    }
    [second] = acts.keys() - {first}
    with transaction.atomic():
        acts[first]()
        rival = Rival(acts[second])
        assert rival.waits()
    rival.outcome()
    assert (get(run.id).state, evidence(run.id)["ref"]) == (S.CONFIRMED, "msg-1")


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize("first", ["finish", "callback"])
def test_scenario_03_a_reference_and_its_callback_do_not_miss_each_other(first: str) -> None:
    """Scenario 3, K-06: the provider answers before the reference is written, and neither side sees the other's
    uncommitted row. Each writes, commits, and then looks: whoever commits last finds the other."""
    make_type(success="callback")
    [run] = claim(accept())
    told: list[Outcome] = []
    if first == "finish":
        # The reference is written and not committed when the whole callback comes and goes.
        with open_transaction(lambda: lifecycle.settle([handed_over(run, "re_1")])):
            told.append(by_reference("re_1"))
        confirmation.apply_pending(job_ids=[run.id])
    else:
        keep = partial(confirmation._remember, TYPE, "wh-1", None, Evidence(outcome="confirmed", ref="re_1"))
        with open_transaction(keep):
            finish(run, "re_1")
            assert get(run.id).state == S.AWAITING_CONFIRMATION
        # The callback's own look, which a provider's repeat and the scheduler do as well.
        told.append(by_reference("re_1", webhook_id="wh-1"))
    assert told[0].applied is (Applied.PENDING if first == "finish" else Applied.CONFIRMED)
    assert (get(run.id).state, evidence(run.id)["ref"]) == (S.CONFIRMED, "re_1")


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
def test_scenario_03_the_scheduler_looks_again() -> None:
    """Scenario 3: the worker died between its commit and its look. The inbox keeps the callback, and the scheduler
    finds both; a second round changes nothing."""
    make_type(success="callback")
    [run] = claim(accept())
    with open_transaction(lambda: lifecycle.settle([handed_over(run, "re_2")])):
        assert by_reference("re_2").applied is Applied.PENDING
    assert get(run.id).state == S.AWAITING_CONFIRMATION
    look = confirmations.Matching().run_once
    outcomes(together(look, look, look))
    assert (get(run.id).state, evidence(run.id)["ref"]) == (S.CONFIRMED, "re_2")
    assert sql("SELECT count(*) FROM queues_callback WHERE applied = 'confirmed'") == [(1,)]


# Scenario 16.


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("answer", [None, AwaitingConfirmation(), Confirmed(None), Confirmed("")])
def test_scenario_16_a_mail_without_a_reference_does_not_go_out_five_times(answer: Any) -> None:
    """Scenario 16: the handler sent it and brought no reference. That is unconfirmed, not failed: one mail, and a dead
    letter that says why."""
    make_type(success="reference", max_attempts=5)
    sent = []

    @handlers.handler(TYPE)
    def send(job: JobContext) -> Any:
        sent.append(job.attempt)
        return answer

    job_id = enqueue(TYPE, {}).job_id
    run_pending(ahead=HOUR)
    assert (get(job_id).state, get(job_id).reason, sent) == (S.DEAD, Reason.NO_EVIDENCE, [1])


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("success", ["callback", "check"])
def test_scenario_16_a_handlers_word_is_no_proof(success: str) -> None:
    """Scenario 16, I-28: under `callback` and `check` a returned Confirmed stores its reference and no more."""
    make_type(success=success, check_every_seconds=60)
    handlers.handler(TYPE)(lambda job: Confirmed("said-so"))
    handlers.check(TYPE)(lambda job: None)
    job_id = enqueue(TYPE, {}).job_id
    run_pending()
    job = get(job_id)
    assert (job.state, job.reference, job.evidence) == (S.AWAITING_CONFIRMATION, "said-so", None)


@pytest.mark.usefixtures("world")
def test_scenario_16_a_check_that_cannot_answer_puts_the_attempt_off() -> None:
    """Scenario 16: after a lost run the world is asked first; while it cannot be asked the mail is not sent again, no
    attempt is spent, and the answer, when it comes, confirms without a run."""
    make_type(success="reference", backoff="fixed", backoff_base_seconds=60.0, max_attempts=2)
    sent: list[int] = []
    answers: list[str | None] = [None] * 4 + ["msg-9"]

    @handlers.handler(TYPE)
    def send(job: JobContext) -> Confirmed:
        sent.append(job.run)
        return Confirmed("msg-again")

    @handlers.check(TYPE)
    def look(job: JobContext) -> Confirmed:
        found = answers.pop(0)
        if found is None:
            raise ConnectionError("the provider is down")
        return Confirmed(found)

    receipt = enqueue(TYPE, {})
    expire_lease(receipt)
    run_pending(ahead=HOUR)
    job = get(receipt.job_id)
    assert (job.state, evidence(job.id)["ref"], evidence(job.id)["kind"]) == (S.CONFIRMED, "msg-9", "check")
    assert (sent, answers) == ([], [])


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
def test_scenario_16_a_due_check_is_asked_once() -> None:
    """Scenario 16: four hints for one due check at once: one claim, and only its answer, by its `due_at`, counts."""
    make_type(success="check", check_every_seconds=60, confirm_within_seconds=600)
    [run] = claim(accept())
    end = End(
        id=run.id, fence=run.fence, verdict=Verdict.AWAITING, confirm_in=600.0, act_in=60.0, polled=True, reference="r"
    )
    lifecycle.settle([end])
    set_columns(run.id, raw_due_at="jobs_now() - interval '1 s'")
    claimed = outcomes(together(*[partial(lifecycle.claim_checks, [run.id])] * 4))
    assert sorted(map(len, claimed)) == [0, 0, 0, 1]
    [due] = [one for some in claimed for one in some]
    handlers.check(TYPE)(lambda job: Confirmed(job.reference))
    set_columns(run.id, raw_due_at="jobs_now() - interval '1 s'")
    [newer] = lifecycle.claim_checks([run.id])
    assert lifecycle.finish_checks([checks.poll(due)]) == {}, "the older claim's answer comes too late"
    assert lifecycle.finish_checks([checks.poll(newer)]) == {(run.id, run.fence): S.CONFIRMED}


@pytest.mark.usefixtures("world")
def test_scenario_16_a_check_that_kills_its_worker_is_given_up(shift_clock: Callable[[str], None]) -> None:
    """Scenario 16: it never answers and leaves no trace but its claims: these are counted, and it ends."""
    make_type(success="check", confirm_within_seconds=60, check_every_seconds=10, max_attempts=2)
    [run] = claim(accept())
    lifecycle.settle([End(id=run.id, fence=run.fence, verdict=Verdict.AWAITING, confirm_in=60, act_in=10, polled=True)])
    asked = 0
    for minute in range(1, 200):
        shift_clock(f"{10 * minute} minutes")
        asked += len(lifecycle.claim_checks([run.id]))
        lifecycle.give_up_waiting(lifecycle.overdue(limit=10))
        if not Job.objects.open().exists():
            break
    assert asked == 2 + 3
    assert (get(run.id).state, get(run.id).reason) == (S.DEAD, Reason.UNCONFIRMED)
