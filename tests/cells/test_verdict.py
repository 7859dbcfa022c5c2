"""The verdict of a reliability cell: what it calls lost, stuck, left behind, doubled and recovered."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cells.lanes import ACKNOWLEDGED, REFUSED, UNKNOWN, Told
from benchmarks.cells.verdict import DONE, Verdict, judge

STROKE = 100.0


def effect(at: float, *, told: bool = False, began: float | None = None) -> dict[str, Any]:
    """Return a line of the ledger."""
    return {"at": at, "began": at if began is None else began, "told": told}


def judged(
    told: dict[str, Told] | None = None,
    effects: dict[str, list[dict[str, Any]]] | None = None,
    traces: dict[str, str] | None = None,
    *,
    keeps_rows: bool = True,
    broken: tuple[str, ...] = (),
) -> Verdict:
    """Judge a history of one job that was done before the fault, but for what is given."""
    return judge(
        {"a": Told(ACKNOWLEDGED, 90.0)} if told is None else told,
        {"a": [effect(91.0)]} if effects is None else effects,
        {"a": DONE} if traces is None else traces,
        stroke_at=STROKE,
        keeps_rows=keeps_rows,
        broken=broken,
    )


def test_a_job_done_once_passes() -> None:
    """One effect, confirmed: nothing to say, and no recovery."""
    found = judged()
    assert found.passed
    assert (found.acknowledged, found.unanswered, found.first, found.last) == (1, 0, None, None)


def test_nothing_acknowledged_is_no_pass() -> None:
    """A system that takes no job loses none, and has shown nothing."""
    assert not judged({"a": Told(REFUSED, 90.0)}, {}, {}).passed


@pytest.mark.parametrize("outcome", [REFUSED, UNKNOWN])
def test_what_was_not_acknowledged_is_not_lost(outcome: str) -> None:
    """A refused job or one of unknown outcome may be gone; it was promised to nobody."""
    found = judged({"a": Told(ACKNOWLEDGED, 90.0), "b": Told(outcome, 95.0)})
    assert found.passed
    assert found.unanswered == 1


def test_an_acknowledged_job_without_a_row_is_lost() -> None:
    """I-01: where rows are kept, a missing row is a loss, with an effect or without."""
    assert judged(traces={}).lost == ["a"]
    assert judged(effects={}, traces={}).lost == ["a"]
    assert not judged(traces={}).passed


def test_a_task_without_effect_and_message_is_lost() -> None:
    """Where nothing is kept of a task that is done, it is lost only without its effect."""
    assert judged(traces={}, keeps_rows=False).passed
    assert judged(effects={}, traces={}, keeps_rows=False).lost == ["a"]


@pytest.mark.parametrize("where", ["unacknowledged", "queued", "processing", "dead poison"])
def test_what_is_known_and_not_done_is_left_behind(where: str) -> None:
    """Without an effect it is stuck, not lost; with one it will be done again, or be repaired by a person."""
    stuck = judged(effects={}, traces={"a": where})
    assert (stuck.lost, stuck.stuck, stuck.left, stuck.passed) == ([], ["a"], ["a"], False)
    left = judged(traces={"a": where})
    assert (left.lost, left.stuck, left.left, left.passed) == ([], [], ["a"], False)


def test_a_job_of_unknown_outcome_must_end_too() -> None:
    """I-13: a row that nobody was told of may not stay open."""
    found = judged({"a": Told(ACKNOWLEDGED, 90.0), "b": Told(UNKNOWN, 95.0)}, traces={"a": DONE, "b": "accepted"})
    assert (found.stuck, found.left, found.passed) == ([], ["b"], False)


def test_a_second_effect_must_have_been_told() -> None:
    """Promise 3: every run but the first to begin is told that an earlier one may have acted."""
    assert judged(effects={"a": [effect(91.0), effect(101.0, told=True)]}).passed
    untold = judged(effects={"a": [effect(91.0), effect(101.0, told=True), effect(102.0)]})
    assert (untold.doubled, untold.doubled_told, untold.passed) == (["a"], [], False)


def test_the_order_is_that_in_which_runs_began() -> None:
    """A first run whose effect comes last, because its process was slow to die, could not be told."""
    slow = effect(102.0, began=90.0)
    found = judged(effects={"a": [effect(101.0, told=True, began=100.5), slow]})
    assert (found.doubled, found.doubled_told) == ([], ["a"])


def test_what_the_ledger_does_not_bear_out_fails() -> None:
    """Promise 4: confirmed by a reference that the world did not give."""
    assert not judged(broken=("a",)).passed


def test_recovery_counts_jobs_acknowledged_before_the_stroke() -> None:
    """First: of a run begun after the stroke. Last: of any such job. A job handed in later says nothing of recovery."""
    told = {"a": Told(ACKNOWLEDGED, 90.0), "b": Told(ACKNOWLEDGED, 99.0), "c": Told(ACKNOWLEDGED, 101.0)}
    effects = {
        "a": [effect(100.5, began=99.5), effect(117.0, told=True, began=116.0)],
        "b": [effect(104.0, began=103.0)],
        "c": [effect(130.0)],
    }
    found = judged(told, effects, dict.fromkeys(told, DONE))
    assert found.passed
    assert (found.first, found.last) == (4.0, 17.0)
