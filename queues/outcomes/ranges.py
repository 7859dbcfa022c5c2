"""The time ranges of pages and their slots. Pure: no Django, no database."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

_HOUR: Final = 3600
_DAY: Final = 86_400
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

# Range → (length, slot), both in seconds: at most 72 slots, and never more slots than minutes.
RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "15m": (900, 60),
    "1h": (3600, 60),
    "6h": (21_600, 300),
    "24h": (86_400, 3600),
    "7d": (604_800, 10_800),
}
DEFAULT_RANGE: Final = "6h"


def floor_to(at: dt.datetime, seconds: int) -> dt.datetime:
    """Return the last multiple of so many seconds since the epoch."""
    return at - dt.timedelta(seconds=(at - _EPOCH).total_seconds() % seconds)


def _whole(since: dt.datetime, until: dt.datetime, seconds: int) -> tuple[dt.datetime, dt.datetime] | None:
    first, last = floor_to(since + dt.timedelta(seconds=seconds - 1), seconds), floor_to(until, seconds)
    return (first, last) if first < last else None


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time up to now, in slots whose borders do not move with the clock.

    The newest slot is not over yet. What is whole hours or days may be read from their rollups.
    """

    name: str
    since: dt.datetime
    until: dt.datetime
    slot_seconds: int

    @classmethod
    def of(cls, name: str, *, now: dt.datetime) -> Self:
        """Return the span of a range that ends now."""
        length, slot = RANGES[name]
        newest = floor_to(now, slot)
        return cls(name=name, since=newest - dt.timedelta(seconds=length - slot), until=now, slot_seconds=slot)

    @property
    def slots(self) -> list[dt.datetime]:
        """When each slot begins."""
        n = int((self.until - self.since).total_seconds() // self.slot_seconds) + 1
        return [self.since + dt.timedelta(seconds=self.slot_seconds * i) for i in range(n)]

    @property
    def by_hour(self) -> bool:
        """Slots are whole hours."""
        return self.slot_seconds % _HOUR == 0

    @property
    def hours(self) -> tuple[dt.datetime, dt.datetime]:
        """The whole hours inside; empty (both the same) where there are none."""
        return _whole(self.since, self.until, _HOUR) or (self.since, self.since)

    @property
    def days(self) -> tuple[dt.datetime, dt.datetime]:
        """The whole days inside; empty, at the end of the hours, where there are none."""
        return _whole(*self.hours, _DAY) or (self.hours[1], self.hours[1])

    def index(self, at: dt.datetime) -> int:
        """Return the number of the slot that holds a time."""
        return int((at - self.since).total_seconds() // self.slot_seconds)

    def minutes_of(self, index: int) -> float:
        """Return how many minutes of a slot have passed: of the newest one only a part."""
        begun = self.since + dt.timedelta(seconds=self.slot_seconds * index)
        return max(min((self.until - begun).total_seconds(), self.slot_seconds), 1.0) / 60
