"""`GET /outcomes`: how long the world waited, which share came in its window, and where the time went. From rollups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final, Literal

import msgspec
from django.http import HttpRequest, HttpResponse
from ninja import Router
from pydantic import BaseModel, Field

from jobsboard.api import envelope, listing, schemas, spans, times
from jobsboard.api.access import key_of
from jobsboard.api.database import bounded
from jobsboard.api.keys import Key
from queues import outcomes
from queues.outcomes import Board, Counts, Percentiles, Span, Times
from queues.states import OPEN, JobState, Reason

router = Router()

DEFAULT_HOURS: Final = 24
_TIME: Final = {"type": "string", "format": "date-time"}
_TIER: Final = {"type": "integer", "enum": [1, 2, 3]}
_QUERY: Final = schemas.query(type={"type": "string"}, tier=_TIER, since=_TIME, until=_TIME)
_NOW: Final = {"waiting": JobState.ACCEPTED, "running": JobState.PROCESSING, "retrying": JobState.RETRYING,
               "awaiting": JobState.AWAITING_CONFIRMATION}  # fmt: skip


class Lag(BaseModel):
    """Seconds; null without data. From histograms, within 5 %."""

    p50: float | None
    p95: float | None
    p99: float | None


class OneStage(BaseModel):
    """The time that jobs spent in a stage and that they left in this range."""

    seconds: float
    share: float | None = Field(description="Of the time in all stages.")
    p95_seconds: float | None
    left: int = Field(description="How often a job left the stage.")
    jobs_now: int


class Stages(BaseModel):
    """Where the time goes."""

    waiting: OneStage = Field(description="For a worker.")
    running: OneStage = Field(description="Also in vain.")
    retrying: OneStage = Field(description="For the next attempt.")
    awaiting: OneStage = Field(description="For the proof.")


class SuspectedCounts(BaseModel):
    """Signs that something happened twice."""

    blind_attempts: int
    second_references: int
    contradictions: int
    confirmed_after_rejection: int


class Slot(BaseModel):
    """One stretch of the range."""

    at: datetime
    accepted: int
    ready: int
    due: int
    in_window: int
    in_window_ratio: float | None
    confirmed: int
    dead: int
    expired: int
    lag_seconds: Lag


class Outcomes(BaseModel):
    """What became of the jobs of a range. A rate is null without data."""

    since: datetime
    until: datetime
    judged_at: datetime = Field(description="As of when windows have passed; behind now while no scheduler folds.")
    type: str | None
    tier: int | None
    ready: int = Field(description="Jobs whose clock started.")
    due: int = Field(description="Of those, whose window has passed; not cancelled before.")
    in_window: int = Field(description="Of the due ones, confirmed in their window.")
    in_window_ratio: float | None
    target_ratio: float | None = Field(description="The promise of the type or tier; null for all.")
    confirmed: int
    confirmed_late: int
    late_ratio: float | None = Field(description="Confirmed past their window, of the confirmed.")
    lag_seconds: Lag = Field(description="Ready to confirmed.")
    accepted: int
    duplicates_suppressed: int
    duplicate_rate: float | None
    dead: int
    dead_rate: float | None = Field(description="Of confirmed, dead and expired.")
    dead_by_reason: dict[str, int]
    expired: int
    expired_ratio: float | None
    stale: int = Field(description="Past their max age: expired, or dead for it.")
    stale_ratio: float | None
    cancelled: int
    replayed: int
    runs: int
    failure_rate: float | None = Field(description="Runs that failed or were lost.")
    retry_pressure: float | None = Field(description="Runs that were not the first of their job.")
    wait_seconds: Lag = Field(description="Due to started.")
    run_seconds: Lag
    late_open: int = Field(description="Of the due ones, open still.")
    oldest_open_seconds: float | None
    depth: dict[str, int] = Field(description="Open jobs by state, now; and `dead`, dead letters that nobody resolved.")
    stages: Stages
    suspected_duplicate_effects: SuspectedCounts
    series: list[Slot]


class _Query(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The query; 24 hours up to now where it says nothing."""

    type: str | None = None
    tier: Literal[1, 2, 3] | None = None
    since: str | None = None
    until: str | None = None


