"""Failure groups over HTTP: which are shown to whom, and what people make of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from queues.models import AuditEntry
from tests.api.conftest import Api, problem
from tests.dlq.deaths import die, fold
from tests.factories import make_type

KIND, TWO, FOREIGN = "billing.receipt", "billing.other", "mail.welcome"


@pytest.fixture
def kinds(types: None) -> None:
    """Make two more types that accept jobs."""
    make_type(TWO)
    make_type(FOREIGN)


def test_groups(api: Api, make_api: Callable[..., Api], kinds: None) -> None:
    """Counted by the fold; filters, pages and the key's types narrow; another type's group is not there."""
    die(3, kind=KIND, fingerprint="a" * 16)
    die(1, kind=TWO, fingerprint="b" * 16, reason="rejected")
    die(2, kind=FOREIGN, fingerprint="c" * 16)
    fold()

    def found(client: Api, **query: Any) -> list[tuple[str, int]]:
        page = client.get("/dead-letter-groups", **query)
        assert page.status_code == 200, page.content
        return [(one["type"], one["open"]) for one in page.json()["items"]]

    assert found(api)[0] == (KIND, 3), "tier 1 first"
    assert sorted(found(api)) == [(TWO, 1), (KIND, 3), (FOREIGN, 2)]
    assert found(api, reason="rejected") == [(TWO, 1)]
    assert found(api, type=FOREIGN) == [(FOREIGN, 2)]
    assert found(api, tier=1) == [(KIND, 3)]
    assert found(api, state="ignored") == []
    assert found(make_api(type_patterns=("mail.*",))) == [(FOREIGN, 2)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 1}
    for _ in range(3):
        page = api.get("/dead-letter-groups", **query).json()
        seen += [one["type"] for one in page["items"]]
        query["cursor"] = page["next"]
    assert (sorted(seen), page["next"]) == ([TWO, KIND, FOREIGN], None)
    first = api.get("/dead-letter-groups", limit=1).json()
    problem(api.get("/dead-letter-groups", limit=1, state="all", cursor=first["next"]), 422, "invalid_cursor")
    number = first["items"][0]["id"]
    one = api.get(f"/dead-letter-groups/{number}").json()
    assert (one["died"], len(one["hours"]), sum(one["hours"]), one["fingerprint"]) == (3, 24, 3, "a" * 16)
    problem(make_api(type_patterns=("mail.*",)).get(f"/dead-letter-groups/{number}"), 404, "unknown_group")
    problem(make_api(type_patterns=("mail.*",)).post(f"/dead-letter-groups/{number}/resolve", {"reason": "x"}), 404,
            "unknown_group")  # fmt: skip
    for text in ("0", "x", "9" * 40, "-1", "1.5"):
        problem(api.get(f"/dead-letter-groups/{text}"), 404, "unknown_group")
    for bad in ({"state": "closed"}, {"reason": "nope"}, {"tier": 4}, {"limit": 0}, {"x": 1}):
        problem(api.get("/dead-letter-groups", **bad), 422, "invalid_query")


def test_a_group_is_ignored_resolved_and_reopened(api: Api) -> None:
    """With who and why, for good or until a time; the past is no such time."""
    die(1, kind=KIND)
    fold()
    number = api.get("/dead-letter-groups").json()["items"][0]["id"]
    path = f"/dead-letter-groups/{number}"
    until = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    ignored = api.post(f"{path}/ignore", {"reason": "known, token=hunter2", "until": until}).json()
    assert (ignored["state"], ignored["state_by"][:4]) == ("ignored", "key:")
    assert datetime.fromisoformat(ignored["ignored_until"]) == datetime.fromisoformat(until)
    assert "hunter2" not in ignored["state_reason"]
    assert [one["id"] for one in api.get("/dead-letter-groups", state="ignored").json()["items"]] == [number]
    assert api.get("/dead-letter-groups").json()["items"] == []
    for bad in ("2020-01-01T00:00:00Z", "tomorrow", 5, "9999-01-01T00:00:00Z"):
        assert problem(api.post(f"{path}/ignore", {"reason": "x", "until": bad}), 422, "invalid_datetime")["pointer"]
    assert api.post(f"{path}/resolve", {"reason": "fixed"}).json()["state"] == "resolved"
    assert api.post(f"{path}/reopen", {"reason": "not yet"}).json()["state"] == "open"
    problem(api.post(f"{path}/ignore", {"until": until}), 422, "invalid_request")
    actions = [entry.action for entry in AuditEntry.objects.filter(object_type="failure_group").order_by("id")]
    assert actions == ["failure_group.ignored", "failure_group.resolved", "failure_group.reopened"]
