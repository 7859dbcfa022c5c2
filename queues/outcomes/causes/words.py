"""How causes write times, lengths and shares in their sentences. Pure: no database."""

import datetime as dt
from typing import Final

_STEPS: Final = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def length(seconds: float) -> str:
    """Write a length of time in at most two units: 0.4 s, 45 s, 12 min, 2 h 5 min."""
    whole = int(max(seconds, 0))
    if whole < 10:
        return f"{int(max(seconds, 0) * 10) / 10:g} s"
    for size, word, below, small in _STEPS:
        if whole >= size:
            rest = whole % size // below
            # Seconds say nothing beside many minutes.
            return f"{whole // size} {word}" + (f" {rest} {small}" if rest and (size > 60 or whole < 600) else "")
    return f"{whole} s"


def clock(at: dt.datetime, now: dt.datetime) -> str:
    """Write a time of day in UTC, with its date where that is another day."""
    utc = at.astimezone(dt.UTC)
    day = "" if utc.date() == now.astimezone(dt.UTC).date() else f"{utc:%Y-%m-%d} "
    return f"{day}{utc:%H:%M:%S} UTC"


def when(at: dt.datetime, now: dt.datetime) -> str:
    """Write a time and how far away it is: 14:05:00 UTC (in 12 min)."""
    seconds = (at - now).total_seconds()
    away = f"in {length(seconds)}" if seconds > 0 else f"{length(-seconds)} ago"
    return f"{clock(at, now)} ({away})"


def percent(share: float) -> str:
    """Write a share, cut off and never rounded up: 71.8%."""
    return f"{int(share * 1000 + 1e-9) / 10:g}%"


def per_minute(rate: float) -> str:
    """Write how many a minute: 0.4, 38, 1,200."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}".removesuffix(".0")


def jobs(n: int, *, most: int = 0, what: str = "job") -> str:
    """Write a number of jobs; of a count that ended at `most`, that it is that or more."""
    if most and n >= most:
        return f"{most:,} or more {what}s"
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def have(n: int, one: str = "waits", many: str = "wait") -> str:
    """Return the verb for a number."""
    return one if n == 1 else many
