"""What an explanation is made of: causes with their verdicts and evidence, and one next step for each. Pure."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final


class Verdict(StrEnum):
    """What is said of a possible cause. Without evidence it is unknown, never ruled out."""

    CAUSE = "cause"
    UNKNOWN = "unknown"
    NOT_A_CAUSE = "not_a_cause"


@dataclass(frozen=True, kw_only=True)
class Next:
    """Where to go from here.

    Shape: kind is jobs, job, job_type, contract, dead_letter, dead_letters, dependency, resume,
    undefer or overview.
    """

    kind: str
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One possible cause. `sentence` says it, `detail` says in words what it rests on, `evidence` the same as data.

    `share`: of the open jobs past their window, or of the time that jobs spent, whichever it explains more of.
    `rank`: causes of a lower rank come first, whatever their shares.
    """

    code: str
    verdict: Verdict
    sentence: str
    detail: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    since: dt.datetime | None = None
    share: float | None = None
    next: Next | None = None
    rank: int = 2


@dataclass(frozen=True, kw_only=True)
class Why:
    """An explanation. Shape: `state` is late, overdue, on_time or no_data of a type, the state of a job.

    `as_of`: rollups hold what happened before; numbers of recent runs rest on them.
    """

    state: str
    sentence: str
    causes: Sequence[Cause] = ()
    as_of: dt.datetime | None = None

    @property
    def first(self) -> Cause | None:
        """The cause that explains most; None when none was found."""
        return next((one for one in self.causes if one.verdict == Verdict.CAUSE), None)


STOP, PROVIDER, SHARE, CHANGE = 0, 1, 2, 3
"""Ranks: what stops jobs altogether, a provider that fails, whatever holds the larger share, what changed."""

_ORDER: Final = list(Verdict)


def ranked(causes: Iterable[Cause]) -> list[Cause]:
    """Return causes first and ruled out ones last; among causes by rank, then by what each explains."""
    return sorted(
        causes,
        key=lambda c: (_ORDER.index(c.verdict), (c.rank, -(c.share or 0.0)) if c.verdict == Verdict.CAUSE else (0, 0)),
    )
