"""Times in requests and answers: RFC 3339, in UTC. Not here: clocks; the database's decides."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from jobsboard.api.problems import Problem

HORIZON: Final = timedelta(days=366)
"""How far ahead a job may be put off."""

_RFC3339: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def write(at: datetime | None) -> str | None:
    """Write a time as the API shows it."""
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def read(text: Any, *, pointer: str) -> datetime:
    """Read a time with its zone. Raises: Problem `invalid_datetime`, also for a leap second and the year 10000."""
    found = _RFC3339.fullmatch(text) if isinstance(text, str) else None
    if found:
        zone = "+00:00" if found[4] in "Zz" else found[4]
        try:
            # PostgreSQL keeps microseconds.
            at = datetime.fromisoformat(f"{found[1]}T{found[2]}.{(found[3] or '0')[:6]:0<6}{zone}")
            return at.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise Problem("invalid_datetime", "A time is written like 2026-01-31T09:30:00Z, with its zone.", pointer=pointer)


def read_run_at(text: Any, *, pointer: str) -> datetime:
    """Read when a job may run; the past means now. Raises: Problem `invalid_datetime`."""
    at = read(text, pointer=pointer)
    # A bound of days, not a decision about a job: the process's clock will do.
    if at > datetime.now(UTC) + HORIZON:
        raise Problem("invalid_datetime", f"A job may be put off by {HORIZON.days} days at most.", pointer=pointer)
    return at
