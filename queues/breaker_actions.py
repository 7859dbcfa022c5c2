"""Changes of circuit breakers: by what they are judged by, and by people, who may hold one open or closed.

Each change is one guarded statement, so that of any number of schedulers and people one makes it. When to make one is
`breakers.judge`'s; the service that does is `scheduler.breakers`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

from django.db import connection, transaction

from queues import audit, breakers
from queues.breakers import Change, Lend, Standing
from queues.contract_switches import SCHEDULER, SwitchRefused, changed, check_until
from queues.faults import fault
from queues.models import Breaker, Dependency

SETTINGS: Final = (
    "description", "timeout_seconds", "error_ratio", "slow_seconds", "minimum_calls", "window_seconds",
    "reset_seconds", "trial_jobs",
)  # fmt: skip
"""What people edit; the rest is the breaker's own."""
_WORDS: Final = {Breaker.OPEN.value: "open", Breaker.CLOSED.value: "closed"}
"""States that a person may force."""


class NotPossible(Exception):
    """What was asked of a breaker cannot be done. `code` for programs, `words` for people."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words


# `since` names the state exactly: one that went and came again meanwhile is another one.
_FLIP: Final = """
WITH changed AS (
  UPDATE queues_dependency d SET state = %(became)s, since = jobs_clock(), why = %(why)s, trials_left = %(trials)s,
    retry_at = jobs_clock() + make_interval(secs => %(retry_in)s)
  WHERE d.name = %(name)s AND d.state = %(was)s AND d.since = %(since)s AND d.forced = '' RETURNING d.name, d.since
)
INSERT INTO queues_breakerflip (dependency, at, was, became, why, by)
SELECT name, since, %(was)s, %(became)s, %(why)s, '' FROM changed RETURNING 1
"""
_LEND: Final = """
UPDATE queues_dependency SET trials_left = %(trials)s, retry_at = jobs_clock() + make_interval(secs => %(retry_in)s)
WHERE name = %(name)s AND state = 'half_open' AND since = %(since)s AND retry_at IS NOT DISTINCT FROM %(seen)s
  AND trials_left <= 0 AND forced = ''
RETURNING 1
"""
# Who has a type locked is not waited for: claims wait for the dependency that is locked here. It comes again.
_REPEAT: Final = """
UPDATE queues_jobtype c SET breaker = n.state FROM (
  SELECT c.name, coalesce(d.state, 'closed') AS state FROM queues_jobtype c
  LEFT JOIN queues_dependency d ON d.name = c.dependency
  WHERE c.breaker <> coalesce(d.state, 'closed') ORDER BY c.name FOR NO KEY UPDATE OF c SKIP LOCKED
) AS n WHERE c.name = n.name
RETURNING 1
"""
_MAKE: Final = """
INSERT INTO queues_dependency (name, {columns}, state, since, why, trials_left, forced, forced_by, forced_reason)
SELECT DISTINCT c.dependency, {values}, 'closed', jobs_clock(), '', 0, '', '', '' FROM queues_jobtype c
WHERE c.dependency <> '' AND NOT EXISTS (SELECT FROM queues_dependency d WHERE d.name = c.dependency)
ON CONFLICT (name) DO NOTHING
RETURNING 1
"""
# A clock that went back would leave a breaker blind until it comes up with what was written before.
_SET_BACK: Final = """
UPDATE queues_dependency SET since = least(since, jobs_now()),
  retry_at = CASE WHEN forced = '' AND retry_at IS NOT NULL
    THEN least(retry_at, jobs_now() + make_interval(secs => reset_seconds)) ELSE retry_at END
WHERE since > jobs_now() + interval '1 second'
  OR forced = '' AND retry_at > jobs_now() + make_interval(secs => reset_seconds + 1)
