"""Switches of a job type: paused, deferred, disabled, until when and why; no part of a version. Each is audited.

What they hold back is decided by the statements that accept and claim; contracts themselves are `contract_versions`',
what the scheduler defers by itself is `deferral`'s.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final, NamedTuple

from django.db import connection, models, transaction
from django.db.models.functions import Now

from queues import audit, contracts
from queues.models import BoardVersion, JobType

Change = dict[str, list[Any]]

NOT_DEFERRABLE: Final = "Its contract does not allow deferral: deferrable is off."
LONGEST_HOLD: Final = dt.timedelta(days=366)
SCHEDULER: Final = "scheduler"
"""Who turned a switch back when its time was up, in the audit log."""


class SwitchRefused(ValueError):
    """The switch cannot be set so; nothing was changed."""


class Hold(NamedTuple):
    """A switch, its value that holds jobs back, the prefix of its marks, and what the audit log calls both ways."""

    switch: str
    value: bool
    prefix: str
    held: str
    released: str

    @property
    def columns(self) -> list[str]:
        return [self.switch, *(f"{self.prefix}_{mark}" for mark in ("reason", "by", "until"))]

    def write(self, row: JobType, *, reason: str, by: str, until: dt.datetime | None) -> None:
        """Write why, who and until when."""
        setattr(row, f"{self.prefix}_reason", reason[:1000])
        setattr(row, f"{self.prefix}_by", by[:150])
        setattr(row, f"{self.prefix}_until", until)


HOLDS: Final = (
    Hold("enabled", False, "disabled", "contract.disabled", "contract.enabled"),
    Hold("paused", True, "paused", "contract.paused", "contract.resumed"),
    Hold("deferred", True, "deferred", "contract.deferred", "contract.undeferred"),
)


def set_switch(
    name: str,
    *,
    actor: str,
    reason: str,
    enabled: bool | None = None,
    paused: bool | None = None,
    deferred: bool | None = None,
    until: dt.datetime | None = None,
    source: str = "admin",
    request_id: str = "",
) -> JobType:
    """Enable, disable, pause, resume, defer or undefer a type: at once, for waiting jobs too, without a new version.

    `until` is when the scheduler turns a disabled, paused or deferred type back. Doing the same again changes nothing;
    pausing with another reason or end replaces them, and who defers what the scheduler deferred makes it their own.
    Raises: JobType.DoesNotExist, SwitchRefused.
    """
    wanted = {"enabled": enabled, "paused": paused, "deferred": deferred}
    if until is not None and enabled is not False and not paused and not deferred:
        raise SwitchRefused("An end belongs to a type that is paused, deferred or disabled.")
    with transaction.atomic():
        row = JobType.objects.select_for_update().get(pk=name)
        check_until(until)
        if deferred and not row.deferrable:
            raise SwitchRefused(NOT_DEFERRABLE)
        columns: list[str] = []
        for hold in HOLDS:
            value = wanted[hold.switch]
            change = None if value is None else _turn(row, hold, value, actor=actor, reason=reason, until=until)
            if change is None:
                continue
            columns += hold.columns
            audit.record(
                hold.held if value == hold.value else hold.released,
                actor=actor,
                object_type="job_type",
                object_id=name,
                before={key: pair[0] for key, pair in change.items()},
                after={key: pair[1] for key, pair in change.items()},
                reason=reason,
                source=source,
                request_id=request_id,
            )
        if columns:
            row.save(update_fields=columns)
            changed()
    return row


def _turn(
    row: JobType, hold: Hold, value: bool, *, actor: str, reason: str, until: dt.datetime | None
) -> Change | None:
    """Put a switch into a row, unsaved; return what changed, or None when it is so already."""
    old_value, old_reason, _, old_until = (getattr(row, column) for column in hold.columns)
    holds = value == hold.value
    if not holds:
        reason, actor, until = "", "", None
    if value == old_value and (not holds or (reason[:1000] == old_reason and until == old_until)):
        return None
    setattr(row, hold.switch, value)
    hold.write(row, reason=reason, by=actor, until=until)
    change: Change = {hold.switch: [old_value, value]}
    if old_until or until:
        change[f"{hold.prefix}_until"] = [_time(old_until), _time(until)]
    return change


def check_until(until: dt.datetime | None) -> None:
    """Refuse an end of a pause that is past or far away, by the database's clock. Raises: SwitchRefused."""
    if until is None:
        return
    if until.tzinfo is None:
        raise SwitchRefused("The end needs a time zone.")
    left = until - database_now()
    if left <= dt.timedelta(0):
        raise SwitchRefused("The end must be in the future (UTC).")
    if left > LONGEST_HOLD:
        raise SwitchRefused(f"The end may be at most {LONGEST_HOLD.days} days away. Leave it empty for no end.")


