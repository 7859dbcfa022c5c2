"""Claim due jobs for a run, extend their leases."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from queues.lifecycle.sql import BETWEEN, EPOCH, STATE, bucket, delta, execute, minute, named, transition, uuids


class Run(msgspec.Struct, frozen=True):
    """One claim of a job: it holds the lease until it is finished, released or lost.

    Units: times in seconds since 1970. Shape: failures and trace are JSON texts, read by the few who want them.
    `limited`: its end may make room for another job.
    """

    id: UUID
    fence: int
    type: str
    contract_version: int
    attempt: int
    begun: int
    payload: str
    idempotency_key: str
    group: str | None
    accepted_at: float
    expires_at: float
    failures: str
    probe: bool
    trace: str | None
    lease_seconds: int
    root: UUID
    reference: str | None
    check_failures: int
    limited: bool = False


DUE = f"""j.id = ANY(%(ids)s::uuid[]) AND {STATE} IN ('accepted', 'retrying') AND j.due_at <= jobs_now()
    AND j.expires_at > jobs_now() AND NOT c.paused AND NOT c.deferred AND (NOT j.alone OR %(alone)s)"""
"""Which of the named jobs `j` of a type `c` a claim would take, were there no limits and no breakers."""


def taking(chosen: str, *more: str) -> str:
    """Return SQL that claims what `chosen` (FROM and WHERE, with jobs as j and their types as c) names.

    Locked in id order; a row that somebody else has locked is somebody else's, the stage comes again for it. `more`:
    further steps of the statement, which may read `hit` and `moved`.
    """
    return f"""
hit AS MATERIALIZED (
  SELECT j.id, j.state AS was, c.lease_seconds, coalesce(j.entered_at, j.ready_at) AS since,
    greatest(j.due_at, j.entered_at) AS due, c.limited, c.breaker <> 'closed' AS trial,
    c.check_url <> '' OR c.success = 'check' OR j.type = ANY(%(checked)s::text[]) AS asks
  {chosen}
  ORDER BY j.id FOR UPDATE OF j SKIP LOCKED
), moved AS (
  UPDATE queues_job j SET state = 'processing', fence = j.fence + 1, attempt = j.attempt + 1, begun = j.begun + 1,
    alone = %(alone)s, worker = %(worker)s, started_at = jobs_clock(), entered_at = jobs_clock(), finished_at = NULL,
    unknown_end = j.unknown_end AND NOT h.asks,
    due_at = jobs_clock() + make_interval(secs => h.lease_seconds)
  FROM hit h WHERE {BETWEEN} AND j.id = h.id
  RETURNING j.id, j.fence, j.type, j.contract_version, j.attempt, j.begun, j.payload::text, j.idempotency_key,
    j."group", j.accepted_at, j.expires_at, j.failures, j.probe, j.trace, h.lease_seconds, h.was, j.tier, j.started_at,
    j.root, j.reference, j.check_failures, h.since, h.due, h.limited, h.trial
), {"".join(f"{step}, " for step in more)}counted AS ({
        delta(
            (EPOCH, "'open.' || m.was", "-1", "-1"),
            (EPOCH, "'open.processing'", "-1", "1"),
            (minute("m.started_at"), "'runs'", "-1", "1"),
            (minute("m.started_at"), "'retries'", "-1", "(m.was = 'retrying')::integer"),
            (minute("m.started_at"), "'wait'", bucket("m.due", "m.started_at"), "1"),
            (minute("m.started_at"), "'backoff'", bucket("m.since", "m.due"), "(m.was = 'retrying')::integer"),
        )
    })
SELECT id, fence, type, contract_version, attempt, begun, payload, idempotency_key, "group",
  extract(epoch FROM accepted_at)::float8, extract(epoch FROM expires_at)::float8, failures::text, probe, trace::text,
  lease_seconds, root, reference, check_failures, limited
