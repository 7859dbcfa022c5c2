"""Insert accepted jobs and hold their dedupe keys; everything before that is `queues.accept`'s."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from queues.lifecycle.sql import EPOCH, delta, execute, minute, records, transition


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """One job ready to be inserted: validated, hashed (hex), with its contract's numbers and its position."""

    position: int
    type: str
    contract_version: int
    tier: int
    priority: int
    payload: str
    request_hash: str
    dedupe_key: str | None
    dedupe_window_seconds: int
    group: str | None
    attempt_limit: int
    window_seconds: int
    max_age_seconds: float
    run_at: dt.datetime | None
    delay_seconds: float | None
    publish: bool
    trace: dict[str, str] | None
    probe: bool = False


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A row that the statement inserted, by its position in the batch."""

    position: int
    id: UUID
    ready: bool


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a dedupe key. `id` is None when the key was let go in the meantime."""

    position: int
    id: UUID | None
    same_request: bool
    state: str | None
    evidence: Any
    result: Any
    let_go: bool


def idempotency_key(kind: str, key: str) -> str:
    """Return SQL for what the handler gives to its provider (DESIGN.md section 5), of a type and a key."""
    hashed = f"convert_to({kind}, 'UTF8') || '\\x00'::bytea || convert_to({key}, 'UTF8')"
    return f"'jb_' || left(encode(sha256({hashed}), 'hex'), 32)"


_IDEMPOTENCY_KEY = idempotency_key("i.type", "coalesce(i.dedupe_key, i.id::text)")

# One statement when every key is new. Ids are made in request order; keys are inserted sorted, so that two batches
# with the same keys wait for each other instead of deadlocking. A key that another transaction holds inserts nothing.
ACCEPT = f"""
WITH item AS MATERIALIZED (
  SELECT i.*, jobs_uuid7() AS id, t.now AS accepted_at,
    greatest(t.now, coalesce(i.run_at, t.now + make_interval(secs => i.delay_seconds), t.now)) AS ready_at,
    CASE WHEN c.ordered AND i."group" IS NOT NULL THEN nextval('queues_job_seq') END AS seq
  FROM json_to_recordset(%(items)s::json) AS i (position integer, type text, contract_version integer, tier smallint,
    priority smallint, payload text, request_hash text, dedupe_key text, dedupe_window_seconds integer, "group" text,
    attempt_limit smallint, window_seconds integer, max_age_seconds float8, run_at timestamptz, delay_seconds float8,
    publish boolean, trace jsonb, probe boolean)
  JOIN queues_jobtype c ON c.name = i.type AND c.enabled
  CROSS JOIN (SELECT jobs_clock() AS now) AS t
  ORDER BY i.position
), held AS (
  INSERT INTO queues_dedupekey (type, key, request_hash, job_id, accepted_at, expires_at)
  SELECT type, dedupe_key, decode(request_hash, 'hex'), id, accepted_at,
    CASE WHEN dedupe_window_seconds > 0 THEN ready_at + make_interval(secs => dedupe_window_seconds) END
  FROM item WHERE dedupe_key IS NOT NULL ORDER BY type, dedupe_key
  ON CONFLICT (type, key) DO NOTHING
  RETURNING job_id
), moved AS (
  INSERT INTO queues_job (id, type, tier, priority, contract_version, payload, request_hash, dedupe_key,
    idempotency_key, "group", attempt_limit, window_seconds, accepted_at, ready_at, entered_at, due_at, expires_at,
    published_at, root, trace, probe, seq)
  SELECT i.id, i.type, i.tier, i.priority, i.contract_version, i.payload::json, decode(i.request_hash, 'hex'),
    i.dedupe_key,
    {_IDEMPOTENCY_KEY}, i."group", i.attempt_limit, i.window_seconds, i.accepted_at, i.ready_at, i.ready_at, i.ready_at,
    i.ready_at + make_interval(secs => i.max_age_seconds),
    CASE WHEN i.publish AND i.ready_at <= i.accepted_at THEN i.accepted_at END, i.id, i.trace, i.probe,
    i.seq
  FROM item i LEFT JOIN held h ON h.job_id = i.id
  WHERE i.dedupe_key IS NULL OR h.job_id IS NOT NULL
  RETURNING id, type, tier, accepted_at, ready_at, window_seconds, probe
), counted AS ({
    delta(
        (EPOCH, "'open.accepted'", "-1", "1"),
        (minute("m.accepted_at"), "'accepted'", "-1", "1"),
        (minute("m.ready_at"), "'ready'", "-1", "1", "m.window_seconds"),
    )
})
SELECT i.position, m.id, m.ready_at <= m.accepted_at FROM moved m JOIN item i ON i.id = m.id
"""

