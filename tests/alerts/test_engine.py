"""When a finding fires and clears, what opens an alert, and what is told of it. Readings are made up here."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from jobsboard.alerts import engine, people
from jobsboard.models import Alert, AlertClock, AlertFinding, AlertRule, Metric, Severity
from queues.models import AuditEntry
from tests.alerts.rounds import Rounds, make_rule, open_alerts

CRITICAL = Severity.CRITICAL.value
WHO: dict[str, Any] = {"actor": "alice", "note": "on it"}


def test_a_breach_fires_only_when_it_lasted(rounds: Rounds) -> None:
    rule = make_rule(for_seconds=15)
    assert rounds.play({rule: 2}) == []
    assert rounds.play({rule: 2}, after=14) == []
    assert not Alert.objects.exists()
    assert rounds.play({rule: 2}, after=1) == [("firing", "tier2", "warning", 1)]
    assert rounds.play({rule: 3}) == []


def test_a_breach_that_ends_in_time_is_forgotten(rounds: Rounds) -> None:
    rule = make_rule(for_seconds=15)
    rounds.play({rule: 2})
    rounds.play({rule: 0.5}, after=10)
    assert not AlertFinding.objects.exists()
    rounds.play({rule: 2}, after=1)
    assert rounds.play({rule: 2}, after=14) == []


@pytest.mark.parametrize(
    ("comparison", "threshold", "bad", "good"),
    [("at_least", 1, 1, 0.99), ("above", 0, 0.01, 0), ("below", 3, 2, 3)],
)
def test_comparisons_at_their_edge(rounds: Rounds, comparison: str, threshold: float, bad: float, good: float) -> None:
    rule = make_rule(comparison=comparison, threshold=threshold)
    assert rounds.play({rule: good}) == []
    assert [told[0] for told in rounds.play({rule: bad})] == ["firing"]
    assert [told[0] for told in rounds.play({rule: good})] == ["resolved"]


def test_hysteresis_keeps_it_firing_between_the_thresholds(rounds: Rounds) -> None:
    rule = make_rule(threshold=10, clear_threshold=5, clear_for_seconds=60)
    rounds.play({rule: 10})
    for value in (6, 9, 5):
        assert rounds.play({rule: value}, after=100) == []
    assert rounds.play({rule: 4.9}, after=5) == []
    assert rounds.play({rule: 7}, after=59) == [], "it went up again, so the minute begins anew"
    assert rounds.play({rule: 4}, after=5) == []
    assert rounds.play({rule: 4}, after=59) == []
    assert rounds.play({rule: 4}, after=1) == [("resolved", "tier2", "warning", 2)]


def test_flapping_faster_than_it_clears_is_one_alert(rounds: Rounds) -> None:
    """I-38: a value that jumps to and fro is told once."""
    rule = make_rule(clear_for_seconds=60)
    for i in range(60):
        rounds.play({rule: 2 if i % 2 else 0})
    assert [told[0] for told in rounds.told] == ["firing"]
    assert Alert.objects.count() == 1


def test_one_cause_is_one_alert(rounds: Rounds) -> None:
    """I-38: every rule that sees what is wrong with a tier joins one alert, whose title says most."""
    late, dead = make_rule(Metric.LATE_RATIO), make_rule(Metric.DEAD_INFLOW)
    burn = make_rule(Metric.BURN_RATE, severity=CRITICAL)
    other = make_rule(Metric.LATE_RATIO, tier=1)
    assert rounds.play({late: 1, dead: 5, burn: 0, other: 0}) == [("firing", "tier2", "warning", 1)]
    assert open_alerts()["tier2"].title == "late_ratio of tier2 is 1"
    assert rounds.play({late: 1, dead: 5, burn: 20, other: 0}) == [("updated", "tier2", "critical", 2)]
    alert = open_alerts()["tier2"]
    assert alert.title == "burn_rate of tier2 is 20"
    assert [one["rule"] for one in alert.findings] == [late.pk, dead.pk, burn.pk]
    assert rounds.play({late: 0, dead: 0, burn: 20, other: 0}) == []
    assert [bool(one["cleared_at"]) for one in open_alerts()["tier2"].findings] == [True, True, False]
    assert open_alerts()["tier2"].severity == CRITICAL
    # The title says what is so now; of what is over, what it was about.
    rounds.play({late: 5, dead: 0, burn: 0, other: 0})
    assert open_alerts()["tier2"].title == "late_ratio of tier2 is 5"
    assert rounds.play({late: 0, dead: 0, burn: 0, other: 2}) == [
        ("resolved", "tier2", "critical", 3),
        ("firing", "tier1", "warning", 1),
    ]
    assert Alert.objects.get(key="tier2").title == "burn_rate of tier2 is 20"


def test_another_finding_is_told_at_most_every_five_minutes(rounds: Rounds) -> None:
    rules = [make_rule(metric) for metric in (Metric.LATE_RATIO, Metric.LAG, Metric.BACKLOG, Metric.DEAD_INFLOW)]
    bad = dict.fromkeys(rules, 0)
    for rule in rules:
        bad[rule] = 2
        rounds.play(bad, after=30)
    assert [told[0] for told in rounds.told] == ["firing"]
    assert rounds.play(bad, after=engine.UPDATE_SECONDS - 91) == []
    assert rounds.play(bad, after=1) == [("updated", "tier2", "warning", 2)]
    assert rounds.play(bad, after=1000) == [], "nothing new to tell"


def test_a_queue_without_workers_explains_its_tier(rounds: Rounds) -> None:
    workers = make_rule(Metric.NO_WORKER, tier=None, severity=CRITICAL)
    late, standing = make_rule(Metric.LATE_RATIO, tier=1), make_rule(Metric.DEAD_OPEN, tier=1)
    other = make_rule(Metric.LATE_RATIO, tier=3)
    gone = {"queue:tier1": (40, 1), "queue:tier2": (40, 2)}
    assert rounds.play({workers: gone, late: 0, standing: 0, other: 0}) == [("firing", "workers", "critical", 1)]
    assert rounds.play({workers: gone, late: 9, standing: 3, other: 0}) == []
    assert rounds.play({workers: gone, late: 9, standing: 3, other: 9}) == [("firing", "tier3", "warning", 1)]
    back = {"queue:tier1": (0, 1), "queue:tier2": (0, 2)}
    assert rounds.play({workers: back, late: 9, standing: 3, other: 9}) == [], "what follows from it is not over"
    assert rounds.play({workers: back, late: 0, standing: 3, other: 9}) == [
        ("resolved", "workers", "critical", 2),
        ("firing", "dead_open:tier1", "warning", 1),
    ]


def test_what_stands_does_not_hide_what_goes_wrong_next(rounds: Rounds) -> None:
    standing, late = make_rule(Metric.DEAD_OPEN, tier=1), make_rule(Metric.LATE_RATIO, tier=1)
    assert rounds.play({standing: 1, late: 0}) == [("firing", "dead_open:tier1", "warning", 1)]
    assert rounds.play({standing: 9, late: 5}) == [("firing", "tier1", "warning", 1)]


def test_a_rule_of_one_type_has_an_alert_of_its_own(rounds: Rounds) -> None:
    tier = make_rule(Metric.LATE_RATIO)
    mine = make_rule(Metric.LATE_RATIO, tier=None, scope="type", job_type="crm.sync")
    keys = [told[1] for told in rounds.play({tier: 2, mine: {"type:crm.sync": (2, None)}})]
    assert sorted(keys) == ["tier2", "type:crm.sync"]


def test_subjects_that_go_away_are_well(rounds: Rounds) -> None:
    rule = make_rule(Metric.PROBE_FAILED, tier=None)
    rounds.play({rule: {"probe:a": (1, 2), "probe:b": (1, 2)}})
    assert rounds.play({rule: {"probe:b": (1, 2)}}) == []
    assert [bool(one["cleared_at"]) for one in open_alerts()["tier2"].findings] == [True, False]
    assert [told[0] for told in rounds.play({rule: []})] == ["resolved"]


def test_without_data_nothing_fires_and_nothing_stays(rounds: Rounds) -> None:
    rule = make_rule(clear_for_seconds=30)
    assert rounds.play({rule: None}) == []
    rounds.play({rule: 2})
    assert rounds.play({rule: None}) == []
    assert [told[0] for told in rounds.play({rule: None}, after=30)] == ["resolved"]


def test_a_rule_that_cannot_be_measured_changes_nothing(rounds: Rounds) -> None:
    rule, other = make_rule(), make_rule(Metric.LATE_RATIO, tier=1)
    rounds.play({rule: 2, other: 0})
    assert rounds.play({rule: "broken", other: 2}, after=900) == [("firing", "tier1", "warning", 1)]
    assert "tier2" in open_alerts()
    assert [told[0] for told in rounds.play({rule: 0, other: 2})] == ["resolved"]


@pytest.mark.parametrize("how", ["disabled", "deleted"])
def test_a_rule_that_goes_takes_its_finding_along(rounds: Rounds, how: str) -> None:
    rule, other = make_rule(), make_rule(Metric.LATE_RATIO, tier=1)
    rounds.play({rule: 2, other: 0})
    if how == "disabled":
        AlertRule.objects.filter(pk=rule.pk).update(enabled=False)
        assert [told[0] for told in rounds.play({rule: 2, other: 0})] == ["resolved"]
    else:
        rule.delete()
        assert [told[0] for told in rounds.play({other: 0})] == ["resolved"]
    assert not AlertFinding.objects.exists()


# ---- people


def test_acknowledged_once_and_told_once(rounds: Rounds) -> None:
    rule = make_rule()
    rounds.play({rule: 2})
    alert = open_alerts()["tier2"]
    assert people.acknowledge(alert.pk, **WHO)[1] is True
    assert people.acknowledge(alert.pk, actor="bob", note="me too")[1] is False
    assert rounds.play({rule: 2}) == [("acknowledged", "tier2", "warning", 2)]
    assert rounds.play({rule: 2}) == []
    found = Alert.objects.get(pk=alert.pk)
    assert (found.acknowledged_by, found.note) == ("alice", "on it")
    assert AuditEntry.objects.filter(action="alert.acknowledged", actor="alice", reason="on it").count() == 1
    assert rounds.play({rule: 0}) == [("resolved", "tier2", "warning", 3)]
    with pytest.raises(people.AlertRefused):
        people.acknowledge(alert.pk, **WHO)


def test_what_was_acknowledged_fires_again_when_it_gets_worse(rounds: Rounds) -> None:
    rule, worse = make_rule(), make_rule(Metric.BURN_RATE, severity=CRITICAL)
    rounds.play({rule: 2, worse: 0})
    people.acknowledge(open_alerts()["tier2"].pk, **WHO)
    rounds.play({rule: 2, worse: 0})
    assert rounds.play({rule: 2, worse: 20}) == [("updated", "tier2", "critical", 3)]
    assert open_alerts()["tier2"].state == Alert.State.FIRING


def test_acknowledged_and_worse_before_the_engine_looked(rounds: Rounds) -> None:
    """The person's word and the worse news meet in one round: the worse news is told."""
    rule, worse = make_rule(), make_rule(Metric.BURN_RATE, severity=CRITICAL)
    rounds.play({rule: 2, worse: 0})
    people.acknowledge(open_alerts()["tier2"].pk, **WHO)
    assert rounds.play({rule: 2, worse: 20}) == [("updated", "tier2", "critical", 2)]


