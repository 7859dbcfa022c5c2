"""What a review of the alerts proved: alarms that went silent, swallowed each other, or never ended."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db import OperationalError, transaction

from jobsboard import alert_rules
from jobsboard.alerts import causes, defaults, engine, heartbeats, ledger, metrics, outbox, people
from jobsboard.alerts.metrics import Reading
from jobsboard.alerts.seen import Seen
from jobsboard.models import Alert, AlertClock, AlertRule, Event, Metric, Severity, WebhookDelivery, WebhookEndpoint
from queues import probes
from queues.models import OutcomeRollup, StateCount
from queues.outcomes import MINUTES_KEPT
from queues.states import JobState
from tests.alerts.endpoints import make_alert, make_endpoint, moved_on, told
from tests.alerts.rounds import Rounds, make_rule, open_alerts
from tests.factories import TYPE, make_job, make_type, sql

CRITICAL = Severity.CRITICAL.value
WHO: dict[str, Any] = {"actor": "alice", "note": "on it"}


def clock(**values: str) -> None:
    """Set columns of the clock to SQL."""
    columns = ", ".join(f"{name} = {value}" for name, value in values.items())
    sql(f"UPDATE jobsboard_alertclock SET {columns}")


# ---- rounds


def test_a_slow_round_is_not_cut_short_by_a_rival(db: None) -> None:
    """Two schedulers whose rounds take longer than the period kept none: each took over from the other."""
    first = engine._claim()
    assert first is not None
    clock(evaluated_at="evaluated_at - interval '30 s'")
    assert engine._claim() is None, "it has not ended"
    clock(evaluated_at="evaluated_at - interval '31 s'")
    assert engine._claim() is not None, "nobody waits for a dead one for ever"
    clock(ended_at="evaluated_at", evaluated_at="evaluated_at - interval '3 s'")
    assert engine._claim() is not None, "one that ended is followed by the next"


def test_a_round_that_raises_lets_the_next_one_begin(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OperationalError("no such luck")

    monkeypatch.setattr(defaults, "ensure", broken)
    with pytest.raises(OperationalError):
        engine.run_once()
    found = AlertClock.objects.get()
    assert found.ended_at is not None and found.evaluated_at is not None
    assert found.ended_at >= found.evaluated_at
    assert found.completed_at is None


@pytest.mark.parametrize("column", ["completed_at", "folded_at"])
def test_a_clock_that_went_back_stops_neither_rounds_nor_fools_the_switch(db: None, column: str) -> None:
    WebhookEndpoint.objects.create(name="switch", format="heartbeat", url_sealed=b"", url_shown="https://x")
    AlertClock.objects.create(id=1)
    clock(completed_at="jobs_now()", evaluated_at="jobs_now() + interval '1 hour'")
    sql("UPDATE queues_boardversion SET folded_at = jobs_now()")
    assert engine._claim() is not None, "a stamp of the future is nobody's round"
    table = "jobsboard_alertclock" if column == "completed_at" else "queues_boardversion"
    sql(f"UPDATE {table} SET {column} = jobs_now() + interval '1 hour'")
    assert heartbeats.claim(busy=[]) == []


def test_the_switch_is_silent_while_critical_rules_cannot_be_measured(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql("UPDATE queues_boardversion SET folded_at = jobs_now()")
    whole = metrics.read

    def broken(rule: AlertRule, seen: Seen) -> Any:
        if rule.metric == Metric.LIMBO:
            raise TypeError("not what was expected")
        return whole(rule, seen)

    monkeypatch.setattr(metrics, "read", broken)
    engine.run_once()
    assert AlertClock.objects.get().completed_at is None
    clock(ended_at="evaluated_at", evaluated_at="evaluated_at - interval '31 s'")
    sql("UPDATE jobsboard_alertfinding SET since = since - interval '31 s'")
    engine.run_once()
    clock(ended_at="evaluated_at", evaluated_at="evaluated_at - interval '31 s'")
    sql("UPDATE jobsboard_alertfinding SET since = since - interval '31 s'")
    engine.run_once()
    assert open_alerts()["unmeasured:all"].severity == CRITICAL
    monkeypatch.undo()
    clock(ended_at="evaluated_at", evaluated_at="evaluated_at - interval '31 s'")
    engine.run_once()
    assert AlertClock.objects.get().completed_at is not None


# ---- one alert that hides another


def test_another_queue_without_workers_ends_an_acknowledgement(rounds: Rounds) -> None:
    workers = make_rule(Metric.NO_WORKER, tier=None, severity=CRITICAL)
    one = {"queue:tier3.x": (99, 3)}
    rounds.play({workers: one})
    people.acknowledge(open_alerts()["workers"].pk, **WHO)
    rounds.play({workers: one})
    everything = {**one, "queue:tier1": (99, 1), "queue:tier2": (99, 2)}
    assert rounds.play({workers: everything}, after=10) == []
    assert rounds.play({workers: everything}, after=engine.UPDATE_SECONDS) == [("updated", "workers", "critical", 3)]
    assert open_alerts()["workers"].state == Alert.State.FIRING


def test_a_queue_whose_worker_is_back_explains_its_tier_no_more(rounds: Rounds) -> None:
    workers = make_rule(Metric.NO_WORKER, tier=None, severity=CRITICAL)
    burn, dead = make_rule(Metric.BURN_RATE, tier=1, severity=CRITICAL), make_rule(Metric.DEAD_OPEN, tier=1)
    both = {"queue:tier1": (99, 1), "queue:tier3": (99, 3)}
    rounds.play({workers: both, burn: 0, dead: 0})
    left = {"queue:tier1": (0, 1), "queue:tier3": (99, 3)}
    assert rounds.play({workers: left, burn: 0, dead: 0}) == []
    assert rounds.play({workers: left, burn: 50, dead: 0}, after=3600) == [("firing", "tier1", "critical", 1)]
    rounds.play({workers: left, burn: 0, dead: 0})
    assert [told[1] for told in rounds.play({workers: left, burn: 0, dead: 300})] == ["dead_open:tier1"]


def test_what_cleared_and_comes_again_is_told(rounds: Rounds) -> None:
    burn, old = make_rule(Metric.BURN_RATE, severity=CRITICAL), make_rule(Metric.OLDEST_OPEN)
    rounds.play({burn: 20, old: 9})
    rounds.play({burn: 0, old: 9}, after=1000)
    assert [told[0] for told in rounds.play({burn: 50, old: 9}, after=1000)] == ["updated"]


def test_more_findings_than_an_alert_lists_are_told_once(rounds: Rounds) -> None:
    """I-38: what did not fit was news every five minutes."""
    rule = make_rule(Metric.PROBE_FAILED, tier=None)
    many = {f"probe:{i}": (1, 2) for i in range(60)}
    for _ in range(30):
        rounds.play({rule: many}, after=200)
    assert [told[0] for told in rounds.told] == ["firing"]
    assert len(open_alerts()["tier2"].findings) == engine.FINDINGS_MOST
    # What has cleared makes room for what is new.
    fewer = {subject: value for subject, value in many.items() if int(subject[6:]) >= 40}
    rounds.play({rule: fewer}, after=200)
    rounds.play({rule: {**fewer, "probe:new": (1, 2)}}, after=200)
    assert "probe:new" in [one["subject"] for one in open_alerts()["tier2"].findings]


def test_flapping_slower_than_it_clears_is_the_same_alert(rounds: Rounds) -> None:
    """I-38: fails every other minute for two hours."""
    rule = make_rule()
    for i in range(120):
        rounds.play({rule: i % 2}, after=60)
    assert Alert.objects.count() == 1
    assert len(rounds.told) <= 2 * 120 * 60 / engine.UPDATE_SECONDS
    rounds.play({rule: 0}, after=60)
    rounds.play({rule: 0}, after=engine.REOPEN_SECONDS + 1)
    assert [told[0] for told in rounds.play({rule: 1}, after=60)] == ["firing"]
    assert Alert.objects.count() == 2
    sequences = [told[3] for told in rounds.told[:-1]]
    assert sequences == sorted(set(sequences))


def test_one_that_flaps_and_is_worse_now_is_told_at_once(rounds: Rounds) -> None:
    rule, worse = make_rule(), make_rule(Metric.BURN_RATE, severity=CRITICAL)
    rounds.play({rule: 1, worse: 0})
    rounds.play({rule: 0, worse: 0})
    assert rounds.play({rule: 1, worse: 0}) == []
    assert rounds.play({rule: 1, worse: 20}) == [("firing", "tier2", "critical", 3)]


# ---- readings


def test_no_subject_is_too_long_for_a_key(rounds: Rounds) -> None:
    rule = make_rule(Metric.WORKER_MEMORY, tier=None)
    other = make_rule(tier=1)
    subject = "workers:" + ",".join(f"tier2.pool-{i:03}" for i in range(40))[:119]
    told = rounds.play({rule: {subject: (9, None)}, other: 9})
    assert len(told) == 2
    key = causes.key_of(rule, subject=subject, tier=None)
    assert len(key) <= causes.KEY_MOST and key != causes.key_of(rule, subject=subject[:-1], tier=None)


def _rule(metric: Metric, **overrides: Any) -> AlertRule:
    values = {"name": "r", "metric": metric.value, "scope": "tier", "tier": 2, "threshold": 1.0, **overrides}
    return AlertRule(**values)


def _one(rule: AlertRule) -> Reading:
    (reading,) = metrics.read(rule, Seen.now())
    return reading


def test_what_somebody_paused_is_neither_late_nor_old(db: None) -> None:
    make_type(TYPE, window_seconds=60, paused=True, probe_every_seconds=60)
    make_job(JobState.ACCEPTED, raw_ready_at="jobs_now() - interval '1 hour'")
    StateCount.objects.create(type=TYPE, tier=2, state="accepted", n=1)
    sql(
        "INSERT INTO queues_probe (type, next_at, failures, failing_since) VALUES (%s, jobs_now(), 2, jobs_now())", TYPE
    )
    assert _one(_rule(Metric.LATE_RATIO)).value is None
    assert _one(_rule(Metric.OLDEST_OPEN)).value == 0
    assert metrics.read(_rule(Metric.PROBE_FAILED), Seen.now()) == [], "its probe is not sent, so it cannot get well"
    sql("UPDATE queues_jobtype SET paused = false")
    assert _one(_rule(Metric.LATE_RATIO)).value == 1
    assert _one(_rule(Metric.OLDEST_OPEN)).value == pytest.approx(60, abs=1)
    assert [one.value for one in metrics.read(_rule(Metric.PROBE_FAILED), Seen.now())] == [2]


@pytest.mark.parametrize("window", [60, 600, 700, 3600, 20_000, 86_400, 604_800])
def test_the_burn_rate_of_any_window_has_a_value_all_the_time(db: None, window: int) -> None:
    """With long windows the slots outgrew the stretch, and most rounds saw nothing."""
    make_type(TYPE, window_seconds=window, target_ratio=0.9)
    sql("UPDATE queues_boardversion SET folded_at = jobs_now()")
    now = sql("SELECT jobs_now()")[0][0].replace(second=0, microsecond=0)
    since = now - dt.timedelta(seconds=window, minutes=90)
    for shift in range(0, 15, 3):
        OutcomeRollup.objects.all().delete()
        begun = {"minute": [since + dt.timedelta(minutes=n + shift) for n in range(110)]}
        # Minutes are kept as long as a window is; of older hours their sums are read where they have passed as a whole.
        if window > MINUTES_KEPT * 86_400:
            begun["hour"] = sorted({at.replace(minute=0) for at in begun["minute"]})
        OutcomeRollup.objects.bulk_create(
            OutcomeRollup(
                grain=grain, at=at, type=TYPE, tier=2, window_seconds=window, window_least=window, ready=10,
                in_window=0, ended=10,
            )
            for grain, several in begun.items() for at in several
        )  # fmt: skip
        assert _one(_rule(Metric.BURN_RATE, least_events=5)).value == pytest.approx(10.0), shift


# ---- messages


def test_an_older_state_is_not_sent_after_a_newer_one_arrived(db: None, reachable: None) -> None:
    """A sender that died between its two statements left "firing" to be sent after "resolved"."""
    endpoint, alert = make_endpoint(), make_alert()
    now = sql("SELECT jobs_now()")[0][0]
    with transaction.atomic():
        outbox.announce(alert, Event.FIRING, now=now)
        outbox.announce(moved_on(alert, Event.RESOLVED), Event.RESOLVED, now=now)
    WebhookDelivery.objects.filter(event=Event.RESOLVED).update(
        state="delivered", due_at=None, settled_at=now, attempt=1, attempts=[{}]
    )
    assert ledger.claim(answering=9, failing=9) == []
    ledger.give_up_old()
    assert WebhookDelivery.objects.get(endpoint=endpoint, event=Event.FIRING).state == "superseded"


def test_an_endpoint_that_comes_during_an_incident_is_told_of_it_once(db: None) -> None:
    first = make_endpoint("first")
    rule = make_rule()
    now = sql("SELECT jobs_now()")[0][0]

    def play(value: float, seconds: float) -> None:
        readings = {rule.pk: [Reading(subject="tier2", value=value, words="late", tier=2)]}
        at = now + dt.timedelta(seconds=seconds)
        with transaction.atomic():
            engine.Round(rules=[AlertRule.objects.get(pk=rule.pk)], readings=readings, now=at).apply()

    play(2, 0)
    late, quiet = make_endpoint("late"), make_endpoint("quiet", least_severity=CRITICAL)
    off = make_endpoint("off", enabled=False)
    for second in (5, 10):
        play(2, second)
    assert (told(first), told(late), told(quiet)) == (["firing"], ["firing"], [])
    people.acknowledge(open_alerts()["tier2"].pk, **WHO)
    play(2, 15)
    WebhookEndpoint.objects.filter(pk=off.pk).update(enabled=True)
    play(0, 20)
    assert told(late) == ["firing", "acknowledged", "resolved"]
    assert told(off) == [], "it never heard of it, so it need not hear that it is over"


# ---- rules and releases


def test_a_rule_is_deleted_while_it_fires(rounds: Rounds) -> None:
    rule, other = make_rule(default_key=None), make_rule(tier=1)
    rounds.play({rule: 2, other: 0})
    alert_rules.delete(rule, actor="olga")
    assert [told[0] for told in rounds.play({other: 0})] == ["resolved"]


def test_no_probe_while_a_worker_of_the_release_before_lives(db: None) -> None:
    """It would count the probe as business, for ever."""
    make_type(TYPE, probe_every_seconds=60, success="reference")
    sql("INSERT INTO queues_probe (type, next_at, failures) VALUES (%s, jobs_now() - interval '1 s', 0)", TYPE)
    # As its code reports itself: it names no release.
    sql(
        "INSERT INTO queues_workerprocess (id, kind, hostname, pid, queues, slots, busy, memory_bytes, started_at,"
        " seen_at) VALUES ('old', 'worker', 'h', 1, '[]', 1, 0, 0, jobs_now(), jobs_now())"
    )
    assert probes.begin_due() == 0
    with pytest.raises(probes.NotProbed, match="release before"):
        probes.run_now(TYPE, actor="olga", reason="look")
    sql("UPDATE queues_workerprocess SET seen_at = jobs_now() - interval '1 minute'")
    assert probes.begin_due() == 1
