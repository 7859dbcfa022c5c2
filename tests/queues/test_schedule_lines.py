"""Lines of cron, pure: what they tick against a count of every minute, DST, looks at outages, what is refused."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from functools import cache
from itertools import islice, takewhile
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from queues import schedule_lines as lines
from queues.schedule_lines import COUNT_MOST, GRACE_SECONDS, Line, LineError

DAY: Final = dt.timedelta(days=1)
#: To explain a failure Hypothesis traces every line of every example: minutes for walks as long as these.
SEARCH: Final = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)  # fmt: skip
MINUTE: Final = dt.timedelta(minutes=1)
AGE: Final = dt.timedelta(days=7)
# Each with an evening before its clock goes forward, goes back, or does nothing. Those of Beirut go at midnight.
EVENINGS: Final = {
    "Europe/Berlin": ("2026-03-28", "2026-10-24"),
    "America/New_York": ("2026-03-07", "2026-10-31"),
    "Asia/Beirut": ("2026-03-28", "2026-10-24"),
    "Asia/Kolkata": ("2026-03-28",),
    "UTC": ("2026-03-28",),
}


def utc(text: str) -> dt.datetime:
    """Read a time in UTC."""
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


class Drawn(NamedTuple):
    """A line with what its fields stand for."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    weekdays: frozenset[int]


def _field(low: int, high: int) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    """Draw a field: a star, a step, a list or a range, and its values."""
    value = st.integers(low, high)
    every = frozenset(range(low, high + 1))
    return st.one_of(
        st.just(("*", every)),
        st.sampled_from([2, 5, 15, 20]).map(lambda n: (f"*/{n}", frozenset(range(low, high + 1, n)))),
        st.frozensets(value, min_size=1, max_size=3).map(lambda s: (",".join(map(str, sorted(s))), s)),
        st.tuples(value, value).map(sorted).map(lambda p: (f"{p[0]}-{p[1]}", frozenset(range(p[0], p[1] + 1)))),
    )


@st.composite
def drawn_lines(draw: st.DrawFn) -> Drawn:
    minutes, hours, weekdays = draw(_field(0, 59)), draw(_field(0, 4)), draw(_field(0, 6))
    # Of a field of hours a star means all of them.
    all_hours = frozenset(range(24)) if hours[0] == "*" else hours[1]
    if hours[0].startswith("*/"):
        all_hours = frozenset(range(0, 24, int(hours[0][2:])))
    return Drawn(f"{minutes[0]} {hours[0]} * * {weekdays[0]}", minutes[1], all_hours, weekdays[1])


@st.composite
def evenings(draw: st.DrawFn) -> tuple[str, dt.datetime]:
    zone = draw(st.sampled_from(sorted(EVENINGS)))
    return zone, utc(draw(st.sampled_from(EVENINGS[zone]))) + dt.timedelta(hours=12)


def by_hand(line: Drawn, zone: ZoneInfo, start: dt.datetime, end: dt.datetime) -> list[dt.datetime]:
    """Return the ticks of (start, end] as Debian's cron has them, by a walk through minutes.

    With a star in the minute or the hour, the wall's time counts, whenever it shows; else each wall time is one tick:
    the first where it shows twice, the next moment there is where it does not show.
    """
    stars = line.text.split()[0][0] == "*" or line.text.split()[1][0] == "*"
    walk = _by_time(zone, start) if stars else _by_wall(zone, start)
    return sorted({moment for wall, moment in walk if start < moment <= end and _fits(line, wall)})


@cache
def _by_time(zone: ZoneInfo, start: dt.datetime) -> list[tuple[dt.datetime, dt.datetime]]:
    """Return each minute of four days with what the wall shows then."""
    return [((start + n * MINUTE).astimezone(zone), start + n * MINUTE) for n in range(4 * 24 * 60)]


