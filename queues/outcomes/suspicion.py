"""Signs that something happened twice, newest first. What each kind can and cannot prove is said where it is shown."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db import connection

SIGNS_MOST: Final = 200

# By the primary key or the index on (type, id); an unknown kind among many others is the only way to read far, so the
# look is bounded.
_SIGNS: Final = """
SELECT id, kind, type, tier, job_id, fence, at, detail FROM (
  SELECT * FROM queues_suspectedduplicate WHERE (%(type)s::text IS NULL OR type = %(type)s)
    AND (%(before)s::bigint IS NULL OR id < %(before)s) ORDER BY id DESC LIMIT 10000) AS newest
WHERE (%(kind)s::text IS NULL OR kind = %(kind)s) AND (%(since)s::timestamptz IS NULL OR at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR at < %(until)s)
ORDER BY id DESC LIMIT %(limit)s
"""
_OF_JOB: Final = """
SELECT id, kind, type, tier, job_id, fence, at, detail FROM queues_suspectedduplicate WHERE job_id = ANY(%(ids)s)
ORDER BY id LIMIT 200
"""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One sign: what was seen (`kind`, a SuspectedDuplicate.Kind), of which run of which job. `detail` says more."""

    id: int
    kind: str
    type: str
    tier: int
    job_id: UUID
    fence: int
    at: dt.datetime
    detail: Mapping[str, Any]


def signs(
    *,
    name: str | None = None,
    kind: str | None = None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[Sign]:
    """Return the newest signs of a type or of all; `before` is the id of the last one of the page before."""
    params = {
        "type": name, "kind": kind, "since": since, "until": until, "before": before, "limit": min(limit, SIGNS_MOST),
    }  # fmt: skip
    return _read(_SIGNS, params)


def signs_of(ids: Sequence[UUID]) -> list[Sign]:
    """Return the signs of some jobs, oldest first."""
    return _read(_OF_JOB, {"ids": list(ids)})


def _read(sql: str, params: Mapping[str, Any]) -> list[Sign]:
    names = ("id", "kind", "type", "tier", "job_id", "fence", "at")
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return [
            Sign(**dict(zip(names, row, strict=True)), detail=json.loads(detail)) for *row, detail in cursor.fetchall()
        ]
