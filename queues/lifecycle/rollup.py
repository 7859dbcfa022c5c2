"""Fold deltas into rollups: whoever deletes a delta adds it, in one statement, so any number of folders is exact."""

from django.db import transaction

from queues.lifecycle.sql import execute, transition
from queues.states import REASON_CODES

_COUNTS = (
    "ready", "in_window", "excluded", "ended", "accepted", "duplicates", "confirmed", "late", "dead", "expired",
    "cancelled", "replayed", "runs", "retries", "failed", "lost", "late_evidence", "contradictions", "superseded",
    "blind_attempts", "second_references", "confirmed_after_rejection",
)  # fmt: skip
_SUMS = ", ".join(f"coalesce(sum(n) FILTER (WHERE measure = '{c}' AND bucket < 0), 0) AS {c}" for c in _COUNTS)
_ADDS = ", ".join(f"{c} = r.{c} + excluded.{c}" for c in _COUNTS)
_CALLS = {"ok": "ok", "failed": "failed", "slow": "slow", "trials_ok": "trial_ok", "trials_failed": "trial_failed"}
"""Columns of DependencyCalls, and the measures `called.…` that they are sums of."""
_REASON = (
    "CASE split_part(measure, '.', 2) "
    + " ".join(f"WHEN '{code}' THEN '{reason}'" for reason, code in REASON_CODES.items())
    + " END"
)

FAILURES_MOST = 1_000
"""Failures of one type that are told apart. Beyond them all are counted as one for each reason: a message that is
another one in each job must not make a group for each."""
OTHERS = "*"
"""The fingerprint of that one; no job has it."""

