"""Buckets in Python and in SQL, and what quantiles cost in precision."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queues.histogram import GAMMA, MAX_BUCKET, MIN_SECONDS, bucket_of, mean, quantile, value_of
from tests.factories import sql

LARGEST = MIN_SECONDS * GAMMA**MAX_BUCKET


@pytest.mark.django_db
def test_sql_and_python_agree() -> None:
    """One histogram, two languages: the same bucket for the same value, edges included."""
    draw = random.Random(7)
    values = [0.0, -1.0, MIN_SECONDS, 1e-9, 1e9, 1e300, LARGEST, *(10 ** draw.uniform(-4, 8) for _ in range(3000))]
    values += [MIN_SECONDS * GAMMA**b * (1 + off) for b in range(MAX_BUCKET) for off in (-1e-9, 1e-9)]
    found = [
        b
        for (b,) in sql(
            "SELECT jobs_bucket(v) FROM unnest(%s::float8[]) WITH ORDINALITY AS t (v, n) ORDER BY n", values
        )
    ]
    assert found == [bucket_of(value) for value in values]


@given(st.floats(MIN_SECONDS * 1.0001, LARGEST))
def test_a_bucket_stands_for_its_values(seconds: float) -> None:
    """Within 5 % of each value in it."""
    assert abs(value_of(bucket_of(seconds)) - seconds) <= 0.05 * seconds


@given(st.lists(st.floats(MIN_SECONDS * 1.0001, 1e6), min_size=1), st.floats(0.001, 1.0))
def test_a_quantile_is_within_five_percent(values: list[float], q: float) -> None:
    """Of the value of that rank."""
    found = quantile(Counter(map(bucket_of, values)), q)
    true = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert found is not None
    assert abs(found - true) <= 0.05 * true


@given(st.lists(st.floats(0.0, 1e9)), st.lists(st.floats(0.0, 1e9)))
def test_histograms_merge(first: list[float], second: list[float]) -> None:
    """The buckets of two minutes are the buckets of both."""
    assert Counter(map(bucket_of, first)) + Counter(map(bucket_of, second)) == Counter(map(bucket_of, first + second))


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_buckets_ascend(a: float, b: float) -> None:
    """A longer time is never in a lower bucket; no time is outside."""
    low, high = sorted((a, b))
    assert 0 <= bucket_of(low) <= bucket_of(high) <= MAX_BUCKET


def test_no_data_is_nothing() -> None:
    """Neither 0 nor 1."""
    assert quantile({}, 0.5) is mean({}) is quantile({3: 0}, 0.5) is mean({3: 0}) is None