RETURNING 1
"""
_FORGET_FUTURE: Final = "DELETE FROM queues_dependencycalls WHERE at > jobs_now() + interval '1 second'"
_FORGET_FLIPS: Final = """
DELETE FROM queues_breakerflip WHERE id = ANY(ARRAY(
  SELECT id FROM queues_breakerflip WHERE at < jobs_now() - make_interval(days => %(days)s)
  ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING 1
"""
_EXPIRED: Final = """
SELECT name, forced, forced_reason, forced_until FROM queues_dependency
WHERE forced <> '' AND forced_until <= jobs_now()
ORDER BY name FOR UPDATE SKIP LOCKED
"""
_HOLD: Final = """
WITH was AS (SELECT name, state, forced FROM queues_dependency WHERE name = %(name)s),
changed AS (
  UPDATE queues_dependency d SET forced = %(state)s, forced_by = %(by)s, forced_reason = %(reason)s,
    forced_until = %(until)s, state = %(state)s, trials_left = 0,
    since = CASE WHEN d.state = %(state)s THEN d.since ELSE jobs_clock() END, why = %(why)s,
    retry_at = CASE WHEN %(state)s = 'open' THEN %(until)s::timestamptz END
  WHERE d.name = %(name)s RETURNING d.since
)
INSERT INTO queues_breakerflip (dependency, at, was, became, why, by)
SELECT w.name, c.since, w.state, %(state)s, %(why)s, %(by)s FROM was w CROSS JOIN changed c WHERE w.state <> %(state)s
"""
_LET_GO: Final = """
UPDATE queues_dependency SET forced = '', forced_by = '', forced_reason = '', forced_until = NULL,
  retry_at = CASE WHEN state = 'open' THEN jobs_clock() END
WHERE name = %(name)s
"""


def apply(reading: breakers.Reading, wanted: Change | Lend) -> bool:
    """Do what a breaker was judged to do; False when somebody else changed it meanwhile."""
    seen = reading.standing
    params = {"name": seen.name, "was": seen.state, "since": seen.since, "seen": seen.retry_at}
    if isinstance(wanted, Lend):
        return bool(_execute(_LEND, params | {"trials": wanted.trials, "retry_in": wanted.retry_in}))
    params |= {"became": wanted.became, "why": wanted.why, "trials": wanted.trials, "retry_in": wanted.retry_in}
    fault("breaker.judged")
    with transaction.atomic():
        if not _execute(_FLIP, params):
            return False
        fault("breaker.flipped")
        repeat()
        changed()
    fault("breaker.committed")
    return True


def repeat() -> int:
    """Write the state of each breaker into the types that name its dependency, where it differs; return how many."""
    return len(_execute(_REPEAT, {}))


def make_missing() -> int:
    """Make the dependencies that contracts name and that are not there, with default settings; return how many."""
    columns = ", ".join(SETTINGS)
    defaults = {name: getattr(Dependency(), name) for name in SETTINGS}
    values = ", ".join(f"%({name})s" for name in SETTINGS)
    return len(_execute(_MAKE.format(columns=columns, values=values), defaults))


def set_back() -> int:
    """Put right what the database's clock left in the future when it went back; return how many breakers."""
    with transaction.atomic():
        found = _execute(_SET_BACK, {})
        _execute(_FORGET_FUTURE, {})
    return len(found)


def forget_flips(*, days: int, limit: int) -> int:
    """Delete changes of more than so many days ago; returns how many."""
    return len(_execute(_FORGET_FLIPS, {"days": days, "limit": limit}))


def expire() -> int:
    """Let go of breakers that were held until now; return how many."""
    with transaction.atomic():
        due = _execute(_EXPIRED, {})
        for name, forced, reason, until in due:
            _execute(_LET_GO, {"name": name})
            audit.record(
                "breaker.let_go",
                actor=SCHEDULER,
                object_type="dependency",
                object_id=name,
                before={"forced": forced, "until": until.isoformat()},
                after={"forced": ""},
                reason=f"Its time was up. It was held {_WORDS[forced]} because: {reason}",
                source="command",
            )
        if due:
            changed()
    return len(due)


def force(
    name: str,
    *,
    state: str,
    by: str,
    reason: str,
    until: dt.datetime | None,
    source: str = "ui",
    request_id: str = "",
) -> Standing:
    """Hold a breaker open or closed, whatever runs tell, until a time or until it is let go.

    Doing the same again changes nothing; another reason or end replaces them.
    Raises: NotPossible (unknown_dependency, state, reason, until).
    """
    if state not in _WORDS:
        raise NotPossible("state", "A breaker can be held open or closed.")
    reason = _checked(reason)
    with transaction.atomic():
        row = _locked(name)
        try:
            check_until(until)
        except SwitchRefused as error:
            raise NotPossible("until", str(error)) from None
        if (row.forced, row.forced_reason, row.forced_until) != (state, reason, until):
            why = f"Held {_WORDS[state]} by {by}: {reason}"[:300]
            params = {"name": name, "state": state, "by": by[:150], "reason": reason, "until": until, "why": why}
            _execute(_HOLD, params)
            audit.record(
                f"breaker.forced_{_WORDS[state]}",
                actor=by,
                object_type="dependency",
                object_id=name,
                before={"state": row.state, "forced": row.forced, "until": _time(row.forced_until)},
                after={"state": state, "forced": state, "until": _time(until)},
                reason=reason,
                source=source,
                request_id=request_id,
            )
            repeat()
            changed()
    return _read(name)


def let_go(name: str, *, by: str, reason: str, source: str = "ui", request_id: str = "") -> Standing:
    """Let a breaker decide again: an open one lets trials through at once. One that nobody holds stays as it is.

    Raises: NotPossible (unknown_dependency, reason).
    """
    reason = _checked(reason)
    with transaction.atomic():
        row = _locked(name)
        if row.forced:
            _execute(_LET_GO, {"name": name})
            audit.record(
                "breaker.let_go",
                actor=by,
                object_type="dependency",
                object_id=name,
                before={"forced": row.forced, "until": _time(row.forced_until)},
                after={"forced": ""},
                reason=reason,
                source=source,
                request_id=request_id,
            )
            changed()
    return _read(name)


def save_settings(
    name: str, fields: Mapping[str, Any], *, actor: str, reason: str, source: str = "admin", request_id: str = ""
) -> Dependency:
    """Make a dependency or change its settings, audited. Fields left out stay as they are. Raises: ValidationError."""
    with transaction.atomic():
        row = Dependency.objects.select_for_update().filter(pk=name).first()
        made = row is None
        row = row or Dependency(name=name)
        before = {key: getattr(row, key) for key in SETTINGS}
        after = {**before, **{key: fields[key] for key in SETTINGS if key in fields}}
        differing = [key for key in SETTINGS if before[key] != after[key]]
        for key in differing:
            setattr(row, key, after[key])
        row.full_clean(validate_unique=made)
        if made:
            row.save(force_insert=True)
        elif differing:
            row.save(update_fields=differing)
        if made or differing:
            audit.record(
                "dependency.created" if made else "dependency.changed",
                actor=actor,
                object_type="dependency",
                object_id=name,
                before=None if made else {key: before[key] for key in differing},
                after={key: after[key] for key in (SETTINGS if made else differing)},
                reason=reason,
                source=source,
                request_id=request_id,
            )
            changed()
    return row


def delete(name: str, *, actor: str, reason: str, source: str = "admin", request_id: str = "") -> None:
    """Delete a dependency that no type names. Raises: NotPossible (unknown_dependency, in_use)."""
    with transaction.atomic():
        row = _locked(name)
        if types := _read(name).types:
            raise NotPossible("in_use", f"It is named by {', '.join(types[:5])}.")
        audit.record(
            "dependency.deleted",
            actor=actor,
            object_type="dependency",
            object_id=name,
            before={key: getattr(row, key) for key in SETTINGS},
            reason=reason,
            source=source,
            request_id=request_id,
        )
        row.delete()
        changed()


def _locked(name: str) -> Dependency:
    row = Dependency.objects.select_for_update().filter(pk=name).first()
    if row is None:
        raise NotPossible("unknown_dependency", f"There is no dependency {name[:64]!r}.")
    return row


def _read(name: str) -> Standing:
    found = breakers.standing(name)
    if found is None:
        raise NotPossible("unknown_dependency", f"There is no dependency {name[:64]!r}.")
    return found


def _checked(reason: str) -> str:
    reason = reason.replace("\x00", "").strip()[:1000]
    if not reason:
        raise NotPossible("reason", "Say why.")
    return reason


def _execute(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall()) if cursor.description else []


def _time(at: dt.datetime | None) -> str | None:
    return at.isoformat() if at else None
