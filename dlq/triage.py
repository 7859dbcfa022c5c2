"""The service `failure-groups`: meet new failures, see old ones come back, and judge the newest dead letters of each.

What it writes are groups (`dlq.models.FailureGroup`); counts are the fold's, and no job is changed.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from django.db import connection, transaction

from dlq import facts, preflight, sql
from dlq.models import FailureGroup
from queues import audit, lifecycle
from queues.models import Job

log = logging.getLogger(__name__)

MOST: Final = 200
"""Groups that change in one round."""
JUDGE_GROUPS: Final = 10
JUDGE_JOBS: Final = 50
"""Of each group the newest dead letters are judged."""
JUDGE_AGAIN_SECONDS: Final = 60
QUIET_SECONDS: Final = 30
"""A group whose dead letters are all gone is resolved after so long without another one."""

_NEW: Final = """
INSERT INTO dlq_failuregroup (id, type, reason, fingerprint, error_class, message, frame, state, state_at, state_by,
  state_reason, note, owner, died_before, regressions)
SELECT f.id, f.type, f.reason, f.fingerprint, '', '', '', 'open', jobs_clock(), 'system', '', '', '', 0, 0
FROM queues_failurecount f WHERE NOT EXISTS (SELECT FROM dlq_failuregroup g WHERE g.id = f.id)
ORDER BY f.id LIMIT %(limit)s
ON CONFLICT DO NOTHING
RETURNING id
"""
# One that was forgotten and came back has a new count, and so a new group.
_GONE: Final = """
DELETE FROM dlq_failuregroup WHERE id = ANY(ARRAY(
  SELECT g.id FROM dlq_failuregroup g WHERE NOT EXISTS (SELECT FROM queues_failurecount f WHERE f.id = g.id)
  ORDER BY g.id LIMIT %(limit)s FOR UPDATE OF g SKIP LOCKED))
"""
# Each with what it was, for the audit log.
_MOVED: Final = """
WITH seen AS (
  SELECT g.id, g.state AS was, f.died, f.open, CASE
      WHEN g.state = 'resolved' AND f.died > g.died_before THEN 'regressed'
      WHEN g.state = 'ignored' AND g.ignored_until <= jobs_now() THEN 'reopened'
      WHEN g.state = 'open' AND f.open <= 0 AND f.died > 0
        AND f.last_at < jobs_now() - make_interval(secs => %(quiet)s)
        AND g.state_at < jobs_now() - make_interval(secs => %(quiet)s) THEN 'resolved' END AS verb
  FROM dlq_failuregroup g JOIN queues_failurecount f ON f.id = g.id
  WHERE (g.state = 'resolved' AND f.died > g.died_before) OR (g.state = 'ignored' AND g.ignored_until <= jobs_now())
    OR (g.state = 'open' AND f.open <= 0)
  ORDER BY g.id LIMIT %(limit)s FOR UPDATE OF g SKIP LOCKED
)
UPDATE dlq_failuregroup g SET
  state = CASE s.verb WHEN 'resolved' THEN 'resolved' ELSE 'open' END, state_at = jobs_clock(), state_by = 'system',
  state_reason = CASE s.verb WHEN 'regressed' THEN 'It came back after it had been resolved'
    WHEN 'reopened' THEN 'The time is over for which it was ignored' ELSE 'No dead letter of it is left' END,
  ignored_until = NULL, died_before = s.died,
  regressed_at = CASE s.verb WHEN 'regressed' THEN jobs_clock() ELSE g.regressed_at END,
  regressions = g.regressions + (s.verb = 'regressed')::integer
FROM seen s WHERE g.id = s.id AND s.verb IS NOT NULL
RETURNING g.id, g.type, g.fingerprint, s.was, g.state, s.verb, g.state_reason
"""
_TO_JUDGE: Final = """
SELECT f.id, f.type, f.reason, f.fingerprint, g.triaged_at IS NULL
FROM queues_failurecount f JOIN dlq_failuregroup g ON g.id = f.id
WHERE f.open > 0 AND (g.triaged_at IS NULL OR g.triaged_at < jobs_now() - make_interval(secs => %(again)s))
ORDER BY g.triaged_at NULLS FIRST, f.tier, f.id LIMIT %(limit)s
"""
_NEWEST: Final = """
SELECT id FROM queues_job WHERE state = 'dead' AND resolution = 'open' AND NOT probe AND type = %(type)s
  AND reason = %(reason)s AND fingerprint {same} ORDER BY id DESC LIMIT %(limit)s
