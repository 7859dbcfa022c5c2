"""Lines of cron, as pure arithmetic: what they say, when they tick, what one look at a schedule finds.

Fields and days are those of Debian's cron, by cronsim. Not here: any clock, and what becomes of a tick
(`queues.schedule_ticks`).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

GRACE_SECONDS: Final = 60
"""A tick that is seen later than this is missed."""
COUNT_MOST: Final = 2_000
"""So many ticks of a missed stretch are counted at one look, a hundredth of a second's work; the next look goes on."""
CATCH_UP_MOST: Final = 100
"""Of a missed stretch at most so many ticks, the newest, become jobs."""
HORIZON: Final = dt.timedelta(days=5 * 366)
"""A line that names no time within five years is a mistake."""
_KEPT: Final = {"all": CATCH_UP_MOST, "latest": 1, "skip": 0}
_GRACE: Final = dt.timedelta(seconds=GRACE_SECONDS)
_INSTANT: Final = dt.timedelta(microseconds=1)
_LINE: Final = re.compile(r"[0-9A-Za-z*/,# \t-]{1,200}")
_FIELDS: Final = 5
_WORD: Final = re.compile(r"\{(tick|date)\}")


class LineError(ValueError):
    """A line of cron or a time zone that cannot be used; says why. `field` is cron or timezone."""

    def __init__(self, words: str, *, field: str) -> None:
        super().__init__(words)
        self.field = field


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    # "localtime" is the machine's own, another one in each process.
    return frozenset(available_timezones()) - {"localtime", "Factory"}


def zone_of(name: str) -> dt.tzinfo:
    """Return a time zone by its name in the time zone database. Raises: LineError."""
    if name == "UTC":
        return dt.UTC
    if name not in _zones():
        raise LineError(f"There is no time zone {name[:64]!r}. Example: Europe/Berlin", field="timezone")
    return ZoneInfo(name)


@dataclass(frozen=True)
class Line:
    """A line that can be read, in its zone."""

    cron: str
    zone: dt.tzinfo

    def after(self, time: dt.datetime) -> Iterator[dt.datetime]:
        """Yield the ticks after a time, each once, in UTC and in their order.

        Where the clock goes forward two wall times may be one moment; where it goes back, a moment has two.
        """
        last = time
        for tick in CronSim(self.cron, time.astimezone(self.zone)):
            moment = tick.astimezone(dt.UTC)
            if moment > last:
                yield moment
                last = moment

    def next(self, time: dt.datetime, *, at: bool = False) -> dt.datetime | None:
        """Return the first tick after a time, with `at` the first at or after it; None: there is none."""
        return next(self.after(time - _INSTANT if at else time), None)

    def words(self) -> str:
        """Say the line in English; empty where it cannot be said."""
        try:
            return str(CronSim(self.cron, dt.datetime(2000, 1, 1, tzinfo=dt.UTC)).explain())
        except (CronSimError, ValueError, IndexError):
            return ""


def read(cron: str, timezone: str) -> Line:
    """Read a line and its zone. Raises: LineError."""
    zone = zone_of(timezone)
    if not _LINE.fullmatch(cron):
        raise LineError("A line has five fields of digits, names of days and months, and * / , - #", field="cron")
    fields = cron.split()
    if len(fields) != _FIELDS:
        words = f"A line has five fields (minute, hour, day, month, weekday); this one has {len(fields)}."
        raise LineError(words + (" There are no seconds." if len(fields) == _FIELDS + 1 else ""), field="cron")
    try:
        CronSim(cron, dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
    except (CronSimError, ValueError, AssertionError) as error:
        raise LineError(f"The line cannot be read: {str(error) or 'a field has no value'}.", field="cron") from None
    return Line(cron, zone)


def lint(cron: str, timezone: str, *, now: dt.datetime) -> Line:
    """Read a line that somebody wants to save. Raises: LineError."""
    line = read(cron, timezone)
    first = line.next(now)
    if first is None or first > now + HORIZON:
        raise LineError("The line names no time in the next five years.", field="cron")
    return line


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look finds: ticks that were missed, then ticks that become jobs, and when to look again.

    Every tick from where the look began up to before `next_at` is in one of both. `missed_at`: the newest missed one.
    """

    missed: int = 0
    missed_at: dt.datetime | None = None
    jobs: tuple[dt.datetime, ...] = ()
    next_at: dt.datetime | None


def look(
    line: Line, *, next_at: dt.datetime, now: dt.datetime, catch_up: str, max_age: dt.timedelta, most: int = COUNT_MOST
) -> Look:
    """Say what is to be done about the ticks from `next_at` on, which is one of them, up to now.

    Of a missed stretch the newest become jobs, as many as `catch_up` says, if they are no older than `max_age`. One
    with more than `most` ticks is counted in several looks, its newest in the last of them.
    """
    ticks = line.after(next_at - _INSTANT)
    late = list(islice(takewhile(lambda tick: now - tick > _GRACE, ticks), most + 1))
    if len(late) > most:
        counted = max(most - CATCH_UP_MOST, 1)
        return Look(missed=counted, missed_at=late[counted - 1], next_at=late[counted])
    kept = _KEPT[catch_up]
    caught = [tick for tick in late[len(late) - kept :] if now - tick < max_age] if kept and late else []
    missed = late[: len(late) - len(caught)]
    on_time = list(takewhile(lambda tick: tick <= now, line.after(late[-1] if late else next_at - _INSTANT)))
    return Look(
        missed=len(missed),
        missed_at=missed[-1] if missed else None,
        jobs=(*caught, *on_time),
        next_at=line.next(on_time[-1] if on_time else late[-1] if late else next_at - _INSTANT),
    )


def close(line: Line, *, next_at: dt.datetime, now: dt.datetime, most: int = 5 * COUNT_MOST) -> Look:
    """Count all ticks up to now as missed, at most so many; what is beyond is not counted."""
    ticks = list(islice(takewhile(lambda tick: tick <= now, line.after(next_at - _INSTANT)), most))
    return Look(missed=len(ticks), missed_at=ticks[-1] if ticks else None, next_at=line.next(now))


def text_of(tick: dt.datetime) -> str:
    """Write a tick as RFC 3339 in UTC, to the second."""
    return tick.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fill(payload: str, tick: dt.datetime, zone: dt.tzinfo) -> str:
    """Put a tick into a payload: {tick} is its time in UTC, {date} its date in the zone.

    Outside a string neither can stand in JSON, so the text is not parsed; all else in braces stays as it is.
    """
    words = {"tick": text_of(tick), "date": tick.astimezone(zone).date().isoformat()}
    return _WORD.sub(lambda match: words[match[1]], payload)
