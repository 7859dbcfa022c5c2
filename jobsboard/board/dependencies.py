"""Circuit breakers: which dependency is down, since when and why, what waits for it, when is it tried again?

Not here: holding one open or closed (`dependency_acting`), judging (`queues.breakers`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_safe

from jobsboard.board import breaker_strip, shell
from jobsboard.board.changes import url_of_dependency
from jobsboard.board.params import Params
from jobsboard.board.refresh import answer, live
from jobsboard.board.verdict import Concern
from jobsboard.durations import duration
from jobsboard.roles import can, require
from queues import breakers
from queues.breakers import Standing
from queues.models import Breaker
from queues.outcomes import Board
from queues.outcomes.breakers import histories, newest_flips
from queues.redaction import redact_text
from queues.states import WAITING

DAY: Final = timedelta(hours=24)
FLIPS_SHOWN: Final = 20
TYPES_WIDTH: Final = 34
"""Characters."""
# State → the state whose look it has, its word, its icon.
LOOKS: Final[Mapping[str, tuple[str, str, str]]] = {
    Breaker.OPEN: ("dead", "Open", "breaker"),
    Breaker.HALF_OPEN: ("retrying", "Half open", "plug"),
    Breaker.CLOSED: ("confirmed", "Closed", "plug"),
}
_ORDER: Final = (Breaker.OPEN.value, Breaker.HALF_OPEN.value, Breaker.CLOSED.value)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One dependency. `held`: jobs that wait while it is not closed, of so many types; `history`: oldest first."""

    now: Standing
    held: int
    held_types: int
    since: datetime
    until: datetime
    history: Sequence[str] = ()

    @property
    def look(self) -> tuple[str, str, str]:
        """The state whose look it has, its word, its icon."""
        return LOOKS[self.now.state]

    @property
    def why(self) -> str:
        """Why it is as it is."""
        return redact_text(self.now.why)

    @property
    def errors(self) -> str:
        """What was seen in its window."""
        one = self.now
        if one.ratio is None:
            return ""
        slow = f", {one.slow:,} slow" if one.slow else ""
        # Cut off, never rounded up.
        return f"{int(one.ratio * 1000) / 10:g}% of {one.calls:,}{slow}"

    @property
    def limit(self) -> str:
        """From what on it opens."""
        one = self.now
        return f"limit {one.error_ratio * 100:g}% of {one.minimum_calls:,} in {duration(one.window_seconds)}"

    @property
    def over(self) -> bool:
        """What was seen is at its limit."""
        one = self.now
        return one.ratio is not None and one.calls >= one.minimum_calls and one.ratio >= one.error_ratio

    @property
    def next(self) -> str:
        """What follows where nobody holds it, unless a time says it."""
        one = self.now
        if one.state == Breaker.HALF_OPEN:
            return f"{max(one.trials_left, 0)} of {one.trial_jobs} left"
        return "" if one.state == Breaker.OPEN else "–"

    @property
    def types(self) -> Sequence[str]:
        """The first types that name it, as many as a line holds."""
        shown = list(itertools.accumulate(len(name) + 2 for name in self.now.types))
        return self.now.types[: max(sum(length <= TYPES_WIDTH for length in shown), 1)]

    @property
    def more(self) -> int:
        """How many types are not named."""
        return len(self.now.types) - len(self.types)

    @property
    def label(self) -> str:
        """Its history in words."""
        return f"{self.now.name}: {breaker_strip.words(self.history)}"


@require("view")
@require_safe
@live
def dependencies(request: HttpRequest) -> HttpResponse:
    """Show all breakers."""
    return dependencies_page(request)


def dependencies_page(request: HttpRequest, *, toast: Mapping[str, str] | None = None) -> HttpResponse:
    """Render the page: three statements beside those of every page."""
    board = shell.board_of(request)
    notes = Params(request).notes
    lines = lines_of(board, since=board.now - DAY)
    context: dict[str, Any] = {
        "title": "Circuit breakers",
        "heading": heading(lines),
        "lines": lines,
        "flips": newest_flips(since=board.now - DAY, until=board.now, limit=FLIPS_SHOWN) if lines else [],
        "looks": LOOKS,
        "notes": notes,
        "may_act": can(request.user, "act"),
        "contracts": reverse("admin:queues_jobtype_changelist") if can(request.user, "edit_contract") else "",
        "toast": toast,
    }
    return answer(request, "board/dependencies.html", context)


def lines_of(board: Board, *, since: datetime | None = None) -> list[Line]:
    """Return all dependencies, open ones first; with their histories where `since` says from when."""
    found = breakers.standings()
    begun = since or board.now
    past = histories(since=begun, now=board.now, parts=breaker_strip.PARTS) if since and found else {}
    waiting = {
        one.name: [n for name in one.types if (n := board.count(*WAITING, name=name))]
        for one in found
        if one.state != Breaker.CLOSED
    }
    lines = [
        Line(
            now=one,
            held=sum(waiting.get(one.name, ())),
            held_types=len(waiting.get(one.name, ())),
            since=begun,
            until=board.now,
            history=past.get(one.name) or [one.state] * breaker_strip.PARTS,
        )
        for one in found
    ]
    return sorted(lines, key=lambda line: (_ORDER.index(line.now.state), -line.held, line.now.name))


def heading(lines: Sequence[Line]) -> str:
    """Answer the page's question in one sentence."""
    if not lines:
        return "No job type names a dependency"
    opened = [line.now.name for line in lines if line.now.state == Breaker.OPEN]
    trying = [line.now.name for line in lines if line.now.state == Breaker.HALF_OPEN]
    all_of = f"{len(lines)} circuit breaker{'' if len(lines) == 1 else 's'}"
    if opened:
        return f"{len(opened)} of {all_of} {'is' if len(opened) == 1 else 'are'} open: {_listed(opened)}"
    if trying:
        return f"{len(trying)} of {all_of} {'tries' if len(trying) == 1 else 'try'} again: {_listed(trying)}"
    return "The circuit breaker is closed" if len(lines) == 1 else f"All {all_of} are closed"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def concerns(lines: Iterable[Line]) -> list[Concern]:
    """Return what the overview says of breakers that hold jobs back."""
    return [_concern(line) for line in lines if line.now.state != Breaker.CLOSED]


def _concern(line: Line) -> Concern:
    one = line.now
    waits = f"{line.held:,} job{' waits' if line.held == 1 else 's wait'}" if line.held else "no job waits"
    if line.held_types > 1:
        waits = f"{line.held:,} jobs of {line.held_types} types wait"
    state = "is held open" if one.forced else "is open" if one.state == Breaker.OPEN else "is half open"
    return Concern(
        css="dead" if one.state == Breaker.OPEN else "retrying",
        text=f"The breaker of {one.name} {state}: {waits}",
        evidence=line.why,
        since=one.since,
        url=url_of_dependency(one.name),
        action="Open breaker",
    )