# Complete is a fold that took all that its snapshot shows: not what another folder has, whose work is not committed.
# The time of the last complete one is written every few seconds while nothing happens: pages and metrics judge windows
# up to then, so that a scheduler that stands still makes no job late.
# Of the steps of a WITH the planner expects one row, and joins them in a nested loop: with 20,000 deaths that all
# differ the fold ran into its time limit, and the numbers of everything stood. A full join is never one, and finds the
# same.
FOLD = f"""
WITH taken AS MATERIALIZED (
  DELETE FROM queues_outcomedelta WHERE id = ANY(ARRAY(
    SELECT id FROM queues_outcomedelta ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
  RETURNING at, type, tier, measure, bucket, n, window_seconds
), timed AS MATERIALIZED (
  SELECT g.grain, CASE g.grain WHEN 'total' THEN to_timestamp(0) ELSE date_trunc(g.grain, t.at) END AS at,
    type, tier, measure, bucket, n, window_seconds
  FROM taken t CROSS JOIN (VALUES ('minute'), ('hour'), ('day'), ('total')) AS g (grain)
  WHERE measure NOT LIKE 'open.%%' AND measure NOT LIKE 'died.%%' AND measure NOT LIKE 'resolved.%%'
    AND measure NOT LIKE 'called.%%'
), called AS (
  INSERT INTO queues_dependencycalls AS r (dependency, at, {", ".join(_CALLS)})
  SELECT c.dependency, t.at, {
    ", ".join(f"coalesce(sum(t.n) FILTER (WHERE t.measure = 'called.{m}'), 0)" for m in _CALLS.values())
}
  FROM taken t JOIN queues_jobtype c ON c.name = t.type
  WHERE t.measure LIKE 'called.%%' AND c.dependency <> '' GROUP BY 1, 2 ORDER BY 1, 2
  ON CONFLICT (dependency, at) DO UPDATE SET {", ".join(f"{c} = r.{c} + excluded.{c}" for c in _CALLS)}
), failed AS (
  SELECT type, {_REASON} AS reason, split_part(measure, '.', 3) AS fingerprint, date_trunc('minute', at) AS minute,
    max(tier) AS tier, min(at) FILTER (WHERE measure LIKE 'died.%%') AS first_at,
    max(at) FILTER (WHERE measure LIKE 'died.%%') AS last_at,
    coalesce(sum(n) FILTER (WHERE measure LIKE 'died.%%'), 0) AS died,
    coalesce(sum(n) FILTER (WHERE measure LIKE 'resolved.%%'), 0) AS resolved, max(at) AS at
  FROM taken WHERE measure LIKE 'died.%%' OR measure LIKE 'resolved.%%' GROUP BY 1, 2, 3, 4
), unknown AS MATERIALIZED (
  SELECT d.type, d.reason, d.fingerprint, sum(d.died) > 0 AS new,
    row_number() OVER (PARTITION BY d.type ORDER BY sum(d.died) > 0 DESC, min(d.at), d.reason, d.fingerprint) AS place
  FROM failed d WHERE NOT EXISTS (SELECT FROM queues_failurecount c
    WHERE c.type = d.type AND c.reason = d.reason AND c.fingerprint = d.fingerprint)
  GROUP BY 1, 2, 3
), room AS MATERIALIZED (
  SELECT u.type, %(failures)s - (SELECT count(*) FROM (
    SELECT FROM queues_failurecount c WHERE c.type = u.type LIMIT %(failures)s) AS n) AS n
  FROM (SELECT DISTINCT type FROM unknown) AS u
), others AS MATERIALIZED (
  SELECT u.type, u.reason, u.fingerprint FROM unknown u JOIN room r USING (type)
  WHERE u.fingerprint <> '' AND CASE WHEN u.new THEN u.place > r.n ELSE EXISTS (SELECT FROM queues_failurecount c
    WHERE c.type = u.type AND c.reason = u.reason AND c.fingerprint = '{OTHERS}') END
), placed AS MATERIALIZED (
  SELECT d.type, d.reason, CASE WHEN o.type IS NULL THEN d.fingerprint ELSE '{OTHERS}' END AS fingerprint, d.minute,
    max(d.tier) AS tier, min(d.first_at) AS first_at, max(d.last_at) AS last_at, sum(d.died) AS died,
    sum(d.resolved) AS resolved, max(d.at) AS at
  FROM failed d FULL JOIN others o USING (type, reason, fingerprint) GROUP BY 1, 2, 3, 4
), failures AS (
  INSERT INTO queues_failurecount AS r (type, tier, reason, fingerprint, died, open, first_at, last_at)
  SELECT type, max(tier), reason, fingerprint, sum(died), sum(died - resolved), coalesce(min(first_at), min(at)),
    coalesce(max(last_at), min(at))
  FROM placed GROUP BY 1, 3, 4 ORDER BY 1, 3, 4
  ON CONFLICT (type, reason, fingerprint) DO UPDATE SET died = r.died + excluded.died, open = r.open + excluded.open,
    tier = CASE WHEN excluded.died > 0 THEN excluded.tier ELSE r.tier END,
    first_at = CASE WHEN excluded.died > 0 THEN least(r.first_at, excluded.first_at) ELSE r.first_at END,
    last_at = CASE WHEN excluded.died > 0 THEN greatest(r.last_at, excluded.last_at) ELSE r.last_at END
  RETURNING id, type, reason, fingerprint
), deaths AS MATERIALIZED (
  SELECT f.id, d.minute, d.died FROM placed d FULL JOIN failures f USING (type, reason, fingerprint)
  WHERE coalesce(d.died, 0) > 0
), failure_minutes AS (
  INSERT INTO queues_failureminute AS r (failure_id, at, died) SELECT id, minute, died FROM deaths ORDER BY 1, 2
  ON CONFLICT (failure_id, at) DO UPDATE SET died = r.died + excluded.died
), failure_hours AS (
  INSERT INTO queues_failurehour AS r (failure_id, at, died)
  SELECT id, date_trunc('hour', minute), sum(died) FROM deaths GROUP BY 1, 2 ORDER BY 1, 2
  ON CONFLICT (failure_id, at) DO UPDATE SET died = r.died + excluded.died
), states AS (
  INSERT INTO queues_statecount AS r (type, tier, state, n)
  SELECT type, tier, substr(measure, 6), sum(n) FROM taken WHERE measure LIKE 'open.%%'
  GROUP BY 1, 2, 3 HAVING sum(n) <> 0 ORDER BY 1, 2, 3
  ON CONFLICT (type, tier, state) DO UPDATE SET n = r.n + excluded.n
), counts AS (
  INSERT INTO queues_outcomerollup AS r (grain, at, type, tier, window_seconds, window_least, {", ".join(_COUNTS)})
  SELECT grain, at, type, tier, max(window_seconds), coalesce(min(nullif(window_seconds, 0)), 0), {_SUMS} FROM timed
  GROUP BY grain, at, type, tier HAVING bool_or(bucket < 0) ORDER BY grain, at, type, tier
  ON CONFLICT (grain, at, type, tier) DO UPDATE
    SET window_seconds = greatest(r.window_seconds, excluded.window_seconds),
      window_least = coalesce(least(nullif(r.window_least, 0), nullif(excluded.window_least, 0)), 0), {_ADDS}
), buckets AS (
  INSERT INTO queues_outcomebuckets AS r (grain, type, at, tier, measure, counts)
  SELECT grain, type, at, tier, measure, jsonb_object_agg(bucket, n) FROM (
    SELECT grain, coalesce(type, '') AS type, at, coalesce(tier, 0) AS tier, measure, bucket, sum(n) AS n
    FROM timed WHERE bucket >= 0
    GROUP BY grain, at, measure, bucket, GROUPING SETS ((type, tier), (tier), ())) AS sums
  GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
  ON CONFLICT (grain, type, at, tier, measure) DO UPDATE SET counts = jobs_merge_counts(r.counts, excluded.counts)
), sums AS (
  SELECT count(*) AS n, count(*) < %(limit)s AND count(*) = (
    SELECT count(*) FROM (SELECT FROM queues_outcomedelta LIMIT %(limit)s) AS seen) AS complete FROM taken
), version AS (
  UPDATE queues_boardversion v SET n = v.n + (s.n > 0)::integer, at = CASE WHEN s.n > 0 THEN jobs_clock() ELSE v.at END,
    folded_at = CASE WHEN s.complete THEN jobs_now() ELSE v.folded_at END
  FROM sums s WHERE v.id = 1
    AND (s.n > 0 OR v.folded_at NOT BETWEEN jobs_now() - interval '5 seconds' AND jobs_now())
)
SELECT n FROM sums
"""