_DUE: Final = """
WITH due AS MATERIALIZED (
  SELECT name, disabled_reason, disabled_until, paused_reason, paused_until, deferred_reason, deferred_until,
    NOT enabled AND coalesce(disabled_until <= jobs_now(), false) AS enable,
    paused AND coalesce(paused_until <= jobs_now(), false) AS resume,
    deferred AND coalesce(deferred_until <= jobs_now(), false) AS undefer
  FROM queues_jobtype
  WHERE (NOT enabled AND disabled_until <= jobs_now()) OR (paused AND paused_until <= jobs_now())
    OR (deferred AND deferred_until <= jobs_now())
  ORDER BY name LIMIT %s FOR UPDATE SKIP LOCKED
)
UPDATE queues_jobtype AS t SET
  enabled = t.enabled OR d.enable,
  disabled_reason = CASE WHEN d.enable THEN '' ELSE t.disabled_reason END,
  disabled_by = CASE WHEN d.enable THEN '' ELSE t.disabled_by END,
  disabled_until = CASE WHEN NOT d.enable THEN t.disabled_until END,
  paused = t.paused AND NOT d.resume,
  paused_reason = CASE WHEN d.resume THEN '' ELSE t.paused_reason END,
  paused_by = CASE WHEN d.resume THEN '' ELSE t.paused_by END,
  paused_until = CASE WHEN NOT d.resume THEN t.paused_until END,
  deferred = t.deferred AND NOT d.undefer,
  deferred_reason = CASE WHEN d.undefer THEN '' ELSE t.deferred_reason END,
  deferred_by = CASE WHEN d.undefer THEN '' ELSE t.deferred_by END,
  deferred_until = CASE WHEN NOT d.undefer THEN t.deferred_until END
FROM due AS d WHERE t.name = d.name
RETURNING t.name, d.enable, d.disabled_reason, d.disabled_until, d.resume, d.paused_reason, d.paused_until,
  d.undefer, d.deferred_reason, d.deferred_until
"""


def turn_back(*, limit: int) -> int:
    """Turn back the switches whose time is up, of at most `limit` types; return how many types that were."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(_DUE, [limit])
            rows = cursor.fetchall()
        for name, *turned in rows:
            for hold, place in zip(HOLDS, range(0, len(turned), 3), strict=True):
                back, why, until = turned[place : place + 3]
                if back:
                    _record_back(name, hold, why=why, until=until)
        if rows:
            changed()
    return len(rows)


def _record_back(name: str, hold: Hold, *, why: str, until: dt.datetime) -> None:
    audit.record(
        hold.released,
        actor=SCHEDULER,
        object_type="job_type",
        object_id=name,
        before={hold.switch: hold.value, f"{hold.prefix}_until": _time(until)},
        after={hold.switch: not hold.value, f"{hold.prefix}_until": None},
        reason="Its time was up." + (f" It was {hold.prefix} because: {why}" if why else ""),
        source="command",
    )


def changed() -> None:
    """Let open pages and this process see a change of contracts at once."""
    BoardVersion.objects.update(n=models.F("n") + 1, at=Now())
    transaction.on_commit(contracts.forget)


def database_now() -> dt.datetime:
    """Return the database's time, which decides."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT jobs_now()")
        now: dt.datetime = cursor.fetchone()[0]
    return now


def _time(at: dt.datetime | None) -> str | None:
    return at.isoformat() if at else None
