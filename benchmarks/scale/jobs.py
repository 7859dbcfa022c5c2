"""Draw jobs of thirty days and their runs, and insert them as rows. Not here: what they count (`rollups`).

Everything is drawn in the database, in temporary tables: `scale_kind`, `scale_job` (a row for each job), `scale_run`
(a row for each run). Times are offsets from the moment that a job becomes ready, in seconds, until they are anchored.
"""

import datetime as dt
from typing import Any

from django.db import connection

from queues import contracts
from queues.models import JobType

DAYS = 30
KINDS = 20
DAY = 86_400
WINDOWS = {1: 60, 2: 900, 3: 21_600}
LONG_WINDOW = 2 * DAY
MAX_AGES = {1: 6 * 3600, 2: DAY, 3: 7 * DAY}
WAITS = {1: 0.2, 2: 2.0, 3: 40.0}
LIMIT = 5

# Lognormal; three draws in a hundred are multiplied by a Pareto variable, as long tails are in life.
DRAW = """
CREATE OR REPLACE FUNCTION pg_temp.scale_draw(median float8, sigma float8) RETURNS float8 LANGUAGE sql VOLATILE AS $$
  SELECT median * exp(sigma * sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random()))
    * CASE WHEN random() < 0.03 THEN power(1 - random(), -1 / 1.3) ELSE 1 END
$$;
"""

