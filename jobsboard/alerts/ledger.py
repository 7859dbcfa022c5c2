"""Every statement that moves a delivery on, and what it says of its endpoint. Guarded; any number of senders may run.

A try is claimed for a minute and committed before it begins. Who dies between the receiver's answer and its record
leaves a delivery that is tried again with the same id: receivers see it twice, never not at all.
Not here: making deliveries (`outbox`), the service and its threads (`delivery`).
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any, Final

from django.db import connection, transaction

from jobsboard.alerts.sending import Target, Tried
from jobsboard.models import WebhookDelivery
from queues import audit

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 60
"""More than a try can take; after it a try that nobody recorded is lost."""
AT_ONCE: Final = 4
"""Tries at a time of an endpoint that answers; of one whose last try failed it is one."""
STEPS: Final = (
    5, 30, 120, 300, 600, 1_200, 1_800, 3_600, 2 * 3_600, 5 * 3_600, 10 * 3_600, 14 * 3_600, 18 * 3_600, 24 * 3_600,
)  # fmt: skip
"""Seconds to the next try after each that failed, 75 hours in all: alerts matter in their first hour."""
JITTER: Final = 0.2
TOO_OLD_HOURS: Final = 96
"""Given up then, whatever it waited for: steps may be a fifth longer, and the endpoint may have been disabled."""
KEEP: Final = timedelta(days=30)
FORGET_MOST: Final = 1_000
GONE: Final = "The receiver answered 410 Gone."

_State = WebhookDelivery.State

_DUE: Final = """
    SELECT d.id, d.due_at, row_number() OVER (ORDER BY d.due_at {order}) AS nth FROM jobsboard_webhookdelivery d
    WHERE d.endpoint_id = endpoint.id AND {which} AND d.state = 'pending' AND d.due_at <= jobs_now()
      AND (d.alert_id IS NULL OR d.created_by <> '' OR NOT EXISTS (
        SELECT FROM jobsboard_webhookdelivery n WHERE n.alert_id = d.alert_id AND n.endpoint_id = d.endpoint_id
          AND n.sequence > d.sequence AND n.state IN ('pending', 'delivered') AND n.created_by = ''))
    ORDER BY d.due_at {order} LIMIT greatest(endpoint.room, 0)
