"""Producers that write down what they were told: ok, failed or unknown, for each request of each key."""

import http.client
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.chaos.handlers import ATOMIC, CALLBACK, CHECKED, PLAIN

TYPES: Final = {PLAIN: 6, CHECKED: 2, ATOMIC: 2, CALLBACK: 2}
TIMEOUT_SECONDS: Final = 5.0
BATCH: Final = 50
AGAIN: Final = 0.15
"""The share of requests that repeat an earlier key."""


@dataclass
class Told:
    """What a client was told about one key."""

    type: str
    ids: set[str] = field(default_factory=set)
    """Jobs named by a 2xx."""
    ok: int = 0
    failed: list[str] = field(default_factory=list)
    unknown: int = 0


class Client:
    """One producer with keys of its own; repeats go through the same client or, at the end, any."""

    def __init__(self, name: str, *, port: int, api_key: str, rate: float, seed: int) -> None:
        self.name = name
        self.port = port
        self.headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self.rate = rate
        self.chance = random.Random(f"{seed} {name}")
        self.told: dict[str, Told] = {}
        self.counts: Counter[str] = Counter()
        self.accepted_at: list[float] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._connection: http.client.HTTPConnection | None = None

    def _run(self) -> None:
        open_keys: list[str] = []
        while not self.stop.wait(self.chance.expovariate(self.rate)):
            draw = self.chance.random()
            if self.told and draw < AGAIN:
                key = self.chance.choice(list(self.told)[-200:])
            elif open_keys and draw < 2 * AGAIN:
                key = open_keys.pop(0)
            else:
                key = f"{self.name}-{len(self.told)}"
                self.told[key] = Told(self.chance.choices(list(TYPES), weights=list(TYPES.values()))[0])
            if self.send(key) != "ok":
                open_keys.append(key)

    def send(self, key: str, **more: Any) -> str:
        """Ask for the job of a key and note the answer; `more` goes into the request."""
        told = self.told[key]
        found = self.ask({"type": told.type, "payload": {"key": key}, "dedupe_key": key, **more})
        if found is None:
            told.unknown += 1
            outcome = "unknown"
        else:
            outcome = self._note(told, *found)
        self.counts[outcome] += 1
        return outcome

    def ask(self, body: dict[str, Any], *, path: str = "/api/v1/jobs") -> tuple[int, Any] | None:
        """Send a request; None when nobody knows what became of it."""
        try:
            return self._post(body, path=path)
        except (OSError, http.client.HTTPException, ValueError):
            self._close()
            return None

    def _note(self, told: Told, status: int, answer: Any) -> str:
        if status in (200, 201):
            told.ok += 1
            told.ids.add(answer["id"])
            self.accepted_at.append(time.time())
            self.counts["new" if status == 201 else "repeated"] += 1
            return "ok"
        told.failed.append(f"{status} {answer.get('code')}")
        self.counts[f"answer {status} {answer.get('code')}"] += 1
        return "failed"

    def _post(self, body: dict[str, Any], *, path: str) -> tuple[int, Any]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        self._connection.request("POST", path, json.dumps(body), self.headers)
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        if response.will_close:
            self._close()
        return response.status, answer

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def settle(self, deadline: float) -> list[str]:
        """Ask again for every key that was never accepted; returns those that still are not.

        Units: `deadline` by the monotonic clock.
        """
        left = [key for key, told in self.told.items() if not told.ok]
        while left and time.monotonic() < deadline:
            left = [key for key in left if self.send(key) != "ok"]
            if left:
                threading.Event().wait(0.5)
        return left


class BatchClient(Client):
    """A producer that sends BATCH atomic jobs in a request, and every now and then a whole batch again."""

    def settle(self, deadline: float) -> list[str]:
        """Ask again for every key that was never accepted, in batches; returns those that still are not."""
        left = [key for key, told in self.told.items() if not told.ok]
        while left and time.monotonic() < deadline:
            for first in range(0, len(left), BATCH):
                self._send_all(left[first : first + BATCH])
            left = [key for key in left if not self.told[key].ok]
            if left:
                threading.Event().wait(0.5)
        return left

    def _run(self) -> None:
        batch: list[str] = []
        while not self.stop.wait(self.chance.expovariate(self.rate / BATCH)):
            if not batch or self.chance.random() > AGAIN:
                batch = [f"{self.name}-{len(self.told) + n}" for n in range(BATCH)]
                self.told |= {key: Told(ATOMIC) for key in batch}
            self._send_all(batch)

    def _send_all(self, keys: list[str]) -> None:
        jobs = [{"type": self.told[key].type, "payload": {"key": key}, "dedupe_key": key} for key in keys]
        found = self.ask({"jobs": jobs}, path="/api/v1/jobs/batch")
        if found is None:
            for key in keys:
                self.told[key].unknown += 1
            self.counts["unknown"] += len(keys)
            return
        status, answer = found
        results = answer["results"] if status == 200 else [{"status": status, "error": answer}] * len(keys)
        for key, result in zip(keys, results, strict=True):
            self.counts[self._note(self.told[key], result["status"], result.get("job") or result["error"])] += 1
