"""The time ranges of pages and their slots. Pure: no Django, no database."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

_HOUR: Final = 3600
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


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time up to now, in slots whose borders do not move with the clock.

    The newest slot is not over yet. Whole hours before `hours_until` may be read from hour rollups.
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
        first, last = floor_to(self.since + dt.timedelta(seconds=_HOUR - 1), _HOUR), floor_to(self.until, _HOUR)
        return (first, last) if first < last else (self.since, self.since)

    def index(self, at: dt.datetime) -> int:
        """Return the number of the slot that holds a time."""
        return int((at - self.since).total_seconds() // self.slot_seconds)

    def minutes_of(self, index: int) -> float:
        """Return how many minutes of a slot have passed: of the newest one only a part."""
        begun = self.since + dt.timedelta(seconds=self.slot_seconds * index)
        return max(min((self.until - begun).total_seconds(), self.slot_seconds), 1.0) / 60
