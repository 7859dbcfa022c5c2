"""What the stage asks: how long runs take, and which types have work."""

from collections.abc import Collection, Mapping

import msgspec
from django.db import connection

from queues.states import WAITING, WAITING_PROBES

RECENT_ENOUGH = 20
_RUNS = """
SELECT type, grain, counts FROM (
  (SELECT type, grain, counts, measure FROM queues_outcomebuckets
    WHERE grain = 'minute' AND type = ANY(%(types)s::text[]) AND at > jobs_now() - interval '10 minutes')
  UNION ALL (SELECT type, grain, counts, measure FROM queues_outcomebuckets
    WHERE grain = 'hour' AND type = ANY(%(types)s::text[]) AND at > jobs_now() - interval '24 hours')) AS r
WHERE measure = 'run'
"""
_counts = msgspec.json.Decoder(dict[int, int])


def run_histograms(names: Collection[str]) -> Mapping[str, Mapping[int, int]]:
    """Return run times of types: of the last ten minutes where they have enough runs, else of the last day.

    Shape: type → bucket → count.
    """
    found: dict[tuple[str, str], dict[int, int]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_RUNS, {"types": list(names)})
        for name, grain, counts in cursor.fetchall():
            merged = found.setdefault((name, grain), {})
            for bucket, n in _counts.decode(counts).items():
                merged[bucket] = merged.get(bucket, 0) + n
    return {
        name: recent if sum(recent.values()) >= RECENT_ENOUGH else found.get((name, "hour"), recent)
        for name in {name for name, _ in found}
        for recent in [found.get((name, "minute"), {})]
    }


def waiting_pairs() -> set[tuple[int, str]]:
    """Return the (tier, type) pairs that have waiting jobs or probes, as far as folded."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT tier, type FROM queues_statecount WHERE state = ANY(%s) AND n > 0",
            [[*WAITING, WAITING_PROBES]],
        )
        return {(tier, name) for tier, name in cursor.fetchall()}