# A new snapshot: in the statement above the loser of a race sees nothing of the winner.
HOLDERS = """
SELECT i.position, k.job_id, k.request_hash = decode(i.request_hash, 'hex'), j.state, j.evidence::text, j.result::text,
  j.id IS NULL OR coalesce(k.expires_at <= jobs_now(), false)
    AND j.state IN ('confirmed', 'dead', 'expired', 'cancelled')
FROM unnest(%(position)s::integer[], %(type)s::text[], %(dedupe_key)s::text[], %(request_hash)s::text[])
  AS i (position, type, dedupe_key, request_hash)
LEFT JOIN queues_dedupekey k ON k.type = i.type AND k.key = i.dedupe_key
LEFT JOIN queues_job j ON j.id = k.job_id
"""

LET_GO = """
DELETE FROM queues_dedupekey k USING (
  SELECT k.type, k.key FROM queues_dedupekey k
  JOIN unnest(%(type)s::text[], %(dedupe_key)s::text[], %(holder)s::uuid[]) AS i (type, key, holder)
    ON k.type = i.type AND k.key = i.key AND k.job_id = i.holder
  WHERE k.expires_at <= jobs_now() OR NOT EXISTS (SELECT FROM queues_job j WHERE j.id = k.job_id)
  ORDER BY k.type, k.key FOR UPDATE OF k
) AS gone WHERE k.type = gone.type AND k.key = gone.key
"""

DUPLICATES = """
INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)
SELECT date_trunc('minute', jobs_clock()), i.type, c.tier_id, 'duplicates', -1, i.n, 0
FROM unnest(%(type)s::text[], %(n)s::integer[]) AS i (type, n) JOIN queues_jobtype c ON c.name = i.type
"""


def insert(jobs: Sequence[NewJob]) -> list[Accepted]:
    """Insert jobs by position. A position that does not come back is a duplicate or its type is disabled.

    Raises: OperationalError with 55P03 when an uncommitted holder of a key kept the statement waiting too long.
    """
    rows = transition("accept", ACCEPT, {"items": records(jobs)})
    return [Accepted(position=p, id=i, ready=r) for p, i, r in rows]


def _json(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)


def holders(jobs: Sequence[NewJob]) -> list[Holder]:
    """Say who holds the keys of these jobs, as of a new snapshot."""
    rows = execute(
        HOLDERS,
        {
            "position": [job.position for job in jobs],
            "type": [job.type for job in jobs],
            "dedupe_key": [job.dedupe_key for job in jobs],
            "request_hash": [job.request_hash for job in jobs],
        },
    )
    return [
        Holder(position=p, id=i, same_request=bool(same), state=s, evidence=_json(e), result=_json(r), let_go=gone)
        for p, i, same, s, e, r, gone in rows
    ]


def let_go(keys: Sequence[tuple[str, str, UUID]]) -> None:
    """Release keys (type, key, observed holder) whose window has passed and whose job has settled or is gone."""
    execute(
        LET_GO,
        {"type": [k[0] for k in keys], "dedupe_key": [k[1] for k in keys], "holder": [k[2] for k in keys]},
    )


def count_duplicates(types: dict[str, int]) -> None:
    """Count accepts that were answered with the job they already had."""
    execute(DUPLICATES, {"type": sorted(types), "n": [types[name] for name in sorted(types)]})
