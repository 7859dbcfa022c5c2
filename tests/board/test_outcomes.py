"""The read side: cohorts whose window has passed, hours and minutes that add up, lists that say what they searched."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from queues import lifecycle, outcomes
from queues.histogram import bucket_of
from queues.models import Job, OutcomeRollup
from queues.outcomes import JobFilter, Span
from queues.outcomes import lists as outcome_lists
from queues.states import OPEN
from tests.board.conftest import bury
from tests.factories import accept, analyze, claim, confirmed, fold_all, make_type, put_buckets, sql

NOW = dt.datetime(2026, 11, 21, 3, 17, 30, tzinfo=dt.UTC)


def put(at: dt.datetime, *, window: int = 300, name: str = "mail.send", tier: int = 2, **counts: int) -> None:
    """Add counts to minute, hour and day, as a fold does."""
    for grain, seconds in (("minute", 60), ("hour", 3600), ("day", 86_400)):
        key = {"grain": grain, "at": outcomes.ranges.floor_to(at, seconds), "type": name, "tier": tier}
        row, _ = OutcomeRollup.objects.get_or_create(**key, defaults={"window_seconds": window})
        added: dict[str, Any] = {measure: F(measure) + n for measure, n in counts.items()}
        OutcomeRollup.objects.filter(pk=row.pk).update(**added)


def put_lag(at: dt.datetime, seconds: float, *, n: int = 1, measure: str = "lag", name: str = "mail.send") -> None:
    bucket = bucket_of(seconds) if measure == "lag" else int(seconds)
    for grain, size in (("minute", 60), ("hour", 3600), ("day", 86_400)):
        for of_type, tier in ((name, 2), ("", 2), ("", 0)):
            put_buckets(of_type, measure, {bucket: n}, grain=grain, at=outcomes.ranges.floor_to(at, size), tier=tier)


def ago(**span: float) -> dt.datetime:
    return NOW - dt.timedelta(**span)


@pytest.mark.parametrize("name", outcomes.RANGES)
def test_a_span_has_at_most_72_slots_and_ends_now(name: str) -> None:
    span = Span.of(name, now=NOW)
    assert 15 <= len(span.slots) <= 72
    assert span.slots[-1] <= NOW < span.slots[-1] + dt.timedelta(seconds=span.slot_seconds)
    assert span.index(NOW) == len(span.slots) - 1
    first, last = span.hours
    assert span.since <= first <= last <= NOW


@pytest.mark.django_db
@pytest.mark.parametrize("name", outcomes.RANGES)
def test_without_data_nothing_is_zero_or_one(name: str) -> None:
    span = Span.of(name, now=NOW)
    total = outcomes.flow(span).total()
    assert total.ratio is None
    assert total.dead_rate is None
    assert total.duplicate_rate is None
    assert outcomes.times(span).of("lag").p95 is None
    assert all(one.p95 is None for one in outcomes.lag_series(span))


@pytest.mark.django_db
@pytest.mark.parametrize("name", outcomes.RANGES)
def test_a_minute_counts_once_its_window_has_passed(name: str) -> None:
    """at + 60 s + window_seconds <= now."""
    make_type("mail.send", window_seconds=300)
    put(ago(minutes=6, seconds=30), ready=10, in_window=9)  # 03:11: passed at 03:17
    put(ago(minutes=5, seconds=30), ready=10, in_window=0)  # 03:12: passes at 03:18
    total = outcomes.flow(Span.of(name, now=NOW)).total()
    assert (total.due, total.kept) == (10, 9)
    assert total.ratio == 0.9


@pytest.mark.django_db
def test_jobs_cancelled_before_their_window_are_in_no_cohort() -> None:
    put(ago(minutes=10), ready=10, in_window=4, excluded=6)
    assert outcomes.flow(Span.of("1h", now=NOW)).total().ratio == 1.0
    put(ago(minutes=20), ready=3, excluded=3, name="other")
    assert outcomes.flow(Span.of("1h", now=NOW)).total(name="other").ratio is None


@pytest.mark.django_db
@pytest.mark.parametrize("window", [60, 300, 1800, 7200, 40_000])
@pytest.mark.parametrize("name", ["24h", "7d"])
def test_hours_and_minutes_add_up_to_the_minutes(name: str, window: int) -> None:
    """The hour in which a window passes now is read by minutes; nothing is counted twice or lost."""
    make_type("mail.send", window_seconds=window)
    span = Span.of(name, now=NOW)
    due = kept = accepted = 0
    at = span.since
    while at <= NOW:
        put(at, window=window, ready=3, in_window=2, accepted=3)
        accepted += 3
        if at + dt.timedelta(seconds=60 + window) <= NOW:
            due, kept = due + 3, kept + 2
        at += dt.timedelta(minutes=11 if name == "24h" else 53)
    total = outcomes.flow(span).total()
    assert (total.due, total.kept, total.accepted) == (due, kept, accepted)
    assert sum(one.accepted for one in outcomes.flow(span).series()) == accepted


@pytest.mark.django_db
@pytest.mark.parametrize("name", outcomes.RANGES)
def test_percentiles_cover_the_whole_span(name: str) -> None:
    span = Span.of(name, now=NOW)
    for at in (span.since, span.since + (NOW - span.since) / 2, NOW):
        put_lag(at, 2.0, n=100)
    put_lag(NOW, 60.0, n=2)
    put_lag(span.since - dt.timedelta(minutes=1), 9_000.0, n=10_000)
    lag = outcomes.times(span, tier=2).of("lag")
    assert lag.p50 == pytest.approx(2.0, rel=0.05)
    assert lag.p99 == pytest.approx(2.0, rel=0.05)
    assert outcomes.lag_slots(span, name="mail.send")[1] == lag
    series = outcomes.lag_series(span, tier=2)
    assert series[0].p50 == pytest.approx(2.0, rel=0.05)
    assert series[-1].p99 == pytest.approx(60.0, rel=0.05)


@pytest.mark.django_db
def test_deaths_are_named_by_their_reason() -> None:
    put_lag(NOW, 1, measure="dead", n=3)
    assert outcomes.times(Span.of("1h", now=NOW), name="mail.send").dead == {(2, "mail.send"): {"permanent_error": 3}}


def test_since_when_a_ratio_is_below_its_target() -> None:
    span = Span.of("15m", now=NOW)
    n = len(span.slots)

    def since(*kept: int | None) -> dt.datetime | None:
        series = [outcomes.Counts(due=10 if k is not None else 0, kept=k or 0) for k in kept]
        return outcomes.below_since([outcomes.Counts()] * (n - len(series)) + series, 0.9, span)

    assert since(10, 10, 8, 7, None) == span.slots[-3]
    assert since(5, 10) is None
    assert since(8, None, 8) == span.slots[-3]
    assert since() is None


@pytest.mark.django_db
def test_the_board_says_what_is_open_and_who_works() -> None:
    make_type("mail.send", tier_id=1, target_ratio=0.9)
    ids = accept(3, kind="mail.send")
    bury([ids[0]])
    fold_all()
    board = outcomes.board()
    assert board.count("accepted", tier=1, name="mail.send") == 2
    assert board.count("dead") == 1
    assert board.types["mail.send"].target == 0.9
    assert board.tiers[1].target == 0.999
    oldest = outcomes.oldest_open([(1, "mail.send"), (2, "mail.send")])
    assert set(oldest) == {(1, "mail.send")}
    assert {row.id for row in outcomes.oldest_jobs("mail.send", tiers=[1], limit=5)} == set(ids[1:])


def listed(wanted: JobFilter, **options: Any) -> tuple[list[UUID], outcomes.JobPage]:
    counts = {state.value: outcomes.board().count(state) for state in OPEN}
    page = outcomes.jobs(wanted, types=["mail.send", "other"], counts=options.pop("counts", counts), **options)
    return [row.id for row in page.rows], page


@pytest.mark.django_db
def test_lists_find_by_state_key_group_and_type() -> None:
    make_type("mail.send")
    make_type("other")
    plain = accept(3, kind="mail.send")
    other = accept(2, kind="other", group="g1")
    (keyed,) = accept(1, kind="other", dedupe_key="k1")
    claim([plain[0]])
    bury([plain[1]])
    fold_all()
    assert listed(JobFilter())[0] == sorted([*plain, *other, keyed], reverse=True)
    assert listed(JobFilter(type="other"))[0] == sorted([*other, keyed], reverse=True)
    assert listed(JobFilter(state="processing"))[0] == [plain[0]]
    assert listed(JobFilter(state="dead"))[0] == [plain[1]]
    assert listed(JobFilter(dead_letters=True))[0] == [plain[1]]
    assert listed(JobFilter(dead_letters=True, reason="stale"))[0] == []
    assert listed(JobFilter(dead_letters=True, tiers=(1,)))[0] == []
    assert listed(JobFilter(key="k1"))[0] == [keyed]
    assert listed(JobFilter(key="k1", type="mail.send"))[0] == []
    assert listed(JobFilter(group="g1"))[0] == sorted(other, reverse=True)
    assert listed(JobFilter(tiers=(2,), state="accepted", type="mail.send"))[0] == [plain[2]]
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
    assert listed(JobFilter(since=soon))[0] == []
    assert len(listed(JobFilter(until=soon))[0]) == 6


@pytest.mark.django_db
def test_a_look_ends_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter without an index looks at so many rows, says so, and the next page goes on behind them."""
    monkeypatch.setattr(outcome_lists, "LOOK_AT_MOST", 10)
    make_type("mail.send")
    (wanted,) = accept(1, kind="mail.send", group="g1")
    accept(25, kind="mail.send")
    pages, after = 0, None
    while True:
        ids, page = listed(JobFilter(group="g1"), after=after)
        pages += 1
        assert page.looked is not None
        assert page.looked <= 10
        if ids:
            break
        assert not page.complete
        after = page.older
    assert ids == [wanted]
    assert pages == 3
    assert page.older is None


