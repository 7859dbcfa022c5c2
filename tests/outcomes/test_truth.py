"""The rollups equal the truth over any range: late evidence, replays, prune, folds that died, forgotten minutes."""

from __future__ import annotations

import datetime as dt
from collections import Counter

import pytest

from queues import broker, histogram, lifecycle, outcomes
from queues.outcomes import Span, Times
from queues.outcomes.flow import HAPPENED
from queues.outcomes.times import REASONS
from tests.factories import fold_all, sql, state_counts, true_counts
from tests.outcomes.world import KINDS, MINUTE, World, minute

pytestmark = pytest.mark.django_db
DEEDS = {
    "accept", "probe", "claim", "finish", "lose", "answer", "sweep", "cancel", "replay", "close", "fold", "broken_fold",
    "change_contract",
}  # fmt: skip
SIGNS = {"blind_attempts", "second_references", "confirmed_after_rejection"}
"""Counted from what is kept as signs: tests of their own."""
COHORT = ("ready", "due", "kept", "open_late")


def spans(world: World) -> list[Span]:
    """Ranges that pages have, and random ones: short and long, old and new, some that end before now."""
    now = world.now
    found = [Span.of(name, now=now) for name in outcomes.RANGES]
    for _ in range(12):
        back = world.draw.uniform(1, 4 * 86_400)
        since = now - dt.timedelta(seconds=back)
        until = now - dt.timedelta(seconds=world.draw.choice((0, world.draw.uniform(0, back - 1))))
        found.append(Span.between(since, until, now=now))
    return found


def check(world: World) -> None:
    """Hold every range against the account."""
    for span in spans(world):
        happened, buckets = world.happened(span)
        end = span.until if span.until < span.now else minute(span.until) + MINUTE
        cohorts = world.cohorts(span, since=span.since, until=end)
        flow, times = outcomes.flow(span), outcomes.times(span, names=KINDS)
        pairs = {(tier, kind) for tier in (1, 2, 3) for kind in KINDS}
        for tier, kind in pairs:
            total = flow.total(tier=tier, name=kind)
            told = {name: getattr(total, name) for name in HAPPENED if name not in SIGNS}
            assert told == {name: happened[tier, kind, name] for name in told}, (span, tier, kind)
            ready, due, kept, late = cohorts.get((tier, kind), (0, 0, 0, 0))
            assert [getattr(total, name) for name in COHORT] == [ready, due, kept, late], (span, tier, kind)
            assert total == outcomes.add(flow.series(tier=tier, name=kind))
        assert told_buckets(times) == +buckets, span
        lag = {bucket: n for bucket, n in lag_of(buckets).items() if n}
        for tier in (1, 2, 3):
            assert outcomes.times(span, tier=tier).merged(outcomes.MEASURES) == times.merged(
                outcomes.MEASURES, tier=tier
            )
            assert outcomes.lag_slots(span, tier=tier)[1] == times.of("lag", tier=tier)
        together = outcomes.times(span)
        assert together.merged(outcomes.MEASURES) == times.merged(outcomes.MEASURES)
        assert together.dead_by_reason() == times.dead_by_reason()
        assert outcomes.lag_slots(span)[1] == together.of("lag") == times.of("lag")
        assert times.of("lag").p95 == histogram.quantile(lag, 0.95)


def told_buckets(times: Times) -> Counter[tuple[int, str, str, int]]:
    """Return the histograms in the shape of the account."""
    codes = {reason: code for code, reason in REASONS.items()}
    found: Counter[tuple[int, str, str, int]] = Counter()
    for (tier, kind), measures in times.histograms.items():
        for measure, counts in measures.items():
            found.update({(tier, kind, measure, bucket): n for bucket, n in counts.items()})
    for (tier, kind), reasons in times.dead.items():
        found.update({(tier, kind, "dead", codes[reason]): n for reason, n in reasons.items()})
    return found


def lag_of(buckets: Counter[tuple[int, str, str, int]]) -> Counter[int]:
    """Return the histogram of the lag, of all types."""
    found: Counter[int] = Counter()
    for (_, _, measure, bucket), n in buckets.items():
        if measure == "lag":
            found[bucket] += n
    return found


@pytest.mark.parametrize("seed", range(6))
def test_rollups_equal_the_truth_over_any_range(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenario 19: at rest, for every type, tier and measure, over ranges that nobody chose."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    start = dt.datetime.now(dt.UTC).replace(microsecond=0)
    world = World(seed, start=start)
    try:
        for n in range(3):
            for _ in range(110):
                world.step()
            fold_all()
            assert state_counts() == true_counts()
            check(world)
            if n == 1:
                world.prune()
                lifecycle.fold()
                check(world)
        assert set(world.deeds) == DEEDS, "a deed was never drawn"
        ended = Counter(row.state for row in world.rows.values())
        assert all(ended[state] for state in ("confirmed", "dead", "expired", "cancelled")), ended
        assert len({row.state for row in world.rows.values() if row.probe}) > 2, "probes went several ways"
        judged(world)
        forgotten(world)
    finally:
        sql("SELECT set_config('model.now', '', false)")


def judged(world: World) -> None:
    """Totals are judged a minute behind, as of the last fold; each counter is the account's."""
    world.pass_time(7)
    lifecycle.fold()
    totals = outcomes.totals()
    assert totals.folded_at == world.now
    behind = world.now - dt.timedelta(seconds=60)
    first, last = world.now - dt.timedelta(days=30), world.now + dt.timedelta(days=30)
    everything = Span(name="", since=first, until=last, slot_seconds=86_400, now=world.now, judged=behind)
    cohorts = world.cohorts(everything, since=first, until=last)
    happened, buckets = world.happened(everything)
    for pair, counts in totals.counts.items():
        ready, due, kept, _ = cohorts.get(pair, (0, 0, 0, 0))
        assert (counts.ready, counts.due, counts.kept) == (ready, due, kept), pair
        for name in HAPPENED:
            if name not in SIGNS:
                assert getattr(counts, name) == happened[(*pair, name)], (pair, name)
    assert told_buckets(totals.times) == +buckets
    assert sum(counts.due for counts in totals.counts.values()) > 20


def forgotten(world: World) -> None:
    """Where minutes are no longer kept a range grows to whole hours, and is exact again."""
    for days in (4, 5):
        world.pass_time(days * 86_400)
        world.cancel()
        world.look("cancel")
        lifecycle.fold()
        while lifecycle.forget_rollups(grain="minute", days=outcomes.MINUTES_KEPT, limit=50):
            pass
        # The cohorts whose window has not passed are still judged by their minutes.
        minutes = sql("SELECT DISTINCT type FROM queues_outcomerollup WHERE grain = 'minute' AND ready > 0")
        assert {name for (name,) in minutes} == ({"d.slow"} if days == 4 else set())
        check(world)


def test_a_scheduler_that_stands_still_makes_no_job_late() -> None:
    """Windows are judged as of the last fold: what was confirmed since is not known yet."""
    now = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
    behind = now - dt.timedelta(minutes=10)
    assert Span.of("1h", now=now, folded_at=behind).judged == behind
    assert Span.of("1h", now=now, folded_at=now - dt.timedelta(seconds=3)).judged == now
