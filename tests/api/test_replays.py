"""Replay plans over HTTP: what is chosen, who may, the same request twice (I-30, I-33, R-05, R-06)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection

from dlq.models import PlanItem, ReplayPlan
from dlq.plans import advance, selection
from jobsboard.api import keys, plans
from jobsboard.models import SCOPES
from queues.models import AuditEntry, Job
from tests.api.conftest import Api, problem
from tests.dlq.deaths import die
from tests.factories import accept, make_type, sql

KIND = "billing.receipt"
TWO = "billing.other"
FOREIGN = "mail.welcome"
FILTER = {"filter": {"type": KIND}, "reason": "the provider is back"}


@pytest.fixture
def kinds(types: None) -> None:
    """Make two more types that accept jobs."""
    make_type(TWO)
    make_type(FOREIGN)


def planned(api: Api, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    """Make a plan."""
    answer = api.post("/replays", body, **headers)
    assert answer.status_code == 202, answer.content
    found: dict[str, Any] = answer.json()
    assert answer["Location"] == f"/api/v1/replays/{found['id']}"
    return found


def jobs_of(plan: dict[str, Any]) -> set[UUID]:
    """Return the jobs of a plan."""
    return set(PlanItem.objects.filter(plan_id=plan["id"]).values_list("job_id", flat=True))


def carried_out(plan: dict[str, Any]) -> ReplayPlan:
    """Do one step of a plan, as the scheduler would after two seconds."""
    sql("UPDATE dlq_replayplan SET paced_at = paced_at - interval '2 s' WHERE id = %s", plan["id"])
    advance.advance(UUID(plan["id"]))
    return ReplayPlan.objects.get(id=plan["id"])


def test_a_plan_is_made_looked_at_and_carried_out(api: Api) -> None:
    """202 with the plan; what it does is counted, and each job of it is found with what became of it."""
    ids = die(3, kind=KIND)
    made = planned(api, {**FILTER, "expected_count": 3, "rate_per_second": 20, "concurrency": 7, "order": "newest",
                         "stop_on_failure_ratio": 0.25})  # fmt: skip
    assert (made["state"], made["total"], made["left"], made["eta_seconds"]) == ("running", 3, 3, 0.1)
    assert (made["rate_per_second"], made["concurrency"], made["stop_on_failure_ratio"]) == (20, 7, 0.25)
    assert (made["selection"], made["types"]) == ({"type": KIND, "state": "dead"}, [KIND])
    assert made["created_by"].startswith("key:")
    waiting = api.get(f"/replays/{made['id']}/items", which="waiting").json()["items"]
    assert [one["job_id"] for one in waiting] == [str(job_id) for job_id in reversed(ids)], "the newest first"
    carried_out(made)
    found = api.get(f"/replays/{made['id']}").json()
    assert (found["done"], found["outcomes"]["open"], found["left"]) == (3, 3, 0)
    assert found["words"].startswith("3 replayed")
    page = api.get(f"/replays/{made['id']}/items", limit=2).json()
    rest = api.get(f"/replays/{made['id']}/items", limit=2, after=page["next"]).json()
    items = page["items"] + rest["items"]
    assert rest["next"] is None
    assert {UUID(one["child"]) for one in items} == set(
        Job.objects.filter(replay_of__in=ids).values_list("id", flat=True)
    )
    assert {(one["state"], one["outcome"]) for one in items} == {("done", "open")}
    entry = AuditEntry.objects.get(action="replay_plan.created")
    assert (entry.source, entry.reason, entry.object_id) == ("api", FILTER["reason"], made["id"])


def test_r_05_what_is_selected(api: Api, kinds: None) -> None:
    """R-05: nothing is 422; ids count once; one that is none is 422 with its place; unknown ones are left out and
    counted; another count than expected is 409."""
    one, two = (str(job_id) for job_id in die(2, kind=KIND))
    why = {"reason": "x"}
    assert problem(api.post("/replays", {**why, "ids": []}), 422, "invalid_request")["pointer"] == "/ids"
    empty = problem(
        api.post("/replays", {**why, "filter": {"type": TWO}, "expected_count": 0}), 422, "nothing_selected"
    )
    assert empty["left_out"] == 0
    unknown = problem(api.post("/replays", {**why, "ids": [str(uuid4()), str(uuid4())]}), 422, "nothing_selected")
    assert unknown["left_out"] == 2
    for bad in ("abc", "", one.replace("-", ""), "{" + one[1:], "1"):
        assert problem(api.post("/replays", {**why, "ids": [one, bad]}), 422, "invalid_request")["pointer"] == "/ids/1"
    for bad_ids in ([1], [None], "1,1,1", {"0": one}):
        problem(api.post("/replays", {**why, "ids": bad_ids}), 422, "invalid_request")
    changed = problem(api.post("/replays", {**FILTER, "expected_count": 3}), 409, "count_changed")
    assert (changed["expected"], changed["found"]) == (3, 2)
    problem(api.post("/replays", {**why, "ids": [one], "expected_count": 2}), 409, "count_changed")
    assert not ReplayPlan.objects.exists()
    made = planned(api, {**why, "ids": [one, one.upper(), two, str(uuid4())]})
    assert (made["total"], made["left_out"], made["selection"]) == (2, 1, {"ids": 3})


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"filter": None}, "/filter"),
        ({"ids": [str(uuid4())]}, "/filter"),
        ({"reason": " "}, "/reason"),
        ({"reason": "x" * 1001}, "/reason"),
        ({"expected_count": None}, "/expected_count"),
        ({"expected_count": -1}, "/expected_count"),
        ({"filter": {"state": "waiting"}}, "/filter/state"),
        ({"filter": {"state": "confirmed"}}, "/filter/state"),
        ({"filter": {"reason": "nope"}}, "/filter/reason"),
        ({"filter": {"tier": 4}}, "/filter/tier"),
        ({"filter": {"fingerprint": "x y"}}, "/filter/fingerprint"),
        ({"filter": {"group": "é"}}, "/filter/group"),
        ({"filter": {"since": "yesterday"}}, "/filter/since"),
        ({"filter": {"typo": 1}}, "/filter"),
        ({"as_of": 5}, "/as_of"),
        ({"rate_per_second": 0}, "/rate_per_second"),
        ({"rate_per_second": 501}, "/rate_per_second"),
        ({"concurrency": 0}, "/concurrency"),
        ({"stop_on_failure_ratio": 1.5}, "/stop_on_failure_ratio"),
        ({"order": "random"}, "/order"),
        ({"forced": True}, ""),
        ({"force": True}, ""),
    ],
)
def test_bodies_that_mean_nothing(api: Api, change: dict[str, Any], pointer: str) -> None:
    """422 with the place; and nobody forces a plan over the API."""
    die(1, kind=KIND)
    refused = api.post("/replays", {**FILTER, "expected_count": 1, **change})
    code = "invalid_datetime" if pointer in ("/as_of", "/filter/since") else "invalid_request"
    assert problem(refused, 422, code)["pointer"] == pointer
    assert not ReplayPlan.objects.exists()


def test_filters(api: Api, kinds: None) -> None:
    """Each narrows; what came after the moment that was looked at is not in the plan."""
    ones = die(2, kind=KIND, fingerprint="a" * 16)
    twos = die(1, kind=TWO, fingerprint="b" * 16, reason="rejected")
    grouped = die(1, kind=TWO, fingerprint="c" * 16, group="customer-1")
    now = sql("SELECT jobs_clock()")[0][0]
    later = die(1, kind=KIND)
    day = timedelta(days=1)
    for wanted, ids in (
        ({}, [*ones, *twos, *grouped]),
        ({"type": KIND}, ones),
        ({"type": TWO}, [*twos, *grouped]),
        ({"tier": 1}, ones),
        ({"reason": "rejected"}, twos),
        ({"fingerprint": "a" * 16}, ones),
        ({"group": "customer-1"}, grouped),
        ({"since": (now - day).isoformat(), "until": (now + day).isoformat(), "type": KIND}, ones),
    ):
        body = {"filter": wanted, "reason": "x", "as_of": now.isoformat(), "expected_count": len(ids), "dry_run": True}
        assert jobs_of(planned(api, body)) == set(ids), wanted
    none = {"reason": "x", "expected_count": 0}
    for nothing in ({"fingerprint": ""}, {"until": "2020-01-01T00:00:00Z"}, {"tier": 3}):
        problem(api.post("/replays", {"filter": nothing, **none}), 422, "nothing_selected")
    problem(api.post("/replays", {"filter": {"type": "nope"}, **none}), 404, "unknown_job_type")
    assert not Job.objects.filter(id__in=later, replayed_by__isnull=False).exists()


def test_i_33_a_plan_is_about_the_types_of_the_key(make_api: Callable[..., Api], kinds: None) -> None:
    """I-33: a key for two of three types; filters and ids of all three act on its own only, the others are counted as
    unknown ones are, and its plans are closed to a key for other types."""
    own, other, foreign = die(1, kind=KIND), die(1, kind=TWO), die(1, kind=FOREIGN)
    billing, mail = make_api(type_patterns=("billing.*",)), make_api(type_patterns=("mail.*",))
    every = {"filter": {}, "reason": "x"}
    assert problem(billing.post("/replays", {**every, "expected_count": 3}), 409, "count_changed")["found"] == 2
    by_filter = planned(billing, {**every, "expected_count": 2})
    assert jobs_of(by_filter) == {*own, *other}
    by_ids = planned(billing, {"ids": [str(i) for i in (*own, *foreign, *other)], "reason": "x"})
    assert (jobs_of(by_ids), by_ids["left_out"], by_ids["types"]) == ({*own, *other}, 1, [TWO, KIND, "billing.strict"])
    problem(billing.post("/replays", {"ids": [str(foreign[0])], "reason": "x"}), 422, "nothing_selected")
    body = {"filter": {"type": FOREIGN}, "reason": "x", "expected_count": 1}
    assert problem(billing.post("/replays", body), 404, "unknown_job_type")["pointer"] == "/filter/type"
    for plan in (by_filter, by_ids):
        problem(mail.get(f"/replays/{plan['id']}"), 404, "unknown_plan")
        problem(mail.get(f"/replays/{plan['id']}/items"), 404, "unknown_plan")
        for verb in ("pause", "resume", "abort"):
            problem(mail.post(f"/replays/{plan['id']}/{verb}", {"reason": "x"}), 404, "unknown_plan")
        carried_out(plan)
    assert mail.get("/replays").json()["items"] == []
    assert {one["id"] for one in billing.get("/replays").json()["items"]} == {by_filter["id"], by_ids["id"]}
    assert {job.replay_of for job in Job.objects.filter(replay_of__isnull=False)} == {*own, *other}
    assert ReplayPlan.objects.filter(state="running", done=0).count() == 0


def test_the_same_request_twice_is_one_plan(api: Api, make_api: Callable[..., Api]) -> None:
    """200 and Idempotency-Replayed; another body under the key is refused; another caller's key is another one."""
    die(2, kind=KIND)
    body, key = {**FILTER, "expected_count": 2}, {"Idempotency-Key": "once"}
    made = planned(api, body, **key)
    carried_out(made)
    again = api.post("/replays", body, **key)
    assert (again.status_code, again["Idempotency-Replayed"], again.json()["id"]) == (200, "true", made["id"])
    assert again["Location"] == f"/api/v1/replays/{made['id']}"
    problem(api.post("/replays", {**body, "expected_count": 1}, **key), 422, "dedupe_conflict")
    problem(api.post("/replays", body, **{"Idempotency-Key": "a b"}), 400, "dedupe_key_invalid")
    problem(make_api().post("/replays", body, **key), 422, "nothing_selected")
    assert ReplayPlan.objects.count() == 1


