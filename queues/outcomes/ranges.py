"""The time ranges of pages and calls, their slots, and which rollups cover them. Pure: no Django, no database."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

MINUTES_KEPT: Final = 3
HOURS_KEPT: Final = 100
DAYS_KEPT: Final = 1100
"""For so many days rollups of a grain are kept. Older ranges begin and end at whole hours, or days."""

# Range → (length, slot), both in seconds: at most 72 slots, and never more slots than minutes.
RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "15m": (900, 60),
    "1h": (3600, 60),
    "6h": (21_600, 300),
    "24h": (86_400, 3600),
    "7d": (604_800, 10_800),
    "30d": (2_592_000, 86_400),
}
DEFAULT_RANGE: Final = "6h"
SLOTS_MOST: Final = 72
_SLOTS: Final = (60, 300, 900, 3600, 10_800, 21_600, 86_400, 604_800, 2_592_000)

STANDS_STILL: Final = dt.timedelta(seconds=15)
"""Rollups that are older than this are not those of now: windows are judged as of their last fold."""


def floor_to(at: dt.datetime, seconds: int) -> dt.datetime:
    """Return the last multiple of so many seconds since the epoch."""
    return at - dt.timedelta(seconds=(at - _EPOCH).total_seconds() % seconds)


def ceil_to(at: dt.datetime, seconds: int) -> dt.datetime:
    """Return the next multiple of so many seconds since the epoch, or the time itself."""
    floor = floor_to(at, seconds)
    return floor if floor == at else floor + dt.timedelta(seconds=seconds)


def _whole(since: dt.datetime, until: dt.datetime, seconds: int) -> tuple[dt.datetime, dt.datetime] | None:
    first, last = ceil_to(since, seconds), floor_to(until, seconds)
    return (first, last) if first < last else None


def _grain(at: dt.datetime, now: dt.datetime) -> int:
    """Return the finest rollup, in seconds, that is kept of a time."""
    age = now - at
    if age < dt.timedelta(days=MINUTES_KEPT):
        return _MINUTE
    return _HOUR if age < dt.timedelta(days=HOURS_KEPT) else _DAY


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time, from `since` up to but not including `until`, in slots whose borders stand still.

    A slot that is not over yet is the newest. What is whole hours or days may be read from their rollups. `judged` is
    the time as of which windows have passed or not.
    """

    name: str
    since: dt.datetime
    until: dt.datetime
    slot_seconds: int
    now: dt.datetime
    judged: dt.datetime

    @classmethod
    def of(cls, name: str, *, now: dt.datetime, folded_at: dt.datetime | None = None) -> Self:
        """Return the span of a range that ends now."""
        length, slot = RANGES[name]
        since = floor_to(now, slot) - dt.timedelta(seconds=length - slot)
        return cls(name=name, since=since, until=now, slot_seconds=slot, now=now, judged=_judged(now, folded_at))

    @classmethod
    def between(
        cls, since: dt.datetime, until: dt.datetime, *, now: dt.datetime, folded_at: dt.datetime | None = None
    ) -> Self:
        """Return the span between two times, grown to whole minutes, or hours or days where only those are kept.

        Raises: ValueError when it would be empty.
        """
        since = floor_to(since, _grain(since, now))
        until = min(ceil_to(until, _grain(until, now)), now)
        if since >= until:
            raise ValueError("the range ends before it begins, or lies in the future")
        length = (until - since).total_seconds()
        least = _grain(since, now)
        slot = next((s for s in _SLOTS if s >= least and length / s <= SLOTS_MOST - 1), _SLOTS[-1])
        return cls(name="", since=since, until=until, slot_seconds=slot, now=now, judged=_judged(now, folded_at))

    @property
    def origin(self) -> dt.datetime:
        """When the first slot begins: at or before `since`."""
        return floor_to(self.since, self.slot_seconds)

    @property
    def slots(self) -> list[dt.datetime]:
        """When each slot begins."""
        n = int((self._end - self.origin).total_seconds() - 1) // self.slot_seconds + 1
        return [self.origin + dt.timedelta(seconds=self.slot_seconds * i) for i in range(n)]

    @property
    def hours(self) -> tuple[dt.datetime, dt.datetime]:
        """The whole hours inside; empty (both the same) where there are none."""
        return _whole(self.since, self.until, _HOUR) or (self.since, self.since)

    @property
    def days(self) -> tuple[dt.datetime, dt.datetime]:
        """The whole days inside; empty, at the end of the hours, where there are none."""
        return _whole(*self.hours, _DAY) or (self.hours[1], self.hours[1])

    @property
    def _end(self) -> dt.datetime:
        # The minute of now belongs to a span that ends now.
        return ceil_to(self.until + dt.timedelta(microseconds=self.until == self.now), _MINUTE)

    def cover(self, *, slots: bool) -> dict[str, Any]:
        """Return the parameters of a statement that reads the span: days, hours around them, minutes at the edges.

        `slots`: nothing coarser than a slot is read.
        """
        (first_hour, last_hour), (first_day, last_day) = self.hours, self.days
        if slots and self.slot_seconds % _HOUR:
            first_hour = last_hour = self.since
        if slots and self.slot_seconds % _DAY:
            first_day = last_day = last_hour
        return {
            "since": self.since, "end": self._end, "first_hour": first_hour, "last_hour": last_hour,
            "first_day": first_day, "last_day": last_day, "judged": self.judged, "origin": self.origin,
            "slot": self.slot_seconds,
        }  # fmt: skip

    def index(self, at: dt.datetime) -> int:
        """Return the number of the slot that holds a time."""
        return int((at - self.origin).total_seconds() // self.slot_seconds)

    def minutes_of(self, index: int) -> float:
        """Return how many minutes of a slot lie in the span: of the newest one only a part."""
        begun = self.origin + dt.timedelta(seconds=self.slot_seconds * index)
        over = min(self.until, begun + dt.timedelta(seconds=self.slot_seconds))
        return max((over - max(begun, self.since)).total_seconds(), 1.0) / 60


def _judged(now: dt.datetime, folded_at: dt.datetime | None) -> dt.datetime:
    return folded_at if folded_at is not None and now - folded_at > STANDS_STILL else now


def covered(select: str) -> str:
    """Return SQL: a SELECT with its conditions, of each stretch of the rollups of `Span.cover`.

    A stretch each, since the planner would read the whole table for all of them in one condition.
    """
    stretches = (
        ("day", "first_day", "last_day"),
        ("hour", "first_hour", "first_day"),
        ("hour", "last_day", "last_hour"),
        ("minute", "since", "first_hour"),
        ("minute", "last_hour", "end"),
    )
    return " UNION ALL ".join(
        f"({select} AND grain = '{grain}' AND at >= %({since})s AND at < %({until})s)"
        for grain, since, until in stretches
    )