def _clock() -> dt.datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT jobs_now()")
        now: dt.datetime = cursor.fetchone()[0]
    return now


def test_a_silenced_alert_speaks_when_the_silence_is_over(rounds: Rounds) -> None:
    rounds.now = _clock()
    rule, worse = make_rule(), make_rule(Metric.BURN_RATE, severity=CRITICAL)
    rounds.play({rule: 2, worse: 0})
    until = rounds.now + dt.timedelta(hours=1)
    people.silence_alert(open_alerts()["tier2"].pk, until=until, **WHO)
    assert rounds.play({rule: 2, worse: 20}) == []
    assert rounds.play({rule: 2, worse: 20}, after=3600) == [("updated", "tier2", "critical", 2)]


def test_a_silenced_alert_that_was_told_says_that_it_is_over(rounds: Rounds) -> None:
    rounds.now = _clock()
    rule = make_rule()
    rounds.play({rule: 2})
    people.silence_alert(open_alerts()["tier2"].pk, until=rounds.now + dt.timedelta(hours=1), **WHO)
    assert [told[0] for told in rounds.play({rule: 0})] == ["resolved"]


def test_a_silenced_rule_opens_alerts_that_nobody_is_told_of(rounds: Rounds) -> None:
    rounds.now = _clock()
    rule, other = make_rule(), make_rule(Metric.LAG)
    people.silence_rule(rule.pk, until=rounds.now + dt.timedelta(hours=1), **WHO)
    assert rounds.play({rule: 2, other: 0}) == []
    assert open_alerts()["tier2"].told == ""
    assert rounds.play({rule: 0, other: 0}) == [], "nobody was told, so nobody is told that it is over"
    assert Alert.objects.get().state == Alert.State.RESOLVED
    assert rounds.play({rule: 2, other: 2}) == [("firing", "tier2", "warning", 1)], "another rule sees it too"