# A bounded number at a time, and an hour later than they are read. A cohort stays until its windows have passed, since
# it is judged by its finer rollups until then; the total has the longest window that its type ever had.
FORGET = """
DELETE FROM {table} WHERE ctid = ANY(ARRAY(
  SELECT r.ctid FROM {table} r WHERE r.grain = %(grain)s
    AND at < jobs_now() - make_interval(days => %(days)s, hours => 1) {and_judged}
  LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING 1
"""
_JUDGED = """AND at < jobs_now() - make_interval(days => %(days)s, hours => 1) - make_interval(secs => (
      SELECT max(t.window_seconds) FROM queues_outcomerollup t
      WHERE t.grain = 'total' AND t.type = r.type AND t.tier = r.tier))"""
_TABLES = {"queues_outcomerollup": _JUDGED, "queues_outcomebuckets": ""}
FORGET_SUSPECTED = """
DELETE FROM queues_suspectedduplicate WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM queues_suspectedduplicate WHERE at < jobs_now() - make_interval(days => %(days)s)
  ORDER BY at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING 1
"""
FORGET_CALLS = """
DELETE FROM queues_dependencycalls WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM queues_dependencycalls
  WHERE at < jobs_now() - make_interval(days => %(days)s) ORDER BY at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING 1
"""
# What is there, against what was counted and what the fold has not taken yet, in one snapshot: so it may run beside
# folds and deaths. Only work of a release that did not count leaves a difference.
RECOUNT = f"""
WITH many AS MATERIALIZED (
  SELECT type, reason FROM queues_failurecount WHERE fingerprint = '{OTHERS}'
), seen AS (
  SELECT type, reason, left(coalesce(fingerprint, ''), 16) AS fingerprint, max(tier) AS tier, count(*) AS n,
    min(settled_at) AS first_at, max(settled_at) AS last_at
  FROM queues_job WHERE state = 'dead' AND resolution = 'open' AND NOT probe GROUP BY 1, 2, 3
), moves AS (
  SELECT type, {_REASON} AS reason, split_part(measure, '.', 3) AS fingerprint,
    sum(CASE WHEN measure LIKE 'died.%%' THEN n ELSE -n END) AS n
  FROM queues_outcomedelta WHERE measure LIKE 'died.%%' OR measure LIKE 'resolved.%%' GROUP BY 1, 2, 3
), both_of AS (
  -- As the fold places them: what has no count of its own is among the others, where there are such.
  SELECT type, reason, CASE WHEN fingerprint <> '' AND c.id IS NULL AND m.type IS NOT NULL THEN '{OTHERS}'
    ELSE fingerprint END AS fingerprint, s.tier, s.n AS there, v.n AS moved, s.first_at, s.last_at
  FROM seen s FULL JOIN moves v USING (type, reason, fingerprint)
  LEFT JOIN queues_failurecount c USING (type, reason, fingerprint) LEFT JOIN many m USING (type, reason)
), wrong AS (
  SELECT type, reason, fingerprint, coalesce(b.there, 0) - coalesce(b.moved, 0) - coalesce(c.open, 0) AS n, b.tier,
    b.first_at, b.last_at
  FROM (SELECT type, reason, fingerprint, max(tier) AS tier, sum(there) AS there, sum(moved) AS moved,
      min(first_at) AS first_at, max(last_at) AS last_at FROM both_of GROUP BY 1, 2, 3) AS b
  FULL JOIN queues_failurecount c USING (type, reason, fingerprint)
  WHERE coalesce(b.there, 0) - coalesce(b.moved, 0) <> coalesce(c.open, 0)
)
INSERT INTO queues_failurecount AS r (type, tier, reason, fingerprint, died, open, first_at, last_at)
SELECT type, coalesce(tier, 2), reason, fingerprint, greatest(n, 0), n, coalesce(first_at, jobs_now()),
  coalesce(last_at, jobs_now())
FROM wrong ORDER BY 1, 3, 4
ON CONFLICT (type, reason, fingerprint) DO UPDATE SET open = r.open + excluded.open, died = r.died + excluded.died
RETURNING 1
"""

