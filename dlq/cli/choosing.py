"""Which jobs are meant on the command line: ids, or a filter. Who runs it may use every job type."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final
from uuid import UUID

from dlq.cli.printing import Refused
from dlq.plans import selection as choosing
from dlq.plans.selection import Selection
from queues import contracts
from queues.models import Job

FILTERS: Final = ("type", "tier", "reason_code", "fingerprint", "group", "since", "until")
_SPAN: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def types() -> list[str]:
    """Return every job type."""
    return sorted(contracts.all_current())


def ids(texts: list[str]) -> list[UUID]:
    """Read ids, each once. Raises: Refused."""
    found: dict[UUID, None] = {}
    for text in texts:
        try:
            found[UUID(text)] = None
        except ValueError:
            raise Refused(f"{text!r} is not the id of a job", code=2) from None
    return list(found)


def job(text: str) -> Job:
    """Return a job. Raises: Refused."""
    [job_id] = ids([text])
    found = Job.objects.filter(id=job_id).first()
    if found is None:
        raise Refused(f"there is no job {job_id}")
    return found


def moment(text: str | None, *, now: dt.datetime) -> dt.datetime | None:
    """Read a time, or how long ago: 2026-01-31T09:30:00Z, 90m, 7d. Raises: Refused."""
    if text is None:
        return None
    span = _SPAN.fullmatch(text)
    try:
        if span:
            return now - dt.timedelta(**{_UNITS[span[2]]: int(span[1])})
        at = dt.datetime.fromisoformat(text)
        return at.replace(tzinfo=dt.UTC) if at.tzinfo is None else at.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise Refused(f"{text!r} is neither a time nor a span like 90m or 7d", code=2) from None


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the filters that were given."""
    return {name: options[name] for name in FILTERS if options.get(name) is not None}


def selection(options: dict[str, Any], *, state: str = choosing.DEAD) -> Selection:
    """Turn the filters into a selection. Raises: Refused."""
    now = choosing.now()
    if options.get("type") is not None and options["type"] not in types():
        raise Refused(f"there is no job type {options['type']!r}", code=2)
    return Selection(
        type=options.get("type"),
        tier=options.get("tier"),
        reason=options.get("reason_code"),
        fingerprint=options.get("fingerprint"),
        group=options.get("group"),
        state=state,
        since=moment(options.get("since"), now=now),
        until=moment(options.get("until"), now=now),
    )