def test_pause_resume_abort(api: Api) -> None:
    """Each says the plan as it is then; what cannot be done is 409 with the state."""
    die(3, kind=KIND)
    plan = planned(api, {**FILTER, "expected_count": 3})
    path = f"/replays/{plan['id']}"
    for _ in range(2):
        assert api.post(f"{path}/pause", {"reason": "wait"}).json()["state"] == "paused"
    assert carried_out(plan).done == 0
    assert api.get(path).json()["state_reason"].endswith("wait")
    assert api.post(f"{path}/resume", {"reason": "go on"}).json()["state"] == "running"
    aborted = api.post(f"{path}/abort", {"reason": "no"})
    assert (aborted.json()["state"], aborted.json()["skipped"], aborted.json()["why"]) == ("aborted", 3, {"aborted": 3})
    assert problem(api.post(f"{path}/resume", {"reason": "x"}), 409, "not_possible")["state"] == "aborted"
    problem(api.post(f"{path}/pause", {}), 422, "invalid_request")
    for text in ("x", str(uuid4()), "1"):
        problem(api.get(f"/replays/{text}"), 404, "unknown_plan")
        problem(api.post(f"/replays/{text}/abort", {"reason": "x"}), 404, "unknown_plan")


def test_a_dry_run_changes_no_job(api: Api) -> None:
    """It judges each, and says how many of each kind."""
    die(3, kind=KIND)
    plan = planned(api, {**FILTER, "expected_count": 3, "dry_run": True})
    assert carried_out(plan).done == 3
    found = api.get(f"/replays/{plan['id']}").json()
    assert (sum(found["why"].values()), found["outcomes"]["open"]) == (3, 0)
    assert not Job.objects.filter(replay_of__isnull=False).exists()


