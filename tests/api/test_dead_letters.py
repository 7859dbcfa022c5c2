"""Dead letters over HTTP: the list, whether a replay is safe, ignoring. Replaying one: test_one_replay, test_jobs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection

from jobsboard.api import dead_letters, listing
from queues import contracts, lifecycle
from queues.models import AuditEntry, Job, JobType
from queues.states import JobState
from tests.api.conftest import Api, never_began, problem, runs_fail, runs_went_well
from tests.factories import claim, failed, fold_all, make_job, sql

S = JobState
NO_JOB = "00000000-0000-7000-8000-000000000000"


def _dead(kind: str = "billing.receipt", **columns: Any) -> str:
    return str(make_job(S.DEAD, type=kind, **columns).id)


def _pages(api: Api, **query: Any) -> list[list[str]]:
    """Read to the end."""
    pages: list[list[str]] = []
    while True:
        response = api.get("/dead-letters", **query)
        assert response.status_code == 200, response.content
        page = response.json()
        assert set(page) == {"items", "next", "searched"}
        assert page["searched"]["complete"] is (page["next"] is None)
        pages.append([item["id"] for item in page["items"]])
        if page["next"] is None:
            return pages
        query["cursor"] = page["next"]


def test_unresolved_ones_newest_first(api: Api) -> None:
    """Of every type, each once; neither resolved ones nor jobs in another state."""
    made = [_dead("billing.receipt"), _dead("billing.strict"), _dead("billing.receipt"), _dead("mail.off"), _dead()]
    _dead(resolution="cancelled", raw_resolved_at="jobs_now()", resolved_by="jane")
    make_job(S.EXPIRED, type="billing.receipt")
    api.accept()
    for limit in (1, 2, 3, 5, 50):
        pages = _pages(api, limit=limit)
        assert [job_id for page in pages for job_id in page] == made[::-1]
        assert all(len(page) == limit for page in pages[:-1])


def test_an_item(api: Api) -> None:
    """The job as in its own list, and what was made of it."""
    job_id = _dead(fingerprint="0123456789abcdef", raw_failures="""'[{"message": "password=hunter2"}]'""")
    response = api.get("/dead-letters")
    item = response.json()["items"][0]
    job = api.get("/jobs", type="billing.receipt").json()["items"][0]
    assert item == {
        **job,
        "fingerprint": "0123456789abcdef",
        "failure_group": None,
        "resolution": "open",
        "resolved_at": None,
        "resolved_by": None,
    }
    assert item["id"] == job_id
    assert item["attempts"][0]["traceback"] is None
    assert b"hunter2" not in response.content


def test_filters(api: Api) -> None:
    one = _dead(fingerprint="aa", reason="rejected")
    two = _dead("billing.strict", fingerprint="aa")
    gone = _dead(resolution="cancelled", raw_resolved_at="jobs_now()", resolved_by="jane")
    verdict = problem(api.post(f"/dead-letters/{two}/replay", {"reason": "x"}), 409, "unsafe_replay")["fingerprint"]
    assert api.post(f"/dead-letters/{two}/replay", {"reason": "x", "verdict": verdict}).status_code == 201
    three = _dead("billing.strict", fingerprint="bb")
    for query, ids in (
        ({}, [three, one]),
        ({"type": "billing.strict"}, [three]),
        ({"reason": "rejected"}, [one]),
        ({"reason": "poison"}, []),
        ({"fingerprint": "aa"}, [one]),
        ({"fingerprint": "aa", "resolution": "replayed"}, [two]),
        ({"fingerprint": "aa", "type": "billing.strict"}, []),
        ({"resolution": "cancelled"}, [gone]),
        ({"resolution": "ignored"}, []),
        ({"resolution": "open", "type": "billing.receipt", "reason": "rejected", "fingerprint": "aa"}, [one]),
        ({"since": "2020-01-01T00:00:00Z"}, [three, one]),
        ({"until": "2020-01-01T00:00:00Z"}, []),
        ({"since": "2100-01-01T00:00:00Z"}, []),
        ({"since": "2100-01-01T00:00:00Z", "until": "2000-01-01T00:00:00Z"}, []),
    ):
        page = api.get("/dead-letters", **query).json()
        assert [item["id"] for item in page["items"]] == ids, query
        looked = {"reason", "fingerprint"} & set(query) or query.get("resolution", "open") != "open"
        assert (page["searched"]["rows"] is not None) is bool(looked), query
        assert page["searched"]["complete"] is True


@pytest.mark.parametrize("resolution", ["open", "cancelled"])
def test_a_bounded_look_misses_nothing(api: Api, monkeypatch: pytest.MonkeyPatch, resolution: str) -> None:
    """One type with many hides none of its own behind an older one of another type, and a page says how far it saw."""
    monkeypatch.setattr(listing, "LOOK_AT_MOST", 12)
    closed = {} if resolution == "open" else {"resolution": resolution, "raw_resolved_at": "jobs_now()"}
    wanted = [_dead("billing.strict", fingerprint="aa", **closed), _dead("mail.off", fingerprint="aa", **closed)]
    for i in range(17):
        job_id = _dead(fingerprint="aa" if i % 6 == 0 else "bb", **closed)
        wanted += [job_id] if i % 6 == 0 else []
    wanted.append(_dead("billing.strict", fingerprint="aa", **closed))
    query = {"fingerprint": "aa", "limit": 2, "resolution": resolution}
    pages = _pages(api, **query)
    assert [job_id for page in pages for job_id in page] == wanted[::-1]
    rows = api.get("/dead-letters", **query).json()["searched"]["rows"]
    assert 0 < rows <= 12


def test_keys(make_api: Callable[..., Api]) -> None:
    """Types that a key may not use are not in its list and cannot be asked for."""
    mine = _dead("mail.off")
    theirs = _dead()
    mail = make_api(type_patterns=("mail.*",))
    assert _pages(mail) == [[mine]]
    assert _pages(mail, resolution="cancelled") == [[]]
    assert _pages(make_api(type_patterns=("none.*",))) == [[]]
    problem(mail.get("/dead-letters", type="billing.receipt"), 404, "unknown_job_type")
    problem(mail.get(f"/dead-letters/{theirs}/preflight"), 404, "unknown_job")
    without = make_api(("jobs:read", "dlq:replay"))
    problem(without.get("/dead-letters"), 403, "missing_scope")
    problem(without.get(f"/dead-letters/{mine}/preflight"), 403, "missing_scope")


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "abc"},
        {"cursor": "x"},
        {"cursor": ""},
        {"reason": "nope"},
        {"resolution": "closed"},
        {"resolution": ""},
        {"fingerprint": "\0"},
        {"fingerprint": ""},
        {"fingerprint": "x" * 33},
        {"since": "yesterday"},
        {"until": "10000-01-01T00:00:00Z"},
        {"state": "dead"},
        {"type": ["mail.off", "mail.off"]},
    ],
)
def test_bad_query(api: Api, query: dict[str, Any]) -> None:
    """H-25: 422, never a 500."""
    response = api.get("/dead-letters", **query)
    problem(response, 422, response.json()["code"])


def test_a_cursor_is_bound_to_its_filter(api: Api) -> None:
    """H-25."""
    for _ in range(3):
        _dead()
    cursor = api.get("/dead-letters", limit=1).json()["next"]
    assert api.get("/dead-letters", limit=2, cursor=cursor).status_code == 200
    problem(api.get("/dead-letters", resolution="cancelled", cursor=cursor), 422, "invalid_cursor")
    problem(api.get("/jobs", cursor=cursor), 422, "invalid_cursor")


def test_the_list_is_read_from_the_index_of_dead_letters(api: Api) -> None:
    """Promise 10: what it costs does not grow with the jobs that are not dead."""
    params = {
        "types": ["billing.receipt"], "resolution": "open", "reason": None, "fingerprint": None, "each": 3, "limit": 3,
        "first": NO_JOB, "last": "ffffffff-ffff-ffff-ffff-ffffffffffff",
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        cursor.execute("EXPLAIN " + dead_letters._OPEN, params)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    names = sql(
        "SELECT indexrelid::regclass::text FROM pg_index i JOIN pg_inherits h ON h.inhrelid = i.indexrelid"
        " WHERE h.inhparent = 'job_dead'::regclass"
    )
    assert any(name in plan for (name,) in names), plan
    assert "Seq Scan" not in plan


def test_preflight_of_a_job_thatnever_began(api: Api) -> None:
    """Everything is known: safe, once somebody gave it a key and other jobs of the type go well. Eight checks, each
    with its evidence and its time."""
    job_id = never_began(api, dedupe_key="k")
    runs_went_well("billing.receipt")
    found = api.get(f"/dead-letters/{job_id}/preflight").json()
    assert set(found) == {"id", "verdict", "fingerprint", "final", "checks", "at"}
    assert (found["id"], found["verdict"], found["final"]) == (job_id, "safe", False)
    assert [(one["name"], one["result"]) for one in found["checks"]] == [
        ("open", "pass"),
        ("already_done", "pass"),
        ("idempotency_key", "pass"),
        ("superseded", "pass"),
        ("max_age", "pass"),
        ("dependency", "pass"),
        ("contract", "pass"),
        ("cause", "note"),
    ]
    assert found["fingerprint"] == "1pppppppn"
    assert all(one["evidence"] and one["title"] and one["at"].endswith("Z") for one in found["checks"])
    assert [one["name"] for one in found["checks"] if one["final"]] == ["open", "superseded"]


def test_what_nobody_knows_is_never_green(api: Api) -> None:
    """An attempt began and nobody asked the outside world."""
    job_id = _dead(begun=1)
    found = api.get(f"/dead-letters/{job_id}/preflight").json()
    results = {one["name"]: one["result"] for one in found["checks"]}
    assert (found["verdict"], results["already_done"], results["idempotency_key"]) == ("unknown", "unknown", "unknown")
    JobType.objects.update(provider_key_ttl_seconds=86_400)
    contracts.forget()
    results = {c["name"]: c["result"] for c in api.get(f"/dead-letters/{job_id}/preflight").json()["checks"]}
    assert results["idempotency_key"] == "pass"


def test_preflight_asks_the_outside_world_unless_told_not_to(api: Api, asked: list[UUID]) -> None:
    """The answer of a worker is the evidence, with its own time; a look that does not ask takes the last one."""
    runs_went_well("billing.receipt")
    JobType.objects.update(provider_key_ttl_seconds=86_400)
    contracts.forget()
    job_id = _dead(begun=1)
    path = f"/dead-letters/{job_id}/preflight"
    assert api.get(path, ask="false").json()["verdict"] == "unknown"
    assert asked == []
    found = api.get(path).json()
    done = next(one for one in found["checks"] if one["name"] == "already_done")
    assert (found["verdict"], done["result"], asked) == ("safe", "pass", [UUID(job_id)])
    assert done["at"] < found["at"]
    again = api.get(path, ask="false").json()
    assert (again["fingerprint"], asked) == (found["fingerprint"], [UUID(job_id)])
    for query in ({"ask": "no"}, {"ask": ""}, {"asks": "true"}, {"ask": ["true", "true"]}):
        problem(api.get(path, **query), 422, "invalid_query")


def test_what_speaks_against_a_replay(api: Api) -> None:
    """Late evidence, a forgotten key, a newer holder, a disabled type, a replay before, its age, what it depends on."""

    def failing(job_id: str) -> set[str]:
        found = api.get(f"/dead-letters/{job_id}/preflight").json()
        names = {one["name"] for one in found["checks"] if one["result"] == "fail"}
        assert (found["verdict"] == "unsafe") is bool(names)
        return names

    job_id = _dead(begun=1)
    sql("""UPDATE queues_job SET late_evidence = '[{"outcome": "rejected"}]' WHERE id = %s""", job_id)
    assert failing(job_id) == set()
    sql(
        """UPDATE queues_job SET late_evidence = '[{"outcome": "confirmed"}, {"outcome": "rejected"}]'
        WHERE id = %s""",
        job_id,
    )
    assert failing(job_id) == {"already_done"}
    JobType.objects.update(provider_key_ttl_seconds=60)
    contracts.forget()
    old = _dead(begun=1, root=listing.first_id(datetime.now(UTC) - timedelta(seconds=61)))
    assert failing(old) == {"idempotency_key"}
    assert failing(_dead("mail.off")) == {"contract"}
    again = _dead()
    assert api.post(f"/dead-letters/{again}/replay", {"reason": "x"}).status_code == 201
    assert failing(again) == {"open"}
    held = _dead(dedupe_key="k")
    api.accept(dedupe_key="k")
    assert failing(held) == {"superseded"}
    assert failing(_dead(raw_expires_at="jobs_now() - interval '1 s'")) == {"max_age"}
    runs_fail("billing.receipt")
    assert failing(_dead()) == {"dependency"}


def test_preflight_of_a_job_that_is_not_replayed(api: Api) -> None:
    job_id = api.accept()["id"]
    assert problem(api.get(f"/dead-letters/{job_id}/preflight"), 409, "not_replayable")["state"] == "accepted"
    problem(api.get(f"/dead-letters/{NO_JOB}/preflight"), 404, "unknown_job")
    expired = make_job(S.EXPIRED, type="billing.receipt")
    assert api.get(f"/dead-letters/{expired.id}/preflight").status_code == 200
    assert Job.objects.filter(id=expired.id, state=S.EXPIRED).exists()


def test_ignore(api: Api, make_api: Callable[..., Api]) -> None:
    """It leaves the list, is found under its resolution, and ignoring it again is the same answer."""
    job_id = _dead()
    for _ in range(2):
        answer = api.post(f"/dead-letters/{job_id}/ignore", {"reason": "known"})
        assert (answer.status_code, answer.json()["state"]) == (200, "dead")
    assert AuditEntry.objects.filter(action="dead_letter.ignored").count() == 1
    assert _pages(api) == [[]]
    assert _pages(api, resolution="ignored") == [[job_id]]
    problem(api.post(f"/dead-letters/{job_id}/cancel", {"reason": "x"}), 409, "not_cancellable")
    problem(
        make_api(type_patterns=("mail.*",)).post(f"/dead-letters/{_dead()}/ignore", {"reason": "x"}), 404, "unknown_job"
    )
    problem(make_api(("dlq:read",)).post(f"/dead-letters/{_dead()}/ignore", {"reason": "x"}), 403, "missing_scope")


def test_the_list_names_the_failure_group(api: Api) -> None:
    """One statement for a page; its id opens the group."""
    fold_all()
    job_id = api.accept()["id"]
    [run] = claim([UUID(job_id)])
    lifecycle.settle([failed(run, reason="permanent_error", fingerprint="ab" * 8)])
    fold_all()
    item = api.get("/dead-letters").json()["items"][0]
    group = api.get(f"/dead-letter-groups/{item['failure_group']}").json()
    assert (item["id"], group["type"], group["open"]) == (job_id, "billing.receipt", 1)
    assert group["fingerprint"] == item["fingerprint"]
