"""Reading, listing, cancelling and replaying jobs over HTTP. Not here: acceptance, keys."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection

from jobsboard.api import listing
from queues import contracts
from queues.models import AuditEntry, Job, StepResult
from tests.api.conftest import Api, problem
from tests.factories import sql

NO_JOB = "00000000-0000-7000-8000-000000000000"


def _run(job_id: str, *, begun: int = 1) -> None:
    """Put a job under way, as a claim would."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE queues_job SET state = 'processing', worker = 'w1', started_at = jobs_clock(), fence = 1,"
            " attempt = 1, begun = %s WHERE id = %s",
            [begun, job_id],
        )


def _settle(job_id: str, state: str, reason: str | None) -> None:
    evidence = json.dumps({"kind": "reference", "ref": "re_1", "at": "2026-01-01T00:00:00+02:00"})
    failures = json.dumps(
        [{"attempt": 1, "error_class": "ValueError", "message": "password=hunter2", "traceback": "tok", "worker": "w1"}]
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE queues_job SET state = %s, reason = %s, settled_at = jobs_clock(), finished_at = jobs_clock(),"
            " due_at = NULL, resolution = CASE WHEN %s = 'confirmed' THEN NULL ELSE 'open' END,"
            " evidence = CASE WHEN %s = 'confirmed' THEN %s::jsonb END,"
            " failures = CASE WHEN %s = 'dead' THEN %s::jsonb ELSE '[]' END WHERE id = %s",
            [state, reason, state, state, evidence, state, failures, job_id],
        )


def _dead(api: Api, **overrides: Any) -> str:
    job_id: str = api.accept(**overrides)["id"]
    _run(job_id)
    _settle(job_id, "dead", "permanent_error")
    return job_id


def test_payload_is_redacted(api: Api) -> None:
    """S-27: by name, by look and by the contract's pointers; the stored text is untouched."""
    payload = {"email": "jane@example.com", "token": "t0ps3cret", "note": "sk_live_4eC39HqLyjWDarjtT1zdp7dc", "n": 1}
    job = api.accept(payload=payload)
    text = json.dumps(api.get(f"/jobs/{job['id']}").json())
    for secret in ("jane@", "t0ps3cret", "4eC39Hq"):
        assert secret not in text
        assert secret not in json.dumps(job)
    assert job["payload"]["n"] == 1
    assert json.loads(Job.objects.get(id=job["id"]).payload or "") == payload


def test_confirmed_job(api: Api) -> None:
    job_id = api.accept()["id"]
    _run(job_id)
    running = api.get(f"/jobs/{job_id}").json()
    assert running["attempts"][0]["outcome"] == "running"
    assert running["in_window"] is None
    _settle(job_id, "confirmed", None)
    job = api.get(f"/jobs/{job_id}").json()
    assert job["evidence"] == {"kind": "reference", "ref": "re_1", "at": "2025-12-31T22:00:00Z", "late": False}
    assert job["in_window"] is True
    assert job["lag_seconds"] >= 0
    assert [a["outcome"] for a in job["attempts"]] == ["confirmed"]
    assert job["maybe_duplicate"] is False


def test_dead_job(api: Api) -> None:
    job = api.get(f"/jobs/{_dead(api)}").json()
    assert (job["state"], job["reason"], job["in_window"]) == ("dead", "permanent_error", False)
    assert job["attempts"][0]["error_class"] == "ValueError"
    assert "hunter2" not in json.dumps(job)


@pytest.mark.parametrize("job_id", [NO_JOB, "1", "x", "{" + NO_JOB + "}", NO_JOB.replace("-", ""), "%00", "9" * 5000])
def test_no_such_job(api: Api, job_id: str) -> None:
    problem(api.get(f"/jobs/{job_id}"), 404, "unknown_job")
    problem(api.post(f"/jobs/{job_id}/cancel", {"reason": "x"}), 404, "unknown_job")
    problem(api.post(f"/jobs/{job_id}/replay", {"reason": "x"}), 404, "unknown_job")
    problem(api.post(f"/dead-letters/{job_id}/cancel", {"reason": "x"}), 404, "unknown_job")


def test_cancel_waiting(api: Api) -> None:
    """200, and again 200; one audit entry with who and why."""
    job_id = api.accept()["id"]
    for _ in range(2):
        response = api.post(f"/jobs/{job_id}/cancel", {"reason": "wrong invoice"})
        assert response.status_code == 200
        assert response.json() == {"id": job_id, "status": "cancelled", "state": "cancelled", "effect": "none"}
    entry = AuditEntry.objects.get()
    assert (entry.source, entry.reason, entry.object_id) == ("api", "wrong invoice", job_id)
    assert entry.actor.startswith("key:")
    assert entry.request_id


