"""What people do with schedules: run one now, pause and resume it, make, change and delete it. Each act is audited.

What the clock does is `queues.schedule_ticks`; reading for pages is `queues.outcomes.schedules`.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

from django.core.exceptions import ValidationError
from django.db import transaction

from queues import audit, contracts, lifecycle, schedule_ticks
from queues import schedule_lines as lines
from queues.accept import EnqueueError, Receipt, check_key, read_payload
from queues.contract_switches import SCHEDULER, SwitchRefused, check_until, database_now
from queues.models import Schedule, ScheduleTick
from queues.redaction import redact
from queues.schedule_lines import Line, LineError

SETTINGS: Final = (
    "job_type", "cron", "timezone", "payload", "group", "priority", "catch_up", "description",
)  # fmt: skip
"""What people edit; the rest is the engine's own."""
_TIMES: Final = frozenset({"cron", "timezone", "catch_up"})
RESUME_MOST: Final = 100


class NotPossible(Exception):
    """What was asked of a schedule cannot be done. `code` for programs, `words` for people."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words


@dataclass(frozen=True, kw_only=True)
class Pressed:
    """A job that a person asked for. `fresh` is False for one that the same form asked for before."""

    tick_id: int
    job_id: UUID | None
    fresh: bool
    detail: str = ""
    """Why no job was accepted."""


def run_now(
    name: str, *, actor: str, reason: str, after: int | None = None, source: str = "ui", request_id: str = ""
) -> Pressed:
    """Enqueue the job of a schedule now, beside its line, paused or not.

    `after` is the id of the newest tick that a form knew (0: none): what `actor` asked for since then is the answer, so
    that a second click makes no second job. `{tick}` and `{date}` are those of this moment.
    Raises: NotPossible (unknown_schedule, reason, line).
    """
    reason, by = _checked(reason), actor[:150] or "somebody"
    with transaction.atomic():
        row = _locked(name)
        known = None
        if after is not None:
            known = ScheduleTick.objects.filter(schedule=name, by=by, id__gt=after).order_by("id").first()
        if known is not None:
            return Pressed(tick_id=known.pk, job_id=known.job_id, fresh=False, detail=known.detail)
        now = database_now()
        key = f"schedule:{name}:press:{uuid4()}"
        answer = schedule_ticks.accept_job(row, _line(row), now, key=key, run_at=None)
        tick_id = schedule_ticks.note(name, now, answer, by=by)
        if tick_id is None:
            raise NotPossible("busy", "It has just been run; try again.")
        job_id = answer.job_id if isinstance(answer, Receipt) else None
        detail = schedule_ticks.plain(str(answer)) if isinstance(answer, EnqueueError) else ""
        after_it = {"tick": tick_id, "job": str(job_id) if job_id else None, "detail": detail}
        _record("schedule.run", name, None, after_it, actor, reason, source, request_id)
        lifecycle.touch_board()
    return Pressed(tick_id=tick_id, job_id=job_id, fresh=True, detail=detail)


def pause(
    name: str,
    *,
    actor: str,
    reason: str,
    until: dt.datetime | None = None,
    source: str = "ui",
    request_id: str = "",
) -> Schedule:
    """Let a schedule's ticks pass, until a time or until it is resumed. Ticks that nobody has seen so far are missed.

    Doing the same again changes nothing; another reason or end replaces them.
    Raises: NotPossible (unknown_schedule, reason, until).
    """
    reason = _checked(reason)
    with transaction.atomic():
        row = _locked(name)
        try:
            check_until(until)
        except SwitchRefused as error:
            raise NotPossible("until", str(error)) from None
        if (row.paused, row.paused_reason, row.paused_until) == (True, reason, until):
            return row
        before = {"paused": row.paused, "until": _time(row.paused_until)}
        if not row.paused:
            _close(row, "Paused before a scheduler looked.")
        row.paused, row.paused_reason, row.paused_by, row.paused_until = True, reason, actor[:150], until
        _save(row, "next_at", "last_at")
        after = {"paused": True, "until": _time(until)}
        _record("schedule.paused", name, before, after, actor, reason, source, request_id)
        lifecycle.touch_board()
    return row


def resume(name: str, *, actor: str, reason: str, source: str = "ui", request_id: str = "") -> Schedule:
    """Let a schedule go on with its next tick: what passed while it was paused is not caught up.

    One that is not paused stays as it is. Raises: NotPossible (unknown_schedule, reason).
    """
    reason = _checked(reason)
    with transaction.atomic():
        row = _locked(name)
        if row.paused:
            _resume(row, database_now(), actor=actor, reason=reason, source=source, request_id=request_id)
            lifecycle.touch_board()
    return row


def end_pauses(*, limit: int = RESUME_MOST) -> int:
    """Resume the schedules whose pause is over; returns how many. Ticks since its end count as ever."""
    with transaction.atomic():
        now = database_now()
        due = Schedule.objects.filter(paused=True, paused_until__lte=now).order_by("name")
        rows = list(due.select_for_update(skip_locked=True)[:limit])
        for row in rows:
            reason = f"Its time was up. It was paused by {row.paused_by}: {row.paused_reason}"
            _resume(row, now, actor=SCHEDULER, reason=reason, source="command", request_id="")
        if rows:
            lifecycle.touch_board()
    return len(rows)


def save(
    name: str, fields: Mapping[str, Any], *, actor: str, reason: str, source: str = "admin", request_id: str = ""
) -> Schedule:
    """Make a schedule or change its settings. Fields left out stay as they are; `job_type` is a name.

    Another line, zone or way to catch up counts from now on: ticks that nobody has seen so far are missed.
    Raises: ValidationError, by field.
    """
    with transaction.atomic():
        row = Schedule.objects.select_for_update().filter(pk=name).first()
        made = row is None
        row = row or Schedule(name=name)
        before = _settings(row)
        old_line = None if made else _readable(row)
        for key in SETTINGS:
            if key in fields:
                setattr(row, "job_type_id" if key == "job_type" else key, fields[key])
        line = check(row, made=made)
        after = _settings(row)
        differing = [key for key in SETTINGS if before[key] != after[key]]
        if made or _TIMES & set(differing):
            if old_line is not None:
                _close(row, "Changed before a scheduler looked.", line=old_line)
            row.next_at = line.next(database_now())
        if made or differing:
            row.changed_at = database_now()
            row.save(force_insert=made)
            shown = SETTINGS if made else differing
            was = None if made else _shown(before, shown)
            action = "schedule.created" if made else "schedule.changed"
            _record(action, name, was, _shown(after, shown), actor, reason, source, request_id)
            lifecycle.touch_board()
    return row


def check(row: Schedule, *, made: bool = False) -> Line:
    """Hold a schedule that somebody wants to save against the rules, and return its line. Raises: ValidationError."""
    row.cron = " ".join(row.cron.split())
    row.full_clean(validate_unique=made)
    wrong: dict[str, str] = {}
    try:
        line = lines.lint(row.cron, row.timezone, now=database_now())
    except LineError as error:
        raise ValidationError({error.field: str(error)}) from None
    try:
        contract = contracts.current(row.job_type_id)
        read_payload(lines.fill(row.payload, database_now(), line.zone), contract)
    except contracts.UnknownContract:
        wrong["job_type"] = "There is no such job type."
    except EnqueueError as error:
        wrong["payload"] = str(error)
    try:
        # A group is made of the same characters.
        check_key(row.group or "-")
    except EnqueueError:
        wrong["group"] = "A group is 1 to 255 visible ASCII characters."
    if wrong:
        raise ValidationError(wrong)
    return line


def delete(name: str, *, actor: str, reason: str, source: str = "admin", request_id: str = "") -> None:
    """Delete a schedule. Its jobs and the record of its ticks stay as long as they are kept.

    Raises: NotPossible (unknown_schedule, reason).
    """
    reason = _checked(reason)
    with transaction.atomic():
        row = _locked(name)
        _record("schedule.deleted", name, _shown(_settings(row), SETTINGS), None, actor, reason, source, request_id)
        row.delete()
        lifecycle.touch_board()


def _resume(row: Schedule, now: dt.datetime, *, actor: str, reason: str, source: str, request_id: str) -> None:
    """Resume a schedule whose row is locked, from the end of its pause on."""
    end = min(now, row.paused_until or now)
    before = {"paused": True, "until": _time(row.paused_until)}
    row.paused, row.paused_reason, row.paused_by, row.paused_until = False, "", "", None
    line = _readable(row)
    row.next_at = line.next(end, at=True) if line else row.next_at
    _save(row, "next_at")
    _record("schedule.resumed", row.name, before, {"paused": False}, actor, reason, source, request_id)


def _close(row: Schedule, detail: str, *, line: Line | None = None) -> None:
    """Count the ticks of a locked schedule that are due and that nobody has seen as missed, in its unsaved row too."""
    now = database_now()
    line = line or _readable(row)
    if line is None or row.paused or row.next_at is None or row.next_at > now:
        return
    tried = row.last_at == row.next_at
    found = lines.close(line, next_at=(line.next(row.next_at) or now) if tried else row.next_at, now=now)
    schedule_ticks.note_missed(row.name, found, last_at=row.last_at, detail=detail)
    row.next_at, row.last_at = found.next_at, found.missed_at or row.last_at


def _locked(name: str) -> Schedule:
    row = Schedule.objects.select_for_update().filter(pk=name).first() if "\x00" not in name else None
    if row is None:
        raise NotPossible("unknown_schedule", f"There is no schedule {name[:64]!r}.")
    return row


def _line(row: Schedule) -> Line:
    try:
        return lines.read(row.cron, row.timezone)
    except LineError as error:
        raise NotPossible("line", str(error)) from None


def _readable(row: Schedule) -> Line | None:
    try:
        return lines.read(row.cron, row.timezone)
    except LineError:
        return None


def _save(row: Schedule, *more: str) -> None:
    row.save(update_fields=["paused", "paused_reason", "paused_by", "paused_until", *more])


def _settings(row: Schedule) -> dict[str, Any]:
    return {key: row.job_type_id if key == "job_type" else getattr(row, key) for key in SETTINGS}


def _shown(settings: Mapping[str, Any], keys: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Return settings for the audit log: the payload as its value, and what its contract hides hidden."""
    shown = {key: settings[key] for key in keys}
    if "payload" in shown:
        contract = contracts.all_current().get(settings["job_type"])
        try:
            shown["payload"] = redact(json.loads(shown["payload"]), pointers=contract.redact if contract else ())
        except ValueError:
            shown["payload"] = "not JSON"
    return shown


def _record(
    action: str, name: str, before: Any, after: Any, actor: str, reason: str, source: str, request_id: str
) -> None:
    audit.record(
        action,
        actor=actor,
        object_type="schedule",
        object_id=name,
        before=before,
        after=after,
        reason=reason,
        source=source,
        request_id=request_id,
    )


def _checked(reason: str) -> str:
    reason = reason.replace("\x00", "").strip()[:1000]
    if not reason:
        raise NotPossible("reason", "Say why.")
    return reason


def _time(at: dt.datetime | None) -> str | None:
    return at.isoformat() if at else None