FROM moved ORDER BY id
"""


_UNLIMITED = f"""FROM queues_job j JOIN queues_jobtype c ON c.name = j.type
  WHERE {DUE} AND NOT c.limited AND c.breaker = 'closed'"""
CLAIM = f"WITH {taking(_UNLIMITED)}"

# Never less than the lease that the run was claimed with: its next beat keeps to that one.
HEARTBEAT = f"""
WITH item AS (
  SELECT * FROM unnest(%(ids)s::uuid[], %(fences)s::integer[], %(leases)s::float8[]) AS i (id, fence, lease)
), hit AS (
  SELECT j.id, i.lease FROM queues_job j JOIN item i ON i.id = j.id AND i.fence = j.fence
  WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} = 'processing' ORDER BY j.id FOR UPDATE OF j SKIP LOCKED
)
UPDATE queues_job j SET due_at = jobs_clock() + make_interval(secs => greatest(hit.lease, c.lease_seconds))
FROM hit, queues_jobtype c WHERE {BETWEEN} AND j.id = hit.id AND c.name = j.type
RETURNING j.id, j.fence, j.cancel_requested
"""

HOLDING = f"""
SELECT j.id, j.fence FROM queues_job j
JOIN (SELECT * FROM unnest(%(ids)s::uuid[], %(fences)s::integer[]) AS i (id, fence)) AS i
  ON i.id = j.id AND i.fence = j.fence
WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} = 'processing'
"""

CLAIMED_BY = f"""
SELECT j.id, j.fence FROM queues_job j
WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} = 'processing' AND j.worker = %(worker)s
"""

CANCELLED = f"""
SELECT j.id, j.fence FROM queues_job j
JOIN (SELECT * FROM unnest(%(ids)s::uuid[], %(fences)s::integer[]) AS i (id, fence)) AS i
  ON i.id = j.id AND i.fence = j.fence
WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} = 'processing' AND j.cancel_requested
"""

RUNS = f"""
SELECT j.id, j.fence, j.type, j.contract_version, j.attempt, j.attempt_limit FROM queues_job j
JOIN (SELECT * FROM unnest(%(ids)s::uuid[], %(fences)s::integer[]) AS i (id, fence)) AS i
  ON i.id = j.id AND i.fence = j.fence
WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} = 'processing'
"""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What one needs to judge a run from outside."""

    id: UUID
    fence: int
    type: str
    contract_version: int
    attempt: int
    attempt_limit: int


def claim(ids: Sequence[UUID], *, worker: str, checked: Sequence[str] = ()) -> list[Run]:
    """Start a run of each job that is due and whose type has neither limits nor a breaker that is not closed.

    The others are not named, since nothing was promised for them; `claim_limited` takes those that have.

    `checked`: the types whose check this worker asks before a run that may repeat an effect, beside those whose
    contract names one.
    """
    rows = transition("claim", CLAIM, claiming(ids, worker=worker, checked=checked))
    return [Run(*row) for row in rows]


def claiming(ids: Sequence[UUID], *, worker: str, checked: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of a claim."""
    return {**named(ids), "alone": len(ids) == 1, "worker": worker, "checked": list(checked)}


def heartbeat(runs: Sequence[tuple[UUID, int, float]]) -> dict[tuple[UUID, int], bool]:
    """Extend the leases of (id, fence, lease seconds) in hand. Shape: the pairs that still hold → cancel requested."""
    ids = [run[0] for run in runs]
    params = {**named(ids), "fences": [run[1] for run in runs], "leases": [run[2] for run in runs]}
    return {(i, fence): cancel for i, fence, cancel in transition("heartbeat", HEARTBEAT, params)}


def claimed_by(ids: Sequence[UUID], *, worker: str) -> list[tuple[UUID, int]]:
    """Return the (id, fence) pairs that one claim took: asked by a claimer whose answer was lost."""
    return [(i, fence) for i, fence in execute(CLAIMED_BY, {"ids": uuids(ids), "worker": worker})]


def holding(runs: Sequence[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
    """Return the (id, fence) pairs that still hold their job. Read after a heartbeat skipped rows that others lock."""
    params = {"ids": uuids(run[0] for run in runs), "fences": [run[1] for run in runs]}
    return {(i, fence) for i, fence in execute(HOLDING, params)}


def cancelled(runs: Sequence[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
    """Return those (id, fence) pairs that somebody asked to stop."""
    params = {"ids": uuids(run[0] for run in runs), "fences": [run[1] for run in runs]}
    return {(i, fence) for i, fence in execute(CANCELLED, params)}


def runs(pairs: Sequence[tuple[UUID, int]]) -> list[RunInfo]:
    """Return what is known of (id, fence) pairs that still hold their job."""
    params = {"ids": uuids(pair[0] for pair in pairs), "fences": [pair[1] for pair in pairs]}
    return [RunInfo(*row) for row in execute(RUNS, params)]