# One in a hundred is open. How a job fares and how often it ran; a type with a callback awaits its proof.
FATES = """
CREATE TEMP TABLE scale_fate AS
WITH drawn AS MATERIALIZED (
  SELECT n, random() AS kind, random() AS fate, random() AS fails, random() AS why, random() AS later,
    n %% 100 = 0 AS open, n / 100 * 37 %% 100 AS slot
  FROM generate_series(1, %(jobs)s) AS n
)
SELECT d.n, k.name, k.tier, k.window_seconds, k.max_age, k.wait, k.awaits,
  CASE WHEN d.open THEN CASE WHEN slot < 35 THEN 'waiting' WHEN slot < 55 THEN 'future' WHEN slot < 57 THEN 'processing'
      WHEN slot < 80 OR NOT k.awaits THEN 'retrying' ELSE 'awaiting' END
    WHEN fate < 0.966 THEN 'confirmed' WHEN fate < 0.984 THEN 'dead' WHEN fate < 0.992 THEN 'expired'
    ELSE 'cancelled' END AS fate,
  CASE WHEN fails < 0.92 THEN 0 WHEN fails < 0.98 THEN 1 WHEN fails < 0.995 THEN 2 ELSE 3 END AS fails,
  CASE WHEN k.awaits AND why < 0.5 THEN (ARRAY['unconfirmed', 'rejected'])[1 + (why * 4)::integer %% 2]
    ELSE (ARRAY['attempts_exhausted', 'permanent_error', 'payload_invalid', 'no_evidence', 'time_limit', 'no_handler'])
      [1 + (why * 60)::integer %% 6] END AS reason,
  CASE WHEN later < 0.05 THEN least(pg_temp.scale_draw(3600, 1), 86400) ELSE 0 END AS delay
FROM drawn d JOIN scale_kind k ON d.kind >= k.low AND d.kind < k.high
"""
RUNS = """
CREATE TEMP TABLE scale_run AS
WITH begun AS (
  SELECT n, wait, CASE WHEN fate IN ('waiting', 'future', 'expired', 'cancelled') THEN 0
    WHEN fate = 'dead' AND reason = 'attempts_exhausted' THEN {limit} ELSE 1 + fails END AS begun
  FROM scale_fate
), drawn AS MATERIALIZED (
  SELECT b.n, b.begun, k, least(pg_temp.scale_draw(b.wait, 1.5), 86400) AS wait,
    least(pg_temp.scale_draw(0.8, 1.2), 900) AS seconds, least(10 * 3 ^ k * (0.5 + random()), 7200) AS gap,
    k < b.begun AND random() < 0.15 AS lost
  FROM begun b CROSS JOIN LATERAL generate_series(1, b.begun) AS k
)
SELECT n, k, begun, k = begun AS last, seconds, lost, coalesce(lag(lost) OVER ordered, false) AS blind,
  sum(wait + seconds + gap) OVER ordered - wait - seconds - gap AS due,
  sum(wait + seconds + gap) OVER ordered - seconds - gap AS started,
  sum(wait + seconds + gap) OVER ordered - gap AS finished
FROM drawn WINDOW ordered AS (PARTITION BY n ORDER BY k)
"""
# `ending` is when the last thing happened to a job. What is settled lies anywhere in the thirty days, what is open just
# now; so nothing lies in the future but the times of jobs that wait for one.
JOBS = """
CREATE TEMP TABLE scale_job AS
WITH ended AS MATERIALIZED (
  SELECT f.*, coalesce(r.begun, 0) AS begun, r.started, r.finished, coalesce(r.blind, false) AS blind, CASE f.fate
      WHEN 'waiting' THEN least(pg_temp.scale_draw(600, 1.5), f.max_age / 2)
      WHEN 'processing' THEN r.started + random() * 20
      WHEN 'retrying' THEN r.finished + random() * 60
      WHEN 'awaiting' THEN r.finished + least(pg_temp.scale_draw(f.window_seconds / 10.0, 1.2), f.max_age / 2)
      WHEN 'expired' THEN f.max_age
      WHEN 'cancelled' THEN least(pg_temp.scale_draw(f.window_seconds / 2.0, 1.5), f.max_age)
      WHEN 'future' THEN 0
      ELSE r.finished + CASE WHEN f.awaits AND (f.fate = 'confirmed' OR f.reason IN ('unconfirmed', 'rejected'))
        THEN least(pg_temp.scale_draw(f.window_seconds / 20.0, 1.4), f.max_age) ELSE 0 END END AS ending
  FROM scale_fate f LEFT JOIN scale_run r ON r.n = f.n AND r.last
), placed AS MATERIALIZED (
  SELECT e.*, fate IN ('confirmed', 'dead', 'expired', 'cancelled') AS settled, CASE fate
      WHEN 'future' THEN %(now)s::timestamptz + make_interval(secs => 7200 + random() * {two_days})
      ELSE %(now)s::timestamptz - make_interval(secs => least(ending, {most})
        + CASE WHEN fate IN ('confirmed', 'dead', 'expired', 'cancelled')
          THEN random() * ({thirty_days} - delay - least(ending, {most})) ELSE 0 END) END AS ready_at
  FROM ended e
), timed AS MATERIALIZED (
  SELECT p.*, CASE fate WHEN 'future' THEN %(now)s::timestamptz - make_interval(secs => random() * 86400)
    ELSE ready_at - make_interval(secs => delay) END AS accepted_at
  FROM placed p
)
SELECT t.*, (left(hex, 8) || '-' || right(hex, 4) || '-7' || substr(gen_random_uuid()::text, 16))::uuid AS id,
  CASE WHEN settled THEN ready_at + make_interval(secs => ending) END AS settled_at,
  ready_at + make_interval(secs => finished) AS finished_at, ready_at + make_interval(secs => started) AS started_at,
  awaits AND (fate IN ('confirmed', 'awaiting') OR fate = 'dead' AND reason IN ('unconfirmed', 'rejected')) AS awaited,
  fate = 'dead' AND n %% 2 = 0 AS closed,
  CASE fate WHEN 'waiting' THEN 'accepted' WHEN 'future' THEN 'accepted' WHEN 'awaiting' THEN 'awaiting_confirmation'
    ELSE fate END AS state
FROM timed t
CROSS JOIN LATERAL (SELECT lpad(to_hex((extract(epoch FROM accepted_at) * 1000)::bigint), 12, '0') AS hex) AS h
"""
FINGERPRINT = "CASE WHEN j.fails > 0 OR j.fate = 'dead' THEN md5(mod(j.n, 37)::text) END"
"""SQL: what a job failed of."""
INSERT = """
INSERT INTO queues_job (id, state, type, tier, contract_version, attempt, attempt_limit, fence, begun, window_seconds,
  due_at, ready_at, expires_at, confirm_by, accepted_at, published_at, started_at, finished_at, entered_at, settled_at,
  request_hash, idempotency_key, "group", worker, reason, fingerprint, root, resolution, resolved_at, resolved_by,
  reference, evidence, failures, payload)
SELECT id, state, name, tier, 1, begun, {limit}, begun, begun, window_seconds,
  CASE WHEN settled THEN NULL WHEN fate = 'future' THEN ready_at WHEN fate = 'waiting' THEN ready_at
    ELSE %(now)s::timestamptz + make_interval(secs => 7200 + n %% 3600) END,
  ready_at, greatest(ready_at + make_interval(secs => max_age),
    CASE WHEN settled THEN ready_at ELSE %(now)s::timestamptz + interval '6 hours' END),
  CASE WHEN fate = 'awaiting' THEN %(now)s::timestamptz + make_interval(secs => 7200 + n %% 3600) END, accepted_at,
  CASE WHEN delay = 0 THEN accepted_at END, started_at, CASE WHEN fate <> 'processing' THEN finished_at END,
  coalesce(settled_at, CASE fate WHEN 'processing' THEN started_at WHEN 'retrying' THEN finished_at
    WHEN 'awaiting' THEN finished_at ELSE ready_at END),
  settled_at, sha256(n::text::bytea), 'jb_' || md5(n::text), 'customer-' || n %% 997,
  CASE WHEN begun > 0 THEN 'scale/1.' || n %% 8 END,
  CASE fate WHEN 'dead' THEN reason WHEN 'expired' THEN 'stale' WHEN 'cancelled' THEN 'operator' END,
  {fingerprint}, id,
  CASE WHEN fate IN ('dead', 'expired', 'cancelled') THEN CASE WHEN closed THEN 'ignored' ELSE 'open' END END,
  CASE WHEN closed THEN settled_at END, CASE WHEN closed THEN 'scale' END,
  CASE WHEN awaited THEN 'ref-' || n END,
  CASE fate WHEN 'confirmed' THEN jsonb_build_object('kind', CASE WHEN awaits THEN 'callback' ELSE 'reference' END,
    'ref', 'ref-' || n, 'at', settled_at, 'run', begun) END,
  coalesce((SELECT jsonb_agg(jsonb_build_object('error_class', 'Timeout', 'message', 'the provider did not answer',
      'attempt', a)) FROM generate_series(1, begun - (fate = 'confirmed')::integer) AS a
    WHERE NOT awaited OR a < begun),
    '[]'),
  json_build_object('n', n, 'customer', 'customer-' || n %% 997, 'text', 'one of many')
FROM scale_job j ORDER BY id
"""
PARTITION = """
CREATE TABLE IF NOT EXISTS {part} (LIKE queues_job INCLUDING ALL) WITH (fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
ALTER TABLE queues_job ATTACH PARTITION {part} FOR VALUES FROM ('{low}') TO ('{high}')
"""


