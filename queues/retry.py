"""Retry delays: backoff and jitter as pure functions. Who retries and when it gives up is `lifecycle`'s.

Source: jitter after "Exponential Backoff And Jitter" (AWS architecture blog, 2015).
"""

import random
from collections.abc import Callable


def base_delay(attempt: int, *, backoff: str, base: float, cap: float) -> float:
    """Return the delay in seconds before jitter, after the attempt with this number (1, 2, …) failed."""
    if backoff == "fixed":
        delay = base
    elif backoff == "linear":
        delay = base * attempt
    else:
        # 2**60 seconds is beyond every cap; a larger exponent would only overflow.
        delay = base * 2 ** min(attempt - 1, 60)
    return min(delay, cap)


def delay(
    attempt: int,
    *,
    backoff: str,
    base: float,
    cap: float,
    jitter: str,
    draw: Callable[[], float] = random.random,
) -> float:
    """Return the delay in seconds after a failed attempt. `draw` gives numbers in [0, 1)."""
    full = base_delay(attempt, backoff=backoff, base=base, cap=cap)
    if jitter == "full":
        return full * draw()
    if jitter == "equal":
        return full / 2 + full / 2 * draw()
    return full
