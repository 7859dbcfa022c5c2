"""Retry now and confirm by hand: permission, CSRF, once however often, and what is said when the job has moved on."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest
from django.test import Client

from queues import broker, confirmation, lifecycle
from queues.confirmation import Evidence
from queues.lifecycle import End, Verdict
from queues.models import AuditEntry, Job
from queues.states import JobState, Reason
from tests.board.conftest import ClientOf, bury
from tests.factories import accept, claim, confirmed, failed, fold_all, get, make_type, set_columns, state_counts

S = JobState
WAIT: Any = {"verdict": Verdict.AWAITING, "reference": "crm_1", "confirm_in": 300.0, "act_in": 300.0}


@pytest.fixture(autouse=True)
def _no_hints(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "publish", lambda *a, **k: None)
    make_type("crm.sync", success="callback", confirm_within_seconds=300)


def job_in(state: JobState) -> Job:
    """Bring a job into an open state by the real path."""
    (job_id,) = accept(1, kind="crm.sync")
    if state != S.ACCEPTED:
        run = claim([job_id])[0]
        if state == S.RETRYING:
            lifecycle.settle([failed(run, retry_in=3600)])
        elif state == S.AWAITING_CONFIRMATION:
            lifecycle.settle([End(id=run.id, fence=run.fence, **WAIT)])
    return get(job_id)


def run_of(job: Job) -> Any:
    """Return what `confirmed` and `failed` need to know of a run."""
    return End(id=job.id, fence=job.fence, verdict=Verdict.FAILED)


def say(client: Client, job: Job, outcome: str = "confirmed", *, htmx: bool = False, **given: Any) -> Any:
    """Send the form of a confirmation by hand, as the page shows it for this job."""
    form = {"outcome": outcome, "ref": "crm_77", "reason": "seen in the CRM", "run": job.fence, **given}
    return client.post(f"/jobs/{job.id}/confirm/", form, headers={"HX-Request": "true"} if htmx else {})


def toast(client: Client, response: Any) -> str:
    """Return what the next page says was done."""
    assert response.status_code == 303, response.text
    found = re.search(r'class="toast[^>]*>.*?<p>(.*?)</p>', client.get(response["Location"]).text, re.S)
    assert found
    return found[1]


def error(response: Any) -> tuple[int, str]:
    """Return the status and what the form says."""
    found = re.search(r'role="alert">(.*?)</p>', response.text, re.S)
    return response.status_code, found[1] if found else ""


@pytest.mark.parametrize("state", [S.ACCEPTED, S.RETRYING, S.AWAITING_CONFIRMATION])
def test_a_waiting_job_is_confirmed_by_hand_once(operator: Client, state: JobState) -> None:
    job = job_in(state)
    first = say(operator, job)
    assert toast(operator, first) == "Confirmed by hand. It will not run again."
    assert toast(operator, say(operator, job)) == "Nothing changed: it has its proof already."
    row = get(job.id)
    assert row.state == S.CONFIRMED
    assert row.evidence is not None
    assert {k: row.evidence[k] for k in ("kind", "ref", "by", "detail")} == {
        "kind": "manual", "ref": "crm_77", "by": "operator", "detail": "seen in the CRM",
    }  # fmt: skip
    assert not lifecycle.claim([job.id], worker="w/2")
    entry = AuditEntry.objects.get(action="job.confirmed_by_hand")
    assert (entry.actor, entry.reason, entry.source, entry.object_id) == (
        "operator", "seen in the CRM", "ui", str(job.id),
    )  # fmt: skip
    page = operator.get(f"/jobs/{job.id}/").text
    assert "Confirmed by hand by operator." in page
    assert "<dd>confirmed by hand by operator</dd>" in page
    assert 'id="by-hand"' not in page
    fold_all()
    assert state_counts() == {}


def test_a_job_in_processing_is_confirmed_when_its_run_ends(operator: Client) -> None:
    job = job_in(S.PROCESSING)
    words = "Kept: a run goes on, and this counts when it ends."
    assert toast(operator, say(operator, job)) == words
    assert "it counts when the run ends" in operator.get(f"/jobs/{job.id}/").text
    assert toast(operator, say(operator, job)) == "Nothing changed: it has its proof already."
    assert AuditEntry.objects.filter(action="job.confirmed_by_hand").count() == 1
    lifecycle.settle([End(id=job.id, fence=1, verdict=Verdict.FAILED, reason="permanent_error")])
    assert get(job.id).state == S.CONFIRMED


@pytest.mark.parametrize("state", [S.RETRYING, S.AWAITING_CONFIRMATION])
def test_a_rejection_makes_a_dead_letter_once(operator: Client, state: JobState) -> None:
    job = job_in(state)
    assert toast(operator, say(operator, job, "rejected")) == "Rejected by hand. It is a dead letter now."
    assert toast(operator, say(operator, job, "rejected")) == "Nothing changed: it was rejected before."
    row = get(job.id)
    assert (row.state, row.reason) == (S.DEAD, Reason.REJECTED)
    assert AuditEntry.objects.filter(action="job.rejected_by_hand").count() == 1
    page = operator.get(f"/jobs/{job.id}/").text
    assert "Rejected by hand by operator" in page
    assert "is <b>not known</b>" not in page


def test_a_rejection_of_a_run_that_goes_on_is_kept(operator: Client) -> None:
    job = job_in(S.PROCESSING)
    words = "Kept: a run goes on, and this counts when it ends, unless that run brings a proof."
    assert toast(operator, say(operator, job, "rejected")) == words
    page = operator.get(f"/jobs/{job.id}/").text
    assert "Rejected, kept" in page
    assert "when the run ends without a proof, the job becomes a dead letter" in page
    lifecycle.settle([End(id=job.id, fence=1, **WAIT)])
    assert get(job.id).state == S.DEAD


def test_a_rejection_needs_a_run(operator: Client) -> None:
    job = job_in(S.ACCEPTED)
    form = operator.get(f"/jobs/{job.id}/confirm/").text
    assert "it will not run at all" in form
    assert "<select" not in form.split('class="in"')[1]
    assert error(say(operator, job, "rejected")) == (
        409, "No run has begun, so there is nothing to reject. Cancel the job instead.",
    )  # fmt: skip
    assert get(job.id).late_evidence is None
    assert not AuditEntry.objects.exists()


def test_a_contradiction_is_409_and_kept(operator: Client) -> None:
    """The state changed in between: a callback has confirmed what a person is about to reject."""
    job = job_in(S.AWAITING_CONFIRMATION)
    confirmation.by_token(job.id, Evidence(outcome="confirmed", ref="crm_1", run=job.fence))
    status, words = error(say(operator, job, "rejected"))
    assert (status, words) == (409, "The job has its proof already. The rejection is kept beside it, nothing else.")
    assert get(job.id).state == S.CONFIRMED
    page = operator.get(f"/jobs/{job.id}/").text
    assert "<b>Contradicted</b>" in page
    assert "operator said that the work was not done; the proof counts." in page


def test_a_rejection_of_a_run_that_is_over_changes_nothing(operator: Client) -> None:
    """The form spoke of run 1; by now it has failed and run 2 waits for its proof."""
    job = job_in(S.RETRYING)
    set_columns(job.id, raw_due_at="jobs_now()")
    run = claim([job.id])[0]
    lifecycle.settle([End(id=run.id, fence=run.fence, **WAIT)])
    response = say(operator, job, "rejected")
    status, words = error(response)
    assert status == 409
    assert words.startswith("Another run has begun since")
    assert get(job.id).state == S.AWAITING_CONFIRMATION
    assert "<b>An older run was rejected</b>" in operator.get(f"/jobs/{job.id}/").text
    # The form is about the job as it is now: sent again, it counts.
    again = re.search(r'name="run" value="(\d+)"', response.text)
    assert again
    assert toast(operator, say(operator, job, "rejected", run=again[1])).startswith("Rejected by hand")


def test_a_confirmation_after_the_end_is_kept_and_said(operator: Client) -> None:
    job = job_in(S.PROCESSING)
    lifecycle.settle([failed(run_of(job), reason="permanent_error")])
    response = say(operator, job)
    assert response.status_code == 303
    page = operator.get(response["Location"]).text
    assert "Too late: the job is dead already. Kept as late evidence." in page
    assert "is-retrying" in page[page.index('id="toasts"') :][:200]
    assert "<b>Confirmed late</b>" in page
    assert "Do not replay" in page
    assert "The job is dead already. What you say is kept" in operator.get(f"/jobs/{job.id}/confirm/").text


def test_a_confirmation_goes_to_the_newest_replay(operator: Client) -> None:
    job = job_in(S.PROCESSING)
    lifecycle.settle([failed(run_of(job), reason="permanent_error")])
    child = lifecycle.replay(job.id, by="ann")
    response = say(operator, job, htmx=True)
    assert response.status_code == 200
    assert "It was replayed; this went to its newest replay. Confirmed by hand." in response.text
    assert f'href="/jobs/{child}/"' in response.text
    assert child is not None
    assert get(child).state == S.CONFIRMED
    assert AuditEntry.objects.get().object_id == str(child)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"outcome": ""}, "Say whether the work was done."),
        ({"outcome": "pending"}, "Say whether the work was done."),
        ({"ref": "r" * 1_001}, "The reference has at most 1,000 characters."),
        ({"reason": " \x00 "}, "Say why. It is written to the audit log."),
        ({"reason": "x" * 1_001}, "At most 1,000 characters."),
    ],
)
def test_what_is_refused_says_so_and_keeps_what_was_typed(operator: Client, given: dict[str, Any], words: str) -> None:
    job = job_in(S.AWAITING_CONFIRMATION)
    response = say(operator, job, **given)
    assert error(response) == (422, words)
    if "ref" not in given:
        assert 'value="crm_77"' in response.text
    assert get(job.id).state == S.AWAITING_CONFIRMATION
    assert not AuditEntry.objects.exists()


@pytest.mark.parametrize("run", ["", "-1", "x", "9" * 40, "²"])
def test_a_run_that_cannot_be_read_means_the_newest(operator: Client, run: str) -> None:
    job = job_in(S.AWAITING_CONFIRMATION)
    assert toast(operator, say(operator, job, "rejected", run=run)).startswith("Rejected by hand")


def test_an_empty_reference_is_none(operator: Client) -> None:
    job = job_in(S.AWAITING_CONFIRMATION)
    say(operator, job, ref=" \x00 ")
    row = get(job.id)
    assert row.evidence is not None
    assert row.evidence["ref"] is None


def test_retry_now_makes_the_next_attempt_due_once(operator: Client) -> None:
    job = job_in(S.RETRYING)
    form = {"reason": "relay is back", "run": job.fence}
    for _ in range(2):
        assert toast(operator, operator.post(f"/jobs/{job.id}/retry/", form)) == "The next attempt is due now."
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.reason, entry.source) == (
        "job.retried_now", "operator", "relay is back", "ui",
    )  # fmt: skip
    run = claim([job.id])[0]
    # It runs, it fails, it waits again: the form of run 1 asks for nothing any more.
    for _ in range(2):
        words = toast(operator, operator.post(f"/jobs/{job.id}/retry/", form))
        assert words == "The next attempt has begun already."
        lifecycle.settle([failed(run, retry_in=3600)])
    row = get(job.id)
    assert row.due_at is not None
    assert not lifecycle.claim([job.id], worker="w/2")
    assert AuditEntry.objects.count() == 1


@pytest.mark.parametrize("state", [S.ACCEPTED, S.PROCESSING, S.AWAITING_CONFIRMATION])
def test_only_a_retrying_job_is_retried_now(operator: Client, state: JobState) -> None:
    job = job_in(state)
    status, words = error(operator.post(f"/jobs/{job.id}/retry/", {"reason": "x", "run": job.fence}))
    assert status == 409
    assert words == f"The job is {state}; only one that waits for its next attempt can be retried now."
    assert f"/jobs/{job.id}/retry/" not in operator.get(f"/jobs/{job.id}/").text


def test_a_retry_of_a_job_that_was_cancelled_meanwhile_is_409(operator: Client) -> None:
    job = job_in(S.RETRYING)
    lifecycle.cancel([job.id], reason=Reason.OPERATOR)
    assert operator.post(f"/jobs/{job.id}/retry/", {"reason": "x", "run": job.fence}).status_code == 409
    assert not AuditEntry.objects.exists()


@pytest.mark.parametrize("verb", ["retry", "confirm"])
@pytest.mark.parametrize("role", ["viewer", "operator", "owner", "admin"])
def test_who_may(client_of: ClientOf, role: str, verb: str) -> None:
    job = job_in(S.RETRYING)
    client, url = client_of(role), f"/jobs/{job.id}/{verb}/"
    form = {"outcome": "confirmed", "reason": "x"}
    may = role != "viewer"
    page = client.get(f"/jobs/{job.id}/").text
    assert (f'href="{url}"' in page) is may
    assert client.get(url).status_code == (200 if may else 403)
    assert client_of(role, enforce_csrf_checks=True).post(url, form).status_code == 403
    assert not AuditEntry.objects.exists()
    assert client.post(url, form).status_code == (303 if may else 403)
    assert AuditEntry.objects.count() == may
    assert (get(job.id).state == S.RETRYING) is (verb == "retry" or not may)


@pytest.mark.parametrize("verb", ["retry", "confirm"])
def test_strangers_and_other_methods(client_of: ClientOf, verb: str) -> None:
    job = job_in(S.RETRYING)
    url = f"/jobs/{job.id}/{verb}/"
    assert Client().post(url, {"reason": "x"}).status_code == 302
    assert client_of("nobody").post(url, {"reason": "x"}).status_code == 403
    assert client_of("operator").put(url).status_code == 405
    gone = url.replace(str(job.id), str(UUID(int=7)))
    assert client_of("operator").post(gone, {"reason": "x", "outcome": "confirmed"}).status_code == 404
    assert get(job.id).state == S.RETRYING


@pytest.mark.parametrize("verb", ["retry", "confirm"])
def test_htmx_gets_the_dialog_and_then_the_page_as_it_is_now(operator: Client, verb: str) -> None:
    job = job_in(S.RETRYING)
    headers = {"HX-Request": "true"}
    dialog = operator.get(f"/jobs/{job.id}/{verb}/", headers=headers).text
    assert "<html" not in dialog
    assert "<h2" in dialog
    form = {"outcome": "confirmed", "reason": "x", "run": job.fence}
    response = operator.post(f"/jobs/{job.id}/{verb}/", form, headers=headers)
    assert response.status_code == 200
    assert response.text.lstrip().startswith('<div class="stack" id="region"')
    assert f'hx-get="/jobs/{job.id}/"' in response.text
    assert 'hx-target="#toasts"' in response.text


def test_nothing_is_offered_once_a_job_has_ended(operator: Client) -> None:
    job = job_in(S.PROCESSING)
    lifecycle.settle([confirmed(run_of(job))])
    (dead,) = accept(1, kind="crm.sync")
    bury([dead])
    for job_id in (job.id, dead):
        page = operator.get(f"/jobs/{job_id}/").text
        assert f"/jobs/{job_id}/confirm/" not in page
        assert f"/jobs/{job_id}/retry/" not in page


def test_markup_in_a_reference_and_a_reason_is_text(operator: Client) -> None:
    marker = '"><img src=x onerror=alert(1)>'
    job = job_in(S.PROCESSING)
    assert "<img" not in say(operator, job, "", ref=marker, reason=marker).text
    say(operator, job, ref=marker, reason=marker)
    page = operator.get(f"/jobs/{job.id}/").text
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_the_audit_log_names_the_acts(operator: Client) -> None:
    job = job_in(S.RETRYING)
    operator.post(f"/jobs/{job.id}/retry/", {"reason": "relay is back"})
    say(operator, job)
    page = operator.get("/audit/?action=job.confirmed_by_hand").text
    assert "seen in the CRM" in page
    assert "relay is back" not in page.split("<tbody>")[1]
    text = operator.get("/").text
    assert "operator confirmed 1 job" in text
    assert "operator retried 1 job" in text
