"""New and regressed failures, and plans that stopped: what is read, what fires, and that one cause is one alert."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from dlq import groups, triage, watch
from dlq.models import FailureGroup
from dlq.plans import people
from dlq.plans.create import PlanRequest, create
from dlq.plans.selection import Selection
from dlq.replaying import Who
from jobsboard.alerts import engine, metrics
from jobsboard.alerts.metrics import Reading
from jobsboard.alerts.seen import Seen
from jobsboard.models import Alert, AlertRule, Metric, WebhookDelivery, WebhookEndpoint
from queues.models import FailureCount, StateCount
from tests.alerts.rounds import Rounds, make_rule, open_alerts
from tests.dlq.deaths import die, fold
from tests.factories import TYPE, make_type, sql

OTHER = "other.type"
ANN = Who(actor="ann", reason="known", source="ui")


@pytest.fixture(autouse=True)
def _board(db: None) -> None:
    make_type(TYPE, tier_id=2)
    make_type(OTHER, tier_id=1)
    sql("UPDATE queues_boardversion SET folded_at = jobs_now()")


def rule(metric: Metric, **overrides: Any) -> AlertRule:
    """Return an unsaved rule of tier 2."""
    values = {"name": metric.value, "metric": metric.value, "scope": "tier", "tier": 2, "threshold": 1.0}
    return AlertRule(**{**values, "over_seconds": 900, **overrides})


EVERYWHERE: dict[str, Any] = {"scope": "all", "tier": None}


def one(found: AlertRule) -> Reading:
    """Measure a rule that has one subject."""
    (reading,) = metrics.read(found, Seen.now())
    return reading


def meet() -> None:
    """Fold, and let the service meet what is new."""
    fold()
    triage.run_once()


def group() -> FailureGroup:
    """Return the only group."""
    return FailureGroup.objects.get()


def next_round() -> None:
    """Evaluate the rules again, as if some seconds had passed."""
    sql("UPDATE jobsboard_alertclock SET evaluated_at = evaluated_at - interval '1 min'")
    engine.run_once()


# ---- new_failures


def test_a_failure_is_new_once_whatever_it_kills() -> None:
    assert one(rule(Metric.NEW_FAILURES)).value == 0
    die(5, error="CardDeclined")
    fold()
    assert one(rule(Metric.NEW_FAILURES)).value == 1, "also before the service has met it"
    meet()
    reading = one(rule(Metric.NEW_FAILURES))
    assert (reading.subject, reading.value, reading.tier) == ("tier2", 1, 2)
    assert reading.words == (f"Tier 2: 1 failure that nobody has seen before, in 15m; it is CardDeclined in {TYPE}")
    die(7, error="CardDeclined")
    meet()
    assert one(rule(Metric.NEW_FAILURES)).value == 1
    die(1, fingerprint="e" * 16)
    meet()
    assert one(rule(Metric.NEW_FAILURES)).value == 2


def test_new_failures_of_a_tier_of_a_type_and_of_all() -> None:
    die(1)
    die(1, kind=OTHER)
    die(1, kind=OTHER, fingerprint="e" * 16)
    fold()
    assert one(rule(Metric.NEW_FAILURES)).value == 1
    assert one(rule(Metric.NEW_FAILURES, tier=1)).value == 2
    assert one(rule(Metric.NEW_FAILURES, **EVERYWHERE)).value == 3
    assert one(rule(Metric.NEW_FAILURES, scope="type", tier=None, job_type=OTHER)).value == 2
    assert one(rule(Metric.NEW_FAILURES, tier=3)).value == 0


def test_a_failure_is_new_for_as_long_as_the_rule_says() -> None:
    die(1)
    fold()
    sql("UPDATE queues_failurecount SET first_at = first_at - interval '17 minutes'")
    assert one(rule(Metric.NEW_FAILURES)).value == 0, "it goes on killing, and is known"
    assert one(rule(Metric.NEW_FAILURES, over_seconds=3600)).value == 1


@pytest.mark.parametrize(("verb", "left"), [("ignore", 0), ("resolve", 0), ("reopen", 1)])
def test_what_somebody_set_aside_is_no_news(verb: str, left: int) -> None:
    die(1)
    meet()
    if verb == "reopen":
        groups.resolve(group().id, who=ANN)
    getattr(groups, verb)(group().id, who=ANN, **({"until": None} if verb == "ignore" else {}))
    assert one(rule(Metric.NEW_FAILURES)).value == left


# ---- regressed_failures


def test_a_failure_that_comes_back_counts_until_somebody_deals_with_it() -> None:
    die(1)
    meet()
    groups.resolve(group().id, who=ANN)
    meet()
    assert one(rule(Metric.REGRESSED_FAILURES)).value == 0
    die(1, error="CardDeclined")
    meet()
    assert group().regressed_at is not None
    reading = one(rule(Metric.REGRESSED_FAILURES))
    assert reading.value == 1
    assert reading.words.startswith("Tier 2: 1 failure came back after being resolved, in 15m; it is ")
    assert one(rule(Metric.REGRESSED_FAILURES, tier=1)).value == 0
    groups.ignore(group().id, until=None, who=ANN)
    assert one(rule(Metric.REGRESSED_FAILURES)).value == 0, "ignored"
    groups.reopen(group().id, who=ANN)
    assert one(rule(Metric.REGRESSED_FAILURES)).value == 1
    groups.resolve(group().id, who=ANN)
    assert one(rule(Metric.REGRESSED_FAILURES)).value == 0, "dealt with again"


def test_what_came_back_is_news_for_as_long_as_the_rule_says() -> None:
    die(1)
    meet()
    groups.resolve(group().id, who=ANN)
    die(1)
    meet()
    FailureGroup.objects.update(regressed_at=sql("SELECT jobs_now() - interval '20 minutes'")[0][0])
    sql("UPDATE queues_failurecount SET first_at = first_at - interval '1 day'")
    assert one(rule(Metric.REGRESSED_FAILURES)).value == 0
    assert one(rule(Metric.REGRESSED_FAILURES, over_seconds=3600)).value == 1


# ---- replay_plans_stopped


def plan() -> Any:
    """Make a plan over one dead letter."""
    ids = die(1, fingerprint="d" * 16)
    fold()
    return create(PlanRequest(action="replay", selection=Selection(ids=tuple(ids)), types=[TYPE], who=ANN))[0]


def stop(*plans: Any) -> None:
    """Let the stop rule have its say."""
    ids = [one.id for one in plans]
    sql("UPDATE dlq_replayplan SET state = 'stopped', state_at = jobs_clock(), state_reason = 'CrmDown'"
        " WHERE id = ANY(%s)", ids)  # fmt: skip


def test_a_plan_that_its_rule_stopped_counts_until_somebody_decides() -> None:
    watched = rule(Metric.REPLAY_PLANS_STOPPED, **EVERYWHERE)
    first, second = plan(), plan()
    assert one(watched).value == 0
    stop(first)
    assert (one(watched).subject, one(watched).value) == ("all", 1)
    assert one(watched).words == "A replay plan stopped by its rule: CrmDown"
    stop(second)
    assert one(watched).words == "A replay plan and 1 more stopped by their rules: CrmDown"
    people.abort(first.id, who=ANN)
    assert one(watched).value == 1
    people.resume(second.id, who=ANN)
    assert one(watched).value == 0
    people.pause(second.id, who=ANN)
    assert one(watched).value == 0, "a person holds it, and knows"


# ---- what fires, and what it joins


def test_a_new_failure_and_what_follows_from_it_are_one_alert(rounds: Rounds) -> None:
    """I-38: a failure that is new or came back joins the alert of its tier, and the title is what says more."""
    new, back = make_rule(Metric.NEW_FAILURES), make_rule(Metric.REGRESSED_FAILURES)
    late, dead = make_rule(Metric.LATE_RATIO), make_rule(Metric.DEAD_INFLOW)
    assert rounds.play({new: 1, back: 0, late: 0, dead: 0}) == [("firing", "tier2", "warning", 1)]
    assert rounds.play({new: 3, back: 2, late: 5, dead: 9}) == []
    assert open_alerts()["tier2"].title == "late_ratio of tier2 is 5"
    assert rounds.play({new: 3, back: 2, late: 0, dead: 9}) == []
    assert open_alerts()["tier2"].title == "dead_inflow of tier2 is 9"
    assert [told[0] for told in rounds.play({new: 0, back: 0, late: 0, dead: 0})] == ["resolved"]
    assert Alert.objects.count() == 1


def test_without_workers_a_new_failure_is_no_alert_of_its_own(rounds: Rounds) -> None:
    workers, new = make_rule(Metric.NO_WORKER, tier=None), make_rule(Metric.NEW_FAILURES)
    gone = {"queue:tier2": (40, 2)}
    rounds.play({workers: gone, new: 0})
    assert rounds.play({workers: gone, new: 1}) == []
    assert list(open_alerts()) == ["workers"]


def test_a_plan_that_stopped_is_told_by_itself_and_ends_when_somebody_decides(rounds: Rounds) -> None:
    """It waits for a person, whatever its tier does."""
    stopped = make_rule(Metric.REPLAY_PLANS_STOPPED, tier=None)
    late = make_rule(Metric.LATE_RATIO)
    keys = [told[1] for told in rounds.play({late: 3, stopped: 1})]
    assert sorted(keys) == ["replay_plans_stopped:all", "tier2"]
    assert rounds.play({late: 3, stopped: 0}) == [("resolved", "replay_plans_stopped:all", "warning", 2)]


def only_default(*keys: str) -> None:
    """Let the default rules be made, and these only be enabled."""
    engine.run_once()
    AlertRule.objects.exclude(default_key__in=keys).update(enabled=False)


@pytest.mark.usefixtures("two_weeks")
def test_the_default_rules_see_real_deaths_and_one_alert_comes_of_them() -> None:
    """I-38: many deaths of one new failure, and its coming back, by the rules as they are."""
    WebhookEndpoint.objects.create(name="ops", url_sealed=b"x", url_shown="https://x")
    only_default("new_failures.tier2", "new_failures.tier1", "dead_inflow.tier2", "regressed_failures.tier2")
    die(30)
    meet()
    next_round()
    (alert,) = Alert.objects.all()
    assert (alert.key, alert.severity) == ("tier2", "warning")
    assert sorted(found["metric"] for found in alert.findings) == ["dead_inflow", "new_failures"]
    assert "30 new dead letters" in alert.title
    groups.resolve(group().id, who=ANN)
    die(1)
    meet()
    next_round()
    assert Alert.objects.count() == 1
    assert {found["metric"] for found in Alert.objects.get().findings if not found["cleared_at"]} == {
        "dead_inflow", "new_failures", "regressed_failures",
    }  # fmt: skip
    assert WebhookDelivery.objects.count() == 1


@pytest.mark.usefixtures("two_weeks")
def test_an_ignored_failure_opens_no_alert_of_its_own() -> None:
    only_default("new_failures.tier2", "regressed_failures.tier2")
    die(1)
    meet()
    groups.ignore(group().id, until=None, who=ANN)
    next_round()
    assert not Alert.objects.exists()


# ---- what is ignored wakes nobody

OTHERS_OF_TIER: dict[str, Any] = {"threshold": 5.0, "over_seconds": 300}


def ignore(until: str | None = None) -> None:
    """Ignore the failure that there is, for ever or for an interval of the database's time."""
    at = None if until is None else sql(f"SELECT jobs_now() + interval '{until}'")[0][0]
    groups.ignore(FailureGroup.objects.get(fingerprint="f" * 16).id, until=at, who=ANN)