def test_pages_of_plans(api: Api) -> None:
    """Newest first, each once."""
    ids = [str(job_id) for job_id in die(5, kind=KIND)]
    made = [planned(api, {"ids": [job_id], "reason": "x", "dry_run": True})["id"] for job_id in ids]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = api.get("/replays", **query).json()
        seen += [one["id"] for one in page["items"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
    assert seen == made[::-1]
    path = f"/replays/{made[0]}/items"
    for where, query in (
        ("/replays", {"limit": 0}), ("/replays", {"cursor": "x"}), ("/replays", {"state": "running"}),
        (path, {"which": "none"}), (path, {"after": -1}), (path, {"after": "9" * 30}), (path, {"limit": 101}),
    ):  # fmt: skip
        problem(api.get(where, **query), 422, api.get(where, **query).json()["code"])


@pytest.mark.parametrize(
    ("method", "path"),
    [("post", "/replays"), ("get", "/replays"), ("post", "/dead-letter-groups/1/ignore")]
    + [("post", f"/dead-letter-groups/1/{verb}") for verb in ("resolve", "reopen")],
)
def test_scopes(make_api: Callable[..., Api], method: str, path: str) -> None:
    """S-02: dlq:replay, and nothing else; a plan of somebody else is not there for who may only write jobs."""
    others = make_api(("jobs:write", "jobs:read", "jobs:confirm", "dlq:read"))
    args = ({"reason": "x"},) if method == "post" else ()
    problem(getattr(others, method)(path, *args), 403, "missing_scope")
    assert getattr(make_api(("dlq:replay",)), method)(path, *args).status_code not in (401, 403)
    plan = str(uuid4())
    for verb in ("", "/items"):
        problem(make_api(("jobs:read", "dlq:read")).get(f"/replays/{plan}{verb}"), 403, "missing_scope")
    problem(make_api(("dlq:replay",)).get("/dead-letter-groups"), 403, "missing_scope")


def test_r_05_a_megabyte_of_ids_and_more_than_a_plan_takes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """R-05: 1 MB of ids is one plan; more ids than a plan takes is 422, a body that is larger than those 413; so is a
    filter that fits more jobs."""
    [job_id] = die(1, kind=KIND)
    many = [str(UUID(int=n)) for n in range(27_000)]
    body = json.dumps({"ids": [*many, str(job_id)], "reason": "x"}).encode()
    assert len(body) > 1024 * 1024
    assert planned(api, body)["left_out"] == 27_000  # type: ignore[arg-type]
    most = [str(UUID(int=n)) for n in range(selection.MOST + 1)]
    body = json.dumps({"ids": most, "reason": "x"}).encode()
    assert len(body) < plans.BODY_MAX
    assert problem(api.post("/replays", body), 422, "invalid_request")["pointer"] == "/ids"
    problem(api.post("/replays", b'{"reason": "x", "ids": [' + b" " * plans.BODY_MAX + b"]}"), 413, "payload_too_large")
    problem(api.post("/replays", {"reason": "x" * 1_000_000, "ids": [str(job_id)]}), 422, "invalid_request")
    die(2, kind=KIND)
    monkeypatch.setattr(selection, "MOST", 1)
    monkeypatch.setattr("dlq.plans.create.MOST", 1)
    problem(api.post("/replays", {**FILTER, "expected_count": 3}), 422, "too_many_selected")


def test_r_06_a_storm_drips_and_stops_when_it_fails_again(api: Api) -> None:
    """R-06: 50 a second unless asked otherwise, and half of them dead again stop it."""
    die(12, kind=KIND)
    plan = planned(api, {**FILTER, "expected_count": 12})
    assert (plan["rate_per_second"], plan["stop_on_failure_ratio"], plan["eta_seconds"]) == (50, 0.5, 0.2)
    assert carried_out(plan).done == 12
    sql("UPDATE dlq_replayplan SET judged_bad = 7, judged_ok = 5, state = 'running' WHERE id = %s", plan["id"])
    carried_out(plan)
    found = api.get(f"/replays/{plan['id']}").json()
    assert found["state"] == "stopped"
    assert "7 of the first 12" in found["state_reason"]


@pytest.mark.concurrency
def test_i_30_the_same_request_twenty_times_at_once_is_one_plan(transactional_db: None) -> None:
    """I-30: one Idempotency-Key, one plan, one child for each dead letter."""
    make_type(KIND)
    ids, n = die(3, kind=KIND), 20
    text = keys.issue_key(label="test", scopes=SCOPES)[1]
    barrier = threading.Barrier(n, timeout=30)

    def post(_: int) -> tuple[int, str]:
        try:
            barrier.wait()
            answer = Api(text).post("/replays", {**FILTER, "expected_count": 3}, **{"Idempotency-Key": "once"})
            return answer.status_code, json.loads(answer.content).get("id")
        finally:
            connection.close()

    with ThreadPoolExecutor(n) as pool:
        answers = list(pool.map(post, range(n)))
    [plan] = ReplayPlan.objects.all()
    assert {found for _, found in answers} == {str(plan.id)}
    assert sorted({status for status, _ in answers}) == [200, 202]
    assert [status for status, _ in answers].count(202) == 1
    assert PlanItem.objects.filter(plan_id=plan.id).count() == 3
    carried_out({"id": str(plan.id)})
    assert Job.objects.filter(replay_of__in=ids).count() == 3


def test_accepted_jobs_are_none_of_a_replays_business(api: Api) -> None:
    """Ids of waiting jobs are chosen, and skipped with why."""
    [waiting] = accept(kind=KIND)
    plan = planned(api, {"ids": [str(waiting)], "reason": "x"})
    assert (carried_out(plan).skipped, plan["total"]) == (1, 1)
    [item] = api.get(f"/replays/{plan['id']}/items", which="skipped").json()["items"]
    assert (item["code"], item["child"]) == ("changed", None)
