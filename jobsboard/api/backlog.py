"""Whether a tier is over its backlog limit, from counts of at most a second ago.

Not here: counting (the fold writes StateCount); the limit of one key's rate, which a process alone cannot know.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from django.db.models import Sum

from queues.models import StateCount, Tier
from queues.states import WAITING

CACHE_SECONDS: Final = 1.0


class _Full:
    """The full tiers as this process read them last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._tiers: frozenset[int] = frozenset()

    def tiers(self) -> frozenset[int]:
        with self._lock:
            if time.monotonic() - self._read_at > CACHE_SECONDS:
                self._tiers = _read()
                self._read_at = time.monotonic()
            return self._tiers

    def forget(self) -> None:
        self._read_at = float("-inf")


_full = _Full()


def full_tiers() -> frozenset[int]:
    """Return the tiers that take no more work now."""
    return _full.tiers()


def forget_cached() -> None:
    """Read again at the next question."""
    _full.forget()


def _read() -> frozenset[int]:
    rows = StateCount.objects.filter(state__in=[state.value for state in WAITING])
    waiting = dict(rows.values_list("tier").annotate(n=Sum("n")))
    limits = Tier.objects.values_list("number", "backlog_limit")
    return frozenset(number for number, limit in limits if waiting.get(number, 0) >= limit)
