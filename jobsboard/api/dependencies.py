"""Dependencies and their circuit breakers, as JSON. Not here: holding one open or closed (the board, `breaker`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from django.http import HttpRequest, HttpResponse
from ninja import Router
from pydantic import BaseModel, Field

from jobsboard.api import envelope, listing, schemas, times
from jobsboard.api.access import key_of
from jobsboard.api.database import bounded
from jobsboard.api.keys import Key
from queues import breakers, outcomes
from queues.breakers import Standing
from queues.models import Breaker
from queues.outcomes import Board
from queues.redaction import redact_text
from queues.states import WAITING

router = Router()


class Dependency(BaseModel):
    """What job types depend on, and how its circuit breaker stands."""

    name: str
    description: str
    state: Literal["closed", "half_open", "open"]
    since: datetime
    why: str
    retry_at: datetime | None = Field(description="When an open breaker lets trials through.")
    trials_left: int = Field(description="How many trials a half open breaker still lets begin.")
    forced: Literal["open", "closed"] | None = Field(description="A person holds it so; null: it decides by itself.")
    forced_by: str | None
    forced_reason: str | None
    forced_until: datetime | None
    calls: int = Field(description="Of its window, as far as counted, without trials.")
    failed: int
    slow: int
    ratio: float | None = Field(description="The share that failed or was slow; null without calls.")
    error_ratio: float
    minimum_calls: int
    window_seconds: int
    reset_seconds: int
    slow_seconds: float
    timeout_seconds: float
    trial_jobs: int
    types: list[str] = Field(description="Job types that name it, as far as the key may use them.")
    jobs_held: int = Field(description="Jobs of these types that wait while it is not closed.")


class Dependencies(BaseModel):
    """The dependencies of the types that the key may use, by name."""

    items: list[Dependency]


@router.get("/dependencies", response={200: Dependencies, **schemas.ERRORS}, operation_id="listDependencies")
def list_dependencies(request: HttpRequest) -> HttpResponse:
    """Return the dependencies of the types that the key may use, by name, with their circuit breakers."""
    key = key_of(request, scope="jobs:read")
    listing.read_query(request.GET, listing.NoQuery)
    with bounded():
        board = outcomes.board()
        found = [one for one in breakers.standings() if key.uses_every_type or _types(one, key)]
    return envelope.answer({"items": [_as_json(one, board, key=key) for one in found]})


def _types(one: Standing, key: Key) -> list[str]:
    return [name for name in one.types if key.may_use(name)]


def _as_json(one: Standing, board: Board, *, key: Key) -> dict[str, Any]:
    types = _types(one, key)
    held = sum(board.count(*WAITING, name=name) for name in types) if one.state != Breaker.CLOSED else 0
    return {
        "name": one.name,
        "description": one.description,
        "state": one.state,
        "since": times.write(one.since),
        "why": redact_text(one.why),
        "retry_at": times.write(one.retry_at),
        "trials_left": max(one.trials_left, 0),
        "forced": one.forced or None,
        "forced_by": one.forced_by or None,
        "forced_reason": redact_text(one.forced_reason) or None,
        "forced_until": times.write(one.forced_until),
        "calls": one.calls,
        "failed": one.failed,
        "slow": one.slow,
        "ratio": one.ratio,
        "error_ratio": one.error_ratio,
        "minimum_calls": one.minimum_calls,
        "window_seconds": one.window_seconds,
        "reset_seconds": one.reset_seconds,
        "slow_seconds": one.slow_seconds,
        "timeout_seconds": one.timeout_seconds,
        "trial_jobs": one.trial_jobs,
        "types": types,
        "jobs_held": held,
    }
