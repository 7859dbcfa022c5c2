"""A lane: one system in one configuration, with producers and a ledger of its own.

Not here: what goes wrong (`faults.py`), how a lane's history is judged (`verdict.py`).
"""

import abc
import json
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.cells.effect import PORT
from benchmarks.chaos.processes import ROOT, Process, Processes, until
from jobsboard.local import ports

SLOTS: Final = 10
PRODUCERS: Final = 4
LONG_SHARE: Final = 0.1
LONG_SECONDS, SHORT_SECONDS = 2.0, 0.2
ACKNOWLEDGED, REFUSED, UNKNOWN = "acknowledged", "refused", "unknown"
WORKER_FLAGS: Final = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO", "-c", str(SLOTS))


@dataclass(frozen=True)
class Told:
    """What a producer was told about a key, and when (Unix time)."""

    outcome: str
    at: float
    detail: str = ""


class Lane(abc.ABC):
    """A running system under test. One lane serves one cell."""

    name: str
    keeps_rows: bool
    """Whether a job leaves a record also when it is done."""

    def __init__(self, cell: str, *, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder / f"{cell}-{self.name}"
        self.folder.mkdir()
        self.prefix = f"{cell}-{self.name}-"
        self.told: dict[str, Told] = {}
        self._effects = self.folder / "effects.jsonl"
        self._env = dict(env)
        self._stop, self._burst = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    @abc.abstractmethod
    def start_processes(self) -> None:
        """Start what the system consists of."""

    def ready(self) -> bool:
        """Tell whether producers are served."""
        return True

    @abc.abstractmethod
    def send(self, key: str, seconds: float) -> tuple[str, str]:
        """Hand a job in; returns what the producer was told, and in which words. Raises nothing."""

    @abc.abstractmethod
    def held(self) -> int:
        """Count the jobs that are in a worker's hands; 0 when nobody answers."""

    @abc.abstractmethod
    def traces(self) -> dict[str, str]:
        """Return where every job is that the system still knows, by key. Raises: what its driver raises."""

    @abc.abstractmethod
    def broken(self, effects: Mapping[str, list[dict[str, Any]]]) -> list[str]:
        """Return what the system says of its jobs that the ledger does not bear out."""

    def start(self) -> None:
        """Start the ledger and the processes."""
        port = ports.free()
        self._env[PORT] = str(port)
        argv = [sys.executable, "-m", "benchmarks.chaos.ledger", str(port), str(self._effects)]
        with open(self.folder / "ledger.log", "wb") as log:
            self._ledger = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
        self.processes = Processes(self.folder, self._env)
        self.start_processes()

    def warm(self) -> None:
        """Hand in one job, and wait for its effect: from then on the system is up.

        Raises: SystemExit when that takes more than 90 s.
        """
        key = f"{self.prefix}first"
        if until(self.ready, seconds=90):
            self._hand_in(key, SHORT_SECONDS)
        if not until(lambda: key in self.effects(), seconds=90):
            raise SystemExit(f"{self.name} does not work, before any fault; its logs are in {self.folder}")

    def load(self, *, rate: float, burst: int) -> None:
        """Begin to hand in `rate` jobs a second; `fire` adds `burst` at once. Keys and work are the same for all."""
        for number in range(PRODUCERS):
            arguments = (number, rate / PRODUCERS, burst // PRODUCERS)
            self._threads.append(threading.Thread(target=self._produce, args=arguments, daemon=True))
        for thread in self._threads:
            thread.start()

    def _hand_in(self, key: str, seconds: float) -> None:
        outcome, detail = self.send(key, seconds)
        self.told[key] = Told(outcome, time.time(), detail)

    def _produce(self, number: int, rate: float, burst: int) -> None:
        chance = random.Random(number)
        count = 0
        while not self._stop.wait(chance.expovariate(rate)):
            more, burst = (burst, 0) if self._burst.is_set() else (0, burst)
            for _ in range(1 + more):
                key = f"{self.prefix}{number}-{count}"
                seconds = LONG_SECONDS if chance.random() < LONG_SHARE else SHORT_SECONDS
                self._hand_in(key, seconds)
                count += 1

    def fire(self) -> None:
        """Hand the burst in, with each producer's next job."""
        self._burst.set()

    def stop_load(self) -> None:
        """End the producers."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def worker(self) -> Process:
        """Return the worker. Raises: LookupError while it is down."""
        return self.processes.named("worker")[0]

    def effects(self) -> dict[str, list[dict[str, Any]]]:
        """Return what the ledger saw, by key, in order."""
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        text = self._effects.read_text() if self._effects.exists() else ""
        for line in text.splitlines():
            effect = json.loads(line)
            if effect.get("what", "effect") == "effect":
                found[effect["key"]].append(effect)
        return found

    def close(self) -> None:
        """End everything."""
        self.stop_load()
        self.processes.close()
        self._ledger.terminate()
        self._ledger.wait(10)
