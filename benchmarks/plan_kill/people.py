"""Who asks web for something: the plan, over and over under one Idempotency-Key, and two pauses."""

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

TIMEOUT_SECONDS: Final = 10.0
AGAIN_SECONDS: Final = 0.2
POSTERS: Final = 3
"""So many ask for the same plan at once."""
PAUSE_SECONDS: Final = 1.5
PATH: Final = "/api/v1/replays"

Answer = tuple[int, Any]


@dataclass(frozen=True)
class Web:
    """Where to ask, and as whom."""

    port: int
    api_key: str

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer | None:
        """Send one request; None when nobody knows what became of it."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        own = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json", **headers}
        try:
            client.request(method, path, None if body is None else json.dumps(body), own)
            response = client.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            client.close()


@dataclass(frozen=True)
class Pause:
    """One pause that took place: how many items were done when it was answered, and just before it was taken back."""

    done: int
    done_later: int


@dataclass
class Told:
    """What web answered."""

    plans: Counter[str] = field(default_factory=Counter)
    """Ids of plans that the one key was answered with."""
    refused: list[Any] = field(default_factory=list)
    """Answers that nobody should get."""
    pauses: list[Pause] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)


class People:
    """Threads that ask web until they know."""

    def __init__(self, web: Web, *, order: dict[str, Any], key: str, seed: int) -> None:
        self.web = web
        self.order = order
        self.key = key
        self.told = Told()
        self.over = threading.Event()
        self.chance = random.Random(f"{seed} people")
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def post(self, *, seconds: float) -> str | None:
        """Ask for the plan by several at once, each until it is answered; returns its id."""
        deadline = time.monotonic() + seconds
        posters = [threading.Thread(target=self._order, args=(deadline,), daemon=True) for _ in range(POSTERS)]
        for poster in posters:
            poster.start()
        for poster in posters:
            poster.join()
        return next(iter(self.told.plans), None)

    def begin(self, plan: str, *, pauses: int) -> None:
        """Go on asking for the plan, and pause it so often on its way."""
        marks = [self.chance.uniform(0.15, 0.45) + n * 0.5 / pauses for n in range(pauses)]
        for work in (self._repeat, lambda: self._pause_at(plan, marks)):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(self) -> None:
        """Ask once more when all is over: the key still names its plan."""
        self.over.set()
        for thread in self._threads:
            thread.join()
        self._order(time.monotonic() + 30)

    def _order(self, deadline: float) -> None:
        found = self._insist("POST", PATH, self.order, deadline, {"Idempotency-Key": self.key})
        with self._lock:
            if found is not None and found[0] in (200, 202):
                self.told.plans[found[1]["id"]] += 1
            else:
                self.told.refused.append(found)

    def _repeat(self) -> None:
        while not self.over.wait(self.chance.uniform(0.5, 2.0)):
            self._order(time.monotonic() + 60)

    def _pause_at(self, plan: str, marks: list[float]) -> None:
        here = f"{PATH}/{plan}"
        for mark in marks:
            while not self.over.wait(AGAIN_SECONDS):
                seen = self.web.ask("GET", here)
                if seen is not None and seen[0] == 200 and seen[1]["done"] >= mark * seen[1]["total"]:
                    break
            if not self.over.is_set():
                self._pause(here)

    def _pause(self, here: str) -> None:
        deadline = time.monotonic() + 60
        paused = self._insist("POST", f"{here}/pause", {"reason": "a look at the provider"}, deadline)
        if paused is None or paused[0] != 200:
            # Too late: nothing is left to be carried out.
            if paused is None or paused[1].get("state") not in ("following", "finished"):
                self.told.refused.append(paused)
            return
        self.over.wait(PAUSE_SECONDS)
        later = self._insist("GET", here, None, deadline)
        resumed = self._insist("POST", f"{here}/resume", {"reason": "it looks well"}, deadline)
        if later is None or later[0] != 200 or resumed is None or resumed[0] != 200:
            self.told.refused.append([later, resumed])
            return
        self.told.pauses.append(Pause(paused[1]["done"], later[1]["done"]))

    def _insist(
        self, method: str, path: str, body: Any, deadline: float, headers: dict[str, str] | None = None
    ) -> Answer | None:
        """Ask until there is an answer that is not about web's own state; None when there is none in time."""
        while time.monotonic() < deadline:
            found = self.web.ask(method, path, body, **headers or {})
            with self._lock:
                what = "order" if path == PATH else path.rpartition("/")[2] if method == "POST" else "look"
                self.told.answers[f"{what} {found[0] if found else 'lost'}"] += 1
            if found is not None and found[0] < 429:
                return found
            threading.Event().wait(AGAIN_SECONDS)
        return None


def until_ready(web: Web, ready: Callable[[Callable[[], bool]], bool]) -> bool:
    """Wait until web answers."""
    return ready(lambda: (found := web.ask("GET", f"{PATH}?limit=1")) is not None and found[0] == 200)
