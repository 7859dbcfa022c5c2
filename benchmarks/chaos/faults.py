"""How each fault is done to the stack.

Not here: which and when (`plan.py`).
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import psycopg
import redis

from benchmarks.chaos.plan import Fault
from benchmarks.chaos.processes import Process, Processes, send, until

PAUSE_SECONDS: Final = 20.0
PATIENCE_SECONDS: Final = 15.0
"""How long a fault waits for its victim, which may be down by an earlier one."""
T = TypeVar("T")


@dataclass(frozen=True)
class Done:
    """A fault that happened."""

    kind: str
    planned: float
    at: float
    """Unix time."""
    what: str


class Faults:
    """Does the planned faults in a thread of its own."""

    def __init__(self, processes: Processes, plan: list[Fault]) -> None:
        self.processes = processes
        self.plan = plan
        self.done: list[Done] = []
        self.missed: Counter[str] = Counter()
        self.thread = threading.Thread(target=self._run, name="faults", daemon=True)
        self._paused: list[tuple[float, list[int]]] = []
        self._lock = threading.Lock()
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            row = connection.execute("SHOW data_directory").fetchone()
        assert row is not None
        self._postmaster = Path(row[0]) / "postmaster.pid"
        self._how: dict[str, Callable[[float], str]] = {
            "worker": self._worker,
            "worker_not_heart": self._worker_not_heart,
            "worker_child": lambda pick: self._child("worker", pick),
            "heart": self._heart,
            "worker_paused": lambda pick: self._pause(pick, whole=True),
            "pool_paused": lambda pick: self._pause(pick, whole=False),
            "scheduler": lambda pick: self._leader("scheduler", pick),
            "web_worker": lambda pick: self._child("web", pick),
            "web": lambda pick: self._leader("web", pick),
            "flush": self._flush,
            "valkey": self._valkey,
            "postgres": self._postgres,
            "backends": self._backends,
        }

    def _run(self) -> None:
        began = time.monotonic()
        for fault in self.plan:
            while (left := began + fault.at - time.monotonic()) > 0:
                self._resume()
                threading.Event().wait(min(left, 0.2))
            self._do(fault)
        while self._paused:
            self._resume()
            threading.Event().wait(0.2)

    def _do(self, fault: Fault) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                at = time.time()
                what = self._how[fault.kind](fault.pick)
            except (psycopg.Error, redis.RedisError, OSError, LookupError, ValueError):
                if time.monotonic() > give_up:
                    self.missed[fault.kind] += 1
                    return
                self._resume()
                threading.Event().wait(0.1)
            else:
                self.done.append(Done(kind=fault.kind, planned=fault.at, at=at, what=what))
                return

    def _resume(self) -> None:
        due = [pids for at, pids in self._paused if at <= time.monotonic()]
        self._paused = [(at, pids) for at, pids in self._paused if at > time.monotonic()]
        for pids in due:
            for pid in pids:
                send(pid, signal.SIGCONT)

    @staticmethod
    def _one(found: list[T], pick: float) -> T:
        """Raises: LookupError when there is none."""
        return found[int(pick * len(found))]

    def _of(self, kind: str, pick: float) -> Process:
        """Return a process that has come up, so that it has something to lose."""
        return self._one([process for process in self.processes.named(kind) if process.pool()], pick)

    def _worker(self, pick: float) -> str:
        worker = self._of("worker", pick)
        hearts = worker.heart()
        os.killpg(worker.pid, signal.SIGKILL)
        for pid in hearts:
            send(pid, signal.SIGKILL)
        return f"{worker.name} {worker.pid} with heart {hearts}"

    def _worker_not_heart(self, pick: float) -> str:
        worker = self._of("worker", pick)
        os.killpg(worker.pid, signal.SIGKILL)
        return f"{worker.name} {worker.pid}"

    def _child(self, kind: str, pick: float) -> str:
        process = self._of(kind, pick)
        pid = self._one(process.pool(), pick * 7 % 1)
        os.kill(pid, signal.SIGKILL)
        return f"{process.name} child {pid}"

    def _heart(self, pick: float) -> str:
        worker = self._of("worker", pick)
        pid = self._one(worker.heart(), 0)
        os.kill(pid, signal.SIGKILL)
        return f"{worker.name} heart {pid}"

    def _leader(self, kind: str, pick: float) -> str:
        process = self._one(self.processes.named(kind), pick)
        os.killpg(process.pid, signal.SIGKILL)
        return f"{process.name} {process.pid}"

    def _pause(self, pick: float, *, whole: bool) -> str:
        worker = self._of("worker", pick)
        victims = worker.pool() + ([worker.pid, *worker.heart()] if whole else [])
        self._paused.append((time.monotonic() + PAUSE_SECONDS, victims))
        for pid in victims:
            send(pid, signal.SIGSTOP)
        return f"{worker.name} {victims}"

    def _flush(self, _pick: float) -> str:
        with redis.Redis.from_url(os.environ["BROKER_URL"], socket_timeout=3) as broker:
            waiting = sum(int(broker.llen(f"tier{tier}")) for tier in (1, 2, 3))
            broker.flushall()
        return f"{waiting} hints"

    def _valkey(self, _pick: float) -> str:
        with redis.Redis.from_url(os.environ["BROKER_URL"], socket_timeout=3) as broker:
            pid = int(broker.info("server")["process_id"])
        os.kill(pid, signal.SIGKILL)
        return str(pid)

    def _postgres(self, _pick: float) -> str:
        with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=3):
            pid = int(self._postmaster.read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        return str(pid)

    def _backends(self, pick: float) -> str:
        with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=3, autocommit=True) as connection:
            ended = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT %s) AS b",
                [1 + int(pick * 8)],
            ).fetchone()
        return f"{ended[0] if ended else 0} sessions"

    def heal(self, *, seconds: float) -> bool:
        """Wait until every process is up again and the servers answer."""
        return until(self._well, seconds=seconds, every=0.3)

    def _well(self) -> bool:
        try:
            with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=3):
                pass
            with redis.Redis.from_url(os.environ["BROKER_URL"], socket_timeout=3) as broker:
                broker.ping()
        except (psycopg.Error, redis.RedisError):
            return False
        return all(process.alive for process in self.processes.all)
