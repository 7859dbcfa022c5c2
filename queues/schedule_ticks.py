"""The sweep of schedules: due ticks become jobs, late ones are counted, all by the database's clock.

A schedule is looked at in one transaction that holds its row: the job of a tick, the tick's record and the next time
are written together or not at all. Not here: lines and zones (`queues.schedule_lines`), people (`queues.schedules`).
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db import OperationalError, connection, transaction

from queues import lifecycle
from queues import schedule_lines as lines
from queues.accept import EnqueueError, Item, Overloaded, Receipt, enqueue_many
from queues.faults import fault
from queues.models import Schedule, ScheduleTick
from queues.redaction import redact_text
from queues.schedule_lines import GRACE_SECONDS, Line, LineError, Look

log = logging.getLogger(__name__)

SWEEP_MOST: Final = 100
"""So many looks are made a round."""
CHECK_MOST: Final = 10_000
DETAIL_CHARACTERS: Final = 300
_Outcome = ScheduleTick.Outcome
_START: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

# One schedule a transaction: nobody waits for the locks of another one's accept, and a death costs one look.
_DUE: Final = """
SELECT s.name, s.job_type_id, s.cron, s.timezone, s.payload, s."group", s.priority, s.catch_up, s.paused,
  s.paused_until, s.next_at, s.last_at, c.max_age_seconds, jobs_now()
FROM queues_schedule s JOIN queues_jobtype c ON c.name = s.job_type_id
WHERE s.next_at <= jobs_now() AND (s.next_at, s.name) > (%(at)s, %(name)s)
  AND NOT (s.paused AND coalesce(s.paused_until <= jobs_now(), false))
ORDER BY s.next_at, s.name LIMIT 1 FOR UPDATE OF s SKIP LOCKED
"""
_ALL: Final = "SELECT name, cron, timezone, next_at, jobs_now() FROM queues_schedule ORDER BY name LIMIT %(limit)s"
_ONE: Final = """
SELECT name, cron, timezone, next_at, jobs_now() FROM queues_schedule WHERE name = %(name)s FOR UPDATE SKIP LOCKED
"""
_HAS_A_JOB: Final = """
SELECT 1 FROM queues_scheduletick
WHERE schedule = %(name)s AND tick_at = %(tick)s AND outcome = 'accepted' AND by = ''
"""
_REFUSED_BEFORE: Final = """
SELECT id, jobs_now() - at > make_interval(secs => %(grace)s) FROM queues_scheduletick
WHERE schedule = %(name)s AND tick_at = %(tick)s AND outcome = 'refused' AND by = ''
"""
_NOTE: Final = """
INSERT INTO queues_scheduletick (schedule, tick_at, at, outcome, job_id, ticks, detail, by)
VALUES (%(name)s, %(tick)s, jobs_clock(), %(outcome)s, %(job)s, 1, %(detail)s, %(by)s)
ON CONFLICT (schedule, tick_at) WHERE by = '' AND outcome = 'accepted' DO NOTHING
RETURNING id
"""
_NOTE_AGAIN: Final = """
UPDATE queues_scheduletick SET outcome = %(outcome)s, job_id = %(job)s, detail = %(detail)s,
  at = CASE WHEN %(outcome)s = 'accepted' THEN jobs_clock() ELSE at END
WHERE id = %(id)s
"""
# The stretch of the look before goes on, if that ended with one.
_MISSED_MORE: Final = """
UPDATE queues_scheduletick SET ticks = ticks + %(ticks)s, tick_at = %(tick)s, at = jobs_clock(), detail = %(detail)s
WHERE id = (SELECT id FROM queues_scheduletick WHERE schedule = %(name)s AND tick_at = %(last)s AND outcome = 'missed'
  AND by = '' ORDER BY id DESC LIMIT 1)