@cache
def _by_wall(zone: ZoneInfo, start: dt.datetime) -> list[tuple[dt.datetime, dt.datetime]]:
    """Return each minute that a wall of four days could show, with when it does."""
    found = []
    for n in range(4 * 24 * 60):
        wall = shown = dt.datetime.combine(start.date() - DAY, dt.time()) + n * MINUTE
        while shown.replace(tzinfo=zone).astimezone(dt.UTC).astimezone(zone).replace(tzinfo=None) != shown:
            shown += MINUTE
        found.append((wall, shown.replace(tzinfo=zone).astimezone(dt.UTC)))
    return found


def _fits(line: Drawn, wall: dt.datetime) -> bool:
    return wall.minute in line.minutes and wall.hour in line.hours and (wall.isoweekday() % 7) in line.weekdays


def ticks(line: Line, start: dt.datetime, end: dt.datetime) -> list[dt.datetime]:
    """Return the ticks of (start, end]."""
    return list(takewhile(lambda tick: tick <= end, line.after(start)))


@SEARCH
@given(drawn=drawn_lines(), evening=evenings(), into=st.integers(0, 36 * 60))
def test_ticks_are_those_of_a_walk_through_all_minutes(
    drawn: Drawn, evening: tuple[str, dt.datetime], into: int
) -> None:
    """Over a change of the clock, wherever one begins to look."""
    zone, start = evening
    # Midnight does not show there in March. Where a star stands, cronsim takes a minute for it, or loses an hour.
    assume(not (zone == "Asia/Beirut" and start.month == 3 and "*" in "".join(drawn.text.split()[:2])))
    line = lines.read(drawn.text, zone)
    begin = start + into * MINUTE
    want = by_hand(drawn, ZoneInfo(zone), start, start + 2 * DAY)
    found = ticks(line, begin, start + 2 * DAY)
    assert found == [tick for tick in want if tick > begin]


@pytest.mark.parametrize(
    ("cron", "start", "want"),
    [
        ("30 2 * * *", "2026-03-28T12:00", "29T01:00 30T00:30"),  # there is no 02:30: when the clock has gone on
        ("10,40 2 * * *", "2026-03-28T12:00", "29T01:00 30T00:10 30T00:40"),  # once, not twice
        ("30 2 * * *", "2026-10-24T12:00", "25T00:30 26T01:30"),  # 02:30 is twice: the first time
        ("30 2 * * *", "2026-10-25T00:45", "26T01:30 27T01:30"),  # begun between both
        ("30 2 * * *", "2026-10-25T01:10", "26T01:30 27T01:30"),  # begun before the second one
        ("0 * * * *", "2026-10-24T23:30", "25T00:00 25T01:00 25T02:00"),  # by the hour: each hour that passes
        ("0 9 * * *", "2026-10-24T12:00", "25T08:00 26T08:00"),  # nine o'clock of the wall
    ],
)
def test_a_change_of_the_clock_in_berlin(cron: str, start: str, want: str) -> None:
    """What the document says of DST."""
    line = lines.read(cron, "Europe/Berlin")
    expected = want.split()
    found = [f"{tick:%dT%H:%M}" for tick in islice(line.after(utc(start)), len(expected))]
    assert found == expected


