"""What is a cause and what is none: providers that fail or are well, changes, pauses, ranges of the past."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest

from queues import lifecycle, outcomes
from queues.contract_switches import set_switch
from queues.lifecycle import Verdict
from queues.outcomes import Span, causes
from queues.outcomes.causes import change_of, explain_type, facts
from queues.outcomes.causes.checks import judge
from tests.factories import accept, claim, confirmed, fold_all, lose_lease, make_type, sql
from tests.queues.late import CAUSE, NAME, NOT, UNKNOWN, codes, falling, machines, of_type, one, overdue, settle


@pytest.mark.parametrize(
    ("runs", "failed", "retries_explain", "expected"),
    [
        (0, 0, False, UNKNOWN),
        (4, 0, True, UNKNOWN),
        (1, 1, True, UNKNOWN),
        (3, 2, False, CAUSE),
        (4, 1, True, UNKNOWN),
        (5, 0, True, NOT),
        (100, 19, False, NOT),
        (100, 20, False, CAUSE),
        (100, 6, True, CAUSE),
        (100, 4, True, NOT),
    ],
)
def test_a_provider_is_judged_by_enough_runs(
    runs: int, failed: int, retries_explain: bool, expected: causes.Verdict
) -> None:
    assert judge(facts.Recent(runs=runs, failed=failed), retries_explain=retries_explain) == expected


@pytest.mark.parametrize(
    ("minutes", "failing", "well"),
    [
        ([(9, 10, 0), (2, 10, 0), (1, 10, 9), (0, 2, 2)], 1, None),
        ([(9, 10, 9), (2, 10, 9), (0, 2, 2)], None, None),
        ([(5, 10, 9), (4, 10, 9), (1, 18, 0), (0, 12, 1)], None, 1),
        ([(5, 10, 9), (4, 10, 9), (1, 18, 2), (0, 12, 1)], None, None),
        ([(5, 10, 9), (0, 20, 0)], None, None),
        ([(5, 10, 9), (0, 4, 0)], None, None),
        ([(5, 10, 0), (0, 4, 0)], None, None),
        ([], None, None),
    ],
)
def test_since_when_a_provider_fails_or_is_well(
    minutes: list[tuple[int, int, int]], failing: int | None, well: int | None
) -> None:
    now = 1_800_000_000
    rows = [(NAME, now - 60 * ago, runs, 0, failed, 0) for ago, runs, failed in minutes]
    found = facts.recent_of(rows)
    at = [None if ago is None else dt.datetime.fromtimestamp(now - 60 * ago, dt.UTC) for ago in (failing, well)]
    assert [found.failing_since, found.well_since] == at


@pytest.mark.django_db
def test_a_provider_that_has_just_recovered_is_said_to_be_well() -> None:
    make_type(NAME, dependency="smtp")
    machines("tier2")
    ids = accept(8, kind=NAME)
    settle(ids, Verdict.FAILED)
    overdue(*ids)
    fold_all()
    for minutes in (3, 1):
        fold_all()
        sql(f"UPDATE queues_outcomerollup SET at = at - interval '{minutes} min' WHERE grain = 'minute'")
        lifecycle.settle([confirmed(run) for run in claim(accept(3, kind=NAME))])
    first = of_type().causes[0]
    assert (first.code, first.verdict) == ("provider_failing", CAUSE)
    assert re.fullmatch(r"smtp failed 57.1% of 14 runs in 10 min; it is well since [\d:]{8} UTC", first.sentence)


@pytest.mark.django_db
def test_who_is_on_time_has_no_cause() -> None:
    """Failures and changes of a type that keeps its promise explain nothing."""
    make_type(NAME, dependency="smtp")
    machines("tier2")
    settle(accept(20, kind=NAME), Verdict.FAILED)
    accept(3, kind=NAME)
    board = outcomes.board()
    span = Span.of("15m", now=board.now)
    good = [outcomes.Counts(due=10, kept=10, runs=10, failed=9) for _ in span.slots]
    late = of_type(series=good)
    assert (late.state, late.causes) == ("on_time", [])
    assert late.sentence == "Nothing is late: the promise is kept (100%) and no open job is past its window."
    # What stops its jobs is said all the same: they will be late.
    set_switch(NAME, actor="jane", reason="", paused=True)
    assert codes(of_type(series=good)) == ["paused"]


@pytest.mark.django_db
def test_a_pause_that_holds_next_to_nothing_is_no_first_cause() -> None:
    make_type(NAME, success="callback")
    machines("tier2")
    ids = accept(12, kind=NAME)
    settle(ids, Verdict.AWAITING, confirm_in=900.0, act_in=900.0)
    overdue(*ids)
    set_switch(NAME, actor="jane", reason="", paused=True)
    assert codes(of_type()) == ["awaiting_confirmation"]
    (waiting,) = accept(1, kind=NAME)
    overdue(waiting)
    assert codes(of_type()) == ["awaiting_confirmation", "paused"]


@pytest.mark.django_db
def test_a_disabled_type_refuses_new_jobs_and_that_makes_none_late() -> None:
    make_type(NAME)
    machines("tier2")
    overdue(*accept(1, kind=NAME))
    set_switch(NAME, actor="jane", reason="moved", enabled=False)
    found = one(of_type(), "disabled")
    assert found.verdict == NOT
    assert "By jane" in found.detail


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([("max_attempts", "6", "10")], UNKNOWN),
        ([("window_seconds", "300", "60")], CAUSE),
        ([("target_ratio", "empty", "0.99"), ("window_seconds", 60, 300)], UNKNOWN),
        ([("target_ratio", 0.9, 0.99)], CAUSE),
    ],
)
def test_a_version_shortly_before_is_a_cause_only_if_it_promises_more(
    rows: list[tuple[str, Any, Any]], verdict: causes.Verdict
) -> None:
    make_type(NAME)
    machines("tier2")
    now = outcomes.board().now
    span = Span.of("6h", now=now)
    since = span.slots[-5]
    versions = [
        change_of(version=8, at=since - dt.timedelta(minutes=3), actor="mira", rows=rows),
        change_of(version=7, at=since - dt.timedelta(hours=2), actor="tomas", rows=[("window_seconds", 300, 60)]),
    ]
    late = of_type(span="6h", series=falling(span), changes=versions)
    found = one(late, "contract_changed")
    assert found.verdict == verdict
    assert (found.evidence["version"], found.evidence["versions"]) == (8, [8])
    assert late.state == "late"
    assert one(of_type(span="6h", series=falling(span), changes=versions[1:]), "contract_changed").verdict == NOT


@pytest.mark.django_db
def test_a_provider_that_is_well_again_explains_what_was_late() -> None:
    make_type(NAME, dependency="smtp")
    machines("tier2")
    lifecycle.settle([confirmed(run) for run in claim(accept(20, kind=NAME))])
    # Inside their window: they hold nothing up.
    accept(5, kind=NAME)
    span = Span.of("6h", now=outcomes.board().now)
    stages = [
        outcomes.Stage(name=name, n=9, seconds=9.0, share=share, p95=1.0)
        for name, share in (("waiting", 0.02), ("running", 0.05), ("retrying", 0.93), ("awaiting", 0.0))
    ]
    late = of_type(span="6h", series=falling(span, failed=5), stages=stages, changes=[])
    assert codes(late)[:2] == ["provider_failing", "retrying"]
    assert late.causes[0].sentence.startswith("smtp failed 50% of 50 runs since ")
    assert late.causes[0].sentence.endswith("; it is well now")
    assert one(late, "backlog").verdict == NOT


@pytest.mark.django_db
def test_runs_that_take_the_time_or_lose_their_worker() -> None:
    make_type(NAME)
    machines("tier2")
    span = Span.of("6h", now=outcomes.board().now)
    stages = [outcomes.Stage(name="running", n=9, seconds=90.0, share=0.8, p95=70.0)]
    late = of_type(span="6h", series=falling(span), stages=stages, changes=[])
    assert codes(late) == ["slow_runs"]
    assert late.causes[0].evidence["p95_seconds"] == 70.0
    runs = claim(accept(4, kind=NAME))
    lose_lease(*(run.id for run in runs))
    lifecycle.rescue([run.id for run in runs])
    found = one(of_type(span="6h", series=falling(span), stages=[], changes=[]), "runs_lost")
    assert (found.verdict, found.evidence["lost"]) == (CAUSE, 4)
    # A worker that dies says nothing about the provider.
    assert one(of_type(span="6h", series=falling(span)), "provider_failing").verdict != CAUSE


@pytest.mark.django_db
def test_a_range_of_the_past_is_explained_by_its_own_numbers() -> None:
    """How things stand now, a pause and jobs that wait, explains nothing of yesterday."""
    make_type(NAME, dependency="smtp")
    machines()
    overdue(*accept(3, kind=NAME))
    set_switch(NAME, actor="jane", reason="", paused=True)
    fold_all()
    board = outcomes.board()
    span = Span.between(board.now - dt.timedelta(hours=9), board.now - dt.timedelta(hours=3), now=board.now)
    late = explain_type(
        NAME, board=board, span=span, broker=False, series=falling(span, failed=5), stages=[], changes=[]
    )
    assert late is not None
    assert codes(late) == ["provider_failing"]
    assert {cause.code for cause in late.causes} == {"provider_failing", "backlog", "retrying", "contract_changed"}
    assert "of that time are not judged" in late.sentence
