"""Whether a tier is over its backlog limit, from counts of at most a second ago.

Not here: counting (the fold writes StateCount); the limit of one key's rate, which a process alone cannot know.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from django.db import connection

CACHE_SECONDS: Final = 1.0
_FULL: Final = """
SELECT t.number FROM queues_tier t WHERE t.backlog_limit <= (
  SELECT coalesce(sum(s.n), 0) FROM queues_statecount s
  WHERE s.tier = t.number AND s.state IN ('accepted', 'retrying'))
"""


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
    with connection.cursor() as cursor:
        cursor.execute(_FULL)
        return frozenset(row[0] for row in cursor.fetchall())