def test_cancel_running(api: Api) -> None:
    job_id = api.accept()["id"]
    _run(job_id)
    for _ in range(2):
        response = api.post(f"/jobs/{job_id}/cancel", {"reason": "stop"})
        assert (response.status_code, response.json()["status"]) == (202, "cancel_requested")
        assert response.json()["effect"] == "possible"
    assert api.get(f"/jobs/{job_id}").json()["cancel_requested"] is True


@pytest.mark.parametrize(("state", "reason"), [("confirmed", None), ("dead", "permanent_error"), ("expired", "stale")])
def test_cancel_settled(api: Api, state: str, reason: str | None) -> None:
    job_id = api.accept()["id"]
    _run(job_id)
    _settle(job_id, state, reason)
    assert problem(api.post(f"/jobs/{job_id}/cancel", {"reason": "x"}), 409, "not_cancellable")["state"] == state


@pytest.mark.parametrize(
    "body", [{}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 1001}, {"reason": 1}, {"why": "x"}]
)
def test_a_reason_is_needed(api: Api, body: dict[str, Any]) -> None:
    job_id = _dead(api)
    for path in (f"/jobs/{job_id}/cancel", f"/jobs/{job_id}/replay", f"/dead-letters/{job_id}/cancel"):
        problem(api.post(path, body), 422, "invalid_request")
    assert not AuditEntry.objects.exists()


@pytest.mark.parametrize("path", ["jobs", "dead-letters"])
def test_replay(api: Api, path: str) -> None:
    """201 with the new job; the second time 409."""
    job_id = _dead(api, dedupe_key="k")
    response = api.post(f"/{path}/{job_id}/replay", {"reason": "fixed"})
    assert response.status_code == 201
    child = response.json()
    assert response["Location"] == f"/api/v1/jobs/{child['id']}"
    assert (child["replay_of"], child["root"], child["state"]) == (job_id, job_id, "accepted")
    assert api.get(f"/jobs/{job_id}").json()["replayed_by"] == child["id"]
    problem(api.post(f"/{path}/{job_id}/replay", {"reason": "again"}), 409, "already_replayed")
    problem(api.post(f"/{path}/{child['id']}/replay", {"reason": "open"}), 409, "not_replayable")


def test_an_edited_replay_says_what_it_changed(api: Api) -> None:
    job_id = _dead(api)
    StepResult.objects.create(root=job_id, name="charge", job_id=job_id, fence=1, result=1)
    before = api.get(f"/jobs/{job_id}").json()
    response = api.post(f"/jobs/{job_id}/replay", {"reason": "typo", "payload": {**before["payload"], "extra": 1}})
    assert response.status_code == 201, response.content
    child = response.json()
    assert child["payload"] == {**before["payload"], "extra": 1}
    assert (child["idempotency_key"], child["dedupe_key"], child["root"]) == (
        before["idempotency_key"], before["dedupe_key"], job_id,
    )  # fmt: skip
    assert child["notes"] == [
        "The provider gets the same idempotency key with another body; some refuse that.",
        "Steps that were done with the old payload are not done again: charge.",
    ]
    assert api.get(f"/jobs/{job_id}").json()["payload"] == before["payload"]
    entry = AuditEntry.objects.get(action="job.replayed")
    after = entry.after or {}
    assert after["changed"] == {"/extra": [None, 1]}
    assert (after["resolution"], after["replayed_by"]) == ("replayed", child["id"])
    assert (after["verdict"], after["checks"]["already_done"]) == ("unknown", "unknown")


def test_a_replay_under_another_key_is_another_job(api: Api) -> None:
    job_id = _dead(api)
    before = api.get(f"/jobs/{job_id}").json()
    child = api.post(f"/jobs/{job_id}/replay", {"reason": "again", "dedupe_key": "other-1"}).json()
    assert (child["dedupe_key"], child["root"], child["replay_of"]) == ("other-1", child["id"], job_id)
    assert child["idempotency_key"] != before["idempotency_key"]
    assert child["maybe_duplicate"] is False
    # The new key has its job now; a second dead letter cannot take it, and is left as it was.
    second = _dead(api)
    problem(api.post(f"/jobs/{second}/replay", {"reason": "x", "dedupe_key": "other-1"}), 409, "dedupe_conflict")
    assert api.get(f"/jobs/{second}").json()["replayed_by"] is None


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"payload": []}, 422, "contract_violation"),
        ({"dedupe_key": "a b"}, 400, "dedupe_key_invalid"),
        ({"payload": {"amount": "[redacted]"}}, 422, "redacted_value_submitted"),
        ({"payload": {"a": 1}, "other": 1}, 422, "invalid_request"),
    ],
)
def test_a_bad_edit_replays_nothing(api: Api, change: dict[str, Any], status: int, code: str) -> None:
    job_id = _dead(api)
    sql('UPDATE queues_jobtype SET schema = \'{"type": "object"}\'')
    contracts.forget()
    problem(api.post(f"/jobs/{job_id}/replay", {"reason": "x", **change}), status, code)
    assert api.get(f"/jobs/{job_id}").json()["replayed_by"] is None


