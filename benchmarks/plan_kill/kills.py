"""What is killed and when: the same list for the same seed. How is `benchmarks.chaos.faults`' business."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

from benchmarks.chaos.faults import Faults
from benchmarks.chaos.plan import Fault
from benchmarks.chaos.processes import Processes

LEAST: Final = ("scheduler", "scheduler", "web", "postgres", "worker")
WEIGHTS: Final = {"scheduler": 5, "web": 3, "postgres": 2, "worker": 2, "worker_child": 1}
AT_ONCE_SECONDS: Final = 0.4
"""Web dies for the first time while the plan is being asked for."""


def kills(seed: int, *, seconds: float, every: float) -> list[Fault]:
    """Return the kills of a run: the least of each kind, then by weight; one in each part of the time."""
    chance = random.Random(f"{seed} kills")
    count = max(len(LEAST), int(seconds / every))
    kinds = [*LEAST, *chance.choices(list(WEIGHTS), weights=list(WEIGHTS.values()), k=count - len(LEAST))]
    chance.shuffle(kinds)
    part = seconds / count
    first = Fault(at=chance.uniform(0, AT_ONCE_SECONDS), kind="web", pick=chance.random())
    return [first] + [
        Fault(at=(n + chance.random()) * part + AT_ONCE_SECONDS, kind=kind, pick=chance.random())
        for n, kind in enumerate(kinds)
    ]


class Killing(Faults):
    """Kills until the plan is finished: later nothing is left to be struck."""

    def __init__(self, processes: Processes, plan: list[Fault], *, running: Callable[[], set[int]]) -> None:
        super().__init__(processes, plan, running=running)
        self._over = threading.Event()
        self._turn = threading.Lock()

    def _do(self, fault: Fault) -> None:
        with self._turn:
            if not self._over.is_set():
                super()._do(fault)

    def end(self) -> None:
        """Let the kill that is under way happen, and no other."""
        self._over.set()
        with self._turn:
            pass

    @property
    def counts(self) -> Counter[str]:
        return Counter(one.kind for one in self.done)
