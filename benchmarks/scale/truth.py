"""Hold the rollups against the jobs table: whatever is counted of the drawn jobs, counted again from their rows."""

from benchmarks.scale.jobs import execute
from queues.states import REASON_CODES

_LATE = "settled_at > ready_at + make_interval(secs => window_seconds)"
# Measure → (whose minute it counts in, which jobs, how much each).
_COUNTS = {
    "accepted": ("accepted_at", "true", "1"),
    "ready": ("ready_at", "true", "1"),
    "ended": ("ready_at", "settled_at IS NOT NULL", "1"),
    "in_window": ("ready_at", f"state = 'confirmed' AND NOT {_LATE}", "1"),
    "excluded": ("ready_at", f"state = 'cancelled' AND NOT {_LATE}", "1"),
    "late": ("settled_at", f"state = 'confirmed' AND {_LATE}", "1"),
    **{state: ("settled_at", f"state = '{state}'", "1") for state in ("confirmed", "dead", "expired", "cancelled")},
}
# Runs are not rows: of a job that ran more than once only the last one's times are kept.
_IN_TOTAL = {
    "runs": ("accepted_at", "true", "begun"),
    "retries": ("accepted_at", "begun > 1", "begun - 1"),
}
_REASONS = "CASE reason " + " ".join(f"WHEN '{r}' THEN {code}" for r, code in REASON_CODES.items()) + " END"
_BUCKETS = {
    "lag": ("settled_at", "state = 'confirmed'", "jobs_bucket(extract(epoch FROM settled_at - ready_at)::float8)"),
    "dead": ("settled_at", "state = 'dead'", _REASONS),
}
_SAID_COUNT = """
SELECT at, type, tier, {name}::bigint AS n FROM queues_outcomerollup WHERE grain = '{grain}' AND {name} <> 0 {bounds}
"""
_TRUE_COUNT = """
SELECT * FROM (
  SELECT {at} AS at, type, tier, sum({n})::bigint AS n FROM queues_job WHERE {which} GROUP BY 1, 2, 3) AS t
WHERE true {bounds}
"""
# Type "" stands for all types of a tier together, and with tier 0 for all of them.
_SAID_BUCKET = """
SELECT at, type, tier, c.bucket::smallint AS bucket, c.n::bigint AS n
FROM queues_outcomebuckets CROSS JOIN LATERAL jsonb_each_text(counts) AS c (bucket, n)
WHERE grain = '{grain}' AND measure = '{name}' {bounds}
"""
_TRUE_BUCKET = """
SELECT * FROM (
  SELECT {at} AS at, coalesce(type, '') AS type, coalesce(j.tier, 0)::smallint AS tier, bucket, count(*) AS n
  FROM (SELECT *, ({bucket})::smallint AS bucket FROM queues_job WHERE {which}) AS j
  GROUP BY GROUPING SETS ((1, type, j.tier, bucket), (1, j.tier, bucket), (1, bucket))) AS t
WHERE true {bounds}
"""
_SAID_STATE = "SELECT type, tier, state, n FROM queues_statecount WHERE n <> 0"
_TRUE_STATE = """
SELECT type, tier, state::text, count(*) AS n FROM queues_job
WHERE state NOT IN ('confirmed', 'expired', 'cancelled') AND (state <> 'dead' OR resolution = 'open') GROUP BY 1, 2, 3
"""


def _at(grain: str, column: str) -> str:
    return "to_timestamp(0)" if grain == "total" else f"date_trunc('{grain}', {column})"


def _differs(said: str, true: str) -> str:
    """Return SQL that counts the rows that are in one of two selections and not in the other."""
    return f"""
WITH said AS MATERIALIZED ({said}), truth AS MATERIALIZED ({true})
SELECT (SELECT count(*) FROM (TABLE said EXCEPT TABLE truth) AS a)
  + (SELECT count(*) FROM (TABLE truth EXCEPT TABLE said) AS b), (SELECT coalesce(sum(n), 0)::bigint FROM truth)
"""  # noqa: S608 (constants of this module)


def _pairs() -> list[tuple[str, str, str]]:
    """Return what is compared: a name, what the rollups say, what the jobs say."""
    found = []
    for grain in ("minute", "hour", "day", "total"):
        # Well inside what is kept of the minutes: the clock goes on while this is read.
        bounds = "AND at >= jobs_now() - interval '2 days 20 hours'" if grain == "minute" else ""
        for name, (column, which, n) in {**_COUNTS, **(_IN_TOTAL if grain == "total" else {})}.items():
            words = {"grain": grain, "name": name, "at": _at(grain, column), "which": which, "n": n, "bounds": bounds}
            found.append((f"{grain} {name}", _SAID_COUNT.format(**words), _TRUE_COUNT.format(**words)))
        for name, (column, which, bucket) in _BUCKETS.items():
            words = {"grain": grain, "name": name, "at": _at(grain, column), "which": which, "bounds": bounds}
            words["bucket"] = bucket
            found.append((f"{grain} histogram {name}", _SAID_BUCKET.format(**words), _TRUE_BUCKET.format(**words)))
    return [*found, ("states now", _SAID_STATE, _TRUE_STATE)]


def differences() -> tuple[int, list[str]]:
    """Return how many kinds of counts were compared, and those that differ, with how many rows.

    A kind of which there is nothing in thirty days is a difference as well: nothing would have been compared.
    """
    wrong = []
    pairs = _pairs()
    for name, said, true in pairs:
        rows, total = execute(_differs(said, true))[0]
        if rows or (not total and not name.startswith("minute")):
            wrong.append(f"{name}: {rows} rows differ, {total} counted in all")
    return len(pairs), wrong
