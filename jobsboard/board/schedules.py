"""Schedules: what runs when, what did the last ticks come to, which were missed?

Not here: running one now, pausing and resuming it (`schedule_acting`), the sweep that makes jobs (`queues.schedules`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_safe

from jobsboard.board import signals
from jobsboard.board.changes import url_of_schedule
from jobsboard.board.params import Params
from jobsboard.board.probe_strip import Tick
from jobsboard.board.refresh import answer, live
from jobsboard.board.svg import look
from jobsboard.board.verdict import ATTENTION_MAX, Concern
from jobsboard.roles import can, require
from queues.outcomes import schedules as read
from queues.outcomes.schedules import ScheduleNow, TickOf
from queues.redaction import redact_text
from queues.schedule_lines import GRACE_SECONDS
from queues.states import OPEN

LOST_SHOWN: Final = 20
_UNSEEN: Final = f"No scheduler looked within {GRACE_SECONDS} s."
TICKS: Final = read.TICKS_SHOWN
# The state whose look it has, its word, its icon.
_ON: Final = ("confirmed", "On", "clock")
_PAUSED: Final = ("cancelled", "Paused", "pause")
_REFUSED: Final = ("dead", "Refused", "bad")
_OVERDUE: Final = ("retrying", "Overdue", "warn")
_ENDED: Final = ("cancelled", "Ended", "cancelled")
_SHAPES: Final[Mapping[str, str]] = {
    "confirmed": "passed", "dead": "failed", "expired": "failed", "cancelled": "skipped",
    **dict.fromkeys(OPEN, "running"),
}  # fmt: skip
_WORDS: Final[Mapping[str, str]] = {
    "passed": "confirmed", "failed": "dead or expired", "skipped": "cancelled", "running": "under way",
    "gone": "no longer kept", "missed": "missed", "refused": "refused",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ScheduleLine:
    """One schedule of the page."""

    now: ScheduleNow

    @property
    def look(self) -> tuple[str, str, str]:
        """The state whose look it has, its word, its icon."""
        one = self.now
        if one.paused:
            return _PAUSED
        if one.refused:
            return _REFUSED
        if one.overdue:
            return _OVERDUE
        return _ON if one.next_at else _ENDED

    @property
    def asks(self) -> bool:
        """Somebody has to look at it."""
        return self.look in (_REFUSED, _OVERDUE)

    @property
    def why(self) -> str:
        """Why it is as it is, where that is not plain."""
        one = self.now
        if one.paused:
            return ": ".join(part for part in (one.paused_by, redact_text(one.paused_reason)) if part)
        if one.refused:
            said = next((tick.detail for tick in reversed(one.ticks) if tick.outcome == "refused"), "")
            return redact_text(said) or f"{one.refused:,} in a row"
        if one.overdue:
            return "No scheduler looks"
        return "" if one.next_at else "Names no time that comes"

    @property
    def type_sign(self) -> str:
        """What is said of its type: a job of it would not run now."""
        one = self.now
        if not one.type_enabled:
            return "disabled"
        return "paused" if one.type_paused else "deferred" if one.type_deferred else ""

    @property
    def ticks(self) -> list[Tick]:
        """Its ticks, as they are drawn."""
        return [
            Tick(outcome=shape(tick), words=_words(tick), url=reverse("job", args=[tick.job_id]) if tick.state else "")
            for tick in self.now.ticks
        ]

    @property
    def label(self) -> str:
        """The strip in words."""
        counts = Counter(shape(tick) for tick in self.now.ticks)
        told = ", ".join(f"{counts[name]} {word}" for name, word in _WORDS.items() if counts[name])
        n = len(self.now.ticks)
        return f"Last {n} tick{'' if n == 1 else 's'} of {self.now.name}, newest right: {told}" if n else "No ticks yet"


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A tick that became no job, for the list below."""

    tick: TickOf
    label: str
    detail: str


def shape(tick: TickOf) -> str:
    """Return how a tick is drawn: by its job, else by why there is none."""
    if tick.outcome != "accepted":
        return tick.outcome
    return _SHAPES.get(tick.state or "", "gone")


