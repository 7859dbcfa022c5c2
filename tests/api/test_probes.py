"""Probes over HTTP: one by its id says that it is one; no list has it, and nobody replays it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from jobsboard.api import listing
from queues import accept, lifecycle
from tests.api.conftest import Api, problem
from tests.factories import claim, failed

KIND = "billing.receipt"


def a_probe(number: int = 1) -> UUID:
    return accept.accept_probe(KIND, key=f"probe-{number}").job_id


def dead(job_id: UUID) -> UUID:
    assert lifecycle.settle([failed(claim([job_id])[0], reason="permanent_error")])
    return job_id


def test_one_by_its_id_says_that_it_is_one(api: Api) -> None:
    plain = api.accept()
    assert plain["probe"] is False
    found = api.get(f"/jobs/{a_probe()}").json()
    assert (found["probe"], found["type"], found["dedupe_key"]) == (True, KIND, "probe-1")


def test_no_list_has_it(api: Api) -> None:
    job = api.accept()["id"]
    a_probe()
    for query in ({}, {"type": KIND}, {"state": "accepted"}, {"tier": 1}):
        page = api.get("/jobs", **query).json()
        assert [item["id"] for item in page["items"]] == [job], query
        assert page["searched"]["complete"] is True
    assert api.get("/jobs", type=KIND, dedupe_key="probe-1").json()["items"] == []


def test_a_dead_one_is_no_dead_letter(api: Api) -> None:
    job_id = dead(a_probe())
    for query in ({}, {"type": KIND}, {"reason": "permanent_error"}, {"resolution": "ignored"}):
        assert api.get("/dead-letters", **query).json()["items"] == [], query
    for path in (f"/jobs/{job_id}/replay", f"/dead-letters/{job_id}/replay"):
        answer = api.post(path, {"reason": "again"})
        assert problem(answer, 409, "not_replayable")["detail"] == "the job is a probe; the next one is sent by itself."
    assert api.post(f"/dead-letters/{job_id}/cancel", {"reason": "x"}).status_code == 409


def _ids(api: Api, **query: Any) -> tuple[list[str], list[int | None]]:
    """Read a list to its end. Shape: ids, and how far each page says that it looked."""
    found: list[str] = []
    looked: list[int | None] = []
    while True:
        page = api.get("/jobs", **query).json()
        found += [item["id"] for item in page["items"]]
        looked.append(page["searched"]["rows"])
        if page["next"] is None:
            return found, looked
        query["cursor"] = page["next"]


def test_many_in_a_row_bound_the_look(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says how far it looked, and `next` goes on from there."""
    monkeypatch.setattr(listing, "LOOK_AT_MOST", 20)
    old = [str(accept.enqueue(KIND, {}).job_id) for _ in range(2)]
    for number in range(45):
        a_probe(number)
    new = [str(accept.enqueue(KIND, {}).job_id) for _ in range(3)]
    for query in ({"limit": 2}, {"limit": 2, "type": KIND}):
        found, looked = _ids(api, **query)
        assert found == [*reversed(new), *reversed(old)]
        # Two that fit; the third and 19 probes; 20 of them; the last six, and the end.
        assert looked == [None, 20, 20, None]