class Engine:
    """A schedule as the sweep treats it, in memory; every look says which ticks it is answerable for."""

    def __init__(self, line: Line, start: dt.datetime, catch_up: str, max_age: dt.timedelta) -> None:
        self.line, self.catch_up, self.max_age = line, catch_up, max_age
        self.next_at = line.next(start)
        self.paused = False
        self.jobs: list[dt.datetime] = []
        self.missed: list[dt.datetime] = []
        self.skipped: list[dt.datetime] = []

    def look(self, now: dt.datetime, *, most: int) -> None:
        while self.next_at is not None and self.next_at <= now:
            begin = self.next_at - MINUTE / 2
            if self.paused:
                self.skipped += ticks(self.line, begin, now)
                self.next_at = self.line.next(now)
                return
            found = lines.look(
                self.line, next_at=self.next_at, now=now, catch_up=self.catch_up, max_age=self.max_age, most=most
            )
            assert found.next_at is None or found.next_at > self.next_at, "it goes on"
            covered = ticks(self.line, begin, (found.next_at or now + 9 * DAY) - MINUTE / 2)
            self._took(covered, found, now)
            self.next_at = found.next_at

    def _took(self, covered: list[dt.datetime], found: lines.Look, now: dt.datetime) -> None:
        lost = [tick for tick in covered if tick not in found.jobs]
        assert set(found.jobs) <= set(covered)
        assert (found.missed, found.missed_at) == (len(lost), lost[-1] if lost else None)
        assert all(now - tick > dt.timedelta(seconds=GRACE_SECONDS) for tick in lost), "in time is not missed"
        self.jobs += found.jobs
        self.missed += lost

    def toggle(self, now: dt.datetime) -> None:
        if not self.paused and self.next_at is not None and self.next_at <= now:
            found = lines.close(self.line, next_at=self.next_at, now=now)
            lost = ticks(self.line, self.next_at - MINUTE / 2, now)
            assert found.missed == len(lost)
            self.missed += lost
            self.next_at = found.next_at
        if self.paused and self.next_at is not None:
            self.skipped += ticks(self.line, self.next_at - MINUTE / 2, now)
            self.next_at = self.line.next(now)
        self.paused = not self.paused


@SEARCH
@given(
    drawn=drawn_lines(),
    evening=evenings(),
    catch_up=st.sampled_from(["latest", "all", "skip"]),
    age=st.sampled_from([MINUTE, dt.timedelta(hours=3), AGE]),
    most=st.sampled_from([150, COUNT_MOST]),
    steps=st.lists(
        st.tuples(st.integers(1, 90) | st.integers(3_000, 50_000), st.sampled_from(["look", "look", "toggle"])),
        min_size=1, max_size=25,
    ),
)  # fmt: skip
def test_every_tick_is_one_job_or_missed_or_skipped(
    drawn: Drawn, evening: tuple[str, dt.datetime], catch_up: str, age: dt.timedelta, most: int,
    steps: list[tuple[int, str]],
) -> None:  # fmt: skip
    """Once: whatever the line, the zone, the outages and the pauses."""
    zone, now = evening
    line = lines.read(drawn.text, zone)
    start = now
    engine = Engine(line, start, catch_up, age)
    for seconds, act in steps:
        now += dt.timedelta(seconds=seconds)
        if act == "look":
            engine.look(now, most=most)
        else:
            engine.toggle(now)
    if engine.paused:
        engine.toggle(now)
    engine.look(now, most=most)
    assert sorted([*engine.jobs, *engine.missed, *engine.skipped]) == ticks(line, start, now)


@pytest.mark.parametrize(
    ("catch_up", "age", "jobs", "missed"),
    [("latest", AGE, 2, 119), ("skip", AGE, 1, 120), ("all", AGE, 101, 20), ("all", dt.timedelta(minutes=30), 30, 91)],
)
def test_an_outage_of_two_hours(catch_up: str, age: dt.timedelta, jobs: int, missed: int) -> None:
    """The newest are caught up, as many as it says, none of them stale; the one in time is a job in any case."""
    line = lines.read("* * * * *", "UTC")
    now = utc("2026-11-22T12:00:30")
    found = lines.look(line, next_at=utc("2026-11-22T10:00"), now=now, catch_up=catch_up, max_age=age)
    assert (len(found.jobs), found.missed) == (jobs, missed)
    assert found.jobs == tuple(utc("2026-11-22T12:00") - n * MINUTE for n in reversed(range(jobs)))
    assert found.missed_at == found.jobs[0] - MINUTE
    assert found.next_at == utc("2026-11-22T12:01")


def test_a_minute_is_in_time_and_more_is_not() -> None:
    line = lines.read("0 * * * *", "UTC")
    tick = utc("2026-11-22T10:00")
    at, after = (
        lines.look(line, next_at=tick, now=tick + late, catch_up="skip", max_age=AGE)
        for late in (dt.timedelta(seconds=GRACE_SECONDS), dt.timedelta(seconds=GRACE_SECONDS, microseconds=1))
    )
    assert (at.jobs, at.missed) == ((tick,), 0)
    assert (after.jobs, after.missed, after.missed_at) == ((), 1, tick)