def _words(tick: TickOf) -> str:
    at = f"{tick.tick_at:%d %b %H:%M:%S} UTC"
    if tick.outcome == "missed":
        words = f"{tick.ticks:,} missed, the last one {at}" if tick.ticks > 1 else f"{at}: missed"
    elif tick.outcome == "refused":
        words = f"{at}: refused"
    else:
        words = f"{at}: {look(tick.state).label.lower() if tick.state else 'its job is no longer kept'}"
    words += f", run by {tick.by}" if tick.by else ""
    return f"{words}. {redact_text(tick.detail)}" if tick.detail else words


@require("view")
@require_safe
@live
def schedules(request: HttpRequest) -> HttpResponse:
    """Show all schedules."""
    return schedules_page(request)


def schedules_page(request: HttpRequest, *, toast: Mapping[str, str] | None = None) -> HttpResponse:
    """Render the page: four statements beside those of every page."""
    notes = Params(request).notes
    found = read.board(read.SCHEDULES_SHOWN + 1)
    lines = [ScheduleLine(now=one) for one in found[: read.SCHEDULES_SHOWN]]
    edit = can(request.user, "edit_contract")
    context: dict[str, Any] = {
        "title": "Schedules",
        "heading": heading(lines),
        "lines": lines,
        "more": len(found) > len(lines),
        "lost": lost(lines),
        "size": TICKS,
        "notes": notes,
        "may_act": can(request.user, "act"),
        "admin": reverse("admin:queues_schedule_changelist") if edit else "",
        "toast": toast,
        "here": reverse("schedules"),
    }
    return answer(request, "board/schedules.html", context)


def heading(lines: Sequence[ScheduleLine]) -> str:
    """Answer the page's question in one sentence."""
    if not lines:
        return "Nothing is scheduled"
    all_of = f"{len(lines)} schedule{'' if len(lines) == 1 else 's'}"
    refused = [line.now.name for line in lines if line.look == _REFUSED]
    overdue = [line.now.name for line in lines if line.look == _OVERDUE]
    for names, word in ((refused, "refused"), (overdue, "overdue")):
        if names:
            return f"{len(names)} of {all_of} {'is' if len(names) == 1 else 'are'} {word}: {_listed(names)}"
    on = sum(line.look == _ON for line in lines)
    words = f"{on} of {all_of} {'is' if on == 1 else 'are'} on" if on else "no schedule is on"
    if on == len(lines):
        words = "the schedule is on" if on == 1 else f"all {all_of} are on"
    if missed := sum(line.now.missed for line in lines):
        return f"{missed:,} tick{' was' if missed == 1 else 's were'} missed in the last 24 h; {words}"
    return words[0].upper() + words[1:]


def concerns(request: HttpRequest) -> list[Concern]:
    """Return what the overview says of schedules whose ticks become no jobs; one statement, and none where all do."""
    if not signals.of(request).schedules_refused:
        return []
    return [
        Concern(
            css="dead",
            text=f"The schedule {one.name} is refused",
            evidence=f"{one.times:,} in a row, the last one: " * (one.times > 1) + redact_text(one.detail),
            since=one.since,
            url=url_of_schedule(one.name),
            action="Open",
        )
        for one in read.refusals(limit=ATTENTION_MAX)
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def lost(lines: Sequence[ScheduleLine]) -> list[Lost]:
    """Return the newest of the shown ticks that became no job, newest first."""
    found = [
        Lost(
            tick=tick,
            label=f"{tick.ticks:,} missed" if tick.ticks > 1 else tick.outcome.capitalize(),
            detail=redact_text(tick.detail) or _UNSEEN * (tick.outcome == "missed"),
        )
        for line in lines
        for tick in line.now.ticks
        if tick.outcome != "accepted"
    ]
    return sorted(found, key=lambda one: (one.tick.tick_at, one.tick.id), reverse=True)[:LOST_SHOWN]
