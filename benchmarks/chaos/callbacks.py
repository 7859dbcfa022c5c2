"""What the world outside says about work that was handed to it: once, twice, too early, too late, or both things.

Each callback is repeated until web answers it, as a provider does; what the answer said is written down.
"""

import heapq
import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

MANNERS: Final = {"once": 10, "twice": 3, "early": 2, "late": 2, "confirm, then reject": 2, "reject, then confirm": 1}
CONFIRM_SECONDS: Final = 6
"""How long the contract waits for the proof; late ones come after it."""
AGAIN_SECONDS: Final = 0.4
TIMEOUT_SECONDS: Final = 5.0
THREADS: Final = 4


def manner(seed: str, key: str) -> str:
    """Return how the world treats a key: all its runs alike."""
    return random.Random(f"{seed} manner {key}").choices(list(MANNERS), weights=list(MANNERS.values()))[0]


@dataclass(order=True)
class Call:
    """One callback that is to be sent, or sent again."""

    due: float
    number: int
    said: dict[str, Any] = field(compare=False)
    outcome: str = field(compare=False)
    token: str = field(compare=False)
    answered: threading.Event = field(compare=False, default_factory=threading.Event)
    then: list["Call"] = field(compare=False, default_factory=list)
    """Sent when this one is answered."""
    tries: int = field(compare=False, default=0)


class Caller:
    """Sends what is due, in threads of its own."""

    def __init__(self, web_port: int, *, note: Callable[[dict[str, Any]], None], seed: str) -> None:
        self._port = web_port
        self._note = note
        self._seed = seed
        self._numbers = itertools.count()
        self._calls: list[Call] = []
        self._open = 0
        self._changed = threading.Condition()
        for number in range(THREADS if web_port else 0):
            threading.Thread(target=self._run, name=f"caller-{number}", daemon=True).start()

    def pending(self) -> int:
        """Return how many callbacks are not answered yet."""
        with self._changed:
            return self._open

    def plan(self, said: dict[str, Any], *, token: str) -> threading.Event | None:
        """Plan the callbacks of one handover. Returns what tells that an early one was answered, else None."""
        chance = random.Random(f"{self._seed} callback {said['key']} {said['run']}")
        how, soon = manner(self._seed, said["key"]), chance.uniform(0.05, 1.0)
        wait = {"early": 0.0, "late": CONFIRM_SECONDS + chance.uniform(1.0, 5.0)}.get(how, soon)
        outcomes = {
            "twice": ("confirmed", "confirmed"),
            "confirm, then reject": ("confirmed", "rejected"),
            "reject, then confirm": ("rejected", "confirmed"),
        }.get(how, ("confirmed",))
        at = time.monotonic() + wait
        calls = [Call(at, next(self._numbers), said, outcome, token) for outcome in outcomes]
        if how == "twice" and chance.random() < 0.5:
            # Both at the same moment.
            self._push(*calls)
        else:
            calls[0].then = calls[1:]
            self._push(calls[0], extra=len(calls) - 1)
        return calls[0].answered if how == "early" else None

    def _push(self, *calls: Call, extra: int = 0) -> None:
        with self._changed:
            self._open += len(calls) + extra
            for call in calls:
                heapq.heappush(self._calls, call)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            call = self._next()
            answer = self._send(call)
            call.tries += 1
            with self._changed:
                if answer is None:
                    call.due = time.monotonic() + AGAIN_SECONDS
                    heapq.heappush(self._calls, call)
                    continue
                self._open -= 1
                for later in call.then:
                    heapq.heappush(self._calls, later)
                self._changed.notify_all()
            call.answered.set()

    def _next(self) -> Call:
        with self._changed:
            while True:
                left = self._calls[0].due - time.monotonic() if self._calls else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._calls)
                self._changed.wait(left)

    def _send(self, call: Call) -> dict[str, Any] | None:
        """Return what web answered; None when nobody knows, or when it asks to come again."""
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        body = {"outcome": call.outcome, "ref": call.said["ref"]}
        headers = {"Content-Type": "application/json"}
        try:
            client.request("POST", f"/api/v1/callbacks/jobs/{call.token}", json.dumps(body), headers)
            response = client.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            client.close()
        if response.status >= 500 or response.status == 429:
            return None
        line = {
            "what": "callback",
            **{name: call.said[name] for name in ("key", "job", "run", "ref")},
            "outcome": call.outcome,
            "status": response.status,
            "result": answer.get("result") or answer.get("code"),
            "state": answer.get("state"),
            "tries": call.tries + 1,
            "at": time.time(),
        }
        self._note(line)
        return line
