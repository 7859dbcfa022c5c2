"""The service `failure-groups`: meet new failures, see old ones come back, and judge the newest dead letters of each.

What it writes are groups (`dlq.models.FailureGroup`); counts are the fold's, and no job is changed.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db import connection, transaction

from dlq import facts, groups, preflight, sql
from dlq.models import FailureGroup
from queues import audit, lifecycle
from queues.models import Job

log = logging.getLogger(__name__)

LOOK_AT: Final = 1_000
"""So many groups of each kind a round looks at: with more, all are seen in several rounds."""
MOST: Final = 200
"""Groups that change in one round."""
JUDGE_GROUPS: Final = 10
JUDGE_JOBS: Final = 50
"""Of each group the newest dead letters are judged."""
JUDGE_AGAIN_SECONDS: Final = 60
QUIET_SECONDS: Final = 30
"""A group whose dead letters are all gone is resolved after so long without another one."""

# What a round looks at: what the list shows first, what died last, and the next ones of a walk through all.
_LOOK: Final = """
(SELECT id FROM queues_failurecount WHERE open > 0 ORDER BY tier, last_at DESC, id DESC LIMIT %(look)s)
UNION (SELECT id FROM queues_failurecount ORDER BY last_at DESC LIMIT %(look)s)
UNION (SELECT id FROM queues_failurecount WHERE id > %(after)s ORDER BY id LIMIT %(look)s)
"""
_END_OF_WALK: Final = """
SELECT max(id) FROM (SELECT id FROM queues_failurecount WHERE id > %(after)s ORDER BY id LIMIT %(look)s) AS f
HAVING count(*) = %(look)s
"""
_NEW: Final = """
INSERT INTO dlq_failuregroup (id, type, reason, fingerprint, error_class, message, frame, state, state_at, state_by,
  state_reason, note, owner, died_before, regressions)
SELECT f.id, f.type, f.reason, f.fingerprint, '', '', '', 'open', jobs_clock(), 'system', '', '', '', 0, 0
FROM queues_failurecount f WHERE f.id = ANY(%(ids)s::bigint[])
  AND NOT EXISTS (SELECT FROM dlq_failuregroup g WHERE g.id = f.id)
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
# Each with what it was, for the audit log. While a plan is at it, its dead letters come and go.
_MOVED: Final = f"""
WITH seen AS (
  SELECT g.id, g.state AS was, f.died, CASE
      WHEN g.state = 'resolved' AND f.died > g.died_before THEN 'regressed'
      WHEN g.state = 'ignored' AND g.ignored_until <= jobs_now() THEN 'reopened'
      WHEN g.state IN ('open', 'replaying') AND f.open <= 0 AND f.died > 0
        AND f.last_at < jobs_now() - make_interval(secs => %(quiet)s)
        AND g.state_at < jobs_now() - make_interval(secs => %(quiet)s)
        AND NOT EXISTS (SELECT FROM dlq_planfailure a JOIN dlq_replayplan p ON p.id = a.plan_id
          WHERE a.type = f.type AND a.reason = f.reason AND a.fingerprint = f.fingerprint AND p.state IN {groups.AT_IT})
        THEN 'resolved' END AS verb
  FROM dlq_failuregroup g JOIN queues_failurecount f ON f.id = g.id
  WHERE g.id = ANY(%(ids)s::bigint[]) AND f.id = ANY(%(ids)s::bigint[])
), chosen AS (
  SELECT g.id FROM dlq_failuregroup g JOIN seen s ON s.id = g.id AND s.verb IS NOT NULL AND s.was = g.state
  WHERE g.id = ANY(%(ids)s::bigint[])
  ORDER BY g.id LIMIT %(limit)s FOR UPDATE OF g SKIP LOCKED
)
UPDATE dlq_failuregroup g SET
  state = CASE s.verb WHEN 'resolved' THEN 'resolved' ELSE 'open' END, state_at = jobs_clock(), state_by = 'system',
  state_reason = CASE s.verb WHEN 'regressed' THEN 'It came back after it had been resolved'
    WHEN 'reopened' THEN 'The time is over for which it was ignored' ELSE 'No dead letter of it is left' END,
  ignored_until = NULL, died_before = s.died,
  regressed_at = CASE s.verb WHEN 'regressed' THEN jobs_clock() ELSE g.regressed_at END,
  regressions = g.regressions + (s.verb = 'regressed')::integer
FROM seen s JOIN chosen c ON c.id = s.id WHERE g.id = s.id
RETURNING g.id, g.type, g.fingerprint, s.was, g.state, s.verb, g.state_reason
"""  # noqa: S608 (constants)
_TO_JUDGE: Final = """
SELECT f.id, f.type, f.reason, f.fingerprint, g.triaged_at IS NULL
FROM queues_failurecount f JOIN dlq_failuregroup g ON g.id = f.id
WHERE f.id = ANY(%(ids)s::bigint[]) AND g.id = ANY(%(ids)s::bigint[]) AND f.open > 0
  AND (g.triaged_at IS NULL OR g.triaged_at < jobs_now() - make_interval(secs => %(again)s))
ORDER BY g.triaged_at NULLS FIRST, f.tier, f.id LIMIT %(limit)s
"""
_NEWEST: Final = """
SELECT id FROM queues_job WHERE state = 'dead' AND resolution = 'open' AND NOT probe AND type = %(type)s
  AND reason = %(reason)s AND fingerprint {same} ORDER BY id DESC LIMIT %(limit)s
"""
_OTHERS: Final = f"Further failures, beyond the {lifecycle.FAILURES_MOST:,} of this type that are told apart"
_LINE: Final = re.compile(r'^\s*File "([^"]+)", line (\d+), in (\S+)', re.MULTILINE)
_LIBRARY: Final = ("site-packages", "/lib/python", "/queues/", "<frozen")


