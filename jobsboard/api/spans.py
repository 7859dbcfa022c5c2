"""The range of time that a call asks for: `since` and `until`, grown to whole minutes or to what is kept."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from jobsboard.api import times
from jobsboard.api.problems import Problem
from queues.outcomes import DAYS_KEPT, Board, Span

OLDEST: Final = timedelta(days=DAYS_KEPT)


def read(since: str | None, until: str | None, *, board: Board, hours: int) -> Span:
    """Return the range that was asked for; so many hours up to now where it says nothing. Raises: Problem 422."""
    end = board.now if until is None else times.read(until, pointer="until")
    try:
        begin = end - timedelta(hours=hours) if since is None else times.read(since, pointer="since")
        # What is older was forgotten; and no sum of times overflows.
        return Span.between(max(begin, board.now - OLDEST), end, now=board.now, folded_at=board.folded_at)
    except (ValueError, OverflowError) as error:
        raise Problem("invalid_query", f"Not a range: {error}.", pointer="since") from None
