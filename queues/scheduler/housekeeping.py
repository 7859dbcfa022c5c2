"""Keep two weeks of job partitions ahead; forget processes that are gone, and what is older than it is kept."""

import logging
from typing import Final

from django.db import OperationalError, connection

from queues import breaker_actions, lifecycle, outside, probes, schedule_ticks, workers
from queues.outcomes import DAYS_KEPT, HOURS_KEPT, MINUTES_KEPT

log = logging.getLogger(__name__)

DAYS_AHEAD: Final = 14
BATCH: Final = 5_000
KEPT: Final = {"minute": MINUTES_KEPT, "hour": HOURS_KEPT, "day": DAYS_KEPT}
SIGNS_KEPT: Final = 180
"""For so many days signs of duplicate effects are kept, also of jobs that are gone."""
FAILURES_KEPT: Final = 90
"""A failure that comes back after so many days without one, and without an open dead letter, is a new one."""
FAILURE_HOURS_KEPT: Final = 8
CALLS_KEPT: Final = 1
FLOW_KEPT_HOURS: Final = 1
"""A group that rested for so long, and whose rate has given all its tokens back, needs no row."""
LANES_KEPT_HOURS: Final = 48
"""A throttle, and the longest wait that a debounce makes, look no further back."""
FLIPS_KEPT: Final = 90
TICKS_KEPT: Final = 30


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
    gone += [lifecycle.forget_failures(days=FAILURES_KEPT, hour_days=FAILURE_HOURS_KEPT, limit=BATCH)]
    gone += [outside.forget_old(limit=BATCH)]
    gone += [lifecycle.forget_flow(hours=FLOW_KEPT_HOURS, limit=BATCH)]
    gone += [lifecycle.forget_lanes(hours=LANES_KEPT_HOURS, limit=BATCH)]
    gone += [lifecycle.forget_calls(days=CALLS_KEPT, limit=BATCH)]
    gone += [breaker_actions.forget_flips(days=FLIPS_KEPT, limit=BATCH)]
    gone += [schedule_ticks.forget_old(days=TICKS_KEPT, limit=BATCH)]
    return max(gone) >= BATCH


def run_once() -> bool:
    """Do one round."""
    make_partitions()
    if wrong := lifecycle.recount_failures():
        log.warning("%d counts of dead letters were not right: workers of an older release ended jobs", wrong)
    workers.forget_gone()
    return forget_old()