"""

# Of each endpoint what is due, as many as it has room for: index delivery_due. One that answers is sent the oldest
# first, so that in a storm none waits for all; one that fails the newest, since each try may be the one that works.
# An older state of an alert waits while a newer one does, and ends with it; what a person sent waits for nothing.
# A try that was never recorded is written down as lost, so that `attempt` and the list of attempts stay in step: a
# count beyond the list is a try under way.
_CLAIM: Final = f"""
WITH endpoint AS (
  SELECT e.id, e.failures > 0 AS failing, CASE WHEN e.failures > 0 THEN 1 ELSE %(at_once)s END - (
      SELECT count(*) FROM jobsboard_webhookdelivery b
      WHERE b.endpoint_id = e.id AND b.state = 'pending' AND b.attempt > jsonb_array_length(b.attempts)
        AND b.due_at > jobs_now() AND b.due_at <= jobs_now() + make_interval(secs => %(lease)s)) AS room
  FROM jobsboard_webhookendpoint e WHERE e.enabled AND e.format <> 'heartbeat'
), ranked AS (
  SELECT d.id, endpoint.failing, row_number() OVER (PARTITION BY endpoint.failing ORDER BY d.nth, d.due_at) AS rank
  FROM endpoint CROSS JOIN LATERAL (
    ({_DUE.format(which="NOT endpoint.failing", order="ASC")})
    UNION ALL ({_DUE.format(which="endpoint.failing", order="DESC")})
  ) AS d
), locked AS (
  SELECT id FROM jobsboard_webhookdelivery
  WHERE id = ANY (ARRAY(SELECT id FROM ranked WHERE rank <= CASE WHEN failing THEN %(failing)s ELSE %(answering)s END))
    AND state = 'pending' AND due_at <= jobs_now()
  ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE jobsboard_webhookdelivery d SET
  attempt = d.attempt + 1,
  due_at = jobs_now() + make_interval(secs => %(lease)s),
  attempts = CASE WHEN d.attempt > jsonb_array_length(d.attempts)
    THEN d.attempts || jsonb_build_array(jsonb_build_object(
      'at', to_char((d.due_at - make_interval(secs => %(lease)s)) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
      'status', NULL, 'took_seconds', NULL, 'error', %(lost)s::text, 'excerpt', ''))
    ELSE d.attempts END
FROM locked, jobsboard_webhookendpoint e
WHERE d.id = locked.id AND e.id = d.endpoint_id AND d.state = 'pending' AND d.due_at <= jobs_now()
RETURNING d.id, d.endpoint_id, d.alert_id, d.sequence, d.attempt, d.attempts, d.body, e.failures > 0,
  e.url_sealed, e.secret_sealed, CASE WHEN e.secret_old_until > jobs_now() THEN e.secret_old_sealed END
"""  # noqa: S608 (constants of this module)
_LOST: Final = "lost: the sender ended before it wrote down what came of this"

_RECORD: Final = """
WITH r AS (
  SELECT * FROM jsonb_to_recordset(%(results)s::jsonb)
    AS r (id text, attempt integer, attempts jsonb, state text, wait float8)
), locked AS (
  SELECT d.id FROM r JOIN jobsboard_webhookdelivery d ON d.id = r.id AND d.attempt = r.attempt AND d.state = 'pending'
  ORDER BY d.id FOR NO KEY UPDATE OF d
)
UPDATE jobsboard_webhookdelivery d SET attempts = r.attempts, state = r.state,
  due_at = CASE WHEN r.state = 'pending' THEN jobs_now() + make_interval(secs => r.wait) END,
  settled_at = CASE WHEN r.state <> 'pending' THEN jobs_clock() END
FROM locked JOIN r USING (id)
WHERE d.id = locked.id AND d.attempt = r.attempt AND d.state = 'pending'
RETURNING d.id
"""

# Older states of the same alerts that still wait, other than what a person sent: index delivery_of_alert.
_END_OLDER: Final = """
WITH r AS (
  SELECT * FROM jsonb_to_recordset(%(settled)s::jsonb)
    AS r (id text, endpoint bigint, alert bigint, sequence integer, state text, entries jsonb)
), locked AS (
  SELECT d.id, r.state, r.entries FROM r JOIN jobsboard_webhookdelivery d
    ON d.alert_id = r.alert AND d.endpoint_id = r.endpoint AND d.sequence <= r.sequence AND d.id <> r.id
    AND d.created_by = '' AND d.state = 'pending'
  ORDER BY d.id FOR NO KEY UPDATE OF d
)
UPDATE jobsboard_webhookdelivery d SET state = o.state, due_at = NULL, settled_at = jobs_clock(),
  attempts = d.attempts || o.entries
FROM (SELECT DISTINCT ON (id) id, state, entries FROM locked ORDER BY id, state DESC) AS o
WHERE d.id = o.id AND d.state = 'pending'
"""

_END_ALL: Final = """
UPDATE jobsboard_webhookdelivery SET state = 'failed', due_at = NULL, settled_at = jobs_clock(),
  attempts = attempts || %(entries)s::jsonb
WHERE id = ANY (ARRAY(
  SELECT id FROM jobsboard_webhookdelivery WHERE endpoint_id = %(endpoint)s AND state = 'pending'
  ORDER BY id FOR NO KEY UPDATE))
"""

# A sender that died between its record and _END_OLDER left these: they are sent no more, and end here.
_END_OVERTAKEN: Final = """
UPDATE jobsboard_webhookdelivery SET state = 'superseded', due_at = NULL, settled_at = jobs_clock()
WHERE id = ANY (ARRAY(
  SELECT d.id FROM jobsboard_webhookdelivery d
  WHERE d.state = 'pending' AND d.created_by = '' AND d.due_at <= jobs_now()
    AND EXISTS (SELECT FROM jobsboard_webhookdelivery n WHERE n.alert_id = d.alert_id
      AND n.endpoint_id = d.endpoint_id AND n.sequence > d.sequence AND n.state = 'delivered' AND n.created_by = '')
  ORDER BY d.id LIMIT %(most)s FOR NO KEY UPDATE SKIP LOCKED)) AND state = 'pending'
"""

# What is being tried is left to whoever tries it.
_END_OLD: Final = """
UPDATE jobsboard_webhookdelivery SET state = 'failed', due_at = NULL, settled_at = jobs_clock(),
  attempts = attempts || %(entries)s::jsonb
WHERE id = ANY (ARRAY(
  SELECT d.id FROM jobsboard_webhookdelivery d
  WHERE d.state = 'pending' AND d.created_at < jobs_now() - make_interval(hours => %(hours)s)
    AND NOT (d.attempt > jsonb_array_length(d.attempts) AND d.due_at > jobs_now())
  ORDER BY d.id LIMIT %(most)s FOR NO KEY UPDATE SKIP LOCKED))
"""

_FORGET: Final = """
DELETE FROM jobsboard_webhookdelivery WHERE id = ANY (ARRAY(
  SELECT id FROM jobsboard_webhookdelivery
  WHERE created_at < jobs_now() - make_interval(days => %(days)s) AND state <> 'pending'
  ORDER BY created_at LIMIT %(most)s FOR UPDATE SKIP LOCKED))
"""

_HEALTH: Final = """
WITH r AS (
  SELECT * FROM jsonb_to_recordset(%(found)s::jsonb) AS r (endpoint bigint, ok boolean, failed integer, error text)
), locked AS (
  SELECT e.id FROM r JOIN jobsboard_webhookendpoint e ON e.id = r.endpoint ORDER BY e.id FOR NO KEY UPDATE OF e
)
UPDATE jobsboard_webhookendpoint e SET
  failures = CASE WHEN r.ok THEN 0 ELSE e.failures END + r.failed,
  last_ok_at = CASE WHEN r.ok THEN jobs_clock() ELSE e.last_ok_at END,
  last_failed_at = CASE WHEN r.failed > 0 THEN jobs_clock() ELSE e.last_failed_at END,
  last_error = CASE WHEN r.failed > 0 THEN r.error WHEN r.ok THEN '' ELSE e.last_error END
FROM locked, r WHERE e.id = locked.id AND e.id = r.endpoint
"""

_DISABLE: Final = """
UPDATE jobsboard_webhookendpoint SET enabled = false, disabled_reason = %(reason)s
WHERE id = %(endpoint)s AND enabled RETURNING name
"""


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A try that is this process's for a minute."""

    id: str
    endpoint: int
    alert: int | None
    sequence: int
    attempt: int
    attempts: Sequence[Mapping[str, Any]]
    body: str
    failing: bool
    target: Target


@dataclass(frozen=True, kw_only=True)
class Health:
    """What tries say of their endpoint: whether one was answered well, and how many failed since."""

    ok: bool
    failed: int
    error: str

    @classmethod
    def of(cls, tries: Iterable[Tried]) -> Health:
        """Sum up tries in the order in which they ended."""
        ok, failed, error = False, 0, ""
        for tried in tries:
            if tried.verdict == "delivered":
                ok, failed, error = True, 0, ""
            else:
                failed, error = failed + 1, tried.error
        return cls(ok=ok, failed=failed, error=error)


def claim(*, answering: int, failing: int) -> list[Claimed]:
    """Claim tries that are due, in one statement, committed.

    At most so many of endpoints that answer, and so many of those whose last try failed. The newest come first.
    """
    if answering <= 0 and failing <= 0:
        return []
    params: dict[str, int | str] = {
        "at_once": AT_ONCE, "lease": LEASE_SECONDS, "answering": max(answering, 0), "failing": max(failing, 0),
        "lost": _LOST,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM, params)
        return [_claimed(row) for row in cursor.fetchall()]


def _claimed(row: Sequence[Any]) -> Claimed:
    (message, endpoint, alert, sequence, attempt, attempts, body, failing, url, secret, old) = row
    return Claimed(
        id=message, endpoint=endpoint, alert=alert, sequence=sequence, attempt=attempt, attempts=json.loads(attempts),
        body=body, failing=failing,
        target=Target(
            url_sealed=bytes(url), secret_sealed=_bytes(secret), secret_old_sealed=_bytes(old),
        ),
    )  # fmt: skip


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def record(results: Sequence[tuple[Claimed, Tried]]) -> None:
    """Write down what came of tries; each guarded, so that doing it again changes nothing.

    Statements of their own, each of which locks its rows in one order: in one transaction two senders that end
    deliveries of one endpoint would wait for each other.
    """
    if not results:
        return
    tries: dict[int, list[Tried]] = {}
    for claimed, tried in results:
        tries.setdefault(claimed.endpoint, []).append(tried)
    gone = sorted(endpoint for endpoint, ended in tries.items() if any(tried.verdict == "gone" for tried in ended))
    with connection.cursor() as cursor:
        settled = [ended for ended in _record(cursor, results) if ended["alert"] is not None]
        if settled:
            cursor.execute(_END_OLDER, {"settled": json.dumps(settled)})
        health({endpoint: Health.of(ended) for endpoint, ended in tries.items()})
        for endpoint in gone:
            disable(endpoint)
            entries = _entries("given up: the endpoint was disabled, since it answered 410")
            cursor.execute(_END_ALL, {"endpoint": endpoint, "entries": json.dumps(entries)})


def _record(cursor: Any, results: Sequence[tuple[Claimed, Tried]]) -> list[dict[str, Any]]:
    """Write down tries; return the deliveries that they settled, as _END_OLDER reads them."""
    rows, settled = [], []
    for claimed, tried in results:
        state, wait = outcome(claimed.attempt, tried)
        rows.append(
            {
                "id": claimed.id, "attempt": claimed.attempt, "attempts": [*claimed.attempts, _entry(tried)],
                "state": state.value, "wait": wait,
            }
        )  # fmt: skip
        if state is not _State.PENDING:
            given_up = state is _State.FAILED
            settled.append(
                {
                    "id": claimed.id, "endpoint": claimed.endpoint, "alert": claimed.alert,
                    "sequence": claimed.sequence,
                    "state": _State.FAILED.value if given_up else _State.SUPERSEDED.value,
                    "entries": _entries("given up with a newer state of the alert") if given_up else [],
                }
            )  # fmt: skip
        if state is not _State.DELIVERED:
            log.warning("delivery %s to endpoint %d failed, try %d: %s", claimed.id, claimed.endpoint,
                        claimed.attempt, tried.error)  # fmt: skip
    cursor.execute(_RECORD, {"results": json.dumps(rows)})
    kept = {row[0] for row in cursor.fetchall()}
    for late in (claimed for claimed, _ in results if claimed.id not in kept):
        log.info("delivery %s was settled or claimed by another sender; try %d is not kept", late.id, late.attempt)
    # What arrived is no news twice; what was given up and is not ours any more may still arrive.
    return [one for one in settled if one["id"] in kept or one["state"] == _State.SUPERSEDED.value]


def _entry(tried: Tried) -> dict[str, Any]:
    return {
        "at": tried.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "status": tried.status, "took_seconds": tried.took_seconds, "error": tried.error, "excerpt": tried.excerpt,
    }  # fmt: skip


def outcome(attempt: int, tried: Tried) -> tuple[WebhookDelivery.State, float]:
    """Return the state after a try, and the seconds to the next one, where there is one.

    A receiver that says when to come again can put that off, never bring it forward: else a word of its own would
    use up the tries of three days within an hour.
    """
    if tried.verdict == "delivered":
        return _State.DELIVERED, 0.0
    if tried.verdict == "gone" or attempt > len(STEPS):
        return _State.FAILED, 0.0
    step = STEPS[attempt - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 (jitter is no secret)
    return _State.PENDING, max(step, tried.wait or 0.0)


def health(found: Mapping[int, Health]) -> None:
    """Write down how endpoints did."""
    rows = [
        {"endpoint": endpoint, "ok": one.ok, "failed": one.failed, "error": one.error[:300]}
        for endpoint, one in found.items()
    ]
    with connection.cursor() as cursor:
        cursor.execute(_HEALTH, {"found": json.dumps(rows)})


def disable(endpoint: int) -> None:
    """Disable an endpoint that said that it is gone; audited, once."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_DISABLE, {"endpoint": endpoint, "reason": GONE})
        row = cursor.fetchone()
        if row is not None:
            audit.record(
                "webhook.disabled", actor="system", object_type="webhook", object_id=endpoint,
                before={"name": row[0], "enabled": True}, after={"name": row[0], "enabled": False}, reason=GONE,
                source="command",
            )  # fmt: skip


def give_up_old() -> bool:
    """End deliveries that waited too long, and forget settled ones of long ago; returns whether there may be more."""
    entries = json.dumps(_entries(f"given up: older than {TOO_OLD_HOURS} hours"))
    with connection.cursor() as cursor:
        cursor.execute(_END_OVERTAKEN, {"most": FORGET_MOST})
        overtaken: int = cursor.rowcount
        cursor.execute(_END_OLD, {"hours": TOO_OLD_HOURS, "entries": entries, "most": FORGET_MOST})
        ended: int = cursor.rowcount
        cursor.execute(_FORGET, {"days": KEEP.days, "most": FORGET_MOST})
        forgotten: int = cursor.rowcount
    return max(overtaken, ended, forgotten) >= FORGET_MOST


def _entries(error: str) -> list[dict[str, Any]]:
    """Return what is added to a list of attempts where there was none, only an end."""
    return [{"at": None, "status": None, "took_seconds": None, "error": error, "excerpt": ""}]
