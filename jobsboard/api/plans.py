"""Plans over HTTP, for replays and cancellations alike: what a body chooses, the plan that is made of it, its JSON.

Not here: what a plan does (`dlq.plans`), the calls (`jobsboard.api.replays`, `jobsboard.api.cancellations`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from dlq.models import PlanItem, ReplayPlan
from dlq.plans import create, read
from dlq.plans.create import PlanRequest
from dlq.plans.selection import MOST, WAITING, Selection, SelectionInvalid
from jobsboard.api import envelope, job_json, listing, times
from jobsboard.api.access import key_of
from jobsboard.api.keys import Key
from jobsboard.api.problems import Problem, unknown_job_type
from queues import contracts
from queues.redaction import redact_text

BODY_MAX: Final = 5 * 1024 * 1024
"""Enough for MOST ids."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_IN_FILTER: Final = {"type", "tier", "reason", "fingerprint", "group", "state", "since", "until"}
_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,255}")
_FINGERPRINT: Final = re.compile(r"[0-9A-Za-z]{0,32}")


class Filter(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Which jobs a plan is about."""

    type: str | None = None
    tier: Literal[1, 2, 3] | None = None
    reason: str | None = None
    fingerprint: str | None = None
    group: str | None = None
    state: str = "dead"
    # Any: a number or an object here is a bad time, said so by the reader of times.
    since: Any = None
    until: Any = None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a body chooses, and the types of the caller that it can be about."""

    selection: Selection
    types: list[str]
    as_of: datetime | None


def choose(filter: Filter | None, ids: list[str] | None, as_of: Any, *, key: Key) -> Chosen:
    """Read what is chosen, narrowed to the types of the key. Raises: Problem."""
    at = None if as_of is None else times.read(as_of, pointer="/as_of")
    types = [name for name in contracts.all_current() if key.may_use(name)]
    if (filter is None) == (ids is None):
        raise Problem("invalid_request", "Send a filter, or ids: one of the two.", pointer="/filter")
    if ids is not None:
        return Chosen(selection=Selection(ids=_ids(ids)), types=types, as_of=at)
    assert filter is not None  # noqa: S101 (for mypy: exactly one of the two is there)
    return Chosen(selection=_selection(filter, types), types=[filter.type] if filter.type else types, as_of=at)


def make(request: HttpRequest, wanted: PlanRequest) -> HttpResponse:
    """Make a plan and answer it: 202, or 200 for the one that this Idempotency-Key made. Raises: Problem."""
    try:
        plan, is_new = create.create(wanted)
    except SelectionInvalid as invalid:
        raise _invalid(invalid) from None
    except create.CountChanged as changed:
        detail = f"{str(changed).capitalize()}. Look again, and send the number that you see then."
        raise Problem("count_changed", detail, expected=changed.expected, found=changed.found) from None
    except create.NothingSelected as nothing:
        raise Problem("nothing_selected", f"{str(nothing).capitalize()}.", left_out=nothing.left_out) from None
    except create.TooMany as many:
        raise Problem("too_many_selected", f"{str(many).capitalize()}.", most=MOST) from None
    except create.KeyReused as reused:
        raise Problem("dedupe_conflict", f"{str(reused).capitalize()}.") from None
    response = envelope.answer(as_json(plan), status=202 if is_new else 200)
    response["Location"] = f"{job_json.BASE}/replays/{plan.id}"
    if not is_new:
        response["Idempotency-Replayed"] = "true"
    return response


def writer(request: HttpRequest) -> Key:
    """Return the key of a request that may plan, or has planned, something. Raises: Problem 403."""
    try:
        return key_of(request, scope="dlq:replay")
    except Problem:
        return key_of(request, scope="jobs:write")


def needs(action: str, selection: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the scopes that a plan needs, made or steered: jobs that wait are the producer's, dead letters are not.

    Ids to be cancelled may be of both.
    """
    if selection.get("state") == WAITING:
        return ("jobs:write",)
    of_both = action == ReplayPlan.Action.CANCEL and "ids" in selection
    return ("jobs:write", "dlq:replay") if of_both else ("dlq:replay",)


def may_steer(request: HttpRequest, plan: ReplayPlan) -> Key:
    """Return the key of a request that may do with a plan what making it takes. Raises: Problem 403."""
    return [key_of(request, scope=scope) for scope in needs(plan.action, plan.selection)][-1]


def idempotency_key(request: HttpRequest) -> str | None:
    """Return the header `Idempotency-Key`. Raises: Problem 400."""
    sent = request.headers.get("Idempotency-Key")
    if sent is not None and not _VISIBLE.fullmatch(sent):
        raise Problem("dedupe_key_invalid", "A key has 1 to 255 visible ASCII characters.")
    return sent


def as_json(plan: ReplayPlan) -> dict[str, Any]:
    """Return a plan and how far it is."""
    eta = read.eta_seconds(plan)
    here = f"{settings.PUBLIC_URL}{job_json.BASE}/replays/{plan.id}"
    return {
        "id": str(plan.id),
        "action": plan.action,
        "state": plan.state,
        "state_at": times.write(plan.state_at),
        "state_reason": redact_text(plan.state_reason) or None,
        "held": plan.held or None,
        "dry_run": plan.dry_run,
        "selection": plan.selection,
        "types": plan.types,
        "as_of": times.write(plan.as_of),
        "reason": redact_text(plan.reason),
        "created_by": plan.created_by,
        "created_at": times.write(plan.created_at),
        "finished_at": times.write(plan.finished_at),
        "source": plan.source,
        "rate_per_second": plan.rate_per_second,
        "concurrency": plan.concurrency,
        "stop_on_failure_ratio": plan.stop_on_failure_ratio,
        "order": plan.order,
        "total": plan.total,
        "left_out": plan.left_out,
        "done": plan.done,
        "skipped": plan.skipped,
        "failed": plan.failed,
        "left": read.left(plan),
        "why": plan.why,
        "outcomes": {
            "open": plan.open,
            "failing": plan.failing,
            "awaiting": plan.awaiting,
            "confirmed": plan.confirmed,
            "dead_again": plan.dead_again,
            "expired": plan.expired,
            "cancelled": plan.cancelled,
            "lost": plan.lost,
        },
        "words": read.words(plan),
        "eta_seconds": None if eta is None else round(eta, 1),
        "links": {
            "self": here,
            "items": f"{here}/items",
            "board": f"{settings.PUBLIC_URL}/replays/{plan.id}/",
        },
    }


def item_as_json(item: PlanItem) -> dict[str, Any]:
    """Return one job of a plan."""
    return {
        "number": item.number,
        "job_id": str(item.job_id),
        "type": item.type,
        "state": item.state,
        "code": item.code or None,
        "detail": redact_text(item.detail) or None,
        "at": times.write(item.at),
        "child": None if item.child is None else str(item.child),
        "outcome": item.outcome or None,
        "failing": item.failing,
    }


def _ids(texts: list[str]) -> tuple[UUID, ...]:
    """Read ids, each once. Raises: Problem with the place of one that is none."""
    found: dict[UUID, None] = {}
    for index, text in enumerate(texts):
        job_id = listing.read_id(text)
        if job_id is None:
            raise Problem("invalid_request", "This is not the id of a job.", pointer=f"/ids/{index}")
        found[job_id] = None
    return tuple(found)


def _selection(wanted: Filter, types: list[str]) -> Selection:
    """Turn a filter into a selection. Raises: Problem."""
    if wanted.type is not None and wanted.type not in types:
        problem = unknown_job_type()
        problem.pointer = "/filter/type"
        raise problem
    if wanted.group is not None and not _VISIBLE.fullmatch(wanted.group):
        raise _invalid(SelectionInvalid("group", "has 1 to 255 visible ASCII characters"))
    if wanted.fingerprint is not None and not _FINGERPRINT.fullmatch(wanted.fingerprint):
        raise _invalid(SelectionInvalid("fingerprint", "is one that a dead letter has, or empty"))
    return Selection(
        type=wanted.type,
        tier=wanted.tier,
        reason=wanted.reason,
        fingerprint=wanted.fingerprint,
        group=wanted.group,
        state=wanted.state,
        since=None if wanted.since is None else times.read(wanted.since, pointer="/filter/since"),
        until=None if wanted.until is None else times.read(wanted.until, pointer="/filter/until"),
    )


def _invalid(error: SelectionInvalid) -> Problem:
    place = f"/filter/{error.field}" if error.field in _IN_FILTER else f"/{error.field}"
    return Problem("invalid_request", f"{error.field}: {error}.", pointer=place)
