"""Causes over HTTP: the documented shape, who may see what, ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from jobsboard.api.causes import JobCauses, TypeCauses
from queues import broker, contracts, lifecycle, workers
from queues.accept import enqueue
from queues.lifecycle import End, Verdict
from queues.models import JobType
from queues.states import Reason
from tests.api.conftest import Api, problem
from tests.factories import WORKER, accept, claim, failed, fold_all, set_columns

NAME = "billing.receipt"
URL = f"/job-types/{NAME}/causes"


@pytest.fixture(autouse=True)
def _broker_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "ping", lambda: True)


@pytest.fixture
def late(types: None) -> list[UUID]:
    """Jobs of two types that depend on the same provider, which fails; one more waits."""
    JobType.objects.filter(name__startswith="billing").update(dependency="payments")
    workers.report("s/1", kind="scheduler", hostname="s", pid=1)
    workers.report("w/1", kind="worker", hostname="w", pid=2, queues=["tier1", "tier2"], slots=4, busy=1)
    ids = accept(6, kind=NAME)
    others = [enqueue("billing.strict", {"invoice_id": n}).job_id for n in range(4)]
    failure = {"error_class": "Declined", "message": "try later", "traceback": ""}
    lifecycle.settle(
        [
            End(id=run.id, fence=run.fence, verdict=Verdict.FAILED, failure=failure, retry_in=300.0)
            for run in claim([*ids[:5], *others])
        ]
    )
    for job_id in ids:
        set_columns(job_id, raw_ready_at="jobs_now() - interval '600 s'")
    fold_all()
    return ids


def test_why_a_type_is_late(api: Api, late: list[UUID]) -> None:
    body = api.get(URL).json()
    TypeCauses.model_validate(body)
    assert set(body) == set(TypeCauses.model_fields)
    assert (body["type"], body["tier"], body["state"]) == (NAME, 1, "overdue")
    first = body["causes"][0]
    assert (first["code"], first["verdict"]) == ("provider_failing", "cause")
    assert first["sentence"] == "payments fails: 100% of 9 runs in the last 10 min"
    assert first["evidence"]["failed"] == 9
    assert first["evidence"]["types"] == ["billing.receipt", "billing.strict"]
    assert first["next"] == {"kind": "jobs", "type": NAME, "state": "retrying"}
    assert body["as_of"].endswith("Z")


def test_why_a_job_is_not_running(api: Api, late: list[UUID]) -> None:
    body = api.get(f"/jobs/{late[0]}/causes").json()
    JobCauses.model_validate(body)
    assert set(body) == set(JobCauses.model_fields)
    assert (body["id"], body["type"], body["state"]) == (str(late[0]), NAME, "retrying")
    assert [one["code"] for one in body["causes"] if one["verdict"] == "cause"] == ["provider_failing", "retrying"]
    retrying = next(one for one in body["causes"] if one["code"] == "retrying")
    assert retrying["evidence"]["due_at"].endswith("Z")
    lifecycle.settle(
        [
            End(id=run.id, fence=run.fence, verdict=Verdict.CONFIRMED, evidence={"kind": "return"})
            for run in claim(late[5:])
        ]
    )
    ended = api.get(f"/jobs/{late[5]}/causes").json()
    assert (ended["state"], ended["causes"]) == ("confirmed", [])


def test_a_job_behind_a_dead_letter_of_its_group(api: Api, types: None) -> None:
    JobType.objects.filter(name=NAME).update(ordered=True, concurrency=1)
    contracts.forget()
    first, second = accept(2, kind=NAME, group="acme")
    [run] = lifecycle.claim_limited([first], worker=WORKER)
    lifecycle.settle([failed(run, reason=Reason.PERMANENT_ERROR)])
    fold_all()
    body = api.get(f"/jobs/{second}/causes").json()
    JobCauses.model_validate(body)
    found = next(one for one in body["causes"] if one["code"] == "order")
    assert (found["verdict"], found["evidence"]["blocked"], found["evidence"]["before"]) == ("cause", True, 1)
    assert found["next"] == {"kind": "dead_letter", "id": str(first)}
    body = api.get(URL).json()
    TypeCauses.model_validate(body)
    found = next(one for one in body["causes"] if one["code"] == "order")
    assert (found["evidence"]["groups_held"], found["evidence"]["jobs"]) == (1, 1)
    assert found["next"] == {"kind": "dead_letters", "type": NAME}


def test_a_key_sees_its_own_types_only(make_api: Callable[..., Api], late: list[UUID]) -> None:
    """The runs of others that share a dependency count; their names are not told."""
    mine = make_api(type_patterns=(NAME,))
    seen: list[Any] = mine.get(URL).json()["causes"]
    assert next(one for one in seen if one["code"] == "provider_failing")["evidence"]["types"] == [NAME]
    mail = make_api(type_patterns=("mail.*",))
    problem(mail.get(URL), 404, "unknown_job_type")
    problem(mail.get(f"/jobs/{late[0]}/causes"), 404, "unknown_job")
    writer = make_api(("jobs:write",))
    problem(writer.get(URL), 403, "missing_scope")
    problem(writer.get(f"/jobs/{late[0]}/causes"), 403, "missing_scope")


@pytest.mark.parametrize("name", ["nope", "%00", "Billing.receipt"])
def test_what_is_not_there(api: Api, name: str) -> None:
    problem(api.get(f"/job-types/{name}/causes"), 404, "unknown_job_type")
    problem(api.get("/jobs/nope/causes"), 404, "unknown_job")


def test_a_range(api: Api, late: list[UUID]) -> None:
    body = api.get(URL, since="2026-01-01T00:00:00Z", until="2026-01-02T00:00:00Z").json()
    assert (body["state"], body["causes"]) == ("no_data", [])
    assert body["until"] == "2026-01-02T00:00:00Z"
    problem(api.get(URL, since="2026-01-02T00:00:00Z", until="2026-01-01T00:00:00Z"), 422, "invalid_query")
    problem(api.get(URL, since="yesterday"), 422, "invalid_datetime")
    problem(api.get(URL, tier="1"), 422, "invalid_query")
    problem(api.get(URL, since="0001-01-01T00:00:00Z", until="0001-01-01T00:00:00Z"), 422, "invalid_query")
    problem(api.get(URL, until="0001-01-01T00:00:00Z"), 422, "invalid_query")


def test_the_document_names_both(api: Api) -> None:
    paths = api.client.get("/api/v1/openapi.json", headers={"Authorization": f"Bearer {api.key}"}).json()["paths"]
    assert paths["/api/v1/job-types/{name}/causes"]["get"]["operationId"] == "getJobTypeCauses"
    assert paths["/api/v1/jobs/{job_id}/causes"]["get"]["operationId"] == "getJobCauses"
