"""What is forgotten: minutes after days, hours after months; the totals never."""

from __future__ import annotations

import pytest

from queues import lifecycle
from queues.scheduler import housekeeping
from tests.factories import fold_all, sql

pytestmark = pytest.mark.django_db


def put(measure: str, bucket: int, days: float) -> None:
    """Write a delta of so many days ago."""
    sql(
        "INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)"
        " VALUES (date_trunc('minute', jobs_now() - make_interval(hours => %s)), 'x', 2, %s, %s, 1, 0)",
        int(days * 24), measure, bucket,
    )  # fmt: skip


def kept(table: str) -> dict[str, int]:
    """Return rows by grain."""
    return dict(sql(f"SELECT grain, count(*) FROM queues_{table} GROUP BY grain"))


def test_each_grain_is_kept_as_long_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches, until nothing is left to forget."""
    for days in (1, 2, 4, 5, 99, 101, 1099, 1102):
        put("confirmed", -1, days)
        put("lag", 50, days)
    fold_all()
    monkeypatch.setattr(housekeeping, "BATCH", 1)
    rounds = 1
    while housekeeping.run_once():
        rounds += 1
    assert rounds > 3
    assert kept("outcomerollup") == {"minute": 2, "hour": 5, "day": 7, "total": 1}
    thrice = {grain: 3 * n for grain, n in kept("outcomerollup").items()}
    assert kept("outcomebuckets") == thrice, "of the type, of its tier, of all"
    assert sql("SELECT confirmed FROM queues_outcomerollup WHERE grain = 'total'") == [(8,)]


def test_signs_are_kept_for_half_a_year() -> None:
    """Also of jobs that are gone."""
    for days in (1, 179, 181):
        sql(
            "INSERT INTO queues_suspectedduplicate (type, tier, kind, job_id, fence, at, detail) VALUES"
            " ('x', 2, 'contradiction', jobs_uuid7(), 1, jobs_now() - make_interval(days => %s), '{}')",
            days,
        )
    assert lifecycle.forget_suspected(days=housekeeping.SIGNS_KEPT, limit=10) == 1
    assert lifecycle.forget_suspected(days=housekeeping.SIGNS_KEPT, limit=10) == 0