RETURNING id
"""
_MISSED: Final = """
INSERT INTO queues_scheduletick (schedule, tick_at, at, outcome, ticks, detail, by)
VALUES (%(name)s, %(tick)s, jobs_clock(), 'missed', %(ticks)s, %(detail)s, '')
"""
_MOVE: Final = """
UPDATE queues_schedule SET next_at = %(next)s, last_at = coalesce(%(last)s, last_at) WHERE name = %(name)s
"""
_BECAME: Final = """
UPDATE queues_schedule SET last_job_at = %(tick)s, last_job_id = %(job)s, refused = 0, refused_since = NULL
WHERE name = %(name)s
"""
_WAS_REFUSED: Final = """
UPDATE queues_schedule SET refused = refused + 1, refused_since = coalesce(refused_since, jobs_clock())
WHERE name = %(name)s
"""
_FORGET: Final = """
DELETE FROM queues_scheduletick WHERE id = ANY(ARRAY(
  SELECT id FROM queues_scheduletick WHERE at < jobs_now() - make_interval(days => %(days)s)
  ORDER BY at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING 1
"""


@dataclass(frozen=True, kw_only=True)
class Due:
    """A schedule that is looked at, its row locked. `now`: the database's time of this look."""

    name: str
    job_type_id: str
    cron: str
    timezone: str
    payload: str
    group: str
    priority: int | None
    catch_up: str
    paused: bool
    paused_until: dt.datetime | None
    next_at: dt.datetime
    last_at: dt.datetime | None
    max_age_seconds: int
    now: dt.datetime


@dataclass(frozen=True)
class _Tried:
    """A tick that was refused before and is tried again. `over`: for the last time."""

    id: int
    over: bool


_NAMES: Final = tuple(Due.__annotations__)


def sweep(*, limit: int = SWEEP_MOST) -> bool:
    """Look at the schedules that are due, each in a transaction of its own. Returns whether more may be due."""
    at, name = _START, ""
    for _ in range(limit):
        with transaction.atomic():
            rows = _rows(_DUE, {"at": at, "name": name})
            if not rows:
                return False
            due = Due(**dict(zip(_NAMES, rows[0], strict=True)))
            fault("schedules.selected")
            _look(due)
            fault("schedules.written")
        fault("schedules.committed")
        # What is due again stands behind itself; what has to wait stays where it is, and is passed.
        at, name = due.next_at, due.name
    return True


def _look(due: Due) -> None:
    """Do what one look at a schedule asks for, in the caller's transaction."""
    try:
        line = lines.read(due.cron, due.timezone)
    except LineError as error:
        # Another release wrote it, or this machine knows fewer zones. `check` tries it again.
        log.warning("schedule %s cannot be read: %s", due.name, error)
        _refuse(due, due.next_at, EnqueueError(str(error)), None)
        _move(due, next_at=None, last_at=due.next_at)
        lifecycle.touch_board()
        return
    if due.paused:
        _move(due, next_at=line.next(due.now), last_at=None)
        return
    tried = _tried(due)
    max_age = dt.timedelta(seconds=due.max_age_seconds)
    if tried is not None:
        # Nobody came by for so long that its job would be born stale: it stays refused.
        gone = due.now - due.next_at >= max(max_age, dt.timedelta(seconds=GRACE_SECONDS)) and tried.over
        found = Look(jobs=() if gone else (due.next_at,), next_at=line.next(due.next_at))
    else:
        found = lines.look(line, next_at=due.next_at, now=due.now, catch_up=due.catch_up, max_age=max_age)
    note_missed(due.name, found, last_at=due.last_at)
    last_at = found.missed_at
    for tick in found.jobs:
        last_at = tick
        if not _become(due, line, tick, tried):
            _move(due, next_at=tick, last_at=tick)
            break
    else:
        _move(due, next_at=found.next_at, last_at=last_at)
    lifecycle.touch_board()


def _tried(due: Due) -> _Tried | None:
    """Return what is known of the tick that is due, if the look before left it to be tried again."""
    if due.last_at != due.next_at:
        return None
    rows = _rows(_REFUSED_BEFORE, {"name": due.name, "tick": due.next_at, "grace": GRACE_SECONDS})
    return _Tried(*rows[0]) if rows else None


def _become(due: Due, line: Line, tick: dt.datetime, tried: _Tried | None) -> bool:
    """Make the job of a tick; False: there is no room now, and it is to be tried again."""
    if due.last_at is not None and tick <= due.last_at and _rows(_HAS_A_JOB, {"name": due.name, "tick": tick}):
        # The clock went back. Its key may be let go by now, the record is not.
        return True
    late = (due.now - tick).total_seconds()
    answer = accept_job(due, line, tick, key=f"schedule:{due.name}:{lines.text_of(tick)}", run_at=tick)
    if isinstance(answer, Receipt):
        words = f"Accepted {late:.0f} s after its time." if late > GRACE_SECONDS else ""
        note(due.name, tick, answer, detail=words, again=tried.id if tried else None)
        _execute(_BECAME, {"name": due.name, "tick": tick, "job": answer.job_id})
        return True
    _refuse(due, tick, answer, tried)
    return not isinstance(answer, Overloaded) or (tried is not None and tried.over)


def accept_job(
    row: Due | Schedule, line: Line, tick: dt.datetime, *, key: str, run_at: dt.datetime | None
) -> Receipt | EnqueueError:
    """Accept a job of a schedule, in a savepoint of the caller's transaction. `Overloaded`: it is worth another try.

    Raises: what a connection that is gone raises.
    """
    item = Item(
        type=row.job_type_id,
        payload=lines.fill(row.payload, tick, line.zone),
        dedupe_key=key,
        group=row.group or None,
        priority=row.priority,
        run_at=run_at,
    )
    try:
        with transaction.atomic():
            [answer] = enqueue_many([item], on_error="return")
            fault("schedules.accepted")
    except Exception as error:
        if connection.needs_rollback:
            raise
        log.warning("schedule %s: its job was not accepted: %s: %s", row.name, type(error).__name__, error)
        if isinstance(error, OperationalError):
            return Overloaded(f"the database did not take it: {error}")
        return EnqueueError(f"{type(error).__name__}: {error}")
    return answer


def _refuse(due: Due, tick: dt.datetime, error: EnqueueError, tried: _Tried | None) -> None:
    note(due.name, tick, error, again=tried.id if tried else None)
    if tried is None:
        _execute(_WAS_REFUSED, {"name": due.name})


def note(
    name: str, tick: dt.datetime, answer: Receipt | EnqueueError, *, detail: str = "", by: str = "",
    again: int | None = None,
) -> int | None:  # fmt: skip
    """Write what became of a tick or of a press, `again` over what was written; returns its id if it is a new one."""
    job: UUID | None = answer.job_id if isinstance(answer, Receipt) else None
    words = detail if isinstance(answer, Receipt) else plain(str(answer))
    outcome = _Outcome.ACCEPTED if job else _Outcome.REFUSED
    params = {"name": name, "tick": tick, "outcome": outcome.value, "job": job, "detail": words, "by": by, "id": again}
    if again is not None:
        _execute(_NOTE_AGAIN, params)
        return None
    rows = _rows(_NOTE, params)
    return rows[0][0] if rows else None


def note_missed(name: str, found: Look, *, last_at: dt.datetime | None, detail: str = "") -> None:
    """Write a stretch of missed ticks as one row, the one that the look before wrote if it goes on."""
    if not found.missed:
        return
    params = {
        "name": name, "ticks": found.missed, "tick": found.missed_at, "last": last_at, "detail": detail,
    }  # fmt: skip
    if last_at is None or not _rows(_MISSED_MORE, params):
        _execute(_MISSED, params)


def check(*, limit: int = CHECK_MOST) -> int:
    """Set schedules right whose next tick is later than their line says; returns how many.

    The database's clock went back, or the rules of a zone changed, or a line can be read again.
    """
    wrong = [row[0] for row in _rows(_ALL, {"limit": limit}) if _too_late(row) is not None]
    put_right = 0
    for name in wrong:
        with transaction.atomic():
            for row in _rows(_ONE, {"name": name}):
                first = _too_late(row)
                if first is not None:
                    log.warning("schedule %s: its next tick was %s, its line says %s", name, row[3], first)
                    _execute(_MOVE, {"name": name, "next": first, "last": None})
                    put_right += 1
    return put_right


def _too_late(row: tuple[Any, ...]) -> dt.datetime | None:
    """Return the next tick as its line has it now, if that is sooner than what is written."""
    _, cron, timezone, next_at, now = row
    try:
        first = lines.read(cron, timezone).next(now)
    except LineError:
        return None
    return first if first is not None and (next_at is None or next_at > first) else None


def forget_old(*, days: int, limit: int) -> int:
    """Delete ticks that were looked at more than so many days ago; returns how many."""
    return len(_rows(_FORGET, {"days": days, "limit": limit}))


def plain(text: str) -> str:
    """Return an error's words as they may be stored and shown."""
    return redact_text(text).replace("\x00", "\ufffd")[:DETAIL_CHARACTERS]


def _move(due: Due, *, next_at: dt.datetime | None, last_at: dt.datetime | None) -> None:
    _execute(_MOVE, {"name": due.name, "next": next_at, "last": last_at})


def _execute(sql: str, params: Mapping[str, Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)


def _rows(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())
