"""Which tiers are over their backlog limit and which limited types have work waiting, from counts of a second ago.

Not here: counting (the fold writes StateCount); the limit of one key's rate, which a process alone cannot know.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from django.db import connection

CACHE_SECONDS: Final = 1.0
_READ: Final = """
SELECT t.number, NULL FROM queues_tier t WHERE t.backlog_limit <= (
  SELECT coalesce(sum(s.n), 0) FROM queues_statecount s
  WHERE s.tier = t.number AND s.state IN ('accepted', 'retrying'))
UNION ALL
SELECT NULL, c.name FROM queues_jobtype c WHERE (c.limited OR c.breaker <> 'closed') AND EXISTS (
  SELECT FROM queues_statecount s WHERE s.type = c.name AND s.state IN ('accepted', 'retrying') AND s.n > 0)
"""


class _Backlog:
    """The full tiers and the waiting types as this process read them last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._tiers: frozenset[int] = frozenset()
        self._types: frozenset[str] = frozenset()

    def tiers(self) -> frozenset[int]:
        with self._lock:
            self._read()
            return self._tiers

    def types(self) -> frozenset[str]:
        with self._lock:
            self._read()
            return self._types

    def forget(self) -> None:
        self._read_at = float("-inf")

    def _read(self) -> None:
        if time.monotonic() - self._read_at <= CACHE_SECONDS:
            return
        with connection.cursor() as cursor:
            cursor.execute(_READ)
            rows = cursor.fetchall()
        self._tiers = frozenset(tier for tier, _ in rows if tier is not None)
        self._types = frozenset(name for _, name in rows if name is not None)
        self._read_at = time.monotonic()


_backlog = _Backlog()


def full_tiers() -> frozenset[int]:
    """Return the tiers that take no more work now."""
    return _backlog.tiers()


def waiting_types() -> frozenset[str]:
    """Return the types with limits, or a breaker that is not closed, that have work waiting."""
    return _backlog.types()


def forget_cached() -> None:
    """Read again at the next question."""
    _backlog.forget()
