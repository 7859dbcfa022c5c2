"""Asking the outside world about jobs that have ended: was the work done after all? A worker asks, the row answers.

Who looks at a dead letter asks here and waits a moment; the hint is of its own kind, the check is the contract's.
The job is not changed by what comes back.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db import connection

from queues import broker, contracts
from queues.models import Job
from queues.states import TERMINAL

WAIT_SECONDS: Final = 2.0
"""How long somebody waits for an answer; what comes later counts for the next look."""
FRESH_SECONDS: Final = 30
"""So old an answer may be for a replay to stand on it."""
REUSE_SECONDS: Final = 10
"""A question that was answered so recently is not asked again."""
TAKEN_SECONDS: Final = 10
ASK_MOST: Final = 200
KEEP_DAYS: Final = 7
KEEP_DONE_DAYS: Final = 90
"""So long it is known that work was done: it speaks against a replay however old it is."""
_POLL_SECONDS: Final = 0.05

# A question that is under way is not asked twice: of a double click both wait for the same answer. One that a worker is
# at stays that worker's for TAKEN_SECONDS: a check that hangs must not take one more slot with each look.
_ASK: Final = f"""
INSERT INTO queues_outsideanswer AS a (job_id, asked_at, outcome, reference, detail)
SELECT id, jobs_clock(), '', '', '' FROM unnest(%(ids)s::uuid[]) AS i (id) ORDER BY id
ON CONFLICT (job_id) DO UPDATE SET asked_at = jobs_clock(),
  taken_until = CASE WHEN a.taken_until > jobs_now() THEN a.taken_until END
  WHERE CASE WHEN a.answered_at >= a.asked_at
    THEN a.answered_at < jobs_now() - interval '{REUSE_SECONDS} seconds'
    ELSE a.asked_at < jobs_now() - interval '{WAIT_SECONDS} seconds' END
RETURNING job_id
"""  # noqa: S608 (constants)
_TAKE: Final = f"""
UPDATE queues_outsideanswer a SET taken_until = jobs_clock() + interval '{TAKEN_SECONDS} seconds'
WHERE a.job_id = ANY(ARRAY(
  SELECT job_id FROM queues_outsideanswer WHERE job_id = ANY(%(ids)s::uuid[])
    AND (answered_at IS NULL OR answered_at < asked_at) AND (taken_until IS NULL OR taken_until < jobs_now())
  ORDER BY job_id FOR UPDATE SKIP LOCKED))
RETURNING a.job_id
"""  # noqa: S608 (a constant)
_ANSWER: Final = """
UPDATE queues_outsideanswer SET answered_at = jobs_clock(), taken_until = NULL, outcome = %(outcome)s,
  reference = %(reference)s, detail = %(detail)s
WHERE job_id = %(id)s
"""
_READ: Final = """
SELECT job_id, outcome, reference, detail, answered_at, jobs_now(), answered_at < asked_at FROM queues_outsideanswer
WHERE job_id = ANY(%(ids)s::uuid[]) AND answered_at IS NOT NULL
"""
_FORGET: Final = """
DELETE FROM queues_outsideanswer WHERE job_id = ANY(ARRAY(
  SELECT job_id FROM queues_outsideanswer WHERE asked_at < jobs_now() - make_interval(days => %(days)s)
    AND (outcome <> 'confirmed' OR asked_at < jobs_now() - make_interval(days => %(done_days)s))
  ORDER BY asked_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
"""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a check said. `outcome`: confirmed, rejected, none, failed or no_check."""

    job_id: UUID
    outcome: str
    reference: str
    detail: str
    at: dt.datetime
    now: dt.datetime
    pending: bool = False
    """It was asked again since, and nobody has answered so far."""

    @property
    def fresh(self) -> bool:
        """Whether a replay may stand on it."""
        return not self.pending and (self.now - self.at).total_seconds() < FRESH_SECONDS


def ask(ids: Sequence[UUID]) -> None:
    """Ask workers about jobs that have ended, at most ASK_MOST of them; the answers come by themselves.

    Not inside a transaction: the question must be there when the hint arrives.
    """
    ids = ids[:ASK_MOST]
    rows = Job.objects.filter(id__in=ids, state__in=TERMINAL, begun__gt=0, erased_at=None).values_list("id", "type")
    types = dict(rows)
    if not types:
        return
    with connection.cursor() as cursor:
        cursor.execute(_ASK, {"ids": list(types)})
        asked = [row[0] for row in cursor.fetchall()]
    hints = []
    current = contracts.all_current()
    for job_id in asked:
        contract = current.get(types[job_id])
        if contract is not None:
            hints.append((contract.queue, [job_id]))
    broker.publish(hints, task=broker.OUTSIDE_TASK)


def answers(ids: Sequence[UUID]) -> Mapping[UUID, Answer]:
    """Return the answers that there are, however old."""
    if not ids:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(_READ, {"ids": list(ids)})
        return {
            row[0]: Answer(
                job_id=row[0], outcome=row[1], reference=row[2], detail=row[3], at=row[4], now=row[5], pending=row[6]
            )
            for row in cursor.fetchall()
        }


def ask_and_wait(ids: Sequence[UUID], *, seconds: float = WAIT_SECONDS) -> Mapping[UUID, Answer]:
    """Ask, and wait for fresh answers, at most `seconds`; what did not come by then is missing."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    ask(ids)
    while True:
        found = {job_id: answer for job_id, answer in answers(ids).items() if answer.fresh}
        if len(found) == len(set(ids)) or time.monotonic() >= deadline:
            return found
        pause.wait(_POLL_SECONDS)


def take(ids: Sequence[UUID]) -> list[UUID]:
    """Return the questions that this worker answers: nobody else does for TAKEN_SECONDS."""
    with connection.cursor() as cursor:
        cursor.execute(_TAKE, {"ids": list(ids)})
        return [row[0] for row in cursor.fetchall()]


def answer(job_id: UUID, *, outcome: str, reference: str = "", detail: str = "") -> None:
    """Store what a check said, redacted already."""
    params: dict[str, Any] = {"id": job_id, "outcome": outcome, "reference": reference[:1000], "detail": detail[:300]}
    with connection.cursor() as cursor:
        cursor.execute(_ANSWER, params)


def forget_old(*, limit: int) -> int:
    """Delete questions of more than KEEP_DAYS ago, KEEP_DONE_DAYS where the work was done; returns how many."""
    with connection.cursor() as cursor:
        cursor.execute(_FORGET, {"days": KEEP_DAYS, "done_days": KEEP_DONE_DAYS, "limit": limit})
        return int(cursor.rowcount)