# A failure that nobody has had for so long, and of which no dead letter is open, is forgotten with its hours. Minutes
# are kept for as long as the longest stretch of an alert rule.
FORGET_FAILURES = """
WITH gone AS (
  DELETE FROM queues_failurecount WHERE id = ANY(ARRAY(
    SELECT id FROM queues_failurecount WHERE open <= 0 AND last_at < jobs_now() - make_interval(days => %(days)s)
    ORDER BY last_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
  RETURNING id
), hours AS (
  DELETE FROM queues_failurehour WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM queues_failurehour
    WHERE at < jobs_now() - make_interval(days => %(hour_days)s) ORDER BY at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
  RETURNING 1
), minutes AS (
  DELETE FROM queues_failureminute WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM queues_failureminute
    WHERE at < jobs_now() - interval '25 hours' ORDER BY at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
  RETURNING 1
)
SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM hours) + (SELECT count(*) FROM minutes)
"""


def fold(*, limit: int = 20_000) -> int:
    """Add up to `limit` deltas to minute, hour, day and total; returns how many."""
    return int(transition("fold", FOLD, {"limit": limit, "failures": FAILURES_MOST})[0][0])


def forget_rollups(*, grain: str, days: int, limit: int) -> int:
    """Delete rollups of a grain that are older than so many days; returns how many rows went, less than twice `limit`.

    What they count stays in the coarser grains.
    """
    params = {"grain": grain, "days": days, "limit": limit}
    return sum(len(execute(FORGET.format(table=table, and_judged=judged), params)) for table, judged in _TABLES.items())


def forget_suspected(*, days: int, limit: int) -> int:
    """Delete signs of duplicate effects that are older than so many days; returns how many."""
    return len(execute(FORGET_SUSPECTED, {"days": days, "limit": limit}))


def forget_calls(*, days: int, limit: int) -> int:
    """Delete how runs went for their dependencies more than so many days ago; returns how many seconds of it."""
    return len(execute(FORGET_CALLS, {"days": days, "limit": limit}))


def recount_failures() -> int:
    """Put right how many dead letters of each failure are open; returns how many counts were wrong."""
    with transaction.atomic():
        # One at a time: two that saw the same difference would both take it away. A lock of its own: the board's
        # version is written by whoever acts, and this reads every dead letter.
        execute("SELECT pg_advisory_xact_lock(hashtext('recount_failures'))", {})
        return len(execute(RECOUNT, {}))


def forget_failures(*, days: int, hour_days: int, limit: int) -> int:
    """Delete counts of failures that have not come for `days`, hours older than `hour_days`, and minutes older than a
    day; returns how many.
    """
    return int(execute(FORGET_FAILURES, {"days": days, "hour_days": hour_days, "limit": limit})[0][0])


def touch_board() -> None:
    """Say that pages may look different now: somebody acted."""
    execute("UPDATE queues_boardversion SET n = n + 1, at = jobs_clock() WHERE id = 1", {})
