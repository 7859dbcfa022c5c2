"""Dead man's switches: endpoints that are told that all is well, and raise the alarm themselves when that stops.

They are told only while alerts could leave: rules were evaluated and numbers brought up to date within the last
minute. Not here: sending (`delivery` does it beside its messages), alarms about late beats (the other side's).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db import connection

from jobsboard.alerts import formats, ledger
from jobsboard.alerts.sending import Target, Tried

FRESH_SECONDS: Final = 60
MOST: Final = 16
"""Claimed in one round."""
RETRY_SECONDS: Final = 5
"""After a beat that failed; doubled with each, up to the endpoint's own interval."""

_CLAIM: Final = """
UPDATE jobsboard_webhookendpoint e SET next_beat_at = jobs_now() + make_interval(secs => e.every_seconds)
WHERE e.id = ANY (ARRAY(
    SELECT id FROM jobsboard_webhookendpoint
    WHERE enabled AND format = 'heartbeat' AND (next_beat_at IS NULL OR next_beat_at <= jobs_now())
      AND id <> ALL (%(busy)s)
    ORDER BY next_beat_at NULLS FIRST LIMIT %(most)s FOR NO KEY UPDATE SKIP LOCKED))
  AND (e.next_beat_at IS NULL OR e.next_beat_at <= jobs_now())
  AND EXISTS (SELECT FROM jobsboard_alertclock
    WHERE completed_at BETWEEN jobs_now() - make_interval(secs => %(fresh)s) AND jobs_now() + interval '10 s')
  AND EXISTS (SELECT FROM queues_boardversion
    WHERE folded_at BETWEEN jobs_now() - make_interval(secs => %(fresh)s) AND jobs_now() + interval '10 s')
RETURNING e.id, e.next_beat_at, jobs_now(), e.url_sealed, e.secret_sealed,
  CASE WHEN e.secret_old_until > jobs_now() THEN e.secret_old_sealed END
"""

_SOONER: Final = """
UPDATE jobsboard_webhookendpoint
SET next_beat_at = jobs_now() + make_interval(secs => least(every_seconds, %(retry)s * 2 ^ least(failures - 1, 16)))
WHERE id = %(endpoint)s AND next_beat_at = %(claimed)s AND failures > 0
"""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One beat to one endpoint."""

    id: str
    endpoint: int
    body: str
    next_at: datetime
    target: Target


def claim(*, busy: Collection[int]) -> list[Beat]:
    """Claim the beats that are due now, if alerts could leave; `busy` endpoints have one under way."""
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM, {"busy": list(busy), "most": MOST, "fresh": FRESH_SECONDS})
        return [_beat(row) for row in cursor.fetchall()]


def _beat(row: Sequence[Any]) -> Beat:
    endpoint, next_at, now, url, secret, old = row
    return Beat(
        id=f"msg_{secrets.token_hex(16)}", endpoint=endpoint, body=formats.heartbeat(now), next_at=next_at,
        target=Target(
            url_sealed=bytes(url),
            secret_sealed=None if secret is None else bytes(secret),
            secret_old_sealed=None if old is None else bytes(old),
        ),
    )  # fmt: skip


def record(beat: Beat, tried: Tried) -> None:
    """Write down on the endpoint how its beat did; after a failure the next one comes sooner."""
    ledger.health({beat.endpoint: ledger.Health.of([tried])})
    if tried.verdict == "gone":
        ledger.disable(beat.endpoint)
    elif tried.verdict == "failed":
        with connection.cursor() as cursor:
            cursor.execute(_SOONER, {"retry": RETRY_SECONDS, "endpoint": beat.endpoint, "claimed": beat.next_at})
