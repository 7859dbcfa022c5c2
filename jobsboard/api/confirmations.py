"""Evidence from outside: confirm with a key, callbacks with a token or with a provider's signature.

Not here: what evidence does to a job (`queues.confirmation`); signatures (`jobsboard.api.signatures`).
"""

from __future__ import annotations

import logging
from typing import Any, Final, Literal

from django.http import HttpRequest, HttpResponse
from ninja import Router

from jobsboard.api import envelope, job_json, listing, problems, schemas, signatures
from jobsboard.api.access import key_of
from jobsboard.api.database import bounded
from jobsboard.api.envelope import Confirmation, ProviderCallback
from jobsboard.api.problems import Problem, request_id
from queues import callback_tokens, confirmation, contracts
from queues.confirmation import Applied, Evidence, Outcome
from queues.redaction import redact_text

router = Router()

BODY_MAX: Final = 64 * 1024
REF_MAX: Final = confirmation.REF_CHARACTERS
DETAIL_MAX: Final = confirmation.DETAIL_CHARACTERS

_COUNTS: Final = frozenset({Applied.CONFIRMED, Applied.KEPT, Applied.REJECTED, Applied.RETRYING})
_CALLBACK_ERRORS: Final = {status: schemas.ERRORS[status] for status in (400, 404, 408, 411, 413, 415, 422, 503)}
_SIGNED: Final = {
    "parameters": [
        {"in": "header", "name": name, "required": True, "schema": {"type": "string"}}
        for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
    ]
}

_log = logging.getLogger(__name__)


@router.post(
    "/jobs/{job_id}/confirm",
    response={200: schemas.ConfirmedJob, **schemas.ERRORS},
    operation_id="confirmJob",
    openapi_extra=schemas.body(schemas.Confirmation),
)
def confirm_job(request: HttpRequest, job_id: str) -> HttpResponse:
    """Say what became of the work. Said again, the answer is 200 again; 409 when the opposite is known."""
    key = key_of(request, scope="jobs:confirm")
    evidence = _evidence(envelope.read(envelope.read_body(request, limit=BODY_MAX), Confirmation), kind="manual")
    with bounded():
        job = listing.find(job_id, key=key)
    # Outside of that transaction: a contradiction is kept and counted, which the error below must not take back.
    try:
        outcome = confirmation.confirm_job(
            job.id, evidence, actor=key.actor, reason=evidence.detail, source="api", request_id=request_id(request)
        )
    except confirmation.JobNotFound:
        raise problems.unknown_job() from None
    if outcome.applied is Applied.CONTRADICTION:
        detail = "The job has its proof already. The rejection is kept beside it."
        raise Problem("contradiction", detail, state=outcome.state)
    if outcome.applied is Applied.SUPERSEDED:
        detail = "The rejection is about a run that is no longer the newest. It is kept and changes nothing."
        raise Problem("run_superseded", detail, state=outcome.state)
    with bounded():
        job = listing.find(job_id, key=key)
    return envelope.answer({**job_json.as_json(job), "confirmation": _counted(outcome)})


@router.post(
    "/callbacks/jobs/{token}",
    auth=None,
    response={200: schemas.Counted, **_CALLBACK_ERRORS},
    operation_id="jobCallback",
    openapi_extra=schemas.body(schemas.Confirmation),
)
def job_callback(request: HttpRequest, token: str) -> HttpResponse:
    """Take the word of an HTTP target: the address that it was given names the job and the run. No key."""
    named = callback_tokens.verify(token)
    if named is None:
        _log.warning("A callback was refused: its token is none of ours.")
        raise problems.unknown_job()
    said = envelope.read(envelope.read_body(request, limit=BODY_MAX), Confirmation)
    # The token says which run it speaks of; the body cannot say otherwise.
    said.run = named.fence
    try:
        outcome = confirmation.by_token(named.job_id, _evidence(said, kind="callback"))
    except confirmation.JobNotFound:
        _log.warning("A callback was refused: there is no job %s any more.", named.job_id)
        raise problems.unknown_job() from None
    return _answer(outcome)


@router.post(
    "/callbacks/{job_type}",
    auth=None,
    response={200: schemas.Counted, 202: schemas.Counted, 401: schemas.Problem, **_CALLBACK_ERRORS},
    operation_id="providerCallback",
    openapi_extra=schemas.body(schemas.ProviderCallback) | _SIGNED,
)
def provider_callback(request: HttpRequest, job_type: str) -> HttpResponse:
    """Take a provider's word, signed as Standard Webhooks says. 202: it fits no job so far and is kept. No key."""
    webhook_id, body = _signed_body(request, job_type)
    envelope.check_type(request)
    said = envelope.read(body, ProviderCallback)
    evidence = _evidence(said, kind="callback")
    job_id = None
    if said.job_id is not None:
        job_id = listing.read_id(said.job_id)
        if job_id is None:
            raise problems.unknown_job()
    elif evidence.ref is None:
        raise Problem("invalid_request", "Name the job: job_id, or the ref that was given for it.", pointer="/ref")
    try:
        outcome = confirmation.by_provider(job_type, webhook_id=webhook_id, job_id=job_id, evidence=evidence)
    except confirmation.JobNotFound:
        _log.warning("A callback for job type %s was refused: it names no job of this type.", job_type)
        raise problems.unknown_job() from None
    return _answer(outcome)


def _signed_body(request: HttpRequest, job_type: str) -> tuple[str, bytes]:
    """Return id and body of a signed callback. Whatever is refused before the secrets is refused for every type alike.

    Raises: Problem.
    """
    webhook_id, timestamp, given = signatures.signed_headers(request)
    body = envelope.read_bytes(request, limit=BODY_MAX)
    # Not `contracts.current`, which asks the database for a name that it does not know: the time would tell.
    contract = contracts.all_current().get(job_type)
    keys = [] if contract is None else signatures.keys_of(contract)
    if not signatures.is_signed(body, webhook_id=webhook_id, timestamp=timestamp, given=given, keys=keys):
        if contract is not None:
            why = "its signature fits none of the secrets" if keys else "no secret is set"
            _log.warning("A callback for job type %s was refused: %s.", job_type, why)
        raise signatures.refused()
    return webhook_id, body


def _evidence(said: Confirmation, *, kind: Literal["callback", "manual"]) -> Evidence:
    """Turn a body into evidence. Raises: Problem 422 for a reference that is too long."""
    ref = said.ref if said.ref and said.ref.strip() else None
    if ref is not None and len(ref) > REF_MAX:
        raise Problem("invalid_request", f"ref has at most {REF_MAX} characters.", pointer="/ref")
    # Cut and not refused: a proof must not get lost over the words beside it.
    detail = redact_text(said.detail or "")[:DETAIL_MAX]
    return Evidence(outcome=said.outcome, ref=ref, detail=detail, retryable=said.retryable, run=said.run, kind=kind)


def _answer(outcome: Outcome) -> HttpResponse:
    # A contradiction is 200 as well: a provider would repeat anything else for ever.
    return envelope.answer(_counted(outcome), status=202 if outcome.applied is Applied.PENDING else 200)


def _counted(outcome: Outcome) -> dict[str, Any]:
    return {
        "applied": outcome.applied in _COUNTS,
        "result": outcome.applied.value,
        "duplicate": outcome.applied is Applied.DUPLICATE,
        "late": outcome.applied is Applied.LATE,
        "job_id": None if outcome.job_id is None else str(outcome.job_id),
        "state": outcome.state,
    }
