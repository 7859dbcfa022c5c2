"""Review of issue F: what loses, doubles, lies or hangs in dead letters, preflight and replay plans.

Each test states what should hold; those that fail are findings of the review.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from dlq import groups, preflight, replaying, triage
from dlq.models import FailureGroup, ReplayPlan
from dlq.plans import advance, following, people, read, selection
from dlq.plans.create import CountChanged
from dlq.plans.selection import Selection
from dlq.replaying import Who
from jobsboard.api import plans
from queues import lifecycle, outside
from queues.lifecycle import rollup
from queues.models import FailureCount
from tests.board.conftest import client_of  # noqa: F401 (a fixture)
from tests.dlq.deaths import die, fold, kill
from tests.dlq.test_plans import ANN, children, pass_time, plan, step
from tests.factories import accept, claim, get, make_type, sql

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _type() -> None:
    make_type()


def retry_all(found: ReplayPlan) -> None:
    """Let every waiting replay of a plan fail once and wait an hour."""
    failure = {"error_class": "Down", "message": "x", "traceback": ""}
    waiting = [job_id for job_id in children(found) if get(job_id).state == "accepted"]
    lifecycle.settle([
        lifecycle.End(id=run.id, fence=run.fence, verdict=lifecycle.Verdict.FAILED, failure=failure, retry_in=3600)
        for run in claim(waiting)
    ])  # fmt: skip


def answered(job_id: Any, outcome: str = "confirmed", *, ago: float) -> None:
    """Store what the check of a job said some seconds ago."""
    sql(
        "INSERT INTO queues_outsideanswer (job_id, asked_at, answered_at, outcome, reference, detail) VALUES"
        " (%s, jobs_now() - make_interval(secs => %s), jobs_now() - make_interval(secs => %s), %s, 'ref-9', '')",
        job_id, ago + 1, ago, outcome,
    )  # fmt: skip


def test_work_that_the_check_found_done_is_not_replayed_half_a_minute_later() -> None:
    """I-30, preflight: done stays done; an answer "confirmed" does not turn into "not known" with age."""
    make_type("paid", check_url="https://x.example/check", provider_key_ttl_seconds=86_400)
    [job_id] = die(kind="paid")
    answered(job_id, ago=outside.FRESH_SECONDS + 5)
    found = plan(1, selection=Selection(type="paid"))
    found = step(found)
    assert (found.done, found.why) == (0, {"already_done": 1}), f"replayed as {children(found)}"
    done = {check.name: check for check in preflight.look(get(job_id), ask=False).checks}["already_done"]
    assert done.result == "fail"


def test_asking_again_does_not_lose_what_is_known() -> None:
    """The broker or the workers are away: what the check said before stands until it says something else."""
    make_type("paid", check_url="https://x.example/check", provider_key_ttl_seconds=86_400)
    [job_id] = die(kind="paid")
    answered(job_id, ago=15)
    assert preflight.look(get(job_id), ask=False).verdict == "unsafe"
    outside.ask([job_id])
    assert preflight.look(get(job_id), ask=False).verdict == "unsafe"
    with pytest.raises(replaying.Unsafe):
        replaying.replay(job_id, who=ANN)


def test_fifty_plans_that_wait_for_proofs_do_not_starve_the_next_one() -> None:
    die(1)
    found = plan(1)
    sql(
        "INSERT INTO dlq_replayplan SELECT (jsonb_populate_record(p, jsonb_build_object('id', jobs_uuid7(), 'state',"
        " 'following', 'awaiting', 1, 'done', 1, 'created_at', p.created_at - interval '1 hour'))).*"
        " FROM dlq_replayplan p, generate_series(1, 50) WHERE p.id = %s",
        found.id,
    )
    for _ in range(4):
        pass_time(found)
        advance.run_once()
    found.refresh_from_db()
    assert (found.done, found.held) == (1, ""), "it never began, and does not say why"


def test_one_plan_that_cannot_be_moved_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    die(1)
    die(1, fingerprint="a" * 16)
    bad = plan(1, selection=Selection(type="test.job", fingerprint="f" * 16))
    good = plan(1, selection=Selection(type="test.job", fingerprint="a" * 16))
    follow = following.follow

    def broken(one: ReplayPlan) -> None:
        if one.id == bad.id:
            raise ValueError("something about this plan")
        follow(one)

    monkeypatch.setattr(following, "follow", broken)
    pass_time(good)
    for _ in range(3):
        try:
            advance.run_once()
        except ValueError:
            continue
    good.refresh_from_db()
    assert good.done == 1


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_a_stop_rule_also_sees_plans_that_go_slowly(ratio: float) -> None:
    """All of a small cap fail and wait for their next attempt: nothing more is begun, so it must stop or say why."""
    die(40)
    found = step(plan(40, concurrency=5, stop_on_failure_ratio=ratio))
    retry_all(found)
    for _ in range(5):
        found = step(found)
    assert (found.open, found.failing, found.done) == (5, 5, 5)
    assert found.state == "stopped", f"{found.state}, held: {found.held!r}, eta: {read.eta_seconds(found)}"


def test_a_plan_at_its_cap_says_so() -> None:
    die(40)
    found = step(plan(40, concurrency=5, stop_on_failure_ratio=1))
    retry_all(found)
    found = step(step(found))
    assert found.done == 5
    assert found.held, f"running, nothing moves; eta {read.eta_seconds(found)}"


def test_what_a_person_says_of_a_group_outlives_a_plan() -> None:
    """Somebody ignores a failure while a plan replays it; the end of the plan must not take that back."""
    ids = die(2)
    fold()
    found = plan(2)
    group_id = FailureCount.objects.get().id
    groups.ignore(group_id, until=None, who=Who(actor="bob", reason="known, vendor is told", source="ui"))
    people.abort(found.id, who=ANN)
    group = FailureGroup.objects.get(id=group_id)
    assert (group.state, group.state_by) == ("ignored", "bob")
    assert ids


def test_a_plan_moves_after_the_clock_went_back(shift_clock: Callable[[str], None]) -> None:
    shift_clock("1 hour")
    die(20)
    found = step(plan(20, concurrency=2, stop_on_failure_ratio=1))
    assert found.done == 2
    shift_clock("0")
    sql("UPDATE queues_job SET due_at = jobs_now(), ready_at = jobs_now() WHERE id = ANY(%s)", children(found))
    kill(children(found))
    for _ in range(3):
        found = step(found)
    assert found.dead_again == 2
    assert found.done > 2, f"stands for an hour, held: {found.held!r}"


def test_waiting_jobs_can_be_cancelled_while_some_of_them_run() -> None:
    """I-32, R-05: a bad release, thousands wait, workers go on taking them: the count of the look never comes back."""
    ids = accept(10)
    as_of = selection.now()
    n = selection.count(Selection(type="test.job", state="waiting"), types=["test.job"], as_of=as_of)
    claim(ids[:1])
    try:
        found = plan(n, action="cancel", selection=Selection(type="test.job", state="waiting"), as_of=as_of)
    except CountChanged as changed:
        pytest.fail(f"refused for ever under load: {changed}")
    assert found.total in (9, 10)


def test_the_release_before_folds_beside_the_new_one() -> None:
    """docs/operations.md: "The release before works on the new schema". Its scheduler meets the new counts."""
    old = rollup.FOLD.replace(" AND measure NOT LIKE 'died.%%' AND measure NOT LIKE 'resolved.%%'", "")
    assert old != rollup.FOLD
    die(1)
    sql(old.replace("%(limit)s", "1000").replace("%(failures)s", "1000").replace("%%", "%"))


def test_an_operator_does_not_go_on_with_what_only_an_admin_may_force(client_of: Any) -> None:  # noqa: F811
    """`forced` is an admin's word; resuming replays what something speaks against."""
    die(2)
    found = plan(2, forced=True)
    people.pause(found.id, who=ANN)
    client: Client = client_of("operator")
    answer = client.post(f"/replays/{found.id}/resume/", {"reason": "go on"})
    found.refresh_from_db()
    assert (found.state, answer.status_code) == ("paused", 403)


