"""Find a worker that lives and no longer takes messages: its connection may be dead without having said so (I-23).

The heartbeat process sends a canary through the broker to its own worker, on a queue of that worker's own. A broker
that does not take it, or bodies that are all busy, say nothing about the worker.
"""

from typing import Final

from queues import broker
from queues.runtime import leases
from queues.runtime.leases import LeaseTable

CANARY_SHARE: Final = 5
"""So many canaries are sent in the time after which a worker counts as deaf: one may get lost with its broker."""


class Ear:
    """Whether one worker still hears its broker. Units: `deaf_after` in seconds; 0 never asks."""

    def __init__(self, table: LeaseTable, *, queue: str, deaf_after: float) -> None:
        self._table = table
        self._queue = queue
        self._deaf_after = deaf_after
        self._since: float | None = None
        self._sent_at = float("-inf")

    def is_deaf(self, *, busy: bool) -> bool:
        """Send a canary when it is time; say whether none came through for too long."""
        now = leases.now()
        if not self._deaf_after:
            return False
        if busy or (self._since is not None and self._table.heard_at >= self._since):
            self._since = None
        if not busy and now - self._sent_at >= self._deaf_after / CANARY_SHARE:
            self._sent_at = now
            if not broker.publish([(self._queue, [])], task=broker.CANARY_TASK):
                self._since = None
            elif self._since is None:
                self._since = now
        return self._since is not None and now - self._since > self._deaf_after
