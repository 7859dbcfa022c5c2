"""Answer questions about jobs that have ended: ask the type's check, as `queues.outside` wants it, on a worker."""

import datetime as dt
import logging
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import msgspec

from queues import contracts, outside
from queues.lifecycle import DueCheck
from queues.models import Job
from queues.runtime import checks
from queues.runtime.context import context_of

log = logging.getLogger(__name__)

SECONDS: Final = outside.WAIT_SECONDS


def answer_all(ids: Sequence[UUID]) -> int:
    """Ask about the jobs whose question is open, and store what came; returns how many."""
    taken = outside.take(ids)
    found = {job.id: job for job in Job.objects.filter(id__in=taken)}
    for job_id in taken:
        job = found.get(job_id)
        if job is None or job.payload is None:
            outside.answer(job_id, outcome="failed", detail="the job or its payload is gone")
        else:
            _answer(job)
    return len(taken)


def _answer(job: Job) -> None:
    try:
        contract = contracts.of_version(job.type, job.contract_version)
    except Exception as error:  # its contract cannot be read now: it is not known, and somebody may ask again
        log.warning("job %s: its contract cannot be read: %s", job.id, error)
        outside.answer(job.id, outcome="failed", detail="the contract cannot be read")
        return
    check = checks.find(contract)
    if check is None:
        outside.answer(job.id, outcome="no_check")
        return
    finding = checks.ask(check, context_of(_as_due(job)), contract, seconds=SECONDS)
    reference = str((finding.evidence or {}).get("ref") or "")
    told = finding.told.failure if finding.told else {}
    detail = f"{told['error_class']}: {told['message']}" if told else ""
    outside.answer(job.id, outcome=finding.outcome, reference=reference, detail=detail)


def _as_due(job: Job) -> DueCheck:
    """Return the job as a claimed check would name it; nothing is claimed."""
    return DueCheck(
        id=job.id, fence=job.fence, type=job.type, contract_version=job.contract_version, attempt=job.attempt,
        begun=job.begun, payload=job.payload or "", idempotency_key=job.idempotency_key, group=job.group,
        accepted_at=job.accepted_at.timestamp(), expires_at=job.expires_at.timestamp(),
        failures=msgspec.json.encode(job.failures).decode(), probe=job.probe,
        trace=None if job.trace is None else msgspec.json.encode(job.trace).decode(), reference=job.reference,
        check_failures=0, waited=0.0, due_at=dt.datetime.now(dt.UTC),
    )  # fmt: skip