def test_dead_letters_of_an_ignored_failure_are_in_no_metric_of_alerts() -> None:
    """Somebody knows of it: neither what is open nor what goes on dying of it wakes anybody; the others do."""
    die(7)
    die(2, fingerprint="a" * 16, reason="rejected")
    meet()
    inflow, standing = rule(Metric.DEAD_INFLOW, **OTHERS_OF_TIER), rule(Metric.DEAD_OPEN)
    assert (one(inflow).value, one(standing).value) == (9, 9)
    ignore()
    assert (one(inflow).value, one(standing).value) == (2, 2), "also what died before it was ignored"
    die(50)
    fold()
    assert (one(inflow).value, one(standing).value) == (2, 2)
    assert one(inflow).words.endswith(f"most of them {TYPE}; 57 more are of failures that somebody ignores")
    assert one(standing).words == (
        "Tier 2: 2 dead letters wait for a decision; 57 more are of failures that somebody ignores"
    )
    assert one(rule(Metric.DEAD_INFLOW, reason="permanent_error")).value == 0
    assert one(rule(Metric.DEAD_INFLOW, reason="rejected")).value == 2
    die(1, kind=OTHER)
    fold()
    assert one(rule(Metric.DEAD_INFLOW, tier=1)).value == 1, "the same fingerprint of another type is another failure"
    assert one(rule(Metric.DEAD_OPEN, **EVERYWHERE)).value == 3


