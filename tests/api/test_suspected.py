"""Signs over HTTP: the documented shape, filters, pages, who may see what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from jobsboard.api import suspected
from jobsboard.api.schemas import Suspected, SuspectedPage
from queues import confirmation, lifecycle
from queues.accept import enqueue
from queues.confirmation import Evidence
from queues.models.outcome import SuspectedDuplicate
from tests.api.conftest import Api, problem
from tests.factories import claim, confirmed, sql

URL = "/suspected-duplicates"


def blind(kind: str) -> UUID:
    """Make a job whose second run began blind."""
    job_id = enqueue(kind, {"invoice_id": 1}).job_id
    [run] = claim([job_id])
    lifecycle.rescue([job_id], dead_runs=[(run.id, run.fence)])
    lifecycle.settle([confirmed(claim([job_id])[0], "mail-1")])
    return job_id


@pytest.fixture
def seen(types: None) -> list[UUID]:
    """Signs of two types: two blind attempts, a second reference, a contradiction."""
    ids = [blind("billing.receipt"), blind("billing.strict")]
    said: list[tuple[Literal["confirmed", "rejected"], str | None]]
    said = [("confirmed", "mail-1"), ("confirmed", "mail-2"), ("rejected", None)]
    for outcome, ref in said:
        evidence = Evidence(outcome=outcome, ref=ref, kind="reference", run=2, detail="bounced, token=abcdef123456")
        confirmation.by_token(ids[0], evidence)
    return ids


def get(api: Api, **query: Any) -> list[dict[str, Any]]:
    body = api.get(URL, **query).json()
    SuspectedPage.model_validate(body)
    assert set(body) == set(SuspectedPage.model_fields)
    assert all(set(item) == set(Suspected.model_fields) for item in body["items"])
    items: list[dict[str, Any]] = body["items"]
    return items


def test_signs_newest_first_with_what_was_seen(api: Api, seen: list[UUID]) -> None:
    items = get(api)
    assert [(i["kind"], i["type"], i["job_id"]) for i in items] == [
        ("contradiction", "billing.receipt", str(seen[0])),
        ("second_reference", "billing.receipt", str(seen[0])),
        ("blind_attempt", "billing.strict", str(seen[1])),
        ("blind_attempt", "billing.receipt", str(seen[0])),
    ]
    assert (items[1]["known"], items[1]["said"], items[1]["run"], items[1]["tier"]) == ("mail-1", "mail-2", 2, 1)
    assert items[2]["error_class"] == "WorkerLost" and items[2]["known"] is None
    assert "abcdef123456" not in str(items) and items[0]["detail"].startswith("bounced")
    assert items[0]["at"].endswith("Z")


def test_filters(api: Api, seen: list[UUID]) -> None:
    assert {i["job_id"] for i in get(api, type="billing.strict")} == {str(seen[1])}
    assert [i["kind"] for i in get(api, kind="second_reference")] == ["second_reference"]
    assert get(api, type="billing.strict", kind="contradiction") == []
    at = get(api)[1]["at"]
    assert len(get(api, since=at)) == 2
    assert len(get(api, until=at)) == 2
    assert get(api, since="2026-01-01T00:00:00Z", until="2026-01-02T00:00:00Z") == []


def test_what_is_wrong_is_said(api: Api, seen: list[UUID]) -> None:
    problem(api.get(URL, kind="nope"), 422, "invalid_query")
    problem(api.get(URL, limit=0), 422, "invalid_query")
    problem(api.get(URL, limit=101), 422, "invalid_query")
    problem(api.get(URL, state="dead"), 422, "invalid_query")
    problem(api.get(URL, since="yesterday"), 422, "invalid_datetime")
    problem(api.get(URL, cursor="x"), 422, "invalid_cursor")
    problem(api.get(URL, type="no.such"), 404, "unknown_job_type")
    assert api.get(URL, kind="\x00").status_code in (400, 422)


def test_pages(api: Api, seen: list[UUID]) -> None:
    whole = [i["id"] for i in get(api)]
    found: list[int] = []
    query: dict[str, Any] = {"limit": 1}
    for _ in whole:
        body = api.get(URL, **query).json()
        found += [i["id"] for i in body["items"]]
        query["cursor"] = body["next"]
    assert found == whole
    assert body["next"] is None
    first = api.get(URL, limit=1).json()["next"]
    problem(api.get(URL, limit=1, kind="contradiction", cursor=first), 422, "invalid_cursor")


def test_a_key_sees_its_own_types_only(
    make_api: Callable[..., Api], seen: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = make_api(type_patterns=("billing.strict",))
    assert [i["job_id"] for i in get(mine)] == [str(seen[1])]
    problem(mine.get(URL, type="billing.receipt"), 404, "unknown_job_type")
    problem(make_api(("jobs:write",)).get(URL), 403, "missing_scope")
    # It looks through a bounded number in one request, and goes on from there.
    monkeypatch.setattr(suspected, "STEP", 1)
    monkeypatch.setattr(suspected, "LOOKS", 2)
    body = mine.get(URL).json()
    assert body["items"] == [] and body["next"]
    body = mine.get(URL, cursor=body["next"]).json()
    assert [i["job_id"] for i in body["items"]] == [str(seen[1])]
    while body["next"]:
        body = mine.get(URL, cursor=body["next"]).json()
        assert body["items"] == []


@pytest.mark.parametrize("n", [1, 60])
def test_what_a_page_costs(api: Api, seen: list[UUID], n: int) -> None:
    SuspectedDuplicate.objects.bulk_create(
        SuspectedDuplicate(type="billing.receipt", tier=1, kind="contradiction", job_id=seen[0], fence=1, at=at)
        for (at,) in sql("SELECT now() FROM generate_series(1, %s)", n)
    )
    api.get(URL)
    with CaptureQueriesContext(connection) as captured:
        assert api.get(URL).status_code == 200
    reads = [query["sql"] for query in captured if "queues_suspectedduplicate" in query["sql"]]
    assert len(reads) == 1
    assert len(captured) <= 6, "\n".join(query["sql"][:150] for query in captured)


def test_the_document_names_it(api: Api) -> None:
    document = api.client.get("/api/v1/openapi.json", headers={"Authorization": f"Bearer {api.key}"}).json()
    call = document["paths"]["/api/v1/suspected-duplicates"]["get"]
    assert call["operationId"] == "listSuspectedDuplicates"
    [kinds] = [p["schema"]["enum"] for p in call["parameters"] if p["name"] == "kind"]
    assert kinds == list(SuspectedDuplicate.Kind.values)
