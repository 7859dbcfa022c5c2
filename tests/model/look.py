"""The rows as they are in PostgreSQL, in the model's words, and how they compare."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from queues.models import Job
from queues.states import OPEN, JobState, Reason, Resolution
from tests.factories import sql, true_counts
from tests.model.actors import seconds
from tests.model.database import HASHES, Names, payload_of
from tests.model.rows import Callback, Evidence, Key, Note, Reference, Rejection, Row, World

S = JobState
COUNTED: Final = (
    "accepted", "ready", "duplicates", "runs", "failed", "lost", "confirmed", "dead", "expired", "cancelled",
    "replayed", "late_evidence", "contradictions", "in_window", "excluded",
)  # fmt: skip
_ONLY_WHILE: Final[Mapping[str, tuple[JobState, ...]]] = {
    "confirm_by": (S.AWAITING_CONFIRMATION,),
    "polled": (S.AWAITING_CONFIRMATION,),
    "checks": (S.AWAITING_CONFIRMATION,),
    "check_failures": OPEN,
    "alone": OPEN,
}
"""Columns that say something in these states only; what stays in them later is nobody's business."""


def rows(names: Names) -> dict[int, Row]:
    """Return every job by its number."""
    found = {}
    for job in Job.objects.filter(id__in=names.all_ids()):
        row = _row(job, names)
        found[row.number] = row
    return found


def _row(job: Job, names: Names) -> Row:
    number, root = names.number(job.id), names.number(job.root)
    assert number is not None
    assert root is not None
    accepted, ready, expires = seconds(job.accepted_at), seconds(job.ready_at), seconds(job.expires_at)
    assert accepted is not None and ready is not None and expires is not None  # noqa: PT018
    return Row(
        number=number, kind=job.type, key=job.dedupe_key, payload=_payload(job), secret=_secret(job), root=root,
        accepted=accepted, ready=ready, due=seconds(job.due_at), expires=expires, limit=job.attempt_limit,
        state=S(job.state), attempt=job.attempt, fence=job.fence, crashes=job.crashes, begun=job.begun,
        alone=job.alone, cancel_requested=job.cancel_requested, worker=job.worker, started=seconds(job.started_at),
        finished=seconds(job.finished_at), settled=seconds(job.settled_at), confirm_by=seconds(job.confirm_by),
        reason=None if job.reason is None else Reason(job.reason),
        resolution=None if job.resolution is None else Resolution(job.resolution),
        replay_of=names.number(job.replay_of), replayed_by=names.number(job.replayed_by), polled=job.polled,
        checks=job.checks, check_failures=job.check_failures, reference=job.reference, evidence=_evidence(job),
        rejection=_rejection(job), notes=tuple(map(_note, job.late_evidence or ())),
        failures=tuple((told["error_class"], told["attempt"]) for told in job.failures),
    )  # fmt: skip


def _payload(job: Job) -> int:
    number = HASHES[bytes(job.request_hash)]
    assert job.payload == f'{{"n":{payload_of(number)["n"]}}}', "the payload is not the one that was hashed"
    return number


def _secret(job: Job) -> str | None:
    # DESIGN.md section 5: of type and key, or of the first job's id; an edited replay under another key has its own.
    for key in ("a", "b", "c"):
        if job.idempotency_key == _idempotency_key(job.type, key):
            return key
    assert job.idempotency_key == _idempotency_key(job.type, str(job.root))
    return None


def _idempotency_key(kind: str, key: str) -> str:
    return "jb_" + hashlib.sha256(f"{kind}\0{key}".encode()).hexdigest()[:32]


def _time(text: str) -> int:
    return seconds(dt.datetime.fromisoformat(text)) or 0


def _evidence(job: Job) -> Evidence | None:
    told: dict[str, Any] | None = job.evidence
    return None if told is None else Evidence(told["kind"], told["ref"], told["run"], _time(told["at"]))


def _rejection(job: Job) -> Rejection | None:
    told: dict[str, Any] | None = job.rejection
    return None if told is None else Rejection(told["fence"], told["retryable"], _time(told["at"]))


def _note(told: Mapping[str, Any]) -> Note:
    return Note(told["outcome"], told["kind"], told.get("ref"), told["run"], told.get("by"))


def difference(expected: World, names: Names) -> list[str]:
    """Say where the database is not what the model expects; nothing when it is."""
    return [
        *_rows_differ(expected.jobs, rows(names)),
        *_differ("keys", expected.keys, _keys(names)),
        *_differ("references", sorted(expected.references, key=repr), sorted(_references(names), key=repr)),
        *_differ("callbacks", expected.inbox, _inbox(names)),
    ]


def _rows_differ(expected: Mapping[int, Row], found: Mapping[int, Row]) -> list[str]:
    told = _differ("jobs", sorted(expected), sorted(found))
    for number in expected.keys() & found.keys():
        for field in fields(Row):
            mine, theirs = getattr(expected[number], field.name), getattr(found[number], field.name)
            if mine != theirs and expected[number].state in _ONLY_WHILE.get(field.name, tuple(S)):
                told.append(f"job {number}: {field.name} is {theirs}, expected {mine}")
    return told


def _differ(what: str, expected: object, found: object) -> list[str]:
    return [] if expected == found else [f"{what} are {found}, expected {expected}"]


def _keys(names: Names) -> dict[tuple[str, str], Key]:
    return {
        (kind, key): Key(names.number(job) or 0, HASHES[bytes(hashed)], seconds(expires))
        for kind, key, job, hashed, expires in sql(
            "SELECT type, key, job_id, request_hash, expires_at FROM queues_dedupekey WHERE type LIKE 'model.%%'"
        )
    }


def _references(names: Names) -> list[Reference]:
    found = sql("SELECT type, ref, job_id, fence, at FROM queues_jobreference")
    return [
        Reference(kind, ref, names.number(job) or 0, fence, seconds(at) or 0) for kind, ref, job, fence, at in found
    ]


def _inbox(names: Names) -> dict[tuple[str, int], Callback]:
    found = sql(
        "SELECT type, webhook_id, job_id, ref, outcome, run, retryable, received_at, keep_until, applied"
        " FROM queues_callback"
    )
    return {
        (kind, int(webhook[2:])): Callback(
            kind, names.number(job), ref or None, outcome == "confirmed", run, retryable, seconds(received) or 0,
            seconds(keep) or 0, applied,
        )
        for kind, webhook, job, ref, outcome, run, retryable, received, keep, applied in found
    }  # fmt: skip


def miscounted(expected: World) -> list[str]:
    """I-35, I-45: say where the counts that statements wrote are not what happened."""
    found = Counter(dict(sql("SELECT measure, sum(n)::int FROM queues_outcomedelta WHERE bucket < 0 GROUP BY measure")))
    told = _differ("states", {k: v for k, v in true_counts().items() if v}, {
        name.removeprefix("open."): n for name, n in found.items() if name.startswith("open.") and n
    })  # fmt: skip
    for name in COUNTED:
        told += _differ(name, expected.counts[name], found[name])
    entries = sql("SELECT count(*) FROM queues_auditentry")[0][0]
    return told + _differ("audit entries", expected.counts["audit"], entries)


def forget() -> None:
    """Empty the tables that a search writes. The audit log cannot be emptied."""
    for table in ("queues_job", "queues_dedupekey", "queues_jobreference", "queues_callback", "queues_outcomedelta"):
        sql(f"DELETE FROM {table}")
    sql("UPDATE queues_jobtype SET paused = false, enabled = true WHERE paused OR NOT enabled")
