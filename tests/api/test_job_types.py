"""Contracts over HTTP: every field, what follows from them, and no secret."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from jobsboard.api import schemas
from queues import lifecycle, secrets_box
from queues.contract_fields import FIELDS, NOT_ENFORCED
from queues.models import JobType
from tests.api.conftest import Api, problem
from tests.factories import WORKER, accept, make_type


def test_a_contract(api: Api) -> None:
    """Each field of the model that people may set, the promise in words, and what is not enforced."""
    JobType.objects.filter(name="billing.receipt").update(
        target_ratio=0.9, never_retry=["ValueError"], check_url="https://shop.example/check?token=hunter2"
    )
    contract = api.get("/job-types/billing.receipt").json()
    assert set(FIELDS) <= set(contract)
    assert (contract["name"], contract["version"], contract["tier"], contract["tier_name"]) == (
        "billing.receipt",
        1,
        1,
        contract["tier_name"],
    )
    assert (contract["target_ratio"], contract["target_ratio_in_effect"]) == (0.9, 0.9)
    assert contract["promise"].startswith("90% of jobs are confirmed within 1 minute")
    assert contract["never_retry"] == ["ValueError"]
    assert contract["redact"] == ["/email"]
    assert contract["not_enforced"] == NOT_ENFORCED
    assert "hunter2" not in str(contract)
    strict = api.get("/job-types/billing.strict").json()
    assert (strict["target_ratio"], strict["target_ratio_in_effect"]) == (None, 0.995)
    assert strict["schema"]["required"] == ["invoice_id"]


def test_no_secret_is_shown(api: Api) -> None:
    """Only whether there is one."""
    row = JobType.objects.get(name="billing.receipt")
    shown = api.get("/job-types/billing.receipt").json()
    assert (shown["target_secret_set"], shown["callback_secret_set"]) == (False, False)
    row.target_secret = row.callback_secret = row.callback_secret_old = secrets_box.seal("hunter2")
    row.callback_secret_old_until = datetime(2030, 1, 1, tzinfo=UTC)
    row.save()
    response = api.get("/job-types/billing.receipt")
    shown = response.json()
    assert (shown["target_secret_set"], shown["callback_secret_set"]) == (True, True)
    assert shown["callback_secret_old_until"] == "2030-01-01T00:00:00Z"
    assert {"target_secret", "callback_secret", "callback_secret_old"}.isdisjoint(shown)
    assert bytes(row.target_secret).decode() not in response.content.decode()
    JobType.objects.filter(name="billing.receipt").update(target_secret=None, target_secret_env="SHOP_SECRET")
    assert api.get("/job-types/billing.receipt").json()["target_secret_set"] is True


def test_switches_say_who_and_until_when(api: Api) -> None:
    JobType.objects.filter(name="mail.off").update(
        disabled_reason="moved", disabled_by="jane", disabled_until=datetime(2030, 1, 1, tzinfo=UTC)
    )
    shown = api.get("/job-types/mail.off").json()
    assert (shown["enabled"], shown["disabled_reason"], shown["disabled_by"]) == (False, "moved", "jane")
    assert (shown["disabled_until"], shown["paused"], shown["paused_until"]) == ("2030-01-01T00:00:00Z", False, None)


def test_the_list(api: Api, make_api: Callable[..., Api]) -> None:
    """By name; as far as the key may use them."""
    items = api.get("/job-types").json()["items"]
    assert [item["name"] for item in items] == ["billing.receipt", "billing.strict", "mail.off"]
    assert items[0] == api.get("/job-types/billing.receipt").json()
    mail = make_api(type_patterns=("mail.*",))
    assert [item["name"] for item in mail.get("/job-types").json()["items"]] == ["mail.off"]
    problem(mail.get("/job-types/billing.receipt"), 404, "unknown_job_type")
    problem(make_api(("jobs:write",)).get("/job-types"), 403, "missing_scope")
    problem(make_api(("jobs:write",)).get("/job-types/mail.off"), 403, "missing_scope")


def test_limits_and_how_much_of_them_is_taken(api: Api) -> None:
    """Null for a type without any; what has no limit is null inside."""
    assert api.get("/job-types/billing.receipt").json()["flow"] is None
    make_type("flow.all", concurrency=2, rate_per_second=0.01, rate_burst=3, group_concurrency=1)
    make_type("flow.ordered", ordered=True)
    lifecycle.claim_limited(accept(3, kind="flow.all", group="a"), worker=WORKER)
    body = api.get("/job-types/flow.all").json()
    flow = body["flow"]
    assert schemas.Flow.model_validate(flow).model_dump() == flow
    assert 2 <= flow.pop("tokens") < 2.5
    assert flow == {
        "running": 1, "limit": 2, "rate_per_second": 0.01, "burst": 3, "group_concurrency": 1,
        "group_rate_per_second": None, "ordered": False, "ordered_on_failure": None,
    }  # fmt: skip
    assert api.get("/job-types/flow.ordered").json()["flow"] == {
        "running": 0, "limit": None, "rate_per_second": None, "burst": None, "tokens": None, "group_concurrency": None,
        "group_rate_per_second": None, "ordered": True, "ordered_on_failure": "block",
    }  # fmt: skip
    items = {item["name"]: item for item in api.get("/job-types").json()["items"]}
    assert items["flow.all"]["flow"]["running"] == 1
    assert items["billing.receipt"]["flow"] is None


@pytest.mark.parametrize("name", ["nope", "%00", "Billing.receipt", "x" * 5000, "\u202e"])
def test_no_such_type(api: Api, name: str) -> None:
    problem(api.get(f"/job-types/{name}"), 404, "unknown_job_type")


@pytest.mark.parametrize("query", [{"tier": 1}, {"limit": 5}])
def test_a_filter_that_does_nothing_is_refused(api: Api, query: dict[str, Any]) -> None:
    problem(api.get("/job-types", **query), 422, "invalid_query")
