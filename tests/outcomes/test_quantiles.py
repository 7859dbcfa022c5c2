"""Quantiles of stored histograms against exact ones, through the database: deltas, fold, rollups of several hours."""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Callable

import pytest

from queues import outcomes
from queues.outcomes import Span
from tests.factories import fold_all, sql

N = 20_000
ALLOWED = 0.05


def constant(draw: random.Random) -> float:
    """Every lag is the same."""
    return 3.7


def bimodal(draw: random.Random) -> float:
    """Nine of ten are quick, the others wait for an hour."""
    return abs(draw.gauss(0.2, 0.03) if draw.random() < 0.9 else draw.gauss(3600, 60))


def pareto(draw: random.Random) -> float:
    """A tail without a variance, and hardly a mean."""
    return draw.paretovariate(1.1) * 0.05


@pytest.mark.django_db
@pytest.mark.parametrize("shape", [constant, bimodal, pareto])
def test_quantiles_are_within_five_percent(shape: Callable[[random.Random], float]) -> None:
    """At p50, p95 and p99, of the whole range and merged from minutes, hours and days."""
    draw = random.Random(11)
    now = dt.datetime(2026, 11, 21, 12, 34, 30, tzinfo=dt.UTC)
    values = [shape(draw) for _ in range(N)]
    minutes = [now - dt.timedelta(minutes=draw.randint(0, 2 * 1440)) for _ in values]
    sql(
        "INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)"
        " SELECT date_trunc('minute', at), 'mail.send', 2, 'lag', jobs_bucket(v), 1, 0"
        " FROM unnest(%s::timestamptz[], %s::float8[]) AS t (at, v)",
        minutes, values,
    )  # fmt: skip
    fold_all()
    span = Span.between(now - dt.timedelta(days=2, hours=1), now, now=now)
    found = outcomes.times(span, name="mail.send").of("lag", tier=2, name="mail.send")
    assert outcomes.times(span).of("lag") == found
    assert outcomes.lag_slots(span)[1] == found
    values.sort()
    for q, told in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        exact = values[math.ceil(q * N) - 1]
        assert told is not None
        assert abs(told - exact) <= ALLOWED * exact, (q, told, exact)
