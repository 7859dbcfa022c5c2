"""A job type, keys and a client that sends them. Not here: a broker; jobs are accepted, nothing runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from django.test import Client

from jobsboard.api import keys
from jobsboard.models import SCOPES
from queues import backlog, broker, contracts, outside
from queues.models import JobType, OutcomeRollup
from tests.factories import sql

_REALLY_ASK = outside.ask_and_wait


@dataclass
class Api:
    """A test client with a key."""

    key: str
    client: Client = field(default_factory=lambda: Client(raise_request_exception=False))

    def post(self, path: str, body: Any, **headers: str) -> Any:
        """Send JSON; bytes are sent as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {self.key}", **headers}
        return self.client.post(f"/api/v1{path}", data, content_type="application/json", headers=sent)

    def get(self, path: str, **query: Any) -> Any:
        """Read."""
        return self.client.get(f"/api/v1{path}", query, headers={"Authorization": f"Bearer {self.key}"})

    def accept(self, **overrides: Any) -> dict[str, Any]:
        """Accept one job and return it."""
        response = self.post("/jobs", {"type": "billing.receipt", "payload": {"invoice_id": 1}, **overrides})
        assert response.status_code in (200, 201), response.content
        answer: dict[str, Any] = response.json()
        return answer


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    for forget in (keys.forget_cached, contracts.forget, backlog.forget_cached):
        forget()
    yield
    for forget in (keys.forget_cached, contracts.forget, backlog.forget_cached):
        forget()


@pytest.fixture(autouse=True)
def _nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no worker that would ask the outside world before a replay: no test waits two seconds for none."""
    monkeypatch.setattr(outside, "ask_and_wait", lambda ids, **_: {})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """Let a worker answer at once that the work was not done; returns what it was asked about."""
    found: list[UUID] = []

    def answer(hints: Any, *, task: str = broker.TASK) -> bool:
        for _, ids in hints:
            for job_id in outside.take(ids):
                found.append(job_id)
                outside.answer(job_id, outcome="none")
        return True

    monkeypatch.setattr(outside, "ask_and_wait", _REALLY_ASK)
    monkeypatch.setattr(broker, "publish", answer)
    return found


@pytest.fixture
def types(db: None) -> None:
    """Make three job types: a plain one, one with a schema, one that is disabled."""
    JobType.objects.create(name="billing.receipt", tier_id=1, redact=["/email"])
    JobType.objects.create(
        name="billing.strict",
        tier_id=2,
        max_payload_bytes=2000,
        schema={"type": "object", "required": ["invoice_id"], "properties": {"invoice_id": {"type": "integer"}}},
    )
    JobType.objects.create(name="mail.off", tier_id=3, enabled=False)


@pytest.fixture
def make_api(types: None) -> Callable[..., Api]:
    """Return a maker of clients with keys of chosen rights."""

    def make(scopes: tuple[str, ...] = SCOPES, type_patterns: tuple[str, ...] = ("*",)) -> Api:
        return Api(keys.issue_key(label="test", scopes=scopes, type_patterns=type_patterns)[1])

    return make


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    """Return a client whose key may do everything."""
    return make_api()


def runs_went_well(*names: str, runs: int = 20) -> None:
    """Let everybody's newest runs of these types have succeeded: what they depend on is known to be healthy."""
    for name in names:
        OutcomeRollup.objects.create(grain="minute", at=minute(), type=name, tier=1, runs=runs)


def runs_fail(name: str, *, runs: int = 20) -> None:
    """Let the newest runs of a type have failed."""
    OutcomeRollup.objects.filter(type=name).delete()
    OutcomeRollup.objects.create(grain="minute", at=minute(), type=name, tier=1, runs=runs, failed=runs)


def never_began(api: Api, **overrides: Any) -> str:
    """Return a dead letter that no attempt ever began of."""
    job_id: str = api.accept(**overrides)["id"]
    sql(
        "UPDATE queues_job SET state = 'dead', reason = 'no_handler', settled_at = jobs_clock(), due_at = NULL,"
        " resolution = 'open' WHERE id = %s",
        job_id,
    )
    return job_id


def minute() -> Any:
    """Return the minute of the database's clock."""
    return sql("SELECT date_trunc('minute', jobs_now())")[0][0]


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """Check that a response is this problem and return it."""
    body: dict[str, Any] = json.loads(response.content)
    assert (response.status_code, body.get("code")) == (status, code), response.content
    assert response["Content-Type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "code", "pointer", "request_id"} <= set(body)
    assert body["request_id"] == response["X-Request-Id"]
    return body
