"""What each metric of a rule measures, from facts in the database."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

from jobsboard.alerts import defaults, engine, metrics
from jobsboard.alerts.metrics import Reading
from jobsboard.alerts.seen import Seen
from jobsboard.models import Alert, AlertClock, AlertRule, Metric, WebhookEndpoint
from queues import histogram
from queues.models import BoardVersion, Dependency, OutcomeRollup, StateCount, Tier
from queues.outcomes import watch
from queues.states import REASON_CODES, JobState
from tests.factories import TYPE, make_job, make_type, put_buckets, sql

OTHER = "other.type"
NOW = "(SELECT jobs_now())"


@pytest.fixture(autouse=True)
def _board(db: None) -> None:
    """Two types of tier 2 with windows of 60 and 600 seconds, and numbers that are fresh."""
    make_type(TYPE, window_seconds=60, target_ratio=0.99)
    make_type(OTHER, window_seconds=600, target_ratio=0.9)
    sql("UPDATE queues_boardversion SET folded_at = jobs_now()")


def rule(metric: Metric, **overrides: Any) -> AlertRule:
    """Return an unsaved rule of tier 2."""
    return AlertRule(
        **{"name": metric.value, "metric": metric.value, "scope": "tier", "tier": 2, "threshold": 1.0, **overrides}
    )


def one(found: AlertRule) -> Reading:
    """Measure a rule that has one subject."""
    (reading,) = metrics.read(found, Seen.now())
    return reading


def rollup(name: str, *, ago: int, tier: int = 2, window: int = 60, **counts: int) -> None:
    """Put counts into the minute so many minutes ago."""
    at = sql("SELECT date_trunc('minute', jobs_now()) - make_interval(mins => %s)", ago)[0][0]
    OutcomeRollup.objects.create(
        grain="minute", at=at, type=name, tier=tier, window_seconds=window, window_least=window, **counts
    )


def test_lag_is_that_of_the_worst_type_against_its_window() -> None:
    assert one(rule(Metric.LAG)).value is None
    put_buckets(TYPE, "lag", {histogram.bucket_of(90): 30})
    put_buckets(OTHER, "lag", {histogram.bucket_of(300): 30})
    reading = one(rule(Metric.LAG))
    assert reading.value == pytest.approx(1.5, rel=0.06)
    assert TYPE in reading.words
    assert one(rule(Metric.LAG, least_events=31)).value is None
    assert one(rule(Metric.LAG, scope="type", tier=None, job_type=OTHER)).value == pytest.approx(0.5, rel=0.06)
    assert one(rule(Metric.LAG, tier=1)).value is None


def test_burn_rate_weighs_misses_by_what_each_type_promises() -> None:
    rollup(TYPE, ago=3, ready=100, in_window=80, ended=100)
    # 20 missed of 100 at 1 percent.
    assert one(rule(Metric.BURN_RATE)).value == pytest.approx(20.0)
    rollup(OTHER, ago=14, window=600, ready=100, in_window=80, ended=100)
    # 40 missed, 1 + 10 allowed.
    reading = one(rule(Metric.BURN_RATE))
    assert reading.value == pytest.approx(40 / 11)
    assert "160 of 200" in reading.words
    assert one(rule(Metric.BURN_RATE, least_events=201)).value is None


def test_burn_rate_needs_the_longer_stretch_too() -> None:
    """A short dip in a long good time burns little; one that is over burns nothing."""
    rollup(TYPE, ago=3, ready=100, in_window=50, ended=100)
    rollup(TYPE, ago=40, ready=9900, in_window=9900, ended=9900)
    assert one(rule(Metric.BURN_RATE)).value == pytest.approx(0.5)
    OutcomeRollup.objects.all().delete()
    rollup(TYPE, ago=30, ready=100, in_window=0, ended=100)
    rollup(TYPE, ago=3, ready=100, in_window=100, ended=100)
    assert one(rule(Metric.BURN_RATE)).value == 0


def test_a_window_that_has_not_passed_is_not_judged() -> None:
    rollup(TYPE, ago=0, ready=100, in_window=0, ended=0)
    assert one(rule(Metric.BURN_RATE)).value is None


def test_late_ratio_counts_what_is_open_past_its_window() -> None:
    """Sooner than any cohort is judged: the jobs themselves are looked at."""
    for _ in range(3):
        make_job(JobState.RETRYING, raw_ready_at="jobs_now() - interval '61 s'")
    make_job(JobState.RETRYING, raw_ready_at="jobs_now() - interval '30 s'")
    StateCount.objects.create(type=TYPE, tier=2, state="retrying", n=4)
    rollup(TYPE, ago=1, confirmed=6, late=1, expired=1)
    reading = one(rule(Metric.LATE_RATIO))
    assert reading.value == pytest.approx((1 + 1 + 3) / (7 + 3))
    assert reading.words.startswith("Tier 2 is late: 3 open")
    assert one(rule(Metric.LATE_RATIO, least_events=11)).value is None


def test_dead_inflow_by_reason() -> None:
    assert one(rule(Metric.DEAD_INFLOW)).value == 0
    codes = {reason.value: code for reason, code in REASON_CODES.items()}
    put_buckets(TYPE, "dead", {codes["poison"]: 2, codes["rejected"]: 5})
    put_buckets(OTHER, "dead", {codes["rejected"]: 9}, tier=1)
    assert one(rule(Metric.DEAD_INFLOW)).value == 7
    assert one(rule(Metric.DEAD_INFLOW, reason="poison")).value == 2
    assert one(rule(Metric.DEAD_INFLOW, scope="all", tier=None)).value == 16
    assert "5 rejected, 2 poison" in one(rule(Metric.DEAD_INFLOW)).words


def test_dead_open_and_backlog() -> None:
    StateCount.objects.create(type=TYPE, tier=2, state="dead", n=3)
    StateCount.objects.create(type=TYPE, tier=2, state="accepted", n=70)
    StateCount.objects.create(type=OTHER, tier=2, state="retrying", n=10)
    Tier.objects.filter(number=2).update(backlog_limit=100)
    assert one(rule(Metric.DEAD_OPEN)).value == 3
    assert one(rule(Metric.DEAD_OPEN, tier=1)).value == 0
    assert one(rule(Metric.BACKLOG)).value == pytest.approx(0.8)
    assert one(rule(Metric.BACKLOG, scope="type", tier=None, job_type=OTHER)).value == pytest.approx(0.1)
    assert [r.subject for r in metrics.read(rule(Metric.BACKLOG, scope="all", tier=None), Seen.now())] == [
        "tier1", "tier2", "tier3",
    ]  # fmt: skip


def test_oldest_open_against_its_window() -> None:
    assert one(rule(Metric.OLDEST_OPEN)).value == 0
    make_job(JobState.ACCEPTED, raw_ready_at="jobs_now() - interval '300 s'")
    StateCount.objects.create(type=TYPE, tier=2, state="accepted", n=1)
    assert one(rule(Metric.OLDEST_OPEN)).value == pytest.approx(5, abs=0.5)


def worker(*, queues: str = '["tier2"]', ago: int = 1, busy: int = 0, slots: int = 4, trouble: str = "") -> None:
    """Report a worker, so many seconds ago."""
    sql(
        "INSERT INTO queues_workerprocess (id, kind, hostname, pid, queues, slots, busy, memory_bytes, trouble,"
        " started_at, seen_at) VALUES (gen_random_uuid()::text, 'worker', 'h', 1, %s::jsonb, %s, %s, 3e9, %s,"
        " jobs_now(), jobs_now() - make_interval(secs => %s))",
        queues, slots, busy, trouble, ago,
    )  # fmt: skip


EVERYWHERE: dict[str, Any] = {"scope": "all", "tier": None}


def test_no_worker_on_a_queue_that_is_in_use() -> None:
    watched = rule(Metric.NO_WORKER, **EVERYWHERE)
    assert metrics.read(watched, Seen.now()) == [], "nothing was ever accepted, so nobody is missed"
    OutcomeRollup.objects.create(
        grain="total", at=dt.datetime(1970, 1, 1, tzinfo=dt.UTC), type=TYPE, tier=2, accepted=1
    )
    assert (one(watched).subject, one(watched).value) == ("queue:tier2", metrics.NEVER_SEEN)
    worker(ago=100)
    assert one(watched).value == pytest.approx(100, abs=5)
    worker(ago=1, trouble="deaf")
    assert one(watched).value == pytest.approx(100, abs=5), "one that says of itself that it is not well is none"
    worker(queues='["tier1"]')
    assert one(watched).value == pytest.approx(100, abs=5)
    worker()
    assert one(watched).value == pytest.approx(1, abs=3)
    make_type("pooled", pool="big")
    StateCount.objects.create(type="pooled", tier=2, state="accepted", n=5)
    found = {reading.subject: reading for reading in metrics.read(watched, Seen.now())}
    assert found["queue:tier2.big"].value == metrics.NEVER_SEEN
    assert "5 jobs wait" in found["queue:tier2.big"].words
    sql("UPDATE queues_jobtype SET enabled = false WHERE name = 'pooled'")
    assert one(watched).subject == "queue:tier2"


def test_a_queue_with_free_workers_that_begins_nothing() -> None:
    watched = rule(Metric.NOT_CONSUMING, **EVERYWHERE)
    make_job(
        JobState.ACCEPTED, raw_due_at="jobs_now() - interval '200 s'", raw_ready_at="jobs_now() - interval '200 s'"
    )
    StateCount.objects.create(type=TYPE, tier=2, state="accepted", n=1)
    assert one(watched).value == 0, "without workers that is another rule's"
    worker(busy=4)
    assert one(watched).value == 0, "they are busy"
    worker(busy=1)
    assert one(watched).value == pytest.approx(200, abs=5)
    for switch in ("paused", "deferred"):
        sql(f"UPDATE queues_jobtype SET {switch} = true WHERE name = %s", TYPE)
        assert one(watched).value == 0, "nobody may begin it"
        sql(f"UPDATE queues_jobtype SET {switch} = false WHERE name = %s", TYPE)
    rollup(OTHER, ago=0, window=600, runs=1)
    assert one(watched).value == 0, "the queue begins jobs"


def test_a_job_that_waits_for_its_time_is_not_due() -> None:
    make_job(JobState.RETRYING, raw_due_at="jobs_now() + interval '60 s'", raw_ready_at="jobs_now() - interval '200 s'")
    StateCount.objects.create(type=TYPE, tier=2, state="retrying", n=1)
    worker()
    assert [r.value for r in metrics.read(rule(Metric.NOT_CONSUMING, **EVERYWHERE), Seen.now())] in ([], [0])


def test_limbo_memory_and_age_of_the_numbers() -> None:
    assert one(rule(Metric.LIMBO, **EVERYWHERE)).value == 0
    make_job(JobState.PROCESSING, raw_due_at="jobs_now() - interval '31 s'")
    assert one(rule(Metric.LIMBO, **EVERYWHERE)).value == 1
    assert metrics.read(rule(Metric.WORKER_MEMORY, **EVERYWHERE), Seen.now()) == []
    worker()
    assert one(rule(Metric.WORKER_MEMORY, **EVERYWHERE)).value == pytest.approx(3000)
    assert metrics.read(rule(Metric.WORKER_MEMORY, tier=1), Seen.now()) == []
    BoardVersion.objects.update(folded_at=sql("SELECT jobs_now() - interval '90 s'")[0][0])
    assert one(rule(Metric.ROLLUP_AGE, **EVERYWHERE)).value == pytest.approx(90, abs=5)


@pytest.mark.usefixtures("two_weeks")
def test_partitions_ahead() -> None:
    ahead = one(rule(Metric.PARTITIONS_AHEAD, **EVERYWHERE)).value
    assert ahead is not None
    assert ahead >= 13
    newest = sql("SELECT to_char(jobs_now() AT TIME ZONE 'UTC', 'YYYYMMDD')")[0][0]
    for (name,) in sql("SELECT relname FROM pg_class WHERE relname ~ '^queues_job_[0-9]{8}$' AND relkind = 'r'"):
        if name > f"queues_job_{newest}":
            sql(f"DROP TABLE {name}")
    assert one(rule(Metric.PARTITIONS_AHEAD, **EVERYWHERE)).value == 0


def test_suspected_duplicates_and_endpoints() -> None:
    rollup(TYPE, ago=1, blind_attempts=2, contradictions=1)
    assert one(rule(Metric.SUSPECTED_DUPLICATES)).value == 3
    assert one(rule(Metric.SUSPECTED_DUPLICATES, tier=1)).value == 0
    endpoint = WebhookEndpoint.objects.create(name="ops", url_sealed=b"x", url_shown="https://x", failures=6)
    watched = rule(Metric.UNDELIVERED, **EVERYWHERE)
    assert (one(watched).subject, one(watched).value) == (f"endpoint:{endpoint.pk}", 6)
    WebhookEndpoint.objects.update(enabled=False)
    assert one(watched).value == 0


def test_probes_in_a_row() -> None:
    sql("UPDATE queues_jobtype SET probe_every_seconds = 60 WHERE name = %s", TYPE)
    reading = one(rule(Metric.PROBE_FAILED))
    assert (reading.subject, reading.value) == (f"probe:{TYPE}", 0)
    sql(
        "INSERT INTO queues_probe (type, next_at, failures, failing_since) VALUES (%s, jobs_now(), 2, jobs_now())", TYPE
    )
    assert one(rule(Metric.PROBE_FAILED)).value == 2
    assert metrics.read(rule(Metric.PROBE_FAILED, tier=1), Seen.now()) == []


# ---- the defaults together


def test_the_defaults_are_made_once_and_kept_when_edited() -> None:
    defaults.ensure()
    made = {found.default_key: found for found in AlertRule.objects.all()}
    assert set(made) == {default.default_key for default in defaults.DEFAULTS}
    for found in made.values():
        found.full_clean()
    AlertRule.objects.filter(default_key="limbo").update(threshold=9, edited=True)
    AlertRule.objects.filter(default_key="no_worker").update(threshold=9)
    AlertRule.objects.filter(default_key="lag.tier1").delete()
    defaults.ensure()
    now = {found.default_key: found.threshold for found in AlertRule.objects.all()}
    assert (now["limbo"], now["no_worker"]) == (9, 15)
    assert "lag.tier1" in now


def test_a_name_that_somebody_took_hinders_no_default() -> None:
    AlertRule.objects.create(name="Jobs in limbo", metric="limbo", threshold=5)
    defaults.ensure()
    assert AlertRule.objects.get(default_key="limbo").name == "Jobs in limbo (limbo)"


def breaker(state: str = "open", **values: Any) -> None:
    """Put the breaker of what the first type depends on."""
    sql("UPDATE queues_jobtype SET dependency = 'crm' WHERE name = %s", TYPE)
    Dependency.objects.update_or_create(name="crm", defaults={"state": state, "why": "20 of 20 failed.", **values})


def test_a_breaker_that_is_not_closed_is_one_for_each_dependency() -> None:
    everything = rule(Metric.BREAKER_OPEN, scope="all", tier=None)
    assert list(metrics.read(everything, Seen.now())) == []
    breaker()
    StateCount.objects.create(tier=2, type=TYPE, state=JobState.ACCEPTED, n=3)
    reading = one(everything)
    assert (reading.subject, reading.value, reading.tier) == ("dependency:crm", 1, 2)
    assert reading.words == "The circuit breaker of crm is open: 3 jobs wait. 20 of 20 failed."
    breaker("half_open")
    assert one(everything).value == 1
    breaker("closed")
    assert one(everything).value == 0


def test_a_breaker_is_of_the_tiers_and_types_that_name_it() -> None:
    breaker()
    assert one(rule(Metric.BREAKER_OPEN)).value == 1
    assert list(metrics.read(rule(Metric.BREAKER_OPEN, tier=1), Seen.now())) == []
    assert one(rule(Metric.BREAKER_OPEN, scope="type", tier=None, job_type=TYPE)).value == 1
    other = rule(Metric.BREAKER_OPEN, scope="type", tier=None, job_type=OTHER)
    assert list(metrics.read(other, Seen.now())) == []


def test_a_breaker_that_a_person_holds_open_wakes_nobody() -> None:
    breaker(forced="open", forced_by="ann", forced_reason="maintenance")
    assert one(rule(Metric.BREAKER_OPEN)).value == 0


@pytest.mark.usefixtures("two_weeks")
def test_a_healthy_board_fires_nothing_and_costs_a_bounded_number_of_statements() -> None:
    defaults.ensure()
    worker(queues='["tier1", "tier2", "tier3"]')
    sql("UPDATE queues_workerprocess SET memory_bytes = 1e8")
    with CaptureQueriesContext(
        connection,
    ) as few:
        engine.run_once()
    assert not sql("SELECT 1 FROM jobsboard_alertfinding")
    for i in range(40):
        make_type(f"more.{i}", window_seconds=30 + i)
        StateCount.objects.create(type=f"more.{i}", tier=2, state="awaiting_confirmation", n=1)
    sql("UPDATE jobsboard_alertclock SET evaluated_at = evaluated_at - interval '1 min'")
    with CaptureQueriesContext(connection) as many:
        engine.run_once()
    assert len(many) <= len(few) + 2 <= 34, [query["sql"][:100] for query in many]


@pytest.mark.usefixtures("two_weeks")
def test_a_statement_that_fails_is_asked_once_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one rule cannot measure hinders no other, costs its time limit once, and is shown with the rule."""
    asked = []

    def broken(windows: Any) -> Any:
        asked.append(windows)
        raise OperationalError("canceling statement due to statement timeout")

    monkeypatch.setattr(watch, "waiting", broken)
    defaults.ensure()
    BoardVersion.objects.update(folded_at=sql("SELECT jobs_now() - interval '90 s'")[0][0])
    AlertRule.objects.filter(default_key="rollup_age").update(for_seconds=0, edited=True)
    engine.run_once()
    assert len(asked) == 1
    troubled = set(AlertRule.objects.exclude(trouble="").values_list("metric", flat=True))
    assert troubled == {Metric.LATE_RATIO.value}
    assert Alert.objects.get().key == "rollup_age:all"
    assert AlertClock.objects.get().completed_at is not None
    monkeypatch.undo()
    sql("UPDATE jobsboard_alertclock SET evaluated_at = evaluated_at - interval '1 min'")
    engine.run_once()
    assert not AlertRule.objects.exclude(trouble="").exists()