def test_a_resumed_dry_run_marks_no_group() -> None:
    die(2)
    fold()
    found = plan(2, dry_run=True)
    people.pause(found.id, who=ANN)
    people.resume(found.id, who=ANN)
    assert not FailureGroup.objects.filter(state="replaying").exists()


def test_a_question_that_a_worker_is_at_is_not_given_to_another_one() -> None:
    """A check that hangs: each look two seconds later would take one more slot from live work."""
    make_type("paid", check_url="https://x.example/check")
    [job_id] = die(kind="paid")
    outside.ask([job_id])
    assert outside.take([job_id]) == [job_id]
    sql("UPDATE queues_outsideanswer SET asked_at = asked_at - interval '3 seconds'")
    outside.ask([job_id])
    assert outside.take([job_id]) == [], "a second slot asks the check that the first one hangs in"


@pytest.mark.parametrize("rate", [1e-300, 1e-9])
def test_a_pace_that_nobody_outlives_breaks_no_page(rate: float, client_of: Any) -> None:  # noqa: F811
    """Whoever has a key with dlq:replay may ask for it; the list of plans is everybody's."""
    die(2)
    found = plan(2, rate_per_second=rate)
    client: Client = client_of("viewer")
    assert client.get(f"/replays/{found.id}/").status_code == 200
    assert client.get("/replays/").status_code == 200
    json.dumps(plans.as_json(found), allow_nan=False)


def many_groups(n: int) -> None:
    """Make failures without anything in them, of tier 3, that were met but never judged."""
    sql(
        "INSERT INTO queues_failurecount (type, tier, reason, fingerprint, died, open, first_at, last_at)"
        " SELECT 'test.job', 3, 'permanent_error', lpad(to_hex(n), 16, '0'), 1, 1, jobs_now(), jobs_now()"
        " FROM generate_series(1, %s) AS n",
        n,
    )


def test_after_a_burst_of_failures_the_highest_tier_has_its_words_first() -> None:
    """10,000 fingerprints: ten each two seconds, by age, are 33 minutes without a word for what comes last."""
    many_groups(190)
    make_type("pay", tier_id=1)
    die(kind="pay", error="CardDown")
    fold()
    more = triage.run_once()
    assert FailureGroup.objects.get(type="pay").error_class == "CardDown"
    assert more, "the others wait for the next two seconds"


def test_one_failure_that_cannot_be_judged_leaves_the_others_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    die(error="Bad")
    fold()
    die(error="Good", fingerprint="a" * 16)
    fold()
    judge = preflight.judge

    def broken(one: Any) -> Any:
        if one.job.fingerprint == "f" * 16:
            raise RecursionError
        return judge(one)

    monkeypatch.setattr(preflight, "judge", broken)
    for _ in range(2):
        try:
            triage.run_once()
        except RecursionError:
            continue
    assert FailureGroup.objects.get(fingerprint="a" * 16).error_class == "Good"
