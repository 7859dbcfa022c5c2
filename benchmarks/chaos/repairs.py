"""People and producers who act on jobs while the stack is shot at: one cancels its jobs, one replays dead ones.

Both write down what they were told, and ask again when an answer got lost.
"""

import heapq
import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any, Final

from benchmarks.chaos.clients import Client, Told
from benchmarks.chaos.handlers import CANCELLED, DYING

CANCEL_SHARE: Final = 0.7
DELAYED_SHARE: Final = 0.4
AGAIN_SECONDS: Final = 0.3
LIST_MOST: Final = 100
CONSENTS: Final = 3
"""Looks at a verdict that changes all the time, before the click gives up until the next round."""


@dataclass(frozen=True)
class CancelTold:
    """What a cancel was answered. Units: `at` in Unix time, when the answer was read."""

    job: str
    status: int
    said: str | None
    effect: str | None
    at: float


@dataclass
class ReplayTold:
    """What the replays of one dead letter were answered."""

    parent: str
    children: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    unknown: int = 0


class CancelClient(Client):
    """Posts jobs, some of them for later, and cancels most of them a moment after."""

    def __init__(self, name: str, *, port: int, api_key: str, rate: float, seed: int) -> None:
        super().__init__(name, port=port, api_key=api_key, rate=rate, seed=seed)
        self.cancels: list[CancelTold] = []
        self.asked: set[str] = set()
        self._due: list[tuple[float, str]] = []

    def _run(self) -> None:
        while not self.stop.wait(self.chance.expovariate(self.rate)):
            key = f"{self.name}-{len(self.told)}"
            self.told[key] = Told(CANCELLED)
            delay = self.chance.uniform(0.5, 3.0) if self.chance.random() < DELAYED_SHARE else None
            cancel, wait = self.chance.random() < CANCEL_SHARE, self.chance.uniform(0.0, 2.0)
            if self.send(key, **({} if delay is None else {"delay_seconds": delay})) == "ok" and cancel:
                [job] = self.told[key].ids
                heapq.heappush(self._due, (time.monotonic() + wait, job))
            while self._due and self._due[0][0] <= time.monotonic():
                self._cancel(heapq.heappop(self._due)[1])

    def _cancel(self, job: str) -> None:
        self.asked.add(job)
        found = self.ask({"reason": "chaos"}, path=f"/api/v1/jobs/{job}/cancel")
        if found is None or found[0] >= 429:
            heapq.heappush(self._due, (time.monotonic() + AGAIN_SECONDS, job))
            return
        status, answer = found
        said = answer.get("status") if status < 300 else answer.get("code")
        self.cancels.append(CancelTold(job, status, said, answer.get("effect"), time.time()))
        # Every now and then once more: a repeated cancel is answered like the first.
        if self.chance.random() < 0.2:
            heapq.heappush(self._due, (time.monotonic() + AGAIN_SECONDS, job))

    def settle(self, deadline: float) -> list[str]:
        """Ask again for what was never accepted, and cancel what was to be cancelled."""
        left = super().settle(deadline)
        while self._due and time.monotonic() < deadline:
            wait = self._due[0][0] - time.monotonic()
            if wait > 0:
                threading.Event().wait(min(wait, 0.5))
            else:
                self._cancel(heapq.heappop(self._due)[1])
        return left


class ReplayClient(Client):
    """Posts jobs that die, and replays the dead letters by double clicks."""

    def __init__(self, name: str, *, port: int, api_key: str, rate: float, seed: int, ledger_port: int) -> None:
        super().__init__(name, port=port, api_key=api_key, rate=rate, seed=seed)
        self.replays: dict[str, ReplayTold] = {}
        self._ledger_port = ledger_port
        self._next_look = 0.0
        self._open: deque[str] = deque()

    def _run(self) -> None:
        while not self.stop.wait(self.chance.expovariate(self.rate)):
            key = f"{self.name}-{len(self.told)}"
            self.told[key] = Told(DYING)
            self.send(key)
            if time.monotonic() >= self._next_look:
                self._look()
            for _ in range(min(2, len(self._open))):
                self._replay(self._open.popleft())

    def _look(self) -> None:
        """Read the list of open dead letters."""
        self._next_look = time.monotonic() + 1.0
        found = self._get(f"/api/v1/dead-letters?type={DYING}&limit={LIST_MOST}")
        for item in found["items"] if found else ():
            if item["id"] not in self._open:
                self._cure(item["dedupe_key"])
                self.replays.setdefault(item["id"], ReplayTold(item["id"]))
                self._open.append(item["id"])

    def _replay(self, parent: str) -> None:
        """Click twice at the same moment, each through a connection of its own; again after an answer got lost."""
        other = threading.Thread(target=self._click, args=(parent,))
        other.start()
        sure = self._click(parent)
        other.join()
        if not sure:
            self._open.append(parent)

    def _click(self, parent: str) -> bool:
        """Ask for one replay; says whether the dead letter is known to be replayed."""
        told = self.replays[parent]
        body = {"reason": "chaos"}
        for _ in range(CONSENTS):
            found = _call(self.port, "POST", f"/api/v1/jobs/{parent}/replay", self.headers, body)
            if found is None:
                told.unknown += 1
                return False
            status, answer = found
            if status == 201:
                told.children.add(answer["id"])
                return True
            told.refused.append(f"{status} {answer.get('code')}")
            if answer.get("code") not in ("unsafe_replay", "verdict_changed"):
                return status < 429
            # Their runs are made to fail, so that speaks against it: this is on purpose, and said so.
            body["verdict"] = answer["fingerprint"]
        return False

    def _cure(self, key: str) -> None:
        _call(self._ledger_port, "POST", "/cures", {}, {"key": key})

    def _get(self, path: str) -> Any:
        found = _call(self.port, "GET", path, self.headers, None)
        return found[1] if found and found[0] == 200 else None

    def settle(self, deadline: float) -> list[str]:
        """Ask again for what was never accepted, and replay until no dead letter is open and every child has ended."""
        left = super().settle(deadline)
        while time.monotonic() < deadline:
            self._look()
            while self._open and time.monotonic() < deadline:
                self._replay(self._open.popleft())
            if self._is_over():
                break
            threading.Event().wait(0.5)
        return left

    def _is_over(self) -> bool:
        """Say whether no job of ours is open, and then no dead letter either."""
        lists = [f"/api/v1/jobs?type={DYING}&state={state}&limit=1" for state in ("accepted", "processing", "retrying")]
        for path in (*lists, f"/api/v1/dead-letters?type={DYING}&limit=1"):
            found = self._get(path)
            if found is None or found["items"]:
                return False
        return True


def _call(port: int, method: str, path: str, headers: dict[str, str], body: Any) -> tuple[int, Any] | None:
    connection = HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()
