"""The numbers of GET /metrics are those of the jobs, and documented."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from django.test import Client

from dlq import groups, triage, watch
from dlq.plans import people
from dlq.plans.create import PlanRequest, create
from dlq.plans.selection import Selection
from dlq.replaying import Who
from jobsboard.metrics import families, probes
from queues import actions, histogram, lifecycle
from queues.models import Dependency, Tier
from queues.states import DEAD_REASONS, JobState
from tests.dlq.deaths import die
from tests.factories import accept, claim, confirmed, failed, fold_all, make_job, make_type, set_columns, sql
from tests.metrics.page import BEARER, report, scrape, value


@pytest.mark.django_db
def test_a_type_has_all_its_counters_before_its_first_job() -> None:
    """A counter that appears with its first dead letter would hide it from `increase`."""
    make_type(tier_id=1)
    page = scrape()
    kind = {"tier": 1, "type": "test.job"}
    for name in ("jobs_accepted", "promise_due", "promise_kept", "duplicates_suppressed", "superseded_writes"):
        assert value(page, f"{name}_total", **kind) == 0, name
    for reason in DEAD_REASONS:
        assert value(page, "jobs_settled_total", **kind, outcome="dead", reason=reason.value) == 0
    for kind_of_sign in ("blind_attempt", "second_reference", "contradiction", "confirmed_after_rejection"):
        assert value(page, "suspected_duplicate_effects_total", **kind, kind=kind_of_sign) == 0
    assert value(page, "outcome_lag_seconds_count", **kind) == 0
    assert value(page, "dead_letters", **kind) == 0
    # What has no data is absent, never 0 or 1.
    assert value(page, "confirmed_in_window_ratio", **kind) is None
    assert value(page, "oldest_job_age_seconds", **kind) is None
    assert value(page, "job_age_seconds", **kind, quantile=0.99) is None


@pytest.mark.django_db
def test_the_numbers_are_those_of_the_jobs() -> None:
    """Counters, histograms and gauges against jobs that went through the lifecycle."""
    make_type(tier_id=1, pool="mail", window_seconds=60, max_attempts=1)
    ids = accept(10)
    runs = claim(ids[:6])
    lifecycle.settle([confirmed(run) for run in runs[:3]])
    lifecycle.settle([failed(run) for run in runs[3:5]])
    fold_all()
    page, kind = scrape(), {"tier": 1, "type": "test.job"}
    assert value(page, "jobs_accepted_total", **kind) == 10
    assert value(page, "jobs_settled_total", **kind, outcome="confirmed") == 3
    assert value(page, "jobs_settled_total", **kind, outcome="dead", reason="attempts_exhausted") == 2
    assert value(page, "jobs_settled_total", **kind, outcome="dead", reason="poison") == 0
    assert value(page, "attempts_total", **kind, outcome="begun") == 6
    assert value(page, "attempts_total", **kind, outcome="failed") == 2
    assert value(page, "outcome_lag_seconds_count", **kind) == 3
    assert value(page, "job_wait_seconds_count", **kind) == 6
    assert value(page, "job_duration_seconds_count", **kind) == 5
    assert value(page, "queue_depth", tier=1, pool="mail") == 4
    assert value(page, "dead_letters", **kind) == 2
    assert value(page, "promise_window_seconds", **kind) == 60
    assert value(page, "promise_target_ratio", tier=1) == Tier.objects.get(number=1).target_ratio
    assert 0 <= (value(page, "rollup_age_seconds") or 0) < 30


@pytest.mark.django_db
def test_the_promise_is_counted_when_windows_have_passed(shift_clock: Callable[[str], None]) -> None:
    """Nothing is due while it can still be kept; then kept and missed are counted, once and for all."""
    make_type(tier_id=2, window_seconds=60)
    ids = accept(4)
    lifecycle.settle([confirmed(run) for run in claim(ids[:3])])
    fold_all()
    kind = {"tier": 2, "type": "test.job"}
    assert value(scrape(), "promise_due_total", **kind) == 0
    shift_clock("5 minutes")
    fold_all()
    for _ in range(2):
        page = scrape()
        assert (value(page, "promise_due_total", **kind), value(page, "promise_kept_total", **kind)) == (4, 3)
        assert value(page, "confirmed_in_window_ratio", **kind) == 0.75
    # Late evidence changes neither: the window was missed.
    lifecycle.settle([confirmed(run) for run in claim(ids[3:])])
    fold_all()
    page = scrape()
    assert (value(page, "promise_due_total", **kind), value(page, "promise_kept_total", **kind)) == (4, 3)


@pytest.mark.django_db
def test_histogram_counts_are_exact_and_sums_near() -> None:
    """`le` values are edges of our own buckets, so a cumulative count is the number of durations up to there."""
    make_type()
    durations = [0.0004 * 1.37**i for i in range(70)]
    for seconds in durations:
        sql(
            "INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)"
            " VALUES (jobs_clock(), 'test.job', 2, 'lag', jobs_bucket(%s::float8), 1, 60)",
            seconds,
        )
    fold_all()
    page = scrape()
    buckets = {
        dict(labels)["le"]: n for (name, labels), n in page.items() if name == "jobsboard_outcome_lag_seconds_bucket"
    }
    assert len(buckets) == len(families.EDGES) + 1
    for text, n in buckets.items():
        assert n == sum(seconds <= float(text) for seconds in durations), text
    total = value(page, "outcome_lag_seconds_sum", tier=2, type="test.job")
    assert total == pytest.approx(sum(durations), rel=0.05)


def test_edges_are_near_round_numbers() -> None:
    edges = [float(families._le(edge)) for edge in families.EDGES]
    assert edges == sorted(set(edges)) and families.EDGES[-1] < histogram.MAX_BUCKET
    for edge, meant in zip(edges, families._ROUND_SECONDS, strict=True):
        assert edge == pytest.approx(meant, rel=0.05)


@pytest.mark.django_db
def test_oldest_and_quantiles_of_age() -> None:
    """By nearest rank over the jobs that wait, as exact as the database's own percentile_disc; the future is age 0."""
    make_type()
    for age in range(1, 101):
        make_job(JobState.ACCEPTED, raw_ready_at=f"jobs_now() - interval '{age} minutes'")
    make_job(JobState.RETRYING, raw_ready_at="jobs_now() + interval '1 hour'")
    make_job(JobState.AWAITING_CONFIRMATION, raw_ready_at="jobs_now() - interval '200 minutes'")
    make_job(JobState.PROCESSING, raw_ready_at="jobs_now() - interval '300 minutes'")
    make_job(JobState.CONFIRMED, raw_ready_at="jobs_now() - interval '900 minutes'")
    for state, n in (("accepted", 100), ("retrying", 1), ("awaiting_confirmation", 1), ("processing", 1)):
        sql("INSERT INTO queues_statecount (type, tier, state, n) VALUES ('test.job', 2, %s, %s)", state, n)
    page, kind = scrape(), {"tier": 2, "type": "test.job"}
    assert value(page, "oldest_job_age_seconds", **kind) == pytest.approx(300 * 60, abs=30)
    for q in probes.QUANTILES:
        ((truth,),) = sql(
            "SELECT percentile_disc(%s) WITHIN GROUP (ORDER BY greatest(extract(epoch FROM jobs_now() - ready_at), 0))"
            " FROM queues_job WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation')",
            q,
        )
        assert value(page, "job_age_seconds", **kind, quantile=q) == pytest.approx(float(truth), abs=30), q
    assert value(page, "queue_depth", tier=2) == 101