"""
_LINE: Final = re.compile(r'^\s*File "([^"]+)", line (\d+), in (\S+)', re.MULTILINE)
_LIBRARY: Final = ("site-packages", "/lib/python", "/queues/", "<frozen")


def run_once() -> bool:
    """Do one round; returns whether there may be more at once."""
    with transaction.atomic():
        met = sql.rows(_NEW, {"limit": MOST})
        moved = sql.rows(_MOVED, {"limit": MOST, "quiet": QUIET_SECONDS})
        for group_id, name, fingerprint, was, state, verb, why in moved:
            audit.record(
                f"failure_group.{verb}", actor="system", object_type="failure_group", object_id=group_id,
                before={"state": was}, after={"state": state, "type": name, "fingerprint": fingerprint}, reason=why,
                source="command",
            )  # fmt: skip
        if met or moved:
            lifecycle.touch_board()
    # After a burst of new failures each of them is to have its words soon.
    more = _judge_some()
    return more or len(met) == MOST or len(moved) == MOST


def forget_gone() -> bool:
    """Delete groups whose counts were forgotten."""
    with connection.cursor() as cursor:
        cursor.execute(_GONE, {"limit": MOST})
        return bool(cursor.rowcount == MOST)


def _judge_some() -> bool:
    """Judge those that were never judged, then those that were judged long ago; returns whether more never were."""
    found = sql.rows(_TO_JUDGE, {"again": JUDGE_AGAIN_SECONDS, "limit": JUDGE_GROUPS})
    for group_id, name, reason, fingerprint, _ in found:
        same = "= %(fingerprint)s" if fingerprint else "IS NULL"
        params = {"type": name, "reason": reason, "fingerprint": fingerprint, "limit": JUDGE_JOBS}
        ids = [row[0] for row in sql.rows(_NEWEST.format(same=same), params)]
        jobs = list(Job.objects.filter(id__in=ids).order_by("-id"))
        values: dict[str, Any] = {"triage": None, "triaged_at": sql.clock()}
        if jobs:
            values |= _sample(jobs[0])
        try:
            values["triage"] = summed(jobs)
        except Exception:  # one that cannot be judged must not keep all others from it for ever
            if not connection.is_usable():
                raise
            log.exception("failure group %s: its dead letters cannot be judged", group_id)
        FailureGroup.objects.filter(id=group_id).update(**values)
    return len(found) == JUDGE_GROUPS and all(row[-1] for row in found)


def summed(jobs: Sequence[Job]) -> dict[str, Any]:
    """Judge jobs and count the answers, nobody being asked. Shape: FailureGroup.triage."""
    found = [preflight.judge(one) for one in facts.gather(jobs).values()]
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("verdicts", "against", "unknown", "notes")}
    for one in found:
        counts["verdicts"][one.verdict] += 1
        for check in one.checks:
            where = {"fail": "against", "unknown": "unknown", "note": "notes"}.get(check.result)
            if where:
                counts[where][check.name] += 1
    return {"looked": len(found), **{name: dict(counter) for name, counter in counts.items()}}


def _sample(job: Job) -> dict[str, Any]:
    last = job.failures[-1] if job.failures and isinstance(job.failures[-1], dict) else {}
    return {
        "sample": job.id,
        "error_class": str(last.get("error_class") or "")[:200],
        "message": " ".join(str(last.get("message") or "").split())[:300],
        "frame": frame_of(str(last.get("traceback") or "")),
    }


def frame_of(traceback: str) -> str:
    """Return `file:line function` of the innermost frame that is neither a library's nor ours; may be empty."""
    for path, line, function in reversed(_LINE.findall(traceback)):
        if not any(place in path for place in _LIBRARY):
            return f"{path}:{line} {function}"[:300]
    return ""