def walked(wanted: JobFilter, *, back: bool = False) -> list[UUID]:
    """Return what the pages of a list show one after the other, to the end or, from there, back to the beginning."""
    seen: list[UUID] = []
    mark: UUID | None = UUID(int=0) if back else None
    for _ in range(50):
        ids, page = listed(wanted, **{"before" if back else "after": mark})
        seen = [*ids, *seen] if back else [*seen, *ids]
        mark = page.newer if back else page.older
        assert page.complete is (mark is None)
        if mark is None:
            return seen
    raise AssertionError("the list does not end")


@pytest.mark.django_db
@pytest.mark.parametrize("many", ["first", "last", "mixed"])
@pytest.mark.parametrize("others", [0, 3, 6, 9])
def test_no_dead_letter_is_skipped_where_types_differ_in_number(
    monkeypatch: pytest.MonkeyPatch, others: int, many: str
) -> None:
    """A type that was not read to its end hides older ones of itself, not only of the type that goes back furthest."""
    monkeypatch.setattr(outcome_lists, "LOOK_AT_MOST", 10)
    monkeypatch.setattr(outcome_lists, "PAGE", 2)
    make_type("mail.send")
    make_type("other")
    kinds = ["mail.send"] * 13 + ["other"] * others
    if many == "last":
        kinds.reverse()
    elif many == "mixed":
        kinds = ["other"] * (others // 2) + ["mail.send"] * 13 + ["other"] * (others - others // 2)
    ids = [accept(1, kind=kind)[0] for kind in kinds]
    bury(ids)
    # Rare, and among the oldest of the larger type: found only by whoever reads on.
    mail = [i for i, kind in zip(ids, kinds, strict=True) if kind == "mail.send"]
    sql("ALTER TABLE queues_job DISABLE TRIGGER USER")
    sql("UPDATE queues_job SET reason = 'rejected', tier = 1 WHERE id = ANY(%s)", [mail[0], mail[1], ids[-1]])
    sql("ALTER TABLE queues_job ENABLE TRIGGER USER")
    rows = Job.objects.filter(id__in=ids)
    for wanted, fitting in (
        (JobFilter(dead_letters=True), rows),
        (JobFilter(dead_letters=True, reason="rejected"), rows.filter(reason="rejected")),
        (JobFilter(dead_letters=True, reason="permanent_error"), rows.filter(reason="permanent_error")),
        (JobFilter(dead_letters=True, tiers=(1,)), rows.filter(tier=1)),
        (JobFilter(dead_letters=True, reason="rejected", type="other"), rows.filter(reason="rejected", type="other")),
    ):
        expected = sorted(fitting.values_list("id", flat=True), reverse=True)
        assert walked(wanted) == expected, wanted
        assert walked(wanted, back=True) == expected, wanted


@pytest.mark.django_db
def test_one_type_of_many_is_looked_at_with_the_whole_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_lists, "LOOK_AT_MOST", 10)
    monkeypatch.setattr(outcome_lists, "PAGE", 2)
    make_type("mail.send")
    bury(accept(9, kind="mail.send"))
    ids, page = listed(JobFilter(dead_letters=True, reason="rejected", type="mail.send"))
    assert (ids, page.looked, page.complete) == ([], 9, True)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "wanted",
    [
        JobFilter(),
        JobFilter(type="mail.send"),
        JobFilter(type="mail.send", state="confirmed"),
        JobFilter(state="processing"),
        JobFilter(state="accepted"),
        JobFilter(dead_letters=True),
        JobFilter(key="k"),
    ],
)
def test_every_list_has_an_index(wanted: JobFilter) -> None:
    """With sequential scans forbidden, one is left in the plan only where no index fits."""
    make_type("mail.send")
    lifecycle.settle([confirmed(run) for run in claim(accept(100, kind="mail.send"))])
    accept(10, kind="mail.send")
    analyze("queues_job")
    sql("SET LOCAL enable_seqscan = off")
    plan = _plan(lambda: outcomes.jobs(wanted, types=["mail.send"], counts={"processing": 1, "accepted": 10}))
    assert "Index" in plan
    assert not re.search(r"Seq Scan on queues_job", plan), plan


