"""Where the time of a type's jobs goes, and what became of them: the lines of two cards of its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jobsboard.board.svg import share
from jobsboard.durations import duration
from queues.outcomes import Board, Counts, Percentiles, Times
from queues.states import JobState, Reason

# Stage → the state whose jobs are in it, what the page calls it.
STAGES: Final = {
    "waiting": (JobState.ACCEPTED, "Waiting for a worker"),
    "running": (JobState.PROCESSING, "Running"),
    "retrying": (JobState.RETRYING, "Waiting to retry"),
    "awaiting": (JobState.AWAITING_CONFIRMATION, "Awaiting confirmation"),
}
ENOUGH_RUNS: Final = 100


@dataclass(frozen=True, kw_only=True)
class StageLine:
    """One stage. `p95` in seconds, `late` where it alone is longer than the window; `share` of the time in all."""

    state: str
    label: str
    p95: float | None
    late: bool
    share: float | None
    now: int


@dataclass(frozen=True, kw_only=True)
class RateLine:
    """One figure: its name, its value in words, and what it is of. `bad` where it breaks a budget."""

    name: str
    value: str
    of: str
    bad: bool = False


def stage_lines(
    times: Times, board: Board, *, tier: int | None = None, name: str | None = None, window: float | None = None
) -> list[StageLine]:
    """Return the stages in the order of a job's life, of a type, a tier or all."""
    lines = []
    for stage in times.stages():
        state, label = STAGES[stage.name]
        lines.append(
            StageLine(
                state=state.value,
                label=label,
                p95=stage.p95,
                late=stage.p95 is not None and window is not None and stage.p95 > window,
                share=stage.share,
                now=board.count(state, tier=tier, name=name),
            )
        )
    return lines


def rate_lines(total: Counts, times: Times, *, retry_budget: float | None = None) -> list[RateLine]:
    """Return what became of the jobs of a range: each rate with what it is of; no data is said so."""
    dead = times.dead_by_reason()
    reasons = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in list(dead.items())[:3])
    stale = total.expired + dead.get(Reason.STALE, 0)
    pressure = total.retry_pressure
    heavy = pressure is not None and retry_budget is not None and pressure > retry_budget
    budget = f", budget {share(retry_budget)}" if retry_budget is not None else ""
    return [
        RateLine(
            name="Confirmed late", value=_of(total.late_rate), of=f"{total.late:,} of {total.confirmed:,} confirmed"
        ),
        RateLine(name="Past their window and open", value=f"{total.open_late:,}", of=f"of {total.due:,} due"),
        RateLine(
            name="Dead",
            value=_of(total.dead_rate),
            of=f"{total.dead:,} of {total.settled:,} settled" + (f": {reasons}" if reasons else ""),
        ),
        RateLine(
            name="Stale",
            value=_of(stale / total.settled if total.settled else None),
            of=f"past max age: {total.expired:,} expired, {stale - total.expired:,} dead",
        ),
        RateLine(
            name="Runs that failed",
            value=_of(total.failure_rate),
            of=f"{total.failed:,} failed, {total.lost:,} lost, of {total.runs:,}",
        ),
        RateLine(
            name="Retry pressure",
            value=_of(pressure),
            of=f"{total.retries:,} of {total.runs:,} runs{budget}",
            bad=heavy and total.runs >= ENOUGH_RUNS,
        ),
        RateLine(name="Wait for a worker", value=_typical(times.of("wait")), of="due to started"),
        RateLine(name="Run time", value=_typical(times.of("run")), of="of one body"),
    ]


def _of(value: float | None) -> str:
    return "no data" if value is None else share(value)


def _typical(found: Percentiles) -> str:
    if found.p50 is None or found.p95 is None:
        return "no data"
    return f"{duration(found.p50)}, p95 {duration(found.p95)}"


def share_words(lines: Sequence[StageLine]) -> str:
    """Say the shares in one line, for who cannot see the bar."""
    return ", ".join(f"{line.label} {share(line.share)}" for line in lines if line.share is not None)
