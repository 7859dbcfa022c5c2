"""What the stage asks: how long runs take, and which types have work."""

from collections.abc import Mapping

from django.db import connection

RECENT_ENOUGH = 20
_RUNS = """
SELECT type, grain, bucket, sum(n) FROM queues_outcomehistogram
WHERE measure = 'run' AND ((grain = 'minute' AND at > jobs_now() - interval '10 minutes')
  OR (grain = 'hour' AND at > jobs_now() - interval '24 hours')) GROUP BY type, grain, bucket
"""


def run_histograms() -> Mapping[str, Mapping[int, int]]:
    """Return run times by type: of the last ten minutes where they have enough runs, else of the last day.

    Shape: type → bucket → count.
    """
    found: dict[tuple[str, str], dict[int, int]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_RUNS)
        for name, grain, bucket, n in cursor.fetchall():
            found.setdefault((name, grain), {})[bucket] = int(n)
    return {
        name: recent if sum(recent.values()) >= RECENT_ENOUGH else found.get((name, "hour"), recent)
        for name in {name for name, _ in found}
        for recent in [found.get((name, "minute"), {})]
    }


def waiting_pairs() -> set[tuple[int, str]]:
    """Return the (tier, type) pairs that have waiting jobs, as far as folded."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tier, type FROM queues_statecount WHERE state IN ('accepted', 'retrying') AND n > 0")
        return {(tier, name) for tier, name in cursor.fetchall()}