@pytest.mark.parametrize(("until", "passes", "left"), [("1 hour", "0 s", 0), ("1 hour", "2 hours", 7)])
def test_an_ignored_failure_wakes_somebody_when_its_time_is_over(until: str, passes: str, left: int) -> None:
    """Whether or not the service that reopens it has run."""
    die(7)
    meet()
    ignore(until)
    sql("UPDATE dlq_failuregroup SET ignored_until = ignored_until - %s::interval", passes)
    assert FailureGroup.objects.get().state == "ignored"
    assert (one(rule(Metric.DEAD_INFLOW)).value, one(rule(Metric.DEAD_OPEN)).value) == (left, left)
    groups.reopen(FailureGroup.objects.get().id, who=ANN)
    assert (one(rule(Metric.DEAD_INFLOW)).value, one(rule(Metric.DEAD_OPEN)).value) == (7, 7), "or is not ignored"


def test_what_left_the_stretch_is_not_taken_from_what_is_in_it() -> None:
    """Deaths of an ignored failure that are older than the stretch do not hide others of the same reason."""
    die(20)
    die(6, fingerprint="a" * 16)
    fold()
    meet()
    ignore()
    sql("UPDATE queues_failureminute SET at = at - interval '10 minutes' WHERE failure_id ="
        " (SELECT id FROM dlq_failuregroup WHERE state = 'ignored')")  # fmt: skip
    sql("UPDATE queues_outcomebuckets SET counts = '{\"1\": 6}' WHERE grain = 'minute' AND measure = 'dead'")
    assert one(rule(Metric.DEAD_INFLOW, **OTHERS_OF_TIER)).value == 6


