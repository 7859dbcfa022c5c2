"""Rows for tests, as plain functions. Jobs made here skip `lifecycle`, so no counts are written for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from django.db import connection

from queues import contracts, lifecycle
from queues.accept import Item, enqueue_many
from queues.lifecycle import End, Run, Verdict
from queues.models import ContractRevision, Job, JobType
from queues.states import JobState

S = JobState
TYPE: Final = "test.job"
WORKER: Final = "test/1.1"

_SETTLED: Final = {"due_at": "NULL", "settled_at": "jobs_clock()"}
COLUMNS_OF: Final[Mapping[JobState, Mapping[str, str]]] = {
    S.ACCEPTED: {"due_at": "jobs_clock()", "settled_at": "NULL", "reason": "NULL", "resolution": "NULL"},
    S.PROCESSING: {
        "due_at": "jobs_clock() + interval '15 s'",
        "settled_at": "NULL",
        "reason": "NULL",
        "resolution": "NULL",
        "started_at": "jobs_clock()",
        "worker": f"'{WORKER}'",
        "fence": "greatest(fence, 1)",
        "attempt": "greatest(attempt, 1)",
        "begun": "greatest(begun, 1)",
    },
    S.AWAITING_CONFIRMATION: {
        "due_at": "jobs_clock() + interval '60 s'",
        "settled_at": "NULL",
        "reason": "NULL",
        "resolution": "NULL",
    },
    S.RETRYING: {"due_at": "jobs_clock()", "settled_at": "NULL", "reason": "NULL", "resolution": "NULL"},
    S.CONFIRMED: {
        **_SETTLED,
        "evidence": """'{"kind": "return", "ref": null, "late": false}'""",
        "reason": "NULL",
        "resolution": "NULL",
    },
    S.DEAD: {**_SETTLED, "reason": "'permanent_error'", "resolution": "'open'"},
    S.EXPIRED: {**_SETTLED, "reason": "'stale'", "resolution": "'open'"},
    S.CANCELLED: {**_SETTLED, "reason": "'operator'", "resolution": "'open'"},
}
"""What the constraints want of a row in each state, as SQL."""

_WAY: Final[Mapping[JobState, tuple[JobState, ...]]] = {
    S.ACCEPTED: (),
    S.AWAITING_CONFIRMATION: (S.PROCESSING, S.AWAITING_CONFIRMATION),
    S.RETRYING: (S.PROCESSING, S.RETRYING),
}


def sql(statement: str, *params: Any) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, params or None)
        return list(cursor.fetchall()) if cursor.description else []


def analyze(*tables: str) -> None:
    """Gather statistics. Autovacuum takes the same lock, and on a busy machine may hold it longer than a user waits."""
    sql("SET lock_timeout = 0")
    sql(f"ANALYZE {', '.join(tables)}")
    sql("RESET lock_timeout")


def assignments(state: JobState) -> str:
    """Return the SET list that moves a row to a state as its constraints want it."""
    return ", ".join([f"state = '{state}'", *(f"{name} = {value}" for name, value in COLUMNS_OF[state].items())])


def make_type(name: str = TYPE, **overrides: Any) -> JobType:
    """Make a job type with its first revision, as the admin does."""
    kind = JobType.objects.create(**{"name": name, "tier_id": 2, "success": "return", "jitter": "none", **overrides})
    fields = {f.attname: f.value_from_object(kind) for f in JobType._meta.concrete_fields}
    kept = {
        k: v for k, v in fields.items() if k not in ("target_secret", "created_at", "changed_at", "tier_id", "name")
    }
    ContractRevision.objects.create(job_type=kind, version=kind.version, fields=kept, actor="test")
    contracts.forget()
    return kind


def make_job(state: JobState = S.ACCEPTED, **overrides: Any) -> Job:
    """Insert a job and walk it to a state by raw SQL. Overrides are column values, set in the last step."""
    kind = overrides.pop("type", TYPE)
    job_id: UUID = sql(
        """
        INSERT INTO queues_job (id, type, tier, contract_version, attempt_limit, window_seconds, due_at, ready_at,
          expires_at, accepted_at, request_hash, idempotency_key, root, payload)
        SELECT id, %s, 2, 1, 5, 60, now, now, now + interval '7 days', now, sha256('{}'), 'jb_' || id, id, '{}'
        FROM (SELECT jobs_uuid7() AS id, jobs_clock() AS now) AS t RETURNING id
        """,
        kind,
    )[0][0]
    *before, last = _WAY.get(state, (state,)) or (S.ACCEPTED,)
    for step in before:
        sql(f"UPDATE queues_job SET {assignments(step)} WHERE id = %s", job_id)
    named = {name.removeprefix("raw_") for name in overrides}
    usual = {f"raw_{name}": value for name, value in COLUMNS_OF[last].items() if name not in named}
    set_columns(job_id, state=last.value, **usual, **overrides)
    return get(job_id)


def set_columns(job_id: UUID, **values: Any) -> None:
    """Write columns of an open row by hand. A `raw_` prefix takes the value as SQL."""
    names = [f'"{k.removeprefix("raw_")}" = ' + (v if k.startswith("raw_") else "%s") for k, v in values.items()]
    params = [v for k, v in values.items() if not k.startswith("raw_")]
    sql(f"UPDATE queues_job SET {', '.join(names)} WHERE id = %s", *params, job_id)


def get(job_id: UUID) -> Job:
    """Read a job."""
    return Job.objects.get(id=job_id)


def evidence(job_id: UUID) -> dict[str, Any]:
    """Return the evidence of a job that has some."""
    found: dict[str, Any] | None = get(job_id).evidence
    assert found is not None
    return found


def accept(n: int = 1, *, kind: str = TYPE, **overrides: Any) -> list[UUID]:
    """Accept jobs through the front door and return their ids."""
    return [
        receipt.job_id for receipt in enqueue_many([Item(type=kind, payload={"n": i}, **overrides) for i in range(n)])
    ]


def claim(ids: Sequence[UUID], *, worker: str = WORKER) -> list[Run]:
    """Claim jobs and insist that all of them were claimed."""
    runs = lifecycle.claim(ids, worker=worker)
    assert {run.id for run in runs} == set(ids)
    return runs


def confirmed(run: Run, ref: str | None = "ref-1", **overrides: Any) -> End:
    """Return the end of a run that had its evidence."""
    evidence = {"kind": "reference", "ref": ref, "late": False}
    return End(**{"id": run.id, "fence": run.fence, "verdict": Verdict.CONFIRMED, "evidence": evidence, **overrides})


def failed(run: Run, **overrides: Any) -> End:
    """Return the end of a run that failed."""
    failure = {"error_class": "Boom", "message": "boom", "traceback": ""}
    return End(**{"id": run.id, "fence": run.fence, "verdict": Verdict.FAILED, "failure": failure, **overrides})


def released(run: Run) -> End:
    """Return the end of a run whose body never began."""
    return End(id=run.id, fence=run.fence, verdict=Verdict.RELEASED)


def lose_lease(*ids: UUID) -> None:
    """Let leases run out."""
    for job_id in ids:
        set_columns(job_id, raw_due_at="jobs_now() - interval '1 s'")


def state_counts() -> dict[str, int]:
    """Return the folded counts by state, without zeros."""
    rows = sql("SELECT state, sum(n)::bigint FROM queues_statecount GROUP BY state HAVING sum(n) <> 0")
    return {state: int(n) for state, n in rows}


def true_counts() -> dict[str, int]:
    """Return what the folded counts must be: open states, dead letters that nobody resolved, and probes that wait."""
    rows = sql(
        "SELECT CASE WHEN probe THEN 'probe' ELSE state END, count(*) FROM queues_job"
        " WHERE CASE WHEN probe THEN state IN ('accepted', 'retrying')"
        " ELSE state NOT IN ('confirmed', 'expired', 'cancelled') AND (state <> 'dead' OR resolution = 'open') END"
        " GROUP BY 1"
    )
    return {state: int(n) for state, n in rows}


def put_buckets(
    name: str, measure: str, counts: Mapping[int, int], *, grain: str = "minute", at: Any = None, tier: int = 2
) -> None:
    """Add to a histogram of a type, now or at a time that is the grain's."""
    sql(
        "INSERT INTO queues_outcomebuckets AS r (grain, type, at, tier, measure, counts)"
        " VALUES (%s, %s, coalesce(%s, date_trunc(%s, jobs_now())), %s, %s, %s)"
        " ON CONFLICT (grain, type, at, tier, measure)"
        " DO UPDATE SET counts = jobs_merge_counts(r.counts, excluded.counts)",
        grain, name, at, grain, tier, measure, json.dumps(counts),
    )  # fmt: skip


def buckets(measure: str, *, grain: str = "day") -> dict[int, int]:
    """Return a histogram of all types."""
    rows = sql(
        "SELECT c.bucket::int, sum(c.n::bigint)::int"
        " FROM queues_outcomebuckets, jsonb_each_text(counts) AS c (bucket, n)"
        " WHERE measure = %s AND grain = %s AND type > '' GROUP BY 1",
        measure, grain,
    )  # fmt: skip
    return dict(rows)


def fold_all() -> None:
    """Fold every delta."""
    while lifecycle.fold():
        pass