@pytest.mark.django_db
def test_quantiles_look_at_a_bounded_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would take more is left out, not guessed; the oldest always has its age."""
    monkeypatch.setattr(probes, "LOOK_AT_MOST", 10)
    make_type()
    for age in range(40):
        make_job(JobState.ACCEPTED, raw_ready_at=f"jobs_now() - interval '{age} minutes'")
    sql("INSERT INTO queues_statecount (type, tier, state, n) VALUES ('test.job', 2, 'accepted', 40)")
    page, kind = scrape(), {"tier": 2, "type": "test.job"}
    assert value(page, "job_age_seconds", **kind, quantile=0.95) == pytest.approx(37 * 60, abs=30)
    assert value(page, "job_age_seconds", **kind, quantile=0.5) is None
    assert value(page, "oldest_job_age_seconds", **kind) == pytest.approx(39 * 60, abs=30)


@pytest.mark.django_db
def test_limbo_counts_what_nobody_acted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind once, none that is merely waiting, and no more than are looked at."""
    make_type()
    late, fresh = "jobs_now() - interval '31 seconds'", "jobs_now() - interval '29 seconds'"
    for at in (late, late, late, fresh):
        make_job(JobState.PROCESSING, raw_due_at=at)
    for at in (late, late, fresh):
        make_job(JobState.AWAITING_CONFIRMATION, raw_due_at=at)
    both = make_job(JobState.AWAITING_CONFIRMATION, raw_due_at=late)
    for state in (JobState.ACCEPTED, JobState.RETRYING, JobState.AWAITING_CONFIRMATION):
        make_job(state, raw_expires_at=late)
        make_job(state, raw_expires_at=fresh)
    set_columns(both.id, raw_expires_at=late)
    make_job(JobState.ACCEPTED, raw_due_at="jobs_now() - interval '3 hours'")
    make_job(JobState.PROCESSING, raw_expires_at=late)
    make_job(JobState.DEAD, raw_expires_at=late)
    assert {passed: value(scrape(), "limbo_jobs", passed=passed) for passed in probes.LIMBO} == {
        "lease": 3, "deadline": 3, "max_age": 3,
    }  # fmt: skip
    monkeypatch.setattr(probes, "LIMBO_AT_MOST", 2)
    assert value(scrape(), "limbo_jobs", passed="lease") == 2


