"""The service that sends: claims what is due, lets each try run in a thread of its own, writes down what came of it.

Threads only send. All that touches the database is in `run_once`, which waits for no receiver: one that never answers
holds its own share of the threads, and no other endpoint's.
Not here: the statements (`ledger`, `heartbeats`), one try (`sending`), making deliveries (`outbox`).
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Final

from django.db.models import F
from django.db.models.functions import Now

from jobsboard.alerts import heartbeats, ledger, sending
from jobsboard.alerts.heartbeats import Beat
from jobsboard.alerts.ledger import Claimed
from jobsboard.alerts.sending import Tried
from queues.models import BoardVersion

EVERY_SECONDS: Final = 0.5
ANSWERING_MOST: Final = 48
"""Threads for endpoints that answer."""
FAILING_MOST: Final = 24
"""Threads for endpoints whose last try failed: however many of those there are, the others keep theirs."""
WAIT_SECONDS: Final = 0.2
"""So long a round waits for the end of a try; what fell due meanwhile waits as long."""
_SHOW_SECONDS: Final = 1.0

Message = Claimed | Beat


class Webhooks:
    """The service's memory: what it sends now, and what ended and is not written down yet."""

    def __init__(self) -> None:
        self._ended: queue.SimpleQueue[tuple[Message, Tried]] = queue.SimpleQueue()
        self._under_way: dict[str, Message] = {}
        self._unwritten: list[tuple[Message, Tried]] = []
        self._unseen = False
        self._shown_at = self._beaten_at = -1.0

    def run_once(self) -> bool:
        """Write down what ended, then send what is due; returns whether something is under way."""
        self._collect()
        self._write()
        claimed: list[Message] = [*self._claim(), *self._claim_beats()]
        for message in claimed:
            self._under_way[message.id] = message
            threading.Thread(target=self._send, args=(message,), name=f"send {message.id}", daemon=True).start()
        return bool(self._under_way)

    def _claim(self) -> list[Claimed]:
        messages = [one for one in self._under_way.values() if isinstance(one, Claimed)]
        failing = sum(one.failing for one in messages)
        return ledger.claim(answering=ANSWERING_MOST - len(messages) + failing, failing=FAILING_MOST - failing)

    def _claim_beats(self) -> list[Beat]:
        if time.monotonic() - self._beaten_at < EVERY_SECONDS / 2:
            # Rounds follow each other closely while much is sent; beats need no such hurry.
            return []
        self._beaten_at = time.monotonic()
        return heartbeats.claim(busy=[one.endpoint for one in self._under_way.values() if isinstance(one, Beat)])

    def _send(self, message: Message) -> None:
        self._ended.put((message, sending.send(message.target, message_id=message.id, body=message.body)))

    def _collect(self) -> None:
        """Take what ended; with tries under way wait a moment for the first."""
        if self._under_way and not self._unwritten:
            try:
                self._unwritten.append(self._ended.get(timeout=WAIT_SECONDS))
            except queue.Empty:
                return
        while not self._ended.empty():
            self._unwritten.append(self._ended.get())

    def _write(self) -> None:
        """Write down what ended; what cannot be written now is kept for the next round."""
        if self._unwritten:
            deliveries = [(one, tried) for one, tried in self._unwritten if isinstance(one, Claimed)]
            ledger.record(deliveries)
            for one, tried in self._unwritten:
                if isinstance(one, Beat):
                    heartbeats.record(one, tried)
            for one, _ in self._unwritten:
                del self._under_way[one.id]
            self._unseen = self._unseen or bool(deliveries)
            self._unwritten = []
        if self._unseen and time.monotonic() - self._shown_at >= _SHOW_SECONDS:
            # Pages that are open show it at their next poll. Seldom, since every fold waits for this row.
            BoardVersion.objects.update(n=F("n") + 1, at=Now())
            self._unseen, self._shown_at = False, time.monotonic()