def test_one_look_at_a_year_of_minutes_is_bounded() -> None:
    """525,600 ticks: a look counts some, says where to go on, and takes no time over the rest."""
    line = lines.read("* * * * *", "Europe/Berlin")
    now = utc("2026-11-22T12:00:30")
    begun = time.process_time()
    found = lines.look(line, next_at=now.replace(second=0) - 365 * DAY, now=now, catch_up="all", max_age=AGE)
    closed = lines.close(line, next_at=now.replace(second=0) - 365 * DAY, now=now)
    assert time.process_time() - begun < 3
    assert found.jobs == ()
    assert 0 < found.missed <= COUNT_MOST
    assert found.next_at == now.replace(second=0) - 365 * DAY + found.missed * MINUTE
    assert closed.missed <= 5 * COUNT_MOST
    assert closed.next_at == utc("2026-11-22T12:01")


@pytest.mark.parametrize(
    ("cron", "zone", "words"),
    [
        ("* * * * * *", "UTC", "no seconds"),
        ("* * * *", "UTC", "has 4"),
        ("", "UTC", "five fields"),
        ("@daily", "UTC", "five fields"),
        ("60 * * * *", "UTC", "Bad minute"),
        ("*/0 * * * *", "UTC", "Bad minute"),
        ("5-1 * * * *", "UTC", "Bad minute"),
        ("0 0 * * L", "UTC", "Bad day-of-week"),
        ("0 0 30 2 *", "UTC", "Bad day-of-month"),
        ("0 0 30 2 MON#5", "UTC", "no time in the next five years"),
        ("\u00b2 * * * *", "UTC", "five fields of digits"),
        ("0 0 * * *\x00", "UTC", "five fields of digits"),
        ("1" * 201, "UTC", "five fields of digits"),
        (f"{'9' * 180} * * * *", "UTC", "Bad minute"),
        ("0 0 * * *", "Mars/Olympus", "no time zone"),
        ("0 0 * * *", "../../etc/passwd", "no time zone"),
        ("0 0 * * *", "Europe", "no time zone"),
        ("0 0 * * *", "localtime", "no time zone"),
        ("0 0 * * *", "", "no time zone"),
        ("0 0 * * *", "\x00", "no time zone"),
    ],
)
def test_what_is_refused(cron: str, zone: str, words: str) -> None:
    """With a sentence, and at once."""
    with pytest.raises(LineError, match=words) as error:
        lines.lint(cron, zone, now=utc("2026-11-22T12:00"))
    assert error.value.field == ("cron" if zone == "UTC" else "timezone")


@SEARCH
@given(st.text("0123456789*/,-#LWMONFRI ", max_size=200))
def test_whatever_is_typed_is_read_or_refused(text: str) -> None:
    """Nothing else comes up, and nothing takes long."""
    for cron in (text, f"{text[:20].replace(' ', '') or '*'} 0 {text[20:40].replace(' ', '') or '*'} * *"):
        begun = time.process_time()
        with contextlib.suppress(LineError):
            lines.lint(cron, "Europe/Berlin", now=utc("2026-11-22T12:00")).words()
        assert time.process_time() - begun < 5


def test_words() -> None:
    assert lines.read("30 3 * * MON-FRI", "UTC").words() == "At 03:30 on Monday through Friday"


def test_what_is_put_into_a_payload() -> None:
    """Two words, in any text of it; whatever else is in braces stays."""
    text = '{"at": "{tick}", "{date}": ["x-{date}-{tick}"], "n": 1.0, "left": "{{x}} {Tick} {tick"}'
    found = lines.fill(text, utc("2026-11-22T23:30"), ZoneInfo("Europe/Berlin"))
    assert found == (
        '{"at": "2026-11-22T23:30:00Z", "2026-11-23": ["x-2026-11-23-2026-11-22T23:30:00Z"], "n": 1.0,'
        ' "left": "{{x}} {Tick} {tick"}'
    )
