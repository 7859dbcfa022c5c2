"""Cancelling in bulk over HTTP: waiting jobs, dead letters, who may do which, and what was seen (I-32, I-33)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from dlq.models import PlanItem, ReplayPlan
from dlq.plans import advance
from queues.models import AuditEntry, Job
from tests.api.conftest import Api, problem
from tests.dlq.deaths import die
from tests.factories import accept, get, sql

KIND = "billing.receipt"
pytestmark = pytest.mark.usefixtures("types")


def carried_out(answer: Any) -> ReplayPlan:
    """Do what a plan says."""
    assert answer.status_code == 202, answer.content
    plan_id = answer.json()["id"]
    sql("UPDATE dlq_replayplan SET paced_at = paced_at - interval '2 s' WHERE id = %s", plan_id)
    advance.advance(UUID(plan_id))
    return ReplayPlan.objects.get(id=plan_id)


def body(n: int, *, state: str, **more: Any) -> dict[str, Any]:
    return {"filter": {"type": KIND, "state": state}, "reason": "wrong batch", "expected_count": n, **more}


def test_waiting_jobs_are_cancelled(make_api: Callable[..., Api]) -> None:
    """jobs:write is enough; dead letters are left alone; the key sees its plan, and nobody's without dlq:replay."""
    waiting, dead = accept(3, kind=KIND), die(1, kind=KIND)
    writer, other = make_api(("jobs:write",)), make_api(("jobs:write",))
    answer = writer.post("/cancellations", body(3, state="waiting"))
    plan = carried_out(answer)
    assert (plan.action, plan.done, plan.total) == ("cancel", 3, 3)
    assert {get(job_id).state for job_id in waiting} == {"cancelled"}
    assert get(dead[0]).resolution == "open"
    path = answer["Location"].removeprefix("/api/v1")
    assert writer.get(path).json()["words"].startswith("3 cancelled")
    assert len(writer.get(f"{path}/items").json()["items"]) == 3
    problem(other.get(path), 404, "unknown_plan")
    problem(other.post(f"{path}/abort", {"reason": "x"}), 404, "unknown_plan")
    problem(make_api(("jobs:read", "dlq:read")).get(path), 403, "missing_scope")
    assert make_api(("dlq:replay",)).get(path).status_code == 200


@pytest.mark.parametrize(("action", "resolution"), [("cancel", "cancelled"), ("ignore", "ignored")])
def test_dead_letters_are_resolved(api: Api, action: str, resolution: str) -> None:
    """They stay dead; each has its own audit entry, as if somebody had pressed the button on each."""
    dead, waiting = die(2, kind=KIND), accept(1, kind=KIND)
    plan = carried_out(api.post("/cancellations", body(2, state="dead", action=action)))
    assert (plan.action, plan.done) == (action, 2)
    assert {(get(i).state, get(i).resolution) for i in dead} == {("dead", resolution)}
    assert get(waiting[0]).state == "accepted"
    entries = AuditEntry.objects.filter(action=f"dead_letter.{resolution}")
    assert {entry.object_id for entry in entries} == {str(job_id) for job_id in dead}
    assert {entry.reason for entry in entries} == {"wrong batch"}


def test_scopes(make_api: Callable[..., Api]) -> None:
    """S-02, I-33: waiting jobs need jobs:write, dead letters dlq:replay; ids may be of both, so cancelling them needs
    both."""
    [waiting], [dead] = accept(1, kind=KIND), die(1, kind=KIND)
    ids = {"ids": [str(waiting), str(dead)], "reason": "x"}
    writer, replayer, reader = make_api(("jobs:write",)), make_api(("dlq:replay",)), make_api(("jobs:read", "dlq:read"))
    problem(writer.post("/cancellations", body(1, state="dead")), 403, "missing_scope")
    problem(writer.post("/cancellations", body(1, state="dead", action="ignore")), 403, "missing_scope")
    problem(replayer.post("/cancellations", body(1, state="waiting")), 403, "missing_scope")
    for client in (writer, replayer):
        problem(client.post("/cancellations", ids), 403, "missing_scope")
    for wanted in (body(1, state="dead"), body(1, state="waiting"), ids, {}):
        problem(reader.post("/cancellations", wanted), 403, "missing_scope")
    problem(replayer.post("/cancellations", {**ids, "filter": {"state": "waiting"}}), 403, "missing_scope")
    assert not ReplayPlan.objects.exists()
    plan = carried_out(make_api(("jobs:write", "dlq:replay")).post("/cancellations", ids))
    assert (plan.done, get(waiting).state, get(dead).resolution) == (2, "cancelled", "cancelled")
    [second] = die(1, kind=KIND)
    ignored = carried_out(replayer.post("/cancellations", {"ids": [str(second)], "reason": "x", "action": "ignore"}))
    assert (ignored.done, get(second).resolution) == (1, "ignored")


