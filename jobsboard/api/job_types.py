"""Job types: the reliability contracts that a key may use, as JSON. Not here: changing them (the admin, files)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from ninja import Router

from jobsboard.api import envelope, listing, problems, schemas
from jobsboard.api.access import key_of
from jobsboard.api.database import bounded
from jobsboard.api.times import write
from queues import contract_rules
from queues.contract_fields import FIELDS, NOT_ENFORCED
from queues.models import JobType
from queues.outcomes.limits import Limits, limits
from queues.redaction import redact_text

router = Router()

# An address may carry a key of its own in its query.
_ADDRESSES: Final = frozenset({"target_url", "check_url", "runbook_url"})


@router.get("/job-types", response={200: schemas.JobTypes, **schemas.ERRORS}, operation_id="listJobTypes")
def list_job_types(request: HttpRequest) -> HttpResponse:
    """Return the contracts of the types that the key may use, by name."""
    key = key_of(request, scope="jobs:read")
    listing.read_query(request.GET, listing.NoQuery)
    with bounded():
        rows = [row for row in JobType.objects.select_related("tier").order_by("name") if key.may_use(row.name)]
        standing = limits([row.name for row in rows if row.limited])
    return envelope.answer({"items": [_as_json(row, standing.get(row.name)) for row in rows]})


@router.get("/job-types/{name}", response={200: schemas.JobType, **schemas.ERRORS}, operation_id="getJobType")
def get_job_type(request: HttpRequest, name: str) -> HttpResponse:
    """Return one contract in its newest version."""
    key = key_of(request, scope="jobs:read")
    with bounded():
        # A name with U+0000 is none that PostgreSQL could be asked for.
        row = None if "\x00" in name else JobType.objects.select_related("tier").filter(name=name).first()
        standing = limits([row.name]) if row is not None and row.limited else {}
    if row is None or not key.may_use(row.name):
        raise problems.unknown_job_type()
    return envelope.answer(_as_json(row, standing.get(row.name)))


def _as_json(row: JobType, standing: Limits | None) -> dict[str, Any]:
    fields = {name: getattr(row, name) for name in FIELDS} | {"tier": row.tier_id}
    own = row.target_ratio
    return {
        "name": row.name,
        "version": row.version,
        "promise": contract_rules.promise_sentence(fields, tier_ratio=row.tier.target_ratio),
        **{name: _value(name, value) for name, value in fields.items()},
        "tier_name": row.tier.name,
        "target_ratio_in_effect": row.tier.target_ratio if own is None else own,
        # Whether, and never what. A variable is read by the process that needs it; here it is known by name only.
        "target_secret_set": bool(row.target_secret or row.target_secret_env),
        "callback_secret_set": bool(row.callback_secret or row.callback_secret_env),
        "callback_secret_old_until": write(row.callback_secret_old_until),
        "breaker": row.breaker if row.dependency else None,
        "flow": None if standing is None else _flow(standing),
        "not_enforced": NOT_ENFORCED,
    }


def _flow(one: Limits) -> dict[str, Any]:
    """Return the limits of a type and how much of them is taken now; what has no limit is null."""
    return {
        "running": one.running,
        "limit": one.concurrency or None,
        "rate_per_second": one.rate_per_second or None,
        "burst": one.burst or None,
        "tokens": one.tokens,
        "group_concurrency": one.group_concurrency or None,
        "group_rate_per_second": one.group_rate_per_second or None,
        "ordered": one.ordered,
        "ordered_on_failure": one.ordered_on_failure if one.ordered else None,
    }


def _value(name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return write(value)
    return redact_text(value) if name in _ADDRESSES else value
