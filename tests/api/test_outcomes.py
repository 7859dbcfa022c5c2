"""`GET /outcomes`: every figure against an account of its own, for a type, a tier, all types and a closed key."""

from __future__ import annotations

import datetime as dt
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from queues import broker
from queues.outcomes import Span
from queues.states import OPEN, JobState
from tests.api.conftest import Api, problem
from tests.factories import fold_all, sql
from tests.outcomes.world import MINUTE, World, minute

NULL = {"p50": None, "p95": None, "p99": None}


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A history of some hours."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    world = World(3, start=dt.datetime.now(dt.UTC).replace(microsecond=0))
    for _ in range(150):
        world.step()
    fold_all()
    yield world
    sql("SELECT set_config('model.now', '', false)")


def expected(world: World, span: Span, *, tier: int | None = None, types: set[str] | None = None) -> dict[str, Any]:
    """Return what the account says."""
    happened, buckets = world.happened(span)
    end = span.until if span.until < span.now else minute(span.until) + MINUTE
    cohorts = world.cohorts(span, since=span.since, until=end)

    def fits(of_tier: int, name: str) -> bool:
        return tier in (None, of_tier) and (types is None or name in types)

    counts: Counter[str] = Counter()
    for (of_tier, name, measure), n in happened.items():
        counts[measure] += n * fits(of_tier, name)
    ready, due, kept, late = (sum(v[i] for (t, k), v in cohorts.items() if fits(t, k)) for i in range(4))
    rows = [row for row in world.rows.values() if fits(row.tier, row.type) and not row.probe]
    settled = counts["confirmed"] + counts["dead"] + counts["expired"]
    return {
        "ready": ready,
        "due": due,
        "in_window": kept,
        "in_window_ratio": kept / due if due else None,
        "late_open": late,
        "confirmed": counts["confirmed"],
        "confirmed_late": counts["late"],
        "accepted": counts["accepted"],
        "duplicates_suppressed": counts["duplicates"],
        "dead": counts["dead"],
        "dead_rate": counts["dead"] / settled if settled else None,
        "expired": counts["expired"],
        "cancelled": counts["cancelled"],
        "replayed": counts["replayed"],
        "runs": counts["runs"],
        "retry_pressure": counts["retries"] / counts["runs"] if counts["runs"] else None,
        "depth": {
            **{s: sum(row.state == s for row in rows) for s in OPEN},
            "dead": sum(row.state == JobState.DEAD and is_open(row.id) for row in rows),
        },
    }


def is_open(job_id: Any) -> bool:
    """Whether nobody has resolved a dead letter."""
    return sql("SELECT resolution FROM queues_job WHERE id = %s", job_id) == [("open",)]


@pytest.mark.parametrize(
    ("query", "chosen"),
    [
        ({}, {}),
        ({"type": "a.reference"}, {"types": {"a.reference"}}),
        ({"tier": 2}, {"tier": 2}),
        ({"type": "c.return", "tier": 3}, {"types": {"c.return"}, "tier": 3}),
    ],
)
def test_every_figure(api: Api, world: World, query: dict[str, Any], chosen: dict[str, Any]) -> None:
    """The answer is the account's, also over a range that ends in the past; the series adds up to it."""
    for back, length in ((0.0, 30.0), (2.4, 3.1)):
        until = world.now - dt.timedelta(hours=back)
        since = until - dt.timedelta(hours=length)
        answer = api.get("/outcomes", since=since.isoformat(), until=until.isoformat(), **query)
        assert answer.status_code == 200, answer.content
        found = answer.json()
        span = Span.between(since, until, now=world.now)
        told = expected(world, span, **chosen)
        assert {name: found[name] for name in told} == told
        for name in ("accepted", "ready", "due", "in_window", "confirmed", "dead", "expired"):
            assert sum(slot[name] for slot in found["series"]) == found[name]
        assert sum(found["dead_by_reason"].values()) == found["dead"]
        assert found["lag_seconds"] == NULL or found["lag_seconds"]["p50"] <= found["lag_seconds"]["p99"]
        shares = [stage["share"] for stage in found["stages"].values()]
        assert shares == [None] * 4 or sum(shares) == pytest.approx(1)
        assert found["stages"]["running"]["jobs_now"] == found["depth"]["processing"]


def test_without_data_everything_is_null(api: Api) -> None:
    """No data is null, never 0 or 1."""
    found = api.get("/outcomes", type="billing.strict").json()
    rates = (
        "in_window_ratio", "late_ratio", "duplicate_rate", "dead_rate", "expired_ratio", "stale_ratio", "failure_rate",
        "retry_pressure", "oldest_open_seconds",
    )  # fmt: skip
    assert {name: found[name] for name in rates} == dict.fromkeys(rates)
    assert found["lag_seconds"] == found["wait_seconds"] == found["run_seconds"] == NULL
    assert (found["target_ratio"], found["tier"]) == (0.995, None)
    assert len(found["series"]) == 25
    assert found["dead_by_reason"] == {}


def test_a_key_sees_its_types_only(api: Api, world: World, make_api: Callable[..., Api]) -> None:
    """Another type's numbers are in no sum; a closed type is one that does not exist."""
    closed = make_api(type_patterns=["a.*"])
    since = (world.now - dt.timedelta(hours=30)).isoformat()
    mine = closed.get("/outcomes", since=since).json()
    assert {**mine, "type": "a.reference", "target_ratio": None} == {
        **api.get("/outcomes", since=since, type="a.reference").json(), "target_ratio": None,
    }  # fmt: skip
    problem(closed.get("/outcomes", type="b.callback"), 404, "unknown_job_type")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"since": "yesterday"}, "invalid_datetime"),
        ({"since": "2026-11-21T10:00:00Z", "until": "2026-11-21T09:00:00Z"}, "invalid_query"),
        ({"since": "9999-01-01T00:00:00Z"}, "invalid_query"),
        ({"until": "0001-01-01T00:00:00Z"}, "invalid_query"),
        ({"tier": "4"}, "invalid_query"),
        ({"state": "dead"}, "invalid_query"),
    ],
)
def test_what_is_no_question(api: Api, query: dict[str, str], code: str) -> None:
    """Refused with its name."""
    problem(api.get("/outcomes", **query), 422, code)


def test_the_oldest_range_is_bounded(api: Api) -> None:
    """What is older than the rollups is not asked for."""
    found = api.get("/outcomes", since="1990-01-01T00:00:00Z").json()
    assert len(found["series"]) <= 72


def test_statements(api: Api) -> None:
    """A number that does not grow: transaction, time-out, board, counts, lag, oldest, histograms."""
    api.get("/outcomes")
    with CaptureQueriesContext(connection) as seen:
        api.get("/outcomes")
    assert len(seen) <= 8, [query["sql"][:80] for query in seen]


def test_each_shape_of_the_document_has_a_name_of_its_own() -> None:
    """Two of one name would be one in the OpenAPI document."""
    names = Counter(
        one.__name__
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("jobsboard.api.")
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, BaseModel) and one.__module__ == module.__name__
    )
    assert len(names) > 20
    assert [name for name, n in names.items() if n > 1] == []


def test_the_answer_has_the_shape_of_the_document(api: Api, world: World) -> None:
    """With data and without."""
    document = api.get("/openapi.json").json()
    shape = {"$ref": "#/components/schemas/Outcomes", "components": document["components"]}
    reader = jsonschema.Draft202012Validator(shape)
    for query in ({}, {"type": "billing.strict"}, {"since": (world.now - dt.timedelta(hours=30)).isoformat()}):
        assert [error.message for error in reader.iter_errors(api.get("/outcomes", **query).json())] == []