@pytest.mark.usefixtures("two_weeks")
def test_the_default_rules_open_no_alert_of_an_ignored_failure_and_do_when_it_is_over() -> None:
    only_default("dead_inflow.tier1", "dead_open.tier1", "new_failures.tier1")
    AlertRule.objects.update(for_seconds=0)
    die(30, kind=OTHER)
    meet()
    ignore("1 hour")
    next_round()
    assert not Alert.objects.exists()
    sql("UPDATE dlq_failuregroup SET ignored_until = jobs_now() - interval '1 s'")
    next_round()
    next_round()
    assert "30 new dead letters" in Alert.objects.get(key="tier1").title


# ---- what it costs


def test_a_round_costs_four_statements_more_however_many_failures_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for failures, one for plans, one for what is ignored of all that is open and one of what died lately; each
    with a bound, and no row of a job is read.
    """
    StateCount.objects.create(type=OTHER, tier=1, state="dead", n=3)
    engine.run_once()
    now = sql("SELECT jobs_now()")[0][0]

    def make(n: int) -> None:
        FailureCount.objects.bulk_create(
            FailureCount(type=TYPE, tier=2, reason="rejected", fingerprint=f"{i:016x}", died=1, open=1,
                         first_at=now, last_at=now - dt.timedelta(seconds=i % 60))
            for i in range(n)
        )  # fmt: skip

    make(3)
    costs = []
    for _ in range(2):
        sql("UPDATE jobsboard_alertclock SET evaluated_at = evaluated_at - interval '1 min'")
        with CaptureQueriesContext(connection) as asked:
            engine.run_once()
        costs.append([query["sql"] for query in asked if "dlq_" in query["sql"]])
        FailureCount.objects.all().delete()
        make(1_500)
    assert [len(cost) for cost in costs] == [4, 4]
    assert not [query for cost in costs for query in cost if "queues_job " in query]
    monkeypatch.setattr(watch, "LOOK_AT_MOST", 100)
    assert len(watch.news()) == 100
    assert one(rule(Metric.NEW_FAILURES)).value == 100
