"""Why a job type is late, and why a job is not running or not confirmed, as JSON. `outcomes.causes` judges."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from django.http import HttpRequest, HttpResponse
from ninja import Router
from pydantic import BaseModel, Field

from jobsboard.api import envelope, listing, problems, schemas, spans, times
from jobsboard.api.access import key_of
from jobsboard.api.database import bounded
from jobsboard.api.keys import Key
from queues import broker, contracts, outcomes
from queues.models import Job
from queues.outcomes import causes
from queues.states import JobState

router = Router()

DEFAULT_HOURS: Final = 6
_TIME: Final = {"type": "string", "format": "date-time"}


class Cause(BaseModel):
    """One possible cause, with what the verdict rests on."""

    code: Literal[
        "paused", "deferred", "breaker", "disabled", "no_worker", "scheduler_down", "broker_unreachable",
        "provider_failing", "runs_lost", "backlog", "slow_runs", "retrying", "awaiting_confirmation", "scheduled",
        "contract_changed", "running", "concurrency", "rate", "group_concurrency", "group_rate", "order",
    ]  # fmt: skip
    verdict: Literal["cause", "unknown", "not_a_cause"]
    sentence: str
    detail: str
    since: datetime | None
    share: float | None = Field(description="Of the late jobs, or of the time, what it explains; null: not known.")
    evidence: dict[str, Any]
    next: dict[str, str] | None = Field(description="Where to look: a kind, and what to filter by.")


class JobCauses(BaseModel):
    """Why a job is not running or not confirmed, what holds it first in front."""

    id: UUID
    type: str
    state: JobState
    sentence: str
    as_of: datetime | None = Field(description="Numbers of recent runs hold what happened before.")
    causes: list[Cause]


class TypeCauses(BaseModel):
    """Why a job type is late, what explains most in front."""

    type: str
    tier: int
    since: datetime
    until: datetime
    state: Literal["late", "overdue", "on_time", "no_data"] = Field(
        description="Below its promise in this range; open jobs past their window; neither; nothing to judge yet."
    )
    sentence: str
    as_of: datetime | None = Field(description="Numbers of recent runs hold what happened before.")
    causes: list[Cause]


class _Range(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The query of a range; six hours up to now where it says nothing."""

    since: str | None = None
    until: str | None = None


@router.get(
    "/job-types/{name}/causes",
    response={200: TypeCauses, **schemas.ERRORS},
    operation_id="getJobTypeCauses",
    openapi_extra=schemas.query(since=_TIME, until=_TIME),
)
def get_job_type_causes(request: HttpRequest, name: str) -> HttpResponse:
    """Say why a type is late in a range: possible causes, the one that explains most first, each with its evidence."""
    key = key_of(request, scope="jobs:read")
    wanted = listing.read_query(request.GET, _Range)
    answers = broker.ping()
    with bounded():
        board = outcomes.board()
        if name not in board.types or not key.may_use(name):
            raise problems.unknown_job_type()
        span = spans.read(wanted.since, wanted.until, board=board, hours=DEFAULT_HOURS)
        why = causes.explain_type(name, board=board, span=span, broker=answers)
    if why is None:
        raise problems.unknown_job_type()
    about = {
        "type": name,
        "tier": board.types[name].tier,
        "since": times.write(span.since),
        "until": times.write(span.until),
    }
    return envelope.answer({**about, **_as_json(why, key=key)})


@router.get("/jobs/{job_id}/causes", response={200: JobCauses, **schemas.ERRORS}, operation_id="getJobCauses")
def get_job_causes(request: HttpRequest, job_id: str) -> HttpResponse:
    """Say what an open job waits for, first what holds it first; of a settled one how it ended."""
    key = key_of(request, scope="jobs:read")
    answers = broker.ping()
    with bounded():
        job = listing.find(job_id, key=key)
        success, again = _promised(job)
        why = causes.explain_job(
            job, board=outcomes.board(), broker=answers, success=success, retries_unconfirmed=again
        )
    return envelope.answer({"id": str(job.id), "type": job.type, **_as_json(why, key=key)})


def _promised(job: Job) -> tuple[str | None, bool]:
    """Return what the job's contract wants as proof, and whether another attempt follows without it."""
    with contextlib.suppress(contracts.UnknownContract):
        contract = contracts.of_version(job.type, job.contract_version)
        return contract.success, contract.on_unconfirmed == "retry"
    return None, False


def _as_json(why: causes.Why, *, key: Key) -> dict[str, Any]:
    return {
        "state": why.state,
        "sentence": why.sentence,
        "as_of": times.write(why.as_of),
        "causes": [_cause(one, key=key) for one in why.causes],
    }


def _cause(one: causes.Cause, *, key: Key) -> dict[str, Any]:
    return {
        "code": one.code,
        "verdict": one.verdict.value,
        "sentence": one.sentence,
        "detail": one.detail,
        "since": times.write(one.since),
        "share": one.share,
        "evidence": {name: _value(name, value, key=key) for name, value in one.evidence.items()},
        "next": None if one.next is None else {"kind": one.next.kind, **one.next.params},
    }


def _value(name: str, value: Any, *, key: Key) -> Any:
    if isinstance(value, datetime):
        return times.write(value)
    if name == "other_queues":
        # The pools of the installation are nothing to who may see some types only.
        return value if key.uses_every_type else None
    if name == "types":
        # Their runs count, and their names are nobody's who may not use them.
        return [one for one in value if key.may_use(one)]
    return dict(value) if isinstance(value, Mapping) else value