@pytest.mark.django_db
def test_failures_and_plans_by_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state is there from the start; what has no dead letter left, and a plan that is over, count nowhere."""
    make_type()
    page = scrape()
    assert {state: value(page, "failure_groups", state=state) for state in watch.STATES} == dict.fromkeys(
        ("open", "replaying", "resolved", "ignored"), 0
    )
    assert {state: value(page, "replay_plans", state=state) for state in watch.PLAN_STATES} == dict.fromkeys(
        ("running", "paused", "stopped", "following"), 0
    )
    ann = Who(actor="ann", reason="known", source="ui")
    (first,) = die(1)
    die(1, fingerprint="e" * 16)
    fold_all()
    assert value(scrape(), "failure_groups", state="open") == 2
    triage.run_once()
    groups.ignore(sql("SELECT id FROM queues_failurecount WHERE fingerprint LIKE 'e%%'")[0][0], until=None, who=ann)
    made, _ = create(PlanRequest(action="replay", selection=Selection(ids=(first,)), types=["test.job"], who=ann))
    page = scrape()
    assert {state: value(page, "failure_groups", state=state) for state in watch.STATES} == {
        "open": 0, "replaying": 1, "resolved": 0, "ignored": 1,
    }  # fmt: skip
    assert value(page, "replay_plans", state="running") == 1
    people.abort(made.id, who=ann)
    page = scrape()
    assert sum(value(page, "replay_plans", state=state) or 0 for state in watch.PLAN_STATES) == 0
    assert value(page, "replay_plans", state="aborted") is None
    assert value(page, "failure_groups", state="open") == 1
    monkeypatch.setattr(watch, "COUNT_AT_MOST", 1)
    page = scrape()
    assert sum(value(page, "failure_groups", state=state) or 0 for state in watch.STATES) == 1
    monkeypatch.undo()
    actions.ignore_dead_letter(first, actor="ann", reason="known", source="ui")
    fold_all()
    page = scrape()
    assert {state: value(page, "failure_groups", state=state) for state in watch.STATES} == {
        "open": 0, "replaying": 0, "resolved": 0, "ignored": 1,
    }  # fmt: skip


@pytest.mark.django_db
def test_processes_and_who_takes_what() -> None:
    """A worker of two queues counts for both and its slots once; a silent or sick one takes nothing."""
    make_type("a", tier_id=1)
    make_type("b", tier_id=2)
    make_type("c", tier_id=2, pool="mail")
    report("worker", "tier2,tier1", slots=8, busy=3)
    report("worker", "tier1,tier2", slots=4, busy=4)
    report("worker", "tier2.mail", slots=2, busy=1, trouble="a body hangs")
    report("worker", "tier2.mail", slots=2, ago=20)
    report("scheduler", ago=20)
    page = scrape()
    assert value(page, "queue_workers", tier=1) == value(page, "queue_workers", tier=2) == 2
    assert value(page, "queue_workers", tier=2, pool="mail") == 0
    assert value(page, "queue_depth", tier=2, pool="mail") == 0
    slots = {state: value(page, "worker_slots", queues="tier1,tier2", state=state) for state in ("busy", "idle")}
    assert slots == {"busy": 7, "idle": 5}
    assert value(page, "worker_slots", queues="tier2.mail", state="troubled") == 1
    assert value(page, "worker_slots", queues="tier2.mail", state="idle") == 0
    assert value(page, "worker_memory_bytes", queues="tier1,tier2") == 2000
    assert (value(page, "schedulers"), value(page, "scheduler_up")) == (0, 0)
    report("scheduler")
    assert value(scrape(), "scheduler_up") == 1


@pytest.mark.django_db
def test_a_name_cannot_break_the_page() -> None:
    """Names of types are checked; queues come from a worker's command line and are escaped."""
    report("worker", 'a"b\\c\nd', slots=1)
    assert ("jobsboard_worker_slots", frozenset({("queues", 'a"b\\c\nd'), ("state", "idle")})) in scrape()


@pytest.mark.django_db
def test_breakers() -> None:
    """One sample for each dependency, whatever its state."""
    for name, state in (("crm", "open"), ("mail", "half_open"), ("books", "closed")):
        Dependency.objects.create(name=name, state=state)
    page = scrape()
    assert [value(page, "breaker_state", dependency=name) for name in ("books", "mail", "crm")] == [0, 1, 2]
    assert value(page, "breaker_state", dependency="gone") is None


def documented() -> set[str]:
    """Return the names in the table of docs/monitoring.md."""
    text = (Path(__file__).parents[2] / "docs/monitoring.md").read_text(encoding="utf-8")
    section = text.split("## Metrics of jobs")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(jobsboard_\w+)` \|", section, re.MULTILINE))


@pytest.mark.django_db
def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    make_type()
    accept(1)
    report("worker", "tier2", slots=1)
    fold_all()
    page = Client().get("/metrics", headers=BEARER).content.decode()
    real = set(re.findall(r"^# TYPE (\w+) \w+$", page, re.MULTILINE))
    assert documented() == real
