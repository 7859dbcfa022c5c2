"""Dependencies and their circuit breakers over HTTP: numbers, held jobs, and nothing of types of others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from queues.models import Dependency, DependencyCalls, JobType
from tests.api.conftest import Api, problem
from tests.factories import accept, fold_all, make_type, sql


@pytest.fixture
def crm(api: Api) -> None:
    """Two types name it, one of them the key's; it is open after three failures of four, and two jobs wait."""
    make_type("crm.sync")
    JobType.objects.filter(name__in=["crm.sync", "billing.receipt"]).update(dependency="crm", breaker="open")
    Dependency.objects.create(name="crm", state="open", why="Of 4 calls in 60 s 3 failed.", description="the CRM")
    at = sql("SELECT date_trunc('second', jobs_now()) - interval '5 s'")[0][0]
    DependencyCalls.objects.create(dependency="crm", at=at, ok=1, failed=2, slow=1)
    Dependency.objects.create(name="unused")
    accept(2, kind="crm.sync")
    api.accept()
    fold_all()


def test_a_dependency_with_its_breaker(api: Api, crm: None) -> None:
    found = {one["name"]: one for one in api.get("/dependencies").json()["items"]}
    assert list(found) == ["crm", "unused"]
    one = found["crm"]
    assert (one["state"], one["why"], one["description"]) == ("open", "Of 4 calls in 60 s 3 failed.", "the CRM")
    assert (one["calls"], one["failed"], one["slow"], one["ratio"]) == (4, 2, 1, 0.75)
    assert (one["types"], one["jobs_held"]) == (["billing.receipt", "crm.sync"], 3)
    assert (one["forced"], one["forced_by"], one["forced_until"], one["retry_at"]) == (None, None, None, None)
    assert one["since"].endswith("Z")
    assert (found["unused"]["ratio"], found["unused"]["types"], found["unused"]["jobs_held"]) == (None, [], 0)


def test_a_job_type_says_how_the_breaker_stands(api: Api, crm: None) -> None:
    assert api.get("/job-types/crm.sync").json()["breaker"] == "open"
    assert api.get("/job-types/billing.strict").json()["breaker"] is None


def test_a_key_for_some_types_sees_what_these_depend_on(crm: None, make_api: Callable[..., Api]) -> None:
    api = make_api(type_patterns=("crm.*",))
    (one,) = api.get("/dependencies").json()["items"]
    assert (one["name"], one["types"], one["jobs_held"]) == ("crm", ["crm.sync"], 2)
    assert make_api(type_patterns=("mail.*",)).get("/dependencies").json()["items"] == []


def test_who_may_ask(api: Api, make_api: Callable[..., Api]) -> None:
    problem(api.get("/dependencies", page=2), 422, "invalid_query")
    problem(make_api(("jobs:write",)).get("/dependencies"), 403, "missing_scope")
