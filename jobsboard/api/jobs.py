"""The calls on jobs: accept, read, list, cancel, retry now, replay.

Not here: the rules of acceptance (`queues.accept`) and of repairs (`queues.actions`); what an error says (`problems`).
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse
from ninja import Router

from dlq.replaying import Who
from jobsboard.api import envelope, job_json, listing, problems, rate, repair_schemas, schemas, times, verdicts
from jobsboard.api.access import key_of
from jobsboard.api.database import bounded
from jobsboard.api.keys import Key
from jobsboard.api.problems import Problem, request_id
from queues import actions, contracts, edited_replay
from queues.accept import EnqueueError, Item, Receipt, enqueue_many
from queues.canonical import JsonRefused
from queues.models import Job
from queues.states import JobState

router = Router()

BATCH_ITEMS: Final = 1000
DELAY_MAX_SECONDS: Final = times.HORIZON.total_seconds()

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_TEXT: Final = {"type": "string"}
_KEY_TEXT: Final = {"type": "string", "pattern": schemas.KEY}


@router.post(
    "/jobs",
    response={201: schemas.Job, 200: schemas.Job, **schemas.ERRORS},
    operation_id="createJob",
    openapi_extra=schemas.body(schemas.OneJob)
    | schemas.header("Idempotency-Key", {**_KEY_TEXT, "description": "The dedupe key, instead of in the body."})
    | rate.ANSWER,
)
def create_job(request: HttpRequest) -> HttpResponse:
    """Accept a job durably. 201 is a new job; 200 the one that holds the key, with what has become of it."""
    key = key_of(request, scope="jobs:write")
    one = envelope.read(envelope.read_body(request, limit=envelope.ONE_MAX), envelope.OneJob)
    rate.spend(key, jobs=1)
    item = _item(one, header=request.headers.get("Idempotency-Key"))
    _check_type(item.type, key=key)
    with bounded():
        receipt = enqueue_many([item])[0]
    response = envelope.answer(_job_of(receipt, item), status=200 if receipt.duplicate else 201)
    response["Location"] = job_json.job_path(receipt.job_id)
    if receipt.duplicate:
        response["Idempotency-Replayed"] = "true"
    return response


@router.post(
    "/jobs/batch",
    response={200: schemas.BatchResults, **schemas.ERRORS},
    operation_id="createJobs",
    openapi_extra=schemas.body(schemas.Batch) | rate.ANSWER,
)
def create_jobs(request: HttpRequest) -> HttpResponse:
    """Accept up to 1000 jobs; each has its own status, in request order. One bad item spoils no other."""
    key = key_of(request, scope="jobs:write")
    if "Idempotency-Key" in request.headers:
        raise Problem("idempotency_key_mismatch", "In a batch each job has a dedupe_key of its own.")
    batch = envelope.read(envelope.read_body(request, limit=envelope.BATCH_MAX), envelope.Batch)
    if not 1 <= len(batch.jobs) <= BATCH_ITEMS:
        raise Problem("invalid_request", f"A batch has 1 to {BATCH_ITEMS} jobs.", pointer="/jobs")
    rate.spend(key, jobs=len(batch.jobs))
    prepared = [_prepare(bytes(raw), key=key) for raw in batch.jobs]
    items = [item for item in prepared if isinstance(item, Item)]
    with bounded():
        answers = iter(zip(items, enqueue_many(items, on_error="return"), strict=True))
    accepted = [next(answers) if isinstance(item, Item) else item for item in prepared]
    jobs = _read_back([answer[1] for answer in accepted if isinstance(answer, tuple)])
    results = [_result(request, answer, index=index, jobs=jobs) for index, answer in enumerate(accepted)]
    return envelope.answer({"results": results})


@router.get(
    "/jobs",
    response={200: schemas.JobPage, **schemas.ERRORS},
    operation_id="listJobs",
    openapi_extra=schemas.query(
        type=_TEXT,
        state={"type": "string", "enum": list(JobState)},
        tier={"type": "integer", "enum": [1, 2, 3]},
        group=_KEY_TEXT,
        dedupe_key=_KEY_TEXT,
        since={"type": "string", "format": "date-time"},
        until={"type": "string", "format": "date-time"},
        limit={"type": "integer", "minimum": 1, "maximum": listing.LIMIT_MAX, "default": listing.LIMIT_DEFAULT},
        cursor=_TEXT,
    ),
)
def list_jobs(request: HttpRequest) -> HttpResponse:
    """Return jobs, newest first. A filter without an index looks at 10,000 rows and hands back a cursor."""
    key = key_of(request, scope="jobs:read")
    wanted = listing.read_filter(request.GET)
    with bounded():
        page = listing.page(wanted, key=key)
    return envelope.answer(
        {
            "items": [job_json.as_json(job, tracebacks=False) for job in page.jobs],
            "next": page.next,
            "searched": {"rows": page.searched_rows, "complete": page.complete},
        }
    )


@router.get("/jobs/{job_id}", response={200: schemas.Job, **schemas.ERRORS}, operation_id="getJob")
def get_job(request: HttpRequest, job_id: str) -> HttpResponse:
    """Return one job with its attempts."""
    key = key_of(request, scope="jobs:read")
    with bounded():
        job = listing.find(job_id, key=key)
    return envelope.answer(job_json.as_json(job))


@router.post(
    "/jobs/{job_id}/cancel",
    response={200: schemas.Cancelled, 202: schemas.Cancelled, **schemas.ERRORS},
    operation_id="cancelJob",
    openapi_extra=schemas.body(schemas.Reason),
)
def cancel_job(request: HttpRequest, job_id: str) -> HttpResponse:
    """Cancel a waiting job, or ask a running one to stop (202). Asked again, the answer is the same."""
    key = key_of(request, scope="jobs:write")
    why = envelope.read_why(request, key=key)
    with bounded():
        job = listing.find(job_id, key=key)
        try:
            done = actions.cancel_job(job.id, **why)
        except actions.NotCancellable as error:
            raise Problem("not_cancellable", f"{error}.", status=409, state=error.state) from None
        except actions.JobNotFound:
            raise problems.unknown_job() from None
    status = "cancelled" if done.state == JobState.CANCELLED else "cancel_requested"
    return envelope.answer(
        {"id": str(job.id), "status": status, "state": done.state, "effect": done.effect},
        status=200 if status == "cancelled" else 202,
    )


@router.post(
    "/jobs/{job_id}/retry-now",
    response={200: schemas.Job, **schemas.ERRORS},
    operation_id="retryJobNow",
    openapi_extra=schemas.body(schemas.Reason),
)
def retry_job_now(request: HttpRequest, job_id: str) -> HttpResponse:
    """Make the next attempt of a retrying job due at once. It costs the attempt that it would have cost later."""
    key = key_of(request, scope="jobs:write")
    why = envelope.read_why(request, key=key)
    with bounded():
        job = listing.find(job_id, key=key)
        try:
            actions.retry_now(job.id, **why)
        except actions.NotRetrying as error:
            raise Problem("not_retrying", f"{error}.", status=409, state=error.state) from None
        except actions.JobNotFound:
            raise problems.unknown_job() from None
    with bounded():
        return envelope.answer(job_json.as_json(listing.find(job_id, key=key)))


@router.post(
    "/jobs/{job_id}/replay",
    response={201: repair_schemas.ReplayedJob, **schemas.ERRORS},
    operation_id="replayJob",
    openapi_extra=schemas.body(repair_schemas.Replay),
)
def replay_job(request: HttpRequest, job_id: str) -> HttpResponse:
    """Accept a new job in place of a dead, expired or cancelled one, as it was or with another payload or key.

    What speaks against it is answered with 409 `unsafe_replay`; to do it all the same, hand back that `fingerprint` as
    `verdict`. A verdict that is no longer true is 409 `verdict_changed`.
    """
    key = key_of(request, scope="dlq:replay")
    why, wanted = envelope.read_replay(request, key=key)
    with bounded():
        job = listing.find(job_id, key=key)
        edited = _edited(job, wanted)
    # Outside a transaction: a worker is asked first, and the replay has one of its own.
    child = verdicts.replay(job, who=Who(**why), verdict=wanted.verdict, edited=edited)
    with bounded():
        replayed = job_json.as_json(job_json.readable().get(id=child))
    response = envelope.answer({**replayed, "notes": edited.notes if edited else ()}, status=201)
    response["Location"] = job_json.job_path(child)
    return response


def _edited(job: Job, wanted: envelope.Replay) -> edited_replay.Edited | None:
    """Return what a replay changes, or None. Raises: EnqueueError."""
    payload = None if isinstance(wanted.payload, msgspec.UnsetType) else bytes(wanted.payload)
    if payload is None and wanted.dedupe_key is None:
        return None
    return edited_replay.prepare(job, payload=payload, dedupe_key=wanted.dedupe_key)


def _item(one: envelope.OneJob, *, header: str | None = None) -> Item:
    """Turn an envelope into an item. Raises: Problem."""
    dedupe_key = one.dedupe_key
    if header is not None:
        if dedupe_key is not None and dedupe_key != header:
            raise Problem("idempotency_key_mismatch", "Idempotency-Key and dedupe_key differ.", pointer="/dedupe_key")
        dedupe_key = header
    if dedupe_key is not None and not _KEY.fullmatch(dedupe_key):
        raise Problem("dedupe_key_invalid", "A key has 1 to 255 visible ASCII characters.", pointer="/dedupe_key")
    if one.run_at is not None and one.delay_seconds is not None:
        raise Problem("invalid_request", "run_at and delay_seconds exclude each other.", pointer="/delay_seconds")
    if one.delay_seconds is not None and not 0 <= one.delay_seconds <= DELAY_MAX_SECONDS:
        detail = f"delay_seconds is from 0 to {DELAY_MAX_SECONDS:.0f}."
        raise Problem("invalid_request", detail, pointer="/delay_seconds")
    run_at: datetime | None = None
    if one.run_at is not None:
        run_at = times.read_run_at(one.run_at, pointer="/run_at")
    return Item(
        type=one.type,
        payload=bytes(one.payload),
        dedupe_key=dedupe_key,
        group=one.group,
        priority=one.priority,
        run_at=run_at,
        delay_seconds=one.delay_seconds,
        max_age=one.max_age_seconds,
    )


def _check_type(name: str, *, key: Key) -> None:
    """Refuse a type that is closed to the key like one that does not exist."""
    if name not in contracts.all_current() or not key.may_use(name):
        raise problems.unknown_job_type()


def _prepare(raw: bytes, *, key: Key) -> Item | Problem:
    try:
        item = _item(envelope.read(raw, envelope.OneJob))
        _check_type(item.type, key=key)
    except (Problem, JsonRefused) as error:
        return problems.of_exception(error)
    return item


def _read_back(answers: list[Receipt | EnqueueError]) -> dict[UUID, Job]:
    """Read accepted jobs. They are stored already: an error here must not make the producer send them again."""
    ids = [answer.job_id for answer in answers if isinstance(answer, Receipt)]
    try:
        with bounded():
            return {job.id: job for job in job_json.readable().filter(id__in=ids)}
    except (DatabaseError, InterfaceError):
        return {}


def _job_of(receipt: Receipt, item: Item, jobs: dict[UUID, Job] | None = None) -> dict[str, Any]:
    found = (_read_back([receipt]) if jobs is None else jobs).get(receipt.job_id)
    if found is not None:
        return job_json.as_json(found)
    # Pruned while its key lives, or not readable now: what the receipt says is still true.
    return {
        "id": str(receipt.job_id),
        "type": item.type,
        "state": receipt.state,
        "dedupe_key": item.dedupe_key,
        "evidence": receipt.evidence,
        "result": receipt.result,
    }


def _result(
    request: HttpRequest,
    answer: tuple[Item, Receipt | EnqueueError] | Problem,
    *,
    index: int,
    jobs: dict[UUID, Job],
) -> dict[str, Any]:
    if isinstance(answer, tuple):
        item, outcome = answer
        if isinstance(outcome, Receipt):
            return {"status": 200 if outcome.duplicate else 201, "job": _job_of(outcome, item, jobs)}
        answer = problems.of_exception(outcome)
    answer.pointer = f"/jobs/{index}{answer.pointer}"
    return {"status": answer.status, "error": answer.as_json(request_id(request))}