def execute(sql: str, params: Any = None) -> list[tuple[Any, ...]]:
    """Run one statement; returns its rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall()) if cursor.description else []


def kind(number: int) -> str:
    """Return the name of a job type; the first has the most jobs."""
    return f"scale.{number:02}"


def make_kinds() -> None:
    """Make the job types: tiers in turn, every second with a callback, the last two with a window of two days."""
    weights = [1 / number**0.7 for number in range(1, KINDS + 1)]
    execute(
        "CREATE TEMP TABLE scale_kind (name text, tier smallint, window_seconds integer, max_age integer, wait float8,"
        " awaits boolean, low float8, high float8)"
    )
    low = 0.0
    for number, weight in enumerate(weights, start=1):
        tier = number % 3 + 1
        window = LONG_WINDOW if number > KINDS - 2 else WINDOWS[tier]
        max_age = max(MAX_AGES[tier], 2 * window)
        awaits = number % 2 == 0
        JobType.objects.update_or_create(
            name=kind(number),
            defaults={
                "tier_id": tier,
                "window_seconds": window,
                "max_age_seconds": max_age,
                "success": "callback" if awaits else "reference",
                "max_attempts": LIMIT,
            },
        )
        high = low + weight / sum(weights) if number < KINDS else 1.0
        values = [kind(number), tier, window, max_age, WAITS[tier], awaits, low, high]
        execute("INSERT INTO scale_kind VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", values)
        low = high
    contracts.forget()


def make_partitions(now: dt.datetime) -> None:
    """Make the partitions of the days gone by, as `jobs_make_partitions` makes those to come."""
    for ago in range(DAYS + 1, -1, -1):
        day = now.date() - dt.timedelta(days=ago)
        part = f"queues_job_{day:%Y%m%d}"
        if execute("SELECT to_regclass(%s)", [part])[0][0] is None:
            bounds = execute(
                "SELECT jobs_day_floor(%s)::text, jobs_day_floor(%s)::text", [day, day + dt.timedelta(days=1)]
            )
            low, high = bounds[0]
            execute(PARTITION.format(part=part, low=low, high=high))


def draw(jobs: int, *, now: dt.datetime, seed: float = 0.42) -> None:
    """Draw so many jobs and their runs into the temporary tables."""
    execute("SELECT setseed(%s)", [seed])
    execute(DRAW)
    execute(FATES, {"jobs": jobs})
    execute(RUNS.format(limit=LIMIT))
    execute("ANALYZE scale_fate, scale_run")
    execute(JOBS.format(two_days=2 * DAY, thirty_days=DAYS * DAY, most=20 * DAY), {"now": now})
    execute("CREATE INDEX ON scale_job (n)")
    execute("ANALYZE scale_job")


def insert(*, now: dt.datetime) -> None:
    """Insert what was drawn as it ended up; the guard that every job begins as accepted looks away for that."""
    execute("ALTER TABLE queues_job DISABLE TRIGGER job_starts_accepted")
    execute(INSERT.format(limit=LIMIT, fingerprint=FINGERPRINT), {"now": now})
    execute("ALTER TABLE queues_job ENABLE TRIGGER job_starts_accepted")
