"""Backoff and jitter as pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queues.retry import base_delay, delay


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [("fixed", [2, 2, 2, 2, 2]), ("linear", [2, 4, 6, 8, 10]), ("exponential", [2, 4, 8, 16, 20])],
)
def test_backoff(backoff: str, delays: list[float]) -> None:
    """Attempts 1 to 5 with base 2 and cap 20."""
    assert [base_delay(n, backoff=backoff, base=2, cap=20) for n in range(1, 6)] == delays


@given(
    attempt=st.integers(0, 40_000),
    backoff=st.sampled_from(["fixed", "linear", "exponential"]),
    jitter=st.sampled_from(["none", "full", "equal"]),
    base=st.floats(0.01, 1e6),
    cap=st.floats(0.01, 1e6),
    drawn=st.floats(0, 1, exclude_max=True),
)
def test_a_delay_is_never_negative_nor_above_its_cap(
    attempt: int, backoff: str, jitter: str, base: float, cap: float, drawn: float
) -> None:
    """Whatever the contract says and however often a job failed."""
    found = delay(attempt, backoff=backoff, base=base, cap=cap, jitter=jitter, draw=lambda: drawn)
    full = base_delay(attempt, backoff=backoff, base=base, cap=cap)
    least = {"none": full, "full": 0.0, "equal": full / 2}[jitter]
    assert 0 <= least <= found <= full <= cap