def test_cancel_dead_letter(api: Api) -> None:
    job_id = _dead(api)
    for _ in range(2):
        response = api.post(f"/dead-letters/{job_id}/cancel", {"reason": "x"})
        assert (response.status_code, response.json()["state"]) == (200, "dead")
    assert Job.objects.get(id=job_id).resolution == "cancelled"
    problem(api.post(f"/dead-letters/{api.accept()['id']}/cancel", {"reason": "x"}), 409, "not_cancellable")


def test_pages(api: Api) -> None:
    """Newest first, every job once, whatever comes in between."""
    made = [api.accept(payload=i)["id"] for i in range(7)]
    seen: list[str] = []
    query: dict[str, Any] = {"type": "billing.receipt", "limit": 3}
    while True:
        page = api.get("/jobs", **query).json()
        assert set(page) == {"items", "next", "searched"}
        seen += [job["id"] for job in page["items"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
        api.accept(payload="later")
    assert seen == made[::-1]


def test_filters(api: Api) -> None:
    one = api.accept(group="g1", dedupe_key="k1")["id"]
    two = api.accept(group="g2")["id"]
    dead = _dead(api, dedupe_key="k2")
    for query, ids in (
        ({}, [dead, two, one]),
        ({"group": "g1"}, [one]),
        ({"state": "dead"}, [dead]),
        ({"state": "accepted", "tier": 1}, [two, one]),
        ({"tier": 2}, []),
        ({"type": "billing.receipt", "dedupe_key": "k1"}, [one]),
        ({"dedupe_key": "k2"}, [dead]),
        ({"type": "billing.receipt", "dedupe_key": "none"}, []),
        ({"since": "2020-01-01T00:00:00Z"}, [dead, two, one]),
        ({"until": "2020-01-01T00:00:00Z"}, []),
        ({"since": "2100-01-01T00:00:00Z"}, []),
        ({"until": "0001-01-02T00:00:00Z"}, []),
    ):
        page = api.get("/jobs", **query).json()
        assert [job["id"] for job in page["items"]] == ids, query
        assert page["searched"]["complete"] is True


def test_key_finds_its_lineage(api: Api) -> None:
    job_id = _dead(api, dedupe_key="k")
    child = api.post(f"/jobs/{job_id}/replay", {"reason": "x"}).json()["id"]
    page = api.get("/jobs", type="billing.receipt", dedupe_key="k").json()
    assert [job["id"] for job in page["items"]] == [child, job_id]
    assert page["searched"] == {"rows": None, "complete": True}


def test_bounded_look(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter without an index looks at so many rows, says so, and goes on from there."""
    monkeypatch.setattr(listing, "LOOK_AT_MOST", 4)
    wanted = [api.accept(group="g")["id"], api.accept(group="g")["id"]]
    for i in range(9):
        api.accept(payload=i)
    seen: list[str] = []
    query: dict[str, Any] = {"group": "g"}
    pages = 0
    while True:
        page = api.get("/jobs", **query).json()
        pages += 1
        assert page["searched"]["rows"] <= 4
        seen += [job["id"] for job in page["items"]]
        assert page["searched"]["complete"] is (page["next"] is None)
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
    assert seen == wanted[::-1]
    assert pages == 3


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "1000000000"},
        {"limit": "abc"},
        {"limit": "1" * 5000},
        {"offset": "100000000000000000000"},
        {"cursor": "x"},
        {"cursor": ""},
        {"state": "nope"},
        {"tier": "4"},
        {"tier": "\u0661"},
        {"group": "\0"},
        {"group": ""},
        {"dedupe_key": "é"},
        {"since": "yesterday"},
        {"until": "10000-01-01T00:00:00Z"},
        {"state": ["dead", "accepted"]},
    ],
)
def test_bad_query(api: Api, query: dict[str, Any]) -> None:
    """H-25: 422, never a 500."""
    response = api.get("/jobs", **query)
    assert response.status_code == 422
    problem(response, 422, response.json()["code"])


def test_cursor_is_signed_and_bound_to_its_filter(api: Api) -> None:
    """H-25."""
    for i in range(3):
        api.accept(payload=i)
    cursor = api.get("/jobs", type="billing.receipt", limit=1).json()["next"]
    assert api.get("/jobs", type="billing.receipt", limit=2, cursor=cursor).status_code == 200
    problem(api.get("/jobs", type="billing.strict", cursor=cursor), 422, "invalid_cursor")
    problem(api.get("/jobs", type="billing.receipt", cursor=cursor[:-2] + "xx"), 422, "invalid_cursor")


def test_unknown_type_in_a_list(api: Api) -> None:
    problem(api.get("/jobs", type="nope"), 404, "unknown_job_type")
    problem(api.get("/jobs", type="\0"), 404, "unknown_job_type")


def test_no_500_for_many_parameters(api: Api) -> None:
    problem(api.get("/jobs", **{f"p{i}": 1 for i in range(3000)}), 400, "bad_request")
