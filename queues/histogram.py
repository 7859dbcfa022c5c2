"""Logarithmic histograms: mergeable counts per bucket, quantiles within 5 %.

Shape: a histogram is a mapping bucket → count. Bucket b > 0 holds values in (MIN·G^(b-1), MIN·G^b].
Units: seconds. The SQL function `jobs_bucket` (migration 0002) computes the same buckets.
Source: DDSketch (Masson, Rim, Lee 2019), with fixed bounds instead of collapsing.
"""

import math
from collections.abc import Mapping
from typing import Final

MIN_SECONDS: Final = 0.001
GAMMA: Final = 1.1
MAX_BUCKET: Final = 240


def bucket_of(seconds: float) -> int:
    """Return the bucket of a duration; below one millisecond is bucket 0."""
    if seconds <= MIN_SECONDS:
        return 0
    return min(MAX_BUCKET, math.ceil(math.log(seconds / MIN_SECONDS) / math.log(GAMMA)))


def value_of(bucket: int) -> float:
    """Return the duration that stands for a bucket: the point with equal relative error to both edges."""
    if bucket <= 0:
        return MIN_SECONDS / 2
    return float(MIN_SECONDS * GAMMA**bucket * 2 / (GAMMA + 1))


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """Return the q-quantile in seconds (0 < q ≤ 1), or None without data."""
    total = sum(counts.values())
    if total <= 0:
        return None
    rank = max(1, math.ceil(q * total))
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            return value_of(bucket)
    return value_of(max(counts))


def mean(counts: Mapping[int, int]) -> float | None:
    """Return the mean in seconds, or None without data."""
    total = sum(counts.values())
    if total <= 0:
        return None
    return sum(value_of(bucket) * n for bucket, n in counts.items()) / total
