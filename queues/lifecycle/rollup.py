"""Fold deltas into rollups: whoever deletes a delta adds it, in one statement, so any number of folders is exact."""

from queues.lifecycle.sql import execute, transition

_COUNTS = (
    "ready", "in_window", "excluded", "accepted", "duplicates", "confirmed", "dead", "expired", "cancelled",
    "replayed", "runs", "failed", "lost", "late_evidence", "contradictions", "superseded",
)  # fmt: skip
_SUMS = ", ".join(f"coalesce(sum(n) FILTER (WHERE measure = '{c}' AND bucket < 0), 0) AS {c}" for c in _COUNTS)
_ADDS = ", ".join(f"{c} = r.{c} + excluded.{c}" for c in _COUNTS)

FOLD = f"""
WITH taken AS MATERIALIZED (
  DELETE FROM queues_outcomedelta WHERE id = ANY(ARRAY(
    SELECT id FROM queues_outcomedelta ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
  RETURNING at, type, tier, measure, bucket, n, window_seconds
), timed AS MATERIALIZED (
  SELECT g.grain, date_trunc(g.grain, t.at) AS at, type, tier, measure, bucket, n, window_seconds
  FROM taken t CROSS JOIN (VALUES ('minute'), ('hour'), ('day')) AS g (grain) WHERE measure NOT LIKE 'open.%%'
), states AS (
  INSERT INTO queues_statecount AS r (type, tier, state, n)
  SELECT type, tier, substr(measure, 6), sum(n) FROM taken WHERE measure LIKE 'open.%%'
  GROUP BY 1, 2, 3 HAVING sum(n) <> 0 ORDER BY 1, 2, 3
  ON CONFLICT (type, tier, state) DO UPDATE SET n = r.n + excluded.n
), counts AS (
  INSERT INTO queues_outcomerollup AS r (grain, at, type, tier, window_seconds, {", ".join(_COUNTS)})
  SELECT grain, at, type, tier, max(window_seconds), {_SUMS} FROM timed
  GROUP BY grain, at, type, tier HAVING bool_or(bucket < 0) ORDER BY grain, at, type, tier
  ON CONFLICT (grain, at, type, tier) DO UPDATE
    SET window_seconds = greatest(r.window_seconds, excluded.window_seconds), {_ADDS}
), histograms AS (
  INSERT INTO queues_outcomehistogram AS r (grain, at, type, tier, measure, bucket, n)
  SELECT grain, at, type, tier, measure, bucket, sum(n) FROM timed WHERE bucket >= 0
  GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6
  ON CONFLICT (grain, at, type, tier, measure, bucket) DO UPDATE SET n = r.n + excluded.n
), version AS (
  UPDATE queues_boardversion SET n = n + 1, at = jobs_clock() WHERE id = 1 AND EXISTS (SELECT 1 FROM taken)
)
SELECT count(*) FROM taken
"""


def fold(*, limit: int = 20_000) -> int:
    """Add up to `limit` deltas to minute, hour and day; returns how many."""
    return int(transition("fold", FOLD, {"limit": limit})[0][0])


def touch_board() -> None:
    """Say that pages may look different now: somebody acted."""
    execute("UPDATE queues_boardversion SET n = n + 1, at = jobs_clock() WHERE id = 1", {})