@dataclass
class Triage:
    """The service's memory: how far its walk through all failures is."""

    after: int = 0

    def run_once(self) -> bool:
        """Do one round; returns whether there may be more at once."""
        params = {"after": self.after, "look": LOOK_AT}
        ids = [row[0] for row in sql.rows(_LOOK, params)]
        with transaction.atomic():
            met = sql.rows(_NEW, {"ids": ids, "limit": MOST})
            moved = sql.rows(_MOVED, {"ids": ids, "limit": MOST, "quiet": QUIET_SECONDS})
            for group_id, name, fingerprint, was, state, verb, why in moved:
                audit.record(
                    f"failure_group.{verb}", actor="system", object_type="failure_group", object_id=group_id,
                    before={"state": was}, after={"state": state, "type": name, "fingerprint": fingerprint}, reason=why,
                    source="command",
                )  # fmt: skip
            if met or moved:
                lifecycle.touch_board()
        full = MOST in (len(met), len(moved))
        # What did not fit is looked at again before the walk goes on.
        if not full:
            end = sql.rows(_END_OF_WALK, params)
            self.after = end[0][0] if end else 0
        # After a burst of new failures each of them is to have its words soon.
        return _judge_some(ids) or full


def run_once() -> bool:
    """Do one round of the first kind: what is shown first, what died last, and the oldest."""
    return Triage().run_once()


def forget_gone() -> bool:
    """Delete groups whose counts were forgotten."""
    with connection.cursor() as cursor:
        cursor.execute(_GONE, {"limit": MOST})
        return bool(cursor.rowcount == MOST)


def _judge_some(looked: Sequence[int]) -> bool:
    """Judge those that were never judged, then those that were judged long ago; returns whether more never were."""
    found = sql.rows(_TO_JUDGE, {"ids": list(looked), "again": JUDGE_AGAIN_SECONDS, "limit": JUDGE_GROUPS})
    for group_id, name, reason, fingerprint, _ in found:
        if fingerprint == lifecycle.OTHERS:
            FailureGroup.objects.filter(id=group_id).update(message=_OTHERS, triaged_at=sql.clock())
            continue
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
