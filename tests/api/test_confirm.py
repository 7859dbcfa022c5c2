"""Confirming a job with a key, over HTTP. Callbacks: test_callbacks; what evidence does: tests/queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from queues import contracts, lifecycle
from queues.models import AuditEntry, Job, JobType
from queues.states import JobState
from tests.api.conftest import Api, problem
from tests.factories import accept, claim, failed, get, make_job, set_columns

S = JobState
NO_JOB = "00000000-0000-7000-8000-000000000000"


@pytest.fixture(autouse=True)
def _type(types: None) -> None:
    JobType.objects.create(name="crm.sync", tier_id=2, success="callback")
    contracts.forget()


def _awaiting(**columns: Any) -> Job:
    return make_job(S.AWAITING_CONFIRMATION, **{"type": "crm.sync", "fence": 1, "attempt": 1, "begun": 1, **columns})


def test_confirm(api: Api) -> None:
    """200 with the job, and again 200; one audit entry with who and why."""
    job = _awaiting()
    body = {"outcome": "confirmed", "ref": "crm_1", "detail": "seen in the CRM"}
    response = api.post(f"/jobs/{job.id}/confirm", body)
    assert response.status_code == 200
    said = response.json()
    assert said["confirmation"] == {
        "applied": True,
        "result": "confirmed",
        "duplicate": False,
        "late": False,
        "job_id": str(job.id),
        "state": "confirmed",
    }
    assert (said["id"], said["state"], said["evidence"]["ref"]) == (str(job.id), "confirmed", "crm_1")
    assert (said["evidence"]["kind"], said["evidence"]["late"], said["in_window"]) == ("manual", False, True)
    again = api.post(f"/jobs/{job.id}/confirm", body)
    assert (again.status_code, again.json()["confirmation"]["result"]) == (200, "duplicate")
    entry = AuditEntry.objects.get()
    assert (entry.source, entry.reason, entry.object_id) == ("api", "seen in the CRM", str(job.id))
    assert entry.actor.startswith("key:")
    assert entry.request_id == response["X-Request-Id"]


@pytest.mark.parametrize(
    ("retryable", "state", "result"), [(False, "dead", "rejected"), (True, "retrying", "retrying")]
)
def test_reject(api: Api, retryable: bool, state: str, result: str) -> None:
    job = _awaiting()
    body = {"outcome": "rejected", "detail": "bounced", "retryable": retryable, "run": 1}
    said = api.post(f"/jobs/{job.id}/confirm", body).json()
    result = "retrying" if retryable else "rejected"
    assert (said["state"], said["confirmation"]["applied"], said["confirmation"]["result"]) == (state, True, result)
    assert said["attempts"][0]["message"] == "bounced"


def test_a_contradiction_is_409_and_kept(api: Api) -> None:
    """The error must not take back what it tells of."""
    job = make_job(S.CONFIRMED, type="crm.sync", fence=1)
    found = problem(api.post(f"/jobs/{job.id}/confirm", {"outcome": "rejected", "detail": "no"}), 409, "contradiction")
    assert found["state"] == "confirmed"
    shown = api.get(f"/jobs/{job.id}").json()
    assert [(one["outcome"], one["detail"]) for one in shown["late_evidence"]] == [("rejected", "no")]
    assert (shown["state"], shown["evidence"]["late"]) == ("confirmed", False)


def test_a_rejection_of_an_older_run_is_409_and_kept(api: Api) -> None:
    """K-07: it counts for the run that it names only."""
    job_id = accept(kind="crm.sync")[0]
    lifecycle.settle([failed(claim([job_id])[0], retry_in=0.0)])
    claim([job_id])
    response = api.post(f"/jobs/{job_id}/confirm", {"outcome": "rejected", "run": 1})
    assert problem(response, 409, "run_superseded")["state"] == "processing"
    assert len(api.get(f"/jobs/{job_id}").json()["late_evidence"]) == 1


def test_confirming_a_running_job(api: Api) -> None:
    """It counts when the run has ended; the job shows the evidence already."""
    job_id = accept(kind="crm.sync")[0]
    run = claim([job_id])[0]
    said = api.post(f"/jobs/{job_id}/confirm", {"outcome": "confirmed", "ref": "crm_1"}).json()
    assert (said["state"], said["confirmation"]["result"], said["confirmation"]["applied"]) == (
        "processing",
        "kept",
        True,
    )
    lifecycle.settle([failed(run)])
    assert get(job_id).state == "confirmed"


@pytest.mark.parametrize("state", [S.DEAD, S.CANCELLED, S.EXPIRED])
def test_late(api: Api, state: JobState) -> None:
    """K-08, I-29: 200 and `late`."""
    job = make_job(state, type="crm.sync", fence=1, begun=1)
    said = api.post(f"/jobs/{job.id}/confirm", {"outcome": "confirmed", "ref": "crm_1"}).json()
    assert (said["confirmation"]["late"], said["confirmation"]["applied"], said["state"]) == (True, False, state)
    assert said["evidence"] == {"kind": "manual", "ref": "crm_1", "at": said["evidence"]["at"], "late": True}


def test_the_newest_of_several_late_proofs_is_shown(api: Api) -> None:
    job = make_job(S.DEAD, type="crm.sync", fence=1, begun=1)
    for body in (
        {"outcome": "confirmed", "ref": "crm_1"},
        {"outcome": "confirmed", "ref": "token=hunter2"},
        {"outcome": "rejected", "run": 1, "detail": "password=hunter2"},
    ):
        assert api.post(f"/jobs/{job.id}/confirm", body).status_code == 200
    response = api.get(f"/jobs/{job.id}")
    shown = response.json()
    assert b"hunter2" not in response.content
    assert [one["outcome"] for one in shown["late_evidence"]] == ["confirmed", "confirmed", "rejected"]
    assert (shown["evidence"]["late"], shown["evidence"]["ref"]) == (True, "token=[redacted]")


def test_the_replay_of_a_confirmed_job_is_confirmed(api: Api) -> None:
    """The answer shows the job that was asked for, and names the one that it counted for."""
    job = make_job(S.DEAD, type="crm.sync", fence=1, begun=1)
    child = api.post(f"/jobs/{job.id}/replay", {"reason": "again"}).json()["id"]
    said = api.post(f"/jobs/{job.id}/confirm", {"outcome": "confirmed", "ref": "crm_1"}).json()
    assert (said["id"], said["state"]) == (str(job.id), "dead")
    assert (said["confirmation"]["job_id"], said["confirmation"]["state"]) == (child, "confirmed")


def test_reference_deadline_and_progress_are_shown(api: Api) -> None:
    job = _awaiting(
        reference="crm_1",
        raw_confirm_by="jobs_now()",
        raw_progress="""'{"share": 0.5, "text": "half, password=hunter2", "at": "2026-01-01T00:00:00+02:00"}'""",
    )
    shown = api.get(f"/jobs/{job.id}").json()
    assert (shown["reference"], shown["evidence"], shown["late_evidence"]) == ("crm_1", None, [])
    assert shown["confirm_by"].endswith("Z")
    assert shown["progress"] == {"share": 0.5, "text": "half, password=[redacted]", "at": "2025-12-31T22:00:00Z"}


def test_keys(make_api: Callable[..., Api]) -> None:
    """K-06: no scope 403; a type of somebody else's, and no job, 404 with one body."""
    job = _awaiting()
    body = {"outcome": "confirmed"}
    without = make_api(("jobs:write", "jobs:read", "dlq:read", "dlq:replay"))
    problem(without.post(f"/jobs/{job.id}/confirm", body), 403, "missing_scope")
    other = make_api(type_patterns=("billing.*",))
    answers = []
    for job_id in (str(job.id), NO_JOB, "x", "9" * 5000):
        found = problem(other.post(f"/jobs/{job_id}/confirm", body), 404, "unknown_job")
        found.pop("request_id")
        answers.append(found)
    assert all(answer == answers[0] for answer in answers)
    assert get(job.id).state == "awaiting_confirmation"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"outcome": "OK "},
        {"outcome": 1},
        {"outcome": "confirmed", "job_id": NO_JOB},
        {"outcome": "confirmed", "ref": "x" * 1001},
        {"outcome": "confirmed", "run": 0},
        {"outcome": "confirmed", "run": True},
        {"outcome": "confirmed", "reason": "x"},
    ],
)
def test_bodies_that_are_refused(api: Api, body: dict[str, Any]) -> None:
    job = _awaiting()
    problem(api.post(f"/jobs/{job.id}/confirm", body), 422, "invalid_request")
    assert get(job.id).state == "awaiting_confirmation"
    assert not AuditEntry.objects.exists()


