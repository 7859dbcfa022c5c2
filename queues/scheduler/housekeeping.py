"""Keep two weeks of job partitions ahead; forget processes that are gone, and what is older than it is kept."""

from typing import Final

from django.db import OperationalError, connection

from queues import lifecycle, probes, workers
from queues.outcomes import DAYS_KEPT, HOURS_KEPT, MINUTES_KEPT

DAYS_AHEAD: Final = 14
BATCH: Final = 5_000
KEPT: Final = {"minute": MINUTES_KEPT, "hour": HOURS_KEPT, "day": DAYS_KEPT}
SIGNS_KEPT: Final = 180
"""For so many days signs of duplicate effects are kept, also of jobs that are gone."""


def make_partitions(*, tries: int = 20) -> int:
    """Make missing partitions. The function's lock time-out is 100 ms, so that accepts never wait longer; try again."""
    for attempt in range(tries):
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT jobs_make_partitions(%s)", [DAYS_AHEAD])
                return int(cursor.fetchone()[0])
        except OperationalError:
            if attempt == tries - 1:
                raise
            connection.close()
    return 0


def forget_old() -> bool:
    """Delete a batch of what is older than it is kept; returns whether there may be more."""
    gone = [lifecycle.forget_rollups(grain=grain, days=days, limit=BATCH) for grain, days in KEPT.items()]
    gone += [lifecycle.forget_suspected(days=SIGNS_KEPT, limit=BATCH), probes.forget_old(limit=BATCH)]
    return max(gone) >= BATCH


def run_once() -> bool:
    """Do one round."""
    make_partitions()
    workers.forget_gone()
    return forget_old()
