"""Judges one lane of one cell from what producers were told, what the ledger saw and what the system still knows.

Pure: no clock, no server.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.cells.lanes import ACKNOWLEDGED, Told

DONE: Final = "confirmed"
Effects = Mapping[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Verdict:
    """Keys by what became of them, and seconds from the last stroke of the fault."""

    acknowledged: int
    unanswered: int
    """Refused, or of unknown outcome: not promised to anybody, so never counted as lost."""
    lost: list[str]
    """Acknowledged, and no trace is left: no row, or no effect and no message."""
    stuck: list[str]
    """Acknowledged and without its effect at the end of the watch; the system still knows the job."""
    left: list[str]
    """What the system still has to end, or has ended otherwise than done; stuck ones are among them."""
    doubled_told: list[str]
    doubled: list[str]
    """A second effect by a run that was not told of the first."""
    broken: list[str]
    """What the system says and the ledger does not bear out."""
    first: float | None
    """To the first effect of an affected job by a run that began after the stroke."""
    last: float | None
    """To the last effect of an affected job that came back. Affected: acknowledged before, with an effect after."""

    @property
    def passed(self) -> bool:
        """Whether there were jobs, and each was done once, or again with its run told so, and nothing was left."""
        return bool(self.acknowledged) and not (self.lost or self.stuck or self.left or self.doubled or self.broken)


def judge(
    told: Mapping[str, Told],
    effects: Effects,
    traces: Mapping[str, str],
    *,
    stroke_at: float,
    keeps_rows: bool,
    broken: Iterable[str] = (),
) -> Verdict:
    """Compare the histories."""
    acknowledged = [key for key, one in told.items() if one.outcome == ACKNOWLEDGED]
    acted = {key for key, mine in effects.items() if mine}
    twice = [key for key, mine in effects.items() if len(mine) > 1]
    untold = [key for key in twice if not all(one["told"] for one in in_order(effects[key])[1:])]
    affected = [key for key in acknowledged if told[key].at < stroke_at and key in acted]
    after = [one for key in affected for one in effects[key] if one["at"] > stroke_at]
    return Verdict(
        acknowledged=len(acknowledged),
        unanswered=len(told) - len(acknowledged),
        lost=[key for key in acknowledged if key not in traces and (keeps_rows or key not in acted)],
        stuck=[key for key in acknowledged if key in traces and key not in acted],
        left=[key for key, where in traces.items() if where != DONE],
        doubled_told=[key for key in twice if key not in untold],
        doubled=untold,
        broken=list(broken),
        first=min((one["at"] - stroke_at for one in after if one["began"] > stroke_at), default=None),
        last=max((one["at"] - stroke_at for one in after), default=None),
    )


def in_order(mine: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order effects of a key by when their runs began: a later run can be told of an earlier one, not the reverse."""
    return sorted(mine, key=lambda one: one["began"])