def test_retry_now(api: Api) -> None:
    """200: due at once; what does not wait for another attempt is 409."""
    job = make_job(S.RETRYING, type="crm.sync", fence=1, attempt=1, begun=1)
    set_columns(job.id, raw_due_at="jobs_now() + interval '1 hour'")
    response = api.post(f"/jobs/{job.id}/retry-now", {"reason": "the CRM is back"})
    assert (response.status_code, response.json()["state"]) == (200, "retrying")
    row = get(job.id)
    assert row.due_at is not None
    assert row.due_at < job.expires_at
    assert claim([job.id])
    entry = AuditEntry.objects.get()
    assert (entry.reason, entry.source, entry.object_id) == ("the CRM is back", "api", str(job.id))
    found = problem(api.post(f"/jobs/{job.id}/retry-now", {"reason": "again"}), 409, "not_retrying")
    assert found["state"] == "processing"


def test_retry_now_is_refused(api: Api, make_api: Callable[..., Api]) -> None:
    job = make_job(S.RETRYING, type="crm.sync", fence=1)
    problem(api.post(f"/jobs/{job.id}/retry-now", {}), 422, "invalid_request")
    problem(api.post(f"/jobs/{NO_JOB}/retry-now", {"reason": "x"}), 404, "unknown_job")
    problem(make_api(("jobs:read",)).post(f"/jobs/{job.id}/retry-now", {"reason": "x"}), 403, "missing_scope")
    other = make_api(type_patterns=("billing.*",))
    problem(other.post(f"/jobs/{job.id}/retry-now", {"reason": "x"}), 404, "unknown_job")
    assert not AuditEntry.objects.exists()