@router.get("/outcomes", response={200: Outcomes, **schemas.ERRORS}, operation_id="getOutcomes", openapi_extra=_QUERY)
def get_outcomes(request: HttpRequest) -> HttpResponse:
    """Return the outcomes of a type, a tier, or all types that the key may use, over a range of time."""
    key = key_of(request, scope="jobs:read")
    wanted = listing.read_query(request.GET, _Query)
    listing.check_type(wanted.type, key=key)
    tier = wanted.tier
    with bounded():
        board = outcomes.board()
        span = spans.read(wanted.since, wanted.until, board=board, hours=DEFAULT_HOURS)
        names = _names(wanted.type, board, key)
        flow = outcomes.flow(span, names=names, together=True)
        lags, _ = outcomes.lag_slots(span, tier=tier, names=names)
        known = {pair: n for pair, n in board.counts.items() if tier in (None, pair[0]) and _has(names, pair[1])}
        oldest = outcomes.oldest_open(pair for pair, found in known.items() if any(map(found.get, OPEN)))
        measured = outcomes.times(span, tier=tier, names=names)
    total = flow.total(tier=tier)
    depth: dict[str, int] = {
        state: sum(found.get(state, 0) for found in known.values()) for state in (*OPEN, JobState.DEAD)
    }
    waited = (board.now - min(oldest.values())).total_seconds() if oldest else -1.0
    return envelope.answer(
        {
            "since": times.write(span.since),
            "until": times.write(span.until),
            "judged_at": times.write(span.judged),
            "type": wanted.type,
            "tier": tier,
            "target_ratio": _target(wanted, board),
            **_counted(total),
            **_measured(total, measured, now=depth),
            # While a release before this one ends jobs, nobody counts that they ended.
            "late_open": min(total.open_late, sum(depth[state] for state in OPEN)),
            "lag_seconds": asdict(measured.of("lag")),
            # A job whose time has not come is not old.
            "oldest_open_seconds": waited if waited >= 0 else None,
            "depth": depth,
            "series": _series(span, flow.series(tier=tier), lags),
        }
    )


def _names(name: str | None, board: Board, key: Key) -> list[str] | None:
    """Return the types that are read; None for all. Types that are gone have jobs and history still."""
    if name is not None:
        return [name]
    if key.uses_every_type:
        return None
    return [name for name in {*board.types, *(name for _, name in board.counts)} if key.may_use(name)]


def _has(names: list[str] | None, name: str) -> bool:
    return names is None or name in names


def _target(wanted: _Query, board: Board) -> float | None:
    if wanted.type is not None:
        known = board.types.get(wanted.type)
        return known.target if known else None
    return None if wanted.tier is None else board.tiers[wanted.tier].target


def _counted(total: Counts) -> dict[str, Any]:
    return {
        "ready": total.ready,
        "due": total.due,
        "in_window": total.kept,
        "in_window_ratio": total.ratio,
        "confirmed": total.confirmed,
        "confirmed_late": total.late,
        "late_ratio": total.late_rate,
        "accepted": total.accepted,
        "duplicates_suppressed": total.duplicates,
        "duplicate_rate": total.duplicate_rate,
        "dead": total.dead,
        "dead_rate": total.dead_rate,
        "expired": total.expired,
        "expired_ratio": total.expired_rate,
        "cancelled": total.cancelled,
        "replayed": total.replayed,
        "runs": total.runs,
        "failure_rate": total.failure_rate,
        "retry_pressure": total.retry_pressure,
        "suspected_duplicate_effects": {
            "blind_attempts": total.blind_attempts,
            "second_references": total.second_references,
            "contradictions": total.contradictions,
            "confirmed_after_rejection": total.confirmed_after_rejection,
        },
    }


def _measured(total: Counts, measured: Times, *, now: Mapping[str, int]) -> dict[str, Any]:
    stages = {stage.name: stage for stage in measured.stages()}
    dead = measured.dead_by_reason()
    stale = total.expired + dead.get(Reason.STALE, 0)
    return {
        "dead_by_reason": dead,
        "stale": stale,
        "stale_ratio": stale / total.settled if total.settled else None,
        "wait_seconds": asdict(measured.of("wait")),
        "run_seconds": asdict(measured.of("run")),
        "stages": {
            name: {
                "seconds": stages[name].seconds,
                "share": stages[name].share,
                "p95_seconds": stages[name].p95,
                "left": stages[name].n,
                "jobs_now": now[state],
            }
            for name, state in _NOW.items()
        },
    }


def _series(span: Span, series: Sequence[Counts], lags: Sequence[Percentiles]) -> list[dict[str, Any]]:
    return [
        {
            "at": times.write(at),
            "accepted": one.accepted,
            "ready": one.ready,
            "due": one.due,
            "in_window": one.kept,
            "in_window_ratio": one.ratio,
            "confirmed": one.confirmed,
            "dead": one.dead,
            "expired": one.expired,
            "lag_seconds": asdict(lag),
        }
        for at, one, lag in zip(span.slots, series, lags, strict=True)
    ]
