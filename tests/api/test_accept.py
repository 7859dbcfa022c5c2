"""Accepting jobs over HTTP: RELIABILITY.md C1, rows H-01 to H-23. The strict reader alone: tests/queues."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import DataError, IntegrityError, InterfaceError, OperationalError, connection
from django.test import Client

from jobsboard.api import database, jobs
from queues import backlog
from queues.models import Job, StateCount, Tier
from tests.api.conftest import Api, problem

PLAIN = {"type": "billing.receipt", "payload": {"invoice_id": 1}}


def _with_payload(payload: bytes) -> bytes:
    return b'{"type":"billing.receipt","payload":' + payload + b"}"


def test_new_job(api: Api) -> None:
    """201, Location, the job as JSON, the row as it was sent."""
    response = api.post("/jobs", b'{"type": "billing.receipt", "payload": { "invoice_id" : 1.0 }, "priority": 3}')
    assert response.status_code == 201
    body = response.json()
    assert response["Location"] == f"/api/v1/jobs/{body['id']}"
    assert response["X-Request-Id"]
    assert " ".join(body) == (
        "id type tier contract_version state reason probe group priority dedupe_key idempotency_key payload attempt "
        "max_attempts run accepted_at ready_at due_at expires_at confirm_by started_at finished_at settled_at "
        "window_seconds in_window lag_seconds progress reference evidence late_evidence result maybe_duplicate "
        "cancel_requested attempts replay_of replayed_by root links"
    )
    assert (body["state"], body["priority"], body["tier"]) == ("accepted", 3, 1)
    assert body["accepted_at"].endswith("Z")
    assert Job.objects.get(id=body["id"]).payload == '{ "invoice_id" : 1.0 }'
    assert api.get(f"/jobs/{body['id']}").json() == body


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"a":1', 400, "invalid_json"),  # H-01
        (b" ", 400, "invalid_json"),
        (b"\xef\xbb\xbf" + json.dumps(PLAIN).encode(), 400, "invalid_encoding"),  # H-03
        (json.dumps(PLAIN).encode("utf-16"), 400, "invalid_encoding"),
        (_with_payload(b'"\xff"'), 400, "invalid_encoding"),  # H-04
        (_with_payload(b'{"a":"\\ud800"}'), 422, "invalid_unicode"),  # H-11
        (_with_payload(b'{"a":"\\u0000"}'), 422, "invalid_unicode"),
        (_with_payload(b'{"a":1e400}'), 422, "number_out_of_range"),  # H-12
        (_with_payload(b'{"a":' + b"9" * 5000 + b"}"), 422, "number_out_of_range"),  # H-13
        (_with_payload(b"[" * 1000 + b"]" * 1000), 422, "too_deep"),  # H-14
        (_with_payload(b"[" * 100_000 + b"]" * 100_000), 422, "too_deep"),
        (_with_payload(b'{"a":1,"a":2}'), 422, "duplicate_key"),  # H-15
        (b'{"type":"billing.receipt","payload":1,"type":"billing.receipt"}', 422, "duplicate_key"),
        (b'{"type":"billing.receipt","payload":{"a":1},"payload":{"a":1}}', 422, "duplicate_key"),
        (_with_payload(b'{"a":NaN}'), 400, "invalid_json"),
        (b"[1]", 422, "invalid_request"),
        (b"null", 422, "invalid_request"),
        (b'{"type":"billing.receipt"}', 422, "invalid_request"),
        (b'{"payload":{}}', 422, "invalid_request"),
        (b'{"type":7,"payload":{}}', 422, "invalid_request"),
        (b'{"type":"billing.receipt","payload":{},"queue":"x"}', 422, "invalid_request"),  # H-18
        (b'{"type":"billing.receipt","payload":{},"priority":"1"}', 422, "invalid_request"),
        (b'{"type":"billing.receipt","payload":{},"priority":1e400}', 422, "number_out_of_range"),
        (b'{"type":"billing.receipt","payload":{},"priority":101}', 422, "invalid_priority"),
        (b'{"type":"billing.receipt","payload":{},"priority":99999999999999999999}', 422, "invalid_priority"),
        (b'{"type":"billing.receipt","payload":{},"group":""}', 422, "invalid_group"),
        (b'{"type":"billing.receipt","payload":{},"group":"\\ud800"}', 422, "invalid_unicode"),
        (b'{"type":"billing.receipt","payload":{},"delay_seconds":-1}', 422, "invalid_request"),
        (b'{"type":"billing.receipt","payload":{},"delay_seconds":1e300}', 422, "invalid_request"),
        (b'{"type":"billing.receipt","payload":{},"max_age_seconds":0}', 422, "invalid_max_age"),
        (b'{"type":"nope","payload":{}}', 404, "unknown_job_type"),  # H-18
        (b'{"type":"","payload":{}}', 404, "unknown_job_type"),
        (b'{"type":"\\u0000","payload":{}}', 422, "invalid_unicode"),
        (b'{"type":"mail.off","payload":{}}', 409, "type_disabled"),
        (b'{"type":"billing.strict","payload":{}}', 422, "contract_violation"),
        (b'{"type":"billing.strict","payload":"' + b"x" * 3000 + b'"}', 413, "payload_too_large"),
    ],
)
def test_bad_body(api: Api, body: bytes, status: int, code: str) -> None:
    """Every bad body is a problem, nothing is stored, and the next good one is taken."""
    problem(api.post("/jobs", body), status, code)
    assert not Job.objects.exists()
    assert api.post("/jobs", PLAIN).status_code == 201


def test_place_of_the_error(api: Api) -> None:
    """H-01: line and column; a pointer into the payload; violations of the contract."""
    assert "line 1 column 7" in problem(api.post("/jobs", b'{"a":1'), 400, "invalid_json")["detail"]
    assert problem(api.post("/jobs", _with_payload(b'{"a":[1e999]}')), 422, "number_out_of_range")["pointer"] == (
        "/payload/a/0"
    )
    wrong = {"type": "billing.receipt", "payload": 1, "priority": "high"}
    assert problem(api.post("/jobs", wrong), 422, "invalid_request")["pointer"] == "/priority"
    broken = problem(
        api.post("/jobs", {"type": "billing.strict", "payload": {"invoice_id": "x"}}), 422, "contract_violation"
    )
    assert broken["violations"][0]["pointer"] == "/payload/invoice_id"


@pytest.mark.parametrize("path", ["/jobs", "/jobs/batch"])
def test_size_limits(api: Api, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """H-02: announced, not announced, and chunked."""
    limit = 1024 * 1024 if path == "/jobs" else 16 * 1024 * 1024
    assert problem(api.post(path, b" " * (limit + 1)), 413, "payload_too_large")["limit"] == limit
    chunked: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "wsgi.input": io.BytesIO(b" " * (limit + 1)),
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
    }
    sent: Any = {
        "path": f"/api/v1{path}",
        "content_type": "application/json",
        "headers": {"Authorization": f"Bearer {api.key}"},
    }
    problem(Client().post(**sent, **chunked), 413, "payload_too_large")
    chunked["wsgi.input"] = io.BytesIO(json.dumps(PLAIN if path == "/jobs" else {"jobs": [PLAIN]}).encode())
    assert Client().post(**sent, **chunked).status_code in (200, 201)
    chunked["wsgi.input_terminated"] = False
    problem(Client().post(**sent, **chunked), 411, "length_required")


def test_payload_up_to_the_limit(api: Api) -> None:
    body = _with_payload(b'"' + b"x" * 200_000 + b'"')
    assert api.post("/jobs", body).status_code == 201


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_content_types(api: Api, content_type: str) -> None:
    headers = {"Authorization": f"Bearer {api.key}"}
    response = api.client.generic("POST", "/api/v1/jobs", json.dumps(PLAIN), content_type, headers=headers)
    problem(response, 415, "unsupported_media_type")
    zipped = api.post("/jobs", PLAIN, **{"Content-Encoding": "gzip"})
    problem(zipped, 415, "unsupported_media_type")


@pytest.mark.parametrize("key", ["", "a b", "k\u200b", "café", "x" * 256, "x" * 3000, "x" * 100_000, "k "])
def test_bad_dedupe_key(api: Api, key: str) -> None:
    """H-05, H-10: 1 to 255 visible ASCII characters, in either place."""
    problem(api.post("/jobs", {**PLAIN, "dedupe_key": key}), 400, "dedupe_key_invalid")
    if key.isascii():
        problem(api.post("/jobs", PLAIN, **{"Idempotency-Key": key}), 400, "dedupe_key_invalid")


@pytest.mark.parametrize("key", ["a", "x" * 255, "invoice-1/€"[:10], "~!\"'<>"])
def test_good_dedupe_key(api: Api, key: str) -> None:
    assert api.accept(dedupe_key=key)["dedupe_key"] == key


def test_repeat_is_a_duplicate(api: Api) -> None:
    """H-06, I-05: other spaces and order, the key in the header: the same job, 200."""
    first = api.post("/jobs", b'{"type":"billing.receipt","payload":{"a":1,"b":2},"dedupe_key":"k"}')
    again = api.post("/jobs", b'{"payload": {"b":2, "a":1}, "type":"billing.receipt"}', **{"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert "Idempotency-Replayed" not in first
    assert again["Idempotency-Replayed"] == "true"
    assert again["Location"] == first["Location"]
    assert again.json()["id"] == first.json()["id"]
    both = {**PLAIN, "payload": {"a": 1, "b": 2}, "dedupe_key": "k"}
    assert api.post("/jobs", both, **{"Idempotency-Key": "k"}).status_code == 200
    problem(api.post("/jobs", both, **{"Idempotency-Key": "other"}), 400, "idempotency_key_mismatch")
    assert Job.objects.count() == 1


@pytest.mark.parametrize("change", [{"payload": {"invoice_id": 1.0}}, {"payload": {"invoice_id": 2}}, {"group": "g"}])
def test_same_key_other_request(api: Api, change: dict[str, Any]) -> None:
    """H-07, I-07: refused, and the first job stays as it was."""
    first = api.accept(dedupe_key="k")
    before = Job.objects.filter(id=first["id"]).values().get()
    conflict = problem(api.post("/jobs", {**PLAIN, "dedupe_key": "k", **change}), 422, "dedupe_conflict")
    assert conflict["job_id"] == first["id"]
    assert Job.objects.filter(id=first["id"]).values().get() == before


def test_bytes_are_kept(api: Api) -> None:
    """H-16, H-17: what looks like an encoding or an attack is data."""
    payload = (
        b'{"__type__":"uuid","__value__":{"hex":"zz"},"x":{"__type__":"nope","__value__":1},'
        b'"<script>":"\\"><img src=x onerror=alert(1)>","r":"\xe2\x80\xae","ansi":"\\u001b[31m","e":"\\u00e9"}'
    )
    response = api.post("/jobs", _with_payload(payload))
    assert response.status_code == 201
    stored = Job.objects.get(id=response.json()["id"]).payload
    assert stored is not None
    assert stored.encode() == payload


@pytest.mark.parametrize(
    "run_at",
    [
        "10000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "2030-01-01T00:00:00",
        "2026-06-30T23:59:60Z",
        "2026-02-30T00:00:00Z",
        "2026-01-01",
        "tomorrow",
        "",
        1767225600,
        {},
        True,
        "2099-01-01T00:00:00Z",
    ],
)
def test_bad_run_at(api: Api, run_at: Any) -> None:
    """H-19."""
    assert problem(api.post("/jobs", {**PLAIN, "run_at": run_at}), 422, "invalid_datetime")["pointer"] == "/run_at"


def test_run_at(api: Api) -> None:
    """H-19: the past is now; the future is kept to the microsecond, whatever its zone."""
    past = api.accept(run_at="2001-01-01T00:00:00+02:00")
    assert past["ready_at"] == past["accepted_at"]
    later = (datetime.now(UTC) + timedelta(days=3)).replace(microsecond=123456)
    assert api.accept(run_at=later.astimezone().isoformat())["ready_at"] == later.isoformat().replace("+00:00", "Z")
    delayed = api.accept(delay_seconds=3600.5)
    assert delayed["ready_at"] > delayed["accepted_at"]
    problem(api.post("/jobs", {**PLAIN, "run_at": later.isoformat(), "delay_seconds": 1}), 422, "invalid_request")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/jobs", {"POST", "GET"}),
        ("DELETE", "/jobs", {"POST", "GET"}),
        ("HEAD", "/jobs", {"POST", "GET"}),
        ("OPTIONS", "/jobs", {"POST", "GET"}),
        ("GET", "/jobs/batch", {"POST"}),
        ("GET", "/jobs/00000000-0000-7000-8000-000000000000/cancel", {"POST"}),
        ("GET", "/jobs/00000000-0000-7000-8000-000000000000/replay", {"POST"}),
        ("GET", "/dead-letters/00000000-0000-7000-8000-000000000000/replay", {"POST"}),
        ("GET", "/dead-letters/00000000-0000-7000-8000-000000000000/cancel", {"POST"}),
    ],
)
def test_other_methods(api: Api, method: str, path: str, allow: set[str]) -> None:
    """H-22, S-11: 405 with Allow; an override is not listened to."""
    headers = {"Authorization": f"Bearer {api.key}", "X-HTTP-Method-Override": "POST"}
    response = api.client.generic(method, f"/api/v1{path}", b"", "application/json", headers=headers)
    assert response.status_code == 405
    assert set(response["Allow"].split(", ")) == allow
    if method != "HEAD":
        problem(response, 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/jobs/", "/nothing", "/jobs/x/y/z", "", "/../jobs", "/jobs/%00", "/jobs/%ff"])
def test_other_addresses(api: Api, path: str) -> None:
    """H-21: a problem, never a redirect and never HTML."""
    for method in ("GET", "POST"):
        headers = {"Authorization": f"Bearer {api.key}"}
        response = api.client.generic(method, f"/api/v1{path}", b"{}", "application/json", headers=headers)
        assert response.status_code in (404, 405), response.content
        problem(response, response.status_code, json.loads(response.content)["code"])


def test_batch(api: Api) -> None:
    """H-23: each item its own status, in request order; of two with one key the first wins."""
    good = [{**PLAIN, "payload": {"invoice_id": i}} for i in range(96)]
    items: list[Any] = [
        *good,
        {**PLAIN, "dedupe_key": "k"},
        {"type": "nope", "payload": 1},
        {**PLAIN, "dedupe_key": "k"},
        {**PLAIN, "payload": 2, "dedupe_key": "k"},
        {**PLAIN, "unknown": 1},
        7,
    ]
    response = api.post("/jobs/batch", {"jobs": items})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["status"] for result in results] == [201] * 97 + [404, 200, 422, 422, 422]
    assert [r["job"]["payload"]["invoice_id"] for r in results[:96]] == list(range(96))
    assert results[98]["job"]["id"] == results[96]["job"]["id"]
    assert results[97]["error"]["pointer"] == "/jobs/97/type"
    assert results[99]["error"]["code"] == "dedupe_conflict"
    assert results[100]["error"]["code"] == results[101]["error"]["code"] == "invalid_request"
    assert Job.objects.count() == 97


@pytest.mark.parametrize("n", [0, 1, 1000, 1001])
def test_batch_sizes(api: Api, n: int) -> None:
    """H-23."""
    response = api.post("/jobs/batch", {"jobs": [PLAIN] * n})
    if 1 <= n <= 1000:
        assert [result["status"] for result in response.json()["results"]] == [201] * n
    else:
        problem(response, 422, "invalid_request")
        assert not Job.objects.exists()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"jobs":[', 400, "invalid_json"),
        (b'{"jobs":[],"jobs":[]}', 422, "duplicate_key"),
        (b'{"jobs":{}}', 422, "invalid_request"),
        (b"[]", 422, "invalid_request"),
        (b'{"jobs":[1],"all":true}', 422, "invalid_request"),
    ],
)
def test_bad_batch(api: Api, body: bytes, status: int, code: str) -> None:
    problem(api.post("/jobs/batch", body), status, code)
    problem(api.post("/jobs/batch", {"jobs": [PLAIN]}, **{"Idempotency-Key": "k"}), 400, "idempotency_key_mismatch")


def test_batch_item_with_bad_text(api: Api) -> None:
    """One bad payload spoils no other, and duplicates of keys are seen in items too."""
    one = json.dumps(PLAIN).encode()
    twice = b'{"type":"billing.receipt","type":"billing.receipt","payload":{"long":"' + b"x" * 100 + b'"}}'
    body = b'{"jobs":[' + b",".join([one, _with_payload(b'{"a":1e400}'), twice, one]) + b"]}"
    results = api.post("/jobs/batch", body).json()["results"]
    assert [r["status"] for r in results] == [201, 422, 422, 201]
    assert [r["error"]["code"] for r in results[1:3]] == ["number_out_of_range", "duplicate_key"]


def test_type_patterns(make_api: Callable[..., Api]) -> None:
    """A type that the key may not use answers like an unknown one, everywhere."""
    billing, mail = make_api(type_patterns=("billing.*",)), make_api(type_patterns=("mail.*", "nope"))
    job = billing.accept(dedupe_key="k")
    unknown = problem(mail.post("/jobs", {"type": "nope", "payload": 1}), 404, "unknown_job_type")
    closed = problem(mail.post("/jobs", PLAIN), 404, "unknown_job_type")
    assert {**unknown, "request_id": ""} == {**closed, "request_id": ""}
    # H-08: a foreign key's dedupe key reveals nothing.
    problem(mail.post("/jobs", {**PLAIN, "dedupe_key": "k"}), 404, "unknown_job_type")
    assert mail.post("/jobs/batch", {"jobs": [PLAIN]}).json()["results"][0]["status"] == 404
    problem(mail.get(f"/jobs/{job['id']}"), 404, "unknown_job")
    problem(mail.get("/jobs", type="billing.receipt"), 404, "unknown_job_type")
    assert mail.get("/jobs").json()["items"] == []
    assert len(billing.get("/jobs").json()["items"]) == 1
    for path in (f"/jobs/{job['id']}/cancel", f"/jobs/{job['id']}/replay", f"/dead-letters/{job['id']}/cancel"):
        problem(mail.post(path, {"reason": "x"}), 404, "unknown_job")


@pytest.mark.parametrize(
    ("scope", "method", "path"),
    [
        ("jobs:write", "post", "/jobs"),
        ("jobs:write", "post", "/jobs/batch"),
        ("jobs:write", "post", "/jobs/00000000-0000-7000-8000-000000000000/cancel"),
        ("jobs:read", "get", "/jobs"),
        ("jobs:read", "get", "/jobs/00000000-0000-7000-8000-000000000000"),
        ("dlq:replay", "post", "/jobs/00000000-0000-7000-8000-000000000000/replay"),
        ("dlq:replay", "post", "/dead-letters/00000000-0000-7000-8000-000000000000/replay"),
        ("dlq:replay", "post", "/dead-letters/00000000-0000-7000-8000-000000000000/cancel"),
    ],
)
def test_scopes(make_api: Callable[..., Api], scope: str, method: str, path: str) -> None:
    """S-02: without the scope 403, with it anything else."""
    others = tuple(s for s in ("jobs:write", "jobs:read", "jobs:confirm", "dlq:read", "dlq:replay") if s != scope)
    args = ({"reason": "x"},) if method == "post" else ()
    problem(getattr(make_api(others), method)(path, *args), 403, "missing_scope")
    assert getattr(make_api((scope,)), method)(path, *args).status_code not in (401, 403)


def test_full_tier(api: Api) -> None:
    """429 with Retry-After, nothing stored; other tiers go on."""
    Tier.objects.filter(number=1).update(backlog_limit=10)
    StateCount.objects.create(type="billing.receipt", tier=1, state="accepted", n=6)
    StateCount.objects.create(type="other", tier=1, state="retrying", n=4)
    StateCount.objects.create(type="other", tier=1, state="dead", n=400)
    backlog.forget_cached()
    response = api.post("/jobs", PLAIN)
    assert problem(response, 429, "overloaded")["retryable"] is True
    assert int(response["Retry-After"]) > 0
    both = {"jobs": [PLAIN, {"type": "billing.strict", "payload": {"invoice_id": 1}}]}
    assert [r["status"] for r in api.post("/jobs/batch", both).json()["results"]] == [429, 201]
    assert Job.objects.count() == 1


def _raised(state: str | None, kind: type[Exception] = OperationalError) -> Exception:
    error = kind("planted secret=hunter2")
    cause = Exception("server")
    cause.sqlstate = state  # type: ignore[attr-defined]
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("state", [None, "08006", "57P01", "57P03", "40001", "40P01", "53300", "55P03", "57014"])
def test_transient_database_errors(api: Api, state: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-39, I-40: 503 with Retry-After, said to be retryable."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise _raised(state)

    monkeypatch.setattr(jobs, "enqueue_many", fail)
    response = api.post("/jobs", PLAIN)
    assert problem(response, 503, "unavailable")["retryable"] is True
    assert int(response["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("state", "kind"), [("54000", OperationalError), ("22003", DataError), ("23514", IntegrityError)]
)
def test_permanent_database_errors(
    api: Api, state: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """I-40: an error of ours, never retryable, with nothing of the error in the answer."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise _raised(state, kind)

    monkeypatch.setattr(jobs, "enqueue_many", fail)
    response = api.post("/jobs", PLAIN)
    assert problem(response, 500, "internal_error")["retryable"] is False
    assert b"hunter2" not in response.content


def test_unexpected_error_is_a_problem(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-37: a request id and nothing else."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(jobs, "enqueue_many", fail)
    response = api.post("/jobs", PLAIN)
    problem(response, 500, "internal_error")
    assert b"secret detail" not in response.content


def test_database_that_is_gone(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error before the view, in the gate, is the same problem."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise InterfaceError("connection already closed")

    monkeypatch.setattr("jobsboard.api.keys._read", fail)
    problem(api.post("/jobs", PLAIN), 503, "unavailable")


def test_stored_but_not_read_back(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-03: after the job is stored, no error of the answer makes the producer send it again."""
    monkeypatch.setattr(jobs, "_read_back", lambda answers: {})
    response = api.post("/jobs", PLAIN)
    assert response.status_code == 201
    assert response.json()["id"] == str(Job.objects.get().id)


def test_statement_timeout(api: Api) -> None:
    """S-34: three seconds, and only in the transaction."""
    with database.bounded(), connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("3s",)