@pytest.mark.parametrize("verb", ["pause", "resume", "abort"])
def test_a_plan_is_steered_by_whoever_may_make_it(make_api: Callable[..., Api], verb: str) -> None:
    """S-02: a key for dead letters alone looks at a cancel of waiting jobs, and neither stops it nor lets it go on."""
    [waiting], [dead] = accept(1, kind=KIND), die(1, kind=KIND)
    both, replayer = make_api(("jobs:write", "dlq:replay")), make_api(("dlq:replay",))
    ids = {"ids": [str(waiting), str(dead)], "reason": "x"}
    for made in (body(1, state="waiting"), ids):
        path = both.post("/cancellations", made).json()["links"]["self"].split("/api/v1")[1]
        if verb == "resume":
            assert both.post(f"{path}/pause", {"reason": "x"}).status_code == 200
        before = both.get(path).json()["state"]
        assert replayer.get(path).status_code == 200
        problem(replayer.post(f"{path}/{verb}", {"reason": "x"}), 403, "missing_scope")
        assert both.get(path).json()["state"] == before
        assert both.post(f"{path}/{verb}", {"reason": "x"}).json()["state"] != before
    own = replayer.post("/cancellations", body(1, state="dead")).json()["links"]["self"].split("/api/v1")[1]
    if verb == "resume":
        replayer.post(f"{own}/pause", {"reason": "x"})
    assert replayer.post(f"{own}/{verb}", {"reason": "x"}).status_code == 200


def test_i_32_what_changed_since_is_skipped_and_counted(api: Api) -> None:
    """I-32: 2 of 5 dead letters were resolved between the look and the plan's step: skipped, changed; what came later
    is not in it; the numbers add up."""
    dead = die(5, kind=KIND)
    at = sql("SELECT jobs_clock()")[0][0].isoformat()
    api.post(f"/dead-letters/{dead[0]}/cancel", {"reason": "x"})
    api.post(f"/jobs/{dead[1]}/replay", {"reason": "x"})
    late = die(2, kind=KIND)
    plan = carried_out(api.post("/cancellations", body(5, state="dead", as_of=at)))
    assert (plan.total, plan.done, plan.skipped, plan.failed, plan.why) == (5, 3, 2, 0, {"changed": 2})
    assert set(PlanItem.objects.filter(plan_id=plan.id).values_list("job_id", flat=True)) == set(dead)
    assert {get(i).resolution for i in late} == {"open"}


def test_only_own_types(make_api: Callable[..., Api]) -> None:
    """I-33: waiting jobs of a type that the key may not use are not counted, not cancelled, and cannot be named."""
    accept(2, kind=KIND)
    other = make_api(type_patterns=("mail.*",))
    every = {"filter": {"state": "waiting"}, "reason": "x", "expected_count": 2}
    problem(other.post("/cancellations", every), 422, "nothing_selected")
    problem(other.post("/cancellations", body(2, state="waiting")), 404, "unknown_job_type")
    ids = [str(i) for i in Job.objects.values_list("id", flat=True)]
    assert problem(other.post("/cancellations", {"ids": ids, "reason": "x"}), 422, "nothing_selected")["left_out"] == 2
    assert set(Job.objects.values_list("state", flat=True)) == {"accepted"}


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"action": "replay"}, "/action"),
        ({"action": "ignore", "filter": {"state": "waiting"}}, "/filter/state"),
        ({"filter": {"state": "waiting", "reason": "rejected"}}, "/filter/reason"),
        ({"expected_count": None}, "/expected_count"),
        ({"rate_per_second": 5}, ""),
        ({"reason": ""}, "/reason"),
    ],
)
def test_bodies_that_mean_nothing(api: Api, change: dict[str, Any], pointer: str) -> None:
    accept(1, kind=KIND)
    refused = problem(api.post("/cancellations", body(1, state="waiting") | change), 422, "invalid_request")
    assert refused["pointer"] == pointer
    assert not ReplayPlan.objects.exists()


def test_the_same_request_twice_is_one_plan(api: Api) -> None:
    """I-30."""
    accept(2, kind=KIND)
    for status in (202, 200):
        answer = api.post("/cancellations", body(2, state="waiting"), **{"Idempotency-Key": "once"})
        assert answer.status_code == status
    assert ReplayPlan.objects.count() == 1