@pytest.mark.parametrize("hours", [-1, 24 * 31])
def test_silences_have_an_end_that_lies_ahead(rounds: Rounds, hours: int) -> None:
    rule = make_rule()
    rounds.play({rule: 2})
    until = _clock() + dt.timedelta(hours=hours)
    with pytest.raises(people.AlertRefused):
        people.silence_alert(open_alerts()["tier2"].pk, until=until, **WHO)
    with pytest.raises(people.AlertRefused):
        people.silence_rule(rule.pk, until=until, **WHO)
    assert not AuditEntry.objects.exists()


def test_silenced_twice_is_audited_once(rounds: Rounds) -> None:
    rule = make_rule()
    until = _clock() + dt.timedelta(hours=1)
    for _ in range(2):
        people.silence_rule(rule.pk, until=until, **WHO)
    people.silence_rule(rule.pk, until=None, **WHO)
    actions = list(AuditEntry.objects.order_by("id").values_list("action", flat=True))
    assert actions == ["alert_rule.silenced", "alert_rule.unsilenced"]


# ---- rounds and rivals


def test_a_round_belongs_to_one_scheduler(db: None) -> None:
    first = engine._claim()
    assert first is not None
    assert engine._claim() is None, "somebody did so a moment ago"
    AlertClock.objects.update(evaluated_at=first - dt.timedelta(seconds=60))
    with transaction.atomic():
        assert engine._still_mine(first) is False, "another round began meanwhile: this one is dropped"
    second = engine._claim()
    assert second is not None
    with transaction.atomic():
        assert engine._still_mine(second) is True


def test_of_a_cause_one_alert_is_open(db: None) -> None:
    values: dict[str, Any] = {"key": "tier2", "severity": "warning", "title": "late"}
    Alert.objects.create(**values)
    with pytest.raises(IntegrityError), transaction.atomic():
        Alert.objects.create(**values)
    Alert.objects.update(state="resolved", resolved_at=_clock())
    Alert.objects.create(**values)
