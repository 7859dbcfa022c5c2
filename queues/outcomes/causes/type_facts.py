"""Everything that the verdicts about a type rest on, and which share of its lateness each stage explains."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from queues.outcomes.causes.checks import Machine
from queues.outcomes.causes.facts import OpenJobs
from queues.outcomes.flow import Counts
from queues.outcomes.limits import Limits
from queues.outcomes.times import Stage

_OPEN_SHARE: Final = 0.1
"""A stage that holds less of the late jobs is not named."""
TIME_SHARE: Final = 0.25
"""Nor is one that took less of the time."""
MOST_OF: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Change:
    """One version of a contract. `stricter`: it promised more than the one before (shorter window, higher ratio)."""

    version: int
    at: dt.datetime
    actor: str
    words: str
    stricter: bool = False


@dataclass(frozen=True, kw_only=True)
class TypeFacts:
    """Everything that the verdicts about a type rest on.

    `total`: over the span; `bad`: since the ratio fell below its target, the whole span where it recovered.
    `waiting`: jobs that wait for a run, and `others_waiting` those of other types for the same queue, as far as folded;
    of the oldest open jobs, which `open` counts, none may be one of them. `past`: the span has ended, so
    how things stand now explains nothing. `limits`: None for a type without any.
    """

    on: Machine
    window_seconds: int
    target: float
    total: Counts
    bad: Counts
    since: dt.datetime | None
    open: OpenJobs
    stages: Sequence[Stage] = ()
    changes: Sequence[Change] = ()
    others_waiting: int = 0
    waiting: int = 0
    past: bool = False
    limits: Limits | None = None

    @property
    def broken(self) -> bool:
        """The promise was not kept in the span."""
        return self.total.ratio is not None and self.total.ratio < self.target

    @property
    def state(self) -> str:
        """What there is to explain."""
        if self.broken:
            return "late"
        if self.open.late:
            return "overdue"
        return "no_data" if self.total.ratio is None else "on_time"

    def of_open(self, *states: str) -> float:
        """Return the share of these states: of the jobs past their window, else of all that are open and ready."""
        if self.open.late:
            return sum(self.open.of(state).late for state in states) / self.open.late
        return sum(self.open.of(state).n for state in states) / self.open.ready if self.open.ready else 0.0

    def of_time(self, stage: str) -> float | None:
        """Return the share of a stage in the time of jobs that left it in the span; None without data."""
        return next((one.share for one in self.stages if one.name == stage), None)

    def explains(self, stage: str, *states: str) -> float:
        """Return how much a stage explains: of the open jobs or of the time, whichever is more."""
        return max(self.of_open(*states), (self.of_time(stage) or 0.0) if self.broken else 0.0)

    def is_cause(self, stage: str, *states: str) -> bool:
        """Tell whether a stage explains enough to be named."""
        # Of jobs that are inside their window nothing needs to be explained.
        holds = self.open.late > 0 and self.of_open(*states) >= _OPEN_SHARE
        return holds or (self.broken and (self.of_time(stage) or 0.0) >= TIME_SHARE)