@pytest.mark.django_db
def test_oldest_open_reads_indexes_only() -> None:
    make_type("mail.send", tier_id=1)
    accept(10, kind="mail.send")
    analyze("queues_job")
    sql("SET LOCAL enable_seqscan = off")
    for ask in (
        lambda: outcomes.oldest_open([(1, "mail.send")]),
        lambda: outcomes.oldest_jobs("mail.send", tiers=[1], limit=5),
    ):
        plan = _plan(ask)
        assert not re.search(r"Seq Scan on queues_job", plan), plan


def _plan(ask: Callable[[], object]) -> str:
    """Return the plan of the one statement that a function sends."""
    with CaptureQueriesContext(connection) as captured:
        ask()
    assert len(captured) == 1
    return "\n".join(row[0] for row in sql("EXPLAIN " + captured[0]["sql"].replace("%", "%%")))


@pytest.mark.django_db
def test_the_older_of_waiting_and_running_is_the_oldest(shift_clock: Callable[[str], None]) -> None:
    make_type("mail.send", tier_id=1)
    shift_clock("-2 hours")
    waiting = accept(1, kind="mail.send")
    shift_clock("-1 hour")
    claim(accept(1, kind="mail.send"))
    shift_clock("0")
    oldest = outcomes.oldest_open([(1, "mail.send")])
    assert oldest[1, "mail.send"] == Job.objects.get(id=waiting[0]).ready_at
