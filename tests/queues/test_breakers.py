"""Circuit breakers: when they open, what they hold back, what lets them close again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from queues import breaker_actions, breakers, lifecycle
from queues.breakers import Change, Lend, Reading, Standing, judge
from queues.models import BoardVersion, Breaker, Dependency, DependencyCalls, Job, JobType
from queues.scheduler import breakers as service
from queues.scheduler import expire
from queues.states import JobState, Reason
from tests.factories import TYPE, accept, get, make_type, sql
from tests.queues.breaking import (
    CRM,
    KIND,
    Shift,
    begin,
    call,
    changes,
    claim,
    end,
    half_opened,
    judged,
    make_dependency,
    opened,
    released,
    standing,
)

NOW: Final = datetime(2026, 5, 31, 12, 0, tzinfo=UTC)


def reading(*, ok: int = 0, bad: int = 0, now: datetime = NOW, **values: Any) -> Reading:
    one: dict[str, Any] = {
        "name": CRM, "description": "", "state": "closed", "since": NOW, "why": "", "retry_at": None, "forced": "",
        "forced_by": "", "forced_reason": "", "forced_until": None, "calls": 0, "failed": 0, "slow": 0,
        "error_ratio": 0.5, "minimum_calls": 20, "window_seconds": 60, "reset_seconds": 30, "slow_seconds": 0.0,
        "timeout_seconds": 5.0, "trial_jobs": 3, "trials_left": 0, "types": (),
    }  # fmt: skip
    return Reading(standing=Standing(**{**one, **values}), trials_ok=ok, trials_failed=bad, now=now)


@pytest.mark.parametrize(
    ("calls", "failed", "slow", "ratio", "opens"),
    [
        (0, 0, 0, 0.5, False),
        (19, 19, 0, 0.5, False),
        (20, 10, 0, 0.5, True),
        (20, 9, 0, 0.5, False),
        (20, 9, 1, 0.5, True),
        (20, 0, 20, 0.5, True),
        (21, 10, 0, 0.5, False),
        (30, 3, 0, 0.1, True),
        (1000, 299, 0, 0.3, False),
        (1000, 300, 0, 0.3, True),
        (20, 19, 0, 1.0, False),
        (20, 20, 0, 1.0, True),
    ],
)
def test_it_opens_exactly_at_its_limits(calls: int, failed: int, slow: int, ratio: float, opens: bool) -> None:
    wanted = judge(reading(calls=calls, failed=failed, slow=slow, error_ratio=ratio))
    assert (isinstance(wanted, Change) and (wanted.became, wanted.retry_in) == ("open", 30)) is opens
    assert (wanted is None) is not opens


@pytest.mark.parametrize(
    ("one", "wanted"),
    [
        (reading(state="open", retry_at=NOW + timedelta(milliseconds=1)), None),
        (reading(state="open", retry_at=NOW), "half_open"),
        (reading(state="open"), "half_open"),
        (reading(state="half_open", trials_left=1, ok=2), None),
        (reading(state="half_open", ok=3), "closed"),
        (reading(state="half_open", ok=3, bad=1), "open"),
        (reading(state="half_open", trials_left=2, bad=1), "open"),
        (reading(state="half_open", trial_jobs=5, ok=3, retry_at=NOW), Lend(trials=2)),
        (reading(state="half_open", ok=1), Lend(retry_in=30)),
        (reading(state="half_open", ok=1, retry_at=NOW + timedelta(seconds=1)), None),
        *((reading(forced=state, state=state, calls=20, failed=20), None) for state in ("open", "closed")),
        (reading(forced="open", state="open", retry_at=NOW - timedelta(hours=1)), None),
    ],
)
def test_what_an_open_and_a_half_open_one_wait_for(one: Reading, wanted: object) -> None:
    found = judge(one)
    assert (found.became if isinstance(found, Change) else found) == wanted


# With the database.
pytestmark = pytest.mark.django_db


def test_nineteen_calls_do_not_open_it_and_the_twentieth_does() -> None:
    make_dependency()
    version = BoardVersion.objects.get().n
    call(10, "ok")
    call(9, "failed")
    assert judged().state == "closed"
    call(1, "failed")
    found = judged()
    assert (found.state, found.calls, found.failed, found.slow, found.ratio) == ("open", 20, 10, 0, 0.5)
    assert found.why == "Of 20 calls in 60 s 10 failed; the limit is 50 %."
    assert found.retry_at is not None and timedelta(seconds=29) < found.retry_at - found.since < timedelta(seconds=31)
    assert changes() == [("closed", "open")]
    assert JobType.objects.get(name=KIND).breaker == "open"
    assert BoardVersion.objects.get().n > version


def test_calls_leave_its_window(shift_clock: Shift) -> None:
    make_dependency()
    call(15, "failed")
    assert judged().calls == 15
    shift_clock("61 s")
    call(15, "failed")
    found = judged()
    assert (found.state, found.calls) == ("closed", 15)


def test_slow_calls_count_like_failed_ones() -> None:
    make_dependency(slow_seconds=2.0)
    call(10, "ok")
    call(4, "failed")
    call(6, "slow")
    found = judged()
    assert (found.state, found.failed, found.slow) == ("open", 4, 6)
    assert "4 failed and 6 were slow" in found.why


def test_what_says_nothing_of_it_counts_nowhere() -> None:
    """Given back, put off, lost, cancelled: as many as there may be."""
    make_dependency()
    runs = begin(30)
    released(runs[:10])
    end(runs[10:20], "unused")
    lifecycle.rescue([run.id for run in runs[20:25]], dead_runs=[(run.id, run.fence) for run in runs[20:25]])
    lifecycle.cancel([run.id for run in runs[25:]], reason=Reason.OPERATOR)
    end(runs[25:], "failed")
    assert {get(run.id).state for run in runs[25:]} == {JobState.CANCELLED}
    assert (judged().calls, DependencyCalls.objects.count()) == (0, 0)


def test_probes_are_calls_too() -> None:
    make_dependency()
    runs = begin(20)
    sql("UPDATE queues_job SET probe = true")
    end(runs, "failed")
    assert judged().state == "open"


def test_all_types_of_a_dependency_are_judged_and_held_together() -> None:
    make_dependency("crm.read", "crm.write")
    make_type(TYPE)
    call(10, "failed", kind="crm.read")
    call(10, "failed", kind="crm.write")
    found = judged()
    assert (found.state, found.types) == ("open", ("crm.read", "crm.write"))
    assert [len(begin(3, kind=kind)) for kind in ("crm.read", "crm.write", TYPE)] == [0, 0, 3]


def test_an_open_one_lets_no_claim_through_and_no_attempt_is_spent(shift_clock: Shift) -> None:
    """Scenario 5: of a hundred jobs the breaker opens for, none burns an attempt."""
    make_dependency()
    opened()
    ids = accept(100, kind=KIND)
    for _ in range(3):
        assert claim(ids) == []
        shift_clock("5 s")
    rows = Job.objects.filter(id__in=ids).values_list("state", "attempt", "fence", "begun").distinct()
    assert list(rows) == [(JobState.ACCEPTED, 0, 0, 0)]


def test_trials_that_go_well_close_it(shift_clock: Shift) -> None:
    make_dependency()
    half_opened(shift_clock)
    assert len(begin(10)) == 3
    rest = begin(10)
    assert rest == []
    runs = list(Job.objects.filter(state="processing").order_by("id"))
    assert len(runs) == 3
    for n, job in enumerate(runs, start=1):
        lifecycle.settle([_ended(job, "ok")])
        assert judged().state == ("closed" if n == 3 else "half_open")
    assert changes() == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]
    assert JobType.objects.get(name=KIND).breaker == "closed"
    # What was told before it opened is not held against it again.
    assert (standing().calls, judged().state) == (0, "closed")
    assert len(begin(5)) == 5


def test_the_second_in_which_it_closed_is_not_held_against_it() -> None:
    make_dependency()
    second = sql("SELECT date_trunc('second', jobs_now() - interval '1 s')")[0][0]
    DependencyCalls.objects.create(dependency=CRM, at=second, failed=40)
    Dependency.objects.update(since=second + timedelta(milliseconds=500))
    assert judged().state == "closed"
    Dependency.objects.update(since=second)
    assert judged().state == "open"


def _ended(job: Job, called: str) -> lifecycle.End:
    verdict = lifecycle.Verdict.FAILED if called == "failed" else lifecycle.Verdict.CONFIRMED
    proof = None if called == "failed" else {"kind": "reference", "ref": "r", "late": False}
    return lifecycle.End(id=job.id, fence=job.fence, verdict=verdict, called=called, evidence=proof, retry_in=60.0)


@pytest.mark.parametrize("called", ["failed", "slow"])
def test_one_trial_that_does_not_opens_it_again(called: str, shift_clock: Shift) -> None:
    make_dependency()
    before = half_opened(shift_clock)
    runs = begin(3)
    end(runs[:2], "ok")
    end(runs[2:], called)
    found = judged()
    assert found.state == "open" and found.retry_at is not None
    assert timedelta(seconds=29) < found.retry_at - found.since and found.since > before.since
    assert begin(5) == []
    shift_clock("62 s")
    assert judged().state == "half_open"
    # The trials of the last time are none of this one.
    assert judged().state == "half_open"
    end(begin(10), "ok")
    assert judged().state == "closed"


@pytest.mark.parametrize("called", ["ok", "failed"])
def test_runs_that_began_before_it_opened_are_no_trials(called: str, shift_clock: Shift) -> None:
    make_dependency()
    late = begin(10)
    half_opened(shift_clock)
    end(late, called)
    assert judged().state == "half_open"
    trials = begin(10)
    assert len(trials) == 3
    end(trials, "ok")
    assert judged().state == "closed"


def test_trials_of_an_earlier_time_decide_nothing(shift_clock: Shift) -> None:
    make_dependency()
    half_opened(shift_clock)
    slow, second, third = begin(10)
    end([second], "ok")
    end([third], "failed")
    assert judged().state == "open"
    shift_clock("62 s")
    assert judged().state == "half_open"
    end([slow], "failed")
    assert judged().state == "half_open"


def test_failures_of_before_do_not_open_it_again(shift_clock: Shift) -> None:
    """Runs that the outage made wait end after it closed: they tell of the outage."""
    make_dependency()
    late = begin(40)
    half_opened(shift_clock)
    end(begin(3), "ok")
    assert judged().state == "closed"
    end(late, "failed")
    found = judged()
    assert (found.state, found.calls) == ("closed", 0)


def test_trials_that_tell_nothing_are_lent_anew(shift_clock: Shift) -> None:
    """Their worker is gone, or their check cannot answer: after a while others are let through."""
    make_dependency()
    half_opened(shift_clock)
    first, *lost = begin(10)
    end([first], "ok")
    lifecycle.rescue([run.id for run in lost], dead_runs=[(run.id, run.fence) for run in lost])
    found = judged()
    assert (found.state, found.trials_left) == ("half_open", 0) and found.retry_at is not None
    assert begin(10) == []
    shift_clock("45 s")
    assert judged().trials_left == 0
    shift_clock("62 s")
    found = judged()
    assert (found.state, found.trials_left, found.retry_at) == ("half_open", 2, None)
    end(begin(10), "ok")
    assert judged().state == "closed"


def test_a_trial_that_never_began_is_given_back(shift_clock: Shift) -> None:
    make_dependency()
    half_opened(shift_clock)
    runs = begin(10)
    assert standing().trials_left == 0
    released(runs[:1])
    end(runs[1:2], "unused")
    assert standing().trials_left == 2
    assert len(begin(10)) == 2
    # One of the time before it opened gives nothing back.
    sql("UPDATE queues_dependency SET since = jobs_clock() + interval '1 ms'")
    released(runs[2:])
    assert standing().trials_left == 0


def test_without_work_it_stays_half_open_and_harms_nobody(shift_clock: Shift) -> None:
    make_dependency()
    half_opened(shift_clock)
    for seconds in (60, 120, 3600):
        shift_clock(f"{seconds} s")
        found = judged()
        assert (found.state, found.trials_left, found.retry_at) == ("half_open", 3, None)
    end(begin(10), "ok")
    assert judged().state == "closed"


def test_max_age_ends_held_jobs(shift_clock: Shift) -> None:
    make_dependency()
    opened()
    [held] = accept(1, kind=KIND, max_age=10)
    expire.run_once()
    assert get(held).state == JobState.ACCEPTED
    shift_clock("11 s")
    expire.run_once()
    assert (get(held).state, get(held).attempt) == (JobState.EXPIRED, 0)


def test_a_clock_that_goes_back_hurts_nothing(shift_clock: Shift) -> None:
    """Set an hour back: nothing is judged by what the future says, and nothing waits for it to come."""
    make_dependency()
    shift_clock("1 hour")
    call(19, "failed")
    first = judged()
    assert (first.state, first.calls) == ("closed", 19)
    shift_clock("0 s")
    service.run_once()
    assert not DependencyCalls.objects.exists(), "they would count when the time comes up with them"
    call(1, "failed")
    found = judged()
    assert (found.state, found.calls) == ("closed", 1)
    call(19, "failed")
    assert judged().state == "open"
    shift_clock("1 hour")
    service.run_once()
    shift_clock("2 hours")
    service.run_once()
    sql("UPDATE queues_dependency SET state = 'open', since = jobs_now(), retry_at = jobs_now() + interval '30 s'")
    shift_clock("0 s")
    service.run_once()
    found = standing()
    assert found.state == "open" and found.retry_at is not None
    assert found.retry_at - found.since <= timedelta(seconds=31)
    shift_clock("31 s")
    assert judged().state == "half_open"


def test_a_clock_that_went_back_does_not_blind_a_closed_one(shift_clock: Shift) -> None:
    make_dependency()
    shift_clock("1 hour")
    sql("UPDATE queues_dependency SET since = jobs_now()")
    shift_clock("0 s")
    service.run_once()
    shift_clock("2 s")
    call(20, "failed")
    assert judged().state == "open"


def test_a_contract_that_names_another_dependency_is_held_by_that_one() -> None:
    make_dependency()
    opened()
    make_type("mail.welcome", dependency="mail")
    service.run_once()
    assert {one.name: one.state for one in breakers.standings()} == {CRM: "open", "mail": "closed"}
    JobType.objects.filter(name="mail.welcome").update(dependency=CRM)
    JobType.objects.filter(name=KIND).update(dependency="")
    service.run_once()
    assert dict(JobType.objects.values_list("name", "breaker")) == {"mail.welcome": "open", KIND: "closed"}


def test_a_dependency_that_contracts_name_is_made_with_defaults() -> None:
    make_type(KIND, dependency=CRM)
    assert breaker_actions.make_missing() == 1
    assert breaker_actions.make_missing() == 0
    found = Dependency.objects.get(name=CRM)
    wanted = Dependency(name=CRM)
    assert [getattr(found, f) for f in breaker_actions.SETTINGS] == [
        getattr(wanted, f) for f in breaker_actions.SETTINGS
    ]
    assert found.state == Breaker.CLOSED
