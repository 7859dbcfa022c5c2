"""Dead letters for tests, made through the public calls, so that every count is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from queues import lifecycle
from tests.factories import accept, claim, failed, sql


def die(
    n: int = 1, *, kind: str = "test.job", fingerprint: str = "f" * 16, reason: str = "permanent_error",
    error: str = "Boom", message: str = "boom", **overrides: Any,
) -> list[UUID]:  # fmt: skip
    """Accept jobs, run them and let them die of one failure."""
    ids = accept(n, kind=kind, **overrides)
    kill(ids, fingerprint=fingerprint, reason=reason, error=error, message=message)
    return ids


def kill(
    ids: Sequence[UUID], *, fingerprint: str = "f" * 16, reason: str = "permanent_error", error: str = "Boom",
    message: str = "boom",
) -> None:  # fmt: skip
    """Run waiting jobs and let them die."""
    failure = {"error_class": error, "message": message, "traceback": ""}
    ends = [failed(run, reason=reason, fingerprint=fingerprint, failure=failure) for run in claim(list(ids))]
    lifecycle.settle(ends)


def fold() -> None:
    """Add up all counts that were written."""
    while lifecycle.fold():
        pass


def failures() -> dict[tuple[str, str, str], tuple[int, int]]:
    """Return the folded counts: (type, reason, fingerprint) → (died, open)."""
    rows = sql("SELECT type, reason, fingerprint, died, open FROM queues_failurecount")
    return {(name, reason, fingerprint): (died, left) for name, reason, fingerprint, died, left in rows}


def truth() -> dict[tuple[str, str, str], int]:
    """Return how many dead letters of each failure are open, by counting the jobs."""
    rows = sql(
        "SELECT type, reason, left(coalesce(fingerprint, ''), 16), count(*) FROM queues_job"
        " WHERE state = 'dead' AND resolution = 'open' AND NOT probe GROUP BY 1, 2, 3"
    )
    return {(name, reason, fingerprint): n for name, reason, fingerprint, n in rows}
