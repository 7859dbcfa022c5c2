"""The demo's pager: what an on-call receiver does with a signed alert, and a log of what it was told.

It verifies before it reads, answers fast, drops what it saw already by its `webhook-id`, and lets an older state of an
alert never replace a newer one. Not here: HTTP (`pager_server`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from standardwebhooks import Webhook, WebhookVerificationError

from jobsboard.demo.journal import Journal

REMEMBERED: Final = 10_000


@dataclass(frozen=True)
class Answer:
    """A status and what happened, in one word."""

    status: int
    word: str


class Pager:
    """Takes alerts; any number of threads may call it."""

    def __init__(self, log: Journal, *, secret: str) -> None:
        self._log = log
        self._webhook = Webhook(secret)
        self._lock = threading.Lock()
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._sequences: dict[str, int] = {}

    def receive(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Verify and take one message. Header names are in lower case."""
        try:
            said = self._webhook.verify(body, dict(headers))
        except (WebhookVerificationError, ValueError) as error:
            self._log.write("refused", why=type(error).__name__, id=headers.get("webhook-id", "")[:64])
            return Answer(401, "not verified")
        with self._lock:
            return self._take(headers["webhook-id"], said)

    def _take(self, message_id: str, said: Any) -> Answer:
        if message_id in self._ids:
            self._log.write("repeated", id=message_id)
            return Answer(200, "known")
        self._ids[message_id] = None
        while len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
        alert = said.get("data", {})
        key, sequence = str(alert.get("id", "")), int(alert.get("sequence", 0))
        older = sequence < self._sequences.get(key, 0)
        self._sequences[key] = max(sequence, self._sequences.get(key, 0))
        self._log.write(
            "older" if older else "alert",
            id=message_id, type=said.get("type"), alert=alert.get("id"), sequence=sequence,
            severity=alert.get("severity"), title=alert.get("title"), state=alert.get("state"),
            findings=[one.get("rule") for one in alert.get("findings", ()) if not one.get("cleared_at")],
        )  # fmt: skip
        return Answer(200, "older" if older else "taken")
