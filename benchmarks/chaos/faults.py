"""How each fault is done to the stack.

Not here: which and when (`plan.py`).
"""

import base64
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import psycopg
import redis

from benchmarks.chaos.clock import HOURS, Clocks
from benchmarks.chaos.exhaust import Prober, exhaust
from benchmarks.chaos.plan import Fault
from benchmarks.chaos.processes import Process, Processes, send, until
from benchmarks.chaos.wire import Wire

PAUSE_SECONDS: Final = 60.0
HOLE_SECONDS: Final = 12.0
CONSUMES: Final = 3
"""With so many connections to the broker a worker consumes; its heartbeat process alone has fewer."""
AT_WORK_SECONDS: Final = 2.0
"""How long a kill waits for a victim that has a body at work; then it takes any."""
PATIENCE_SECONDS: Final = 8.0
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
    pids: tuple[int, ...] = ()
    """Processes that it killed."""
    jobs: tuple[str, ...] = ()
    """Jobs whose hints it lost."""
    victim: str = ""
    """The process that it was for."""


@dataclass(frozen=True)
class Hit:
    """What a fault did. `at` where it had to wait for its victim first, in Unix time."""

    what: str
    at: float = 0.0
    pids: tuple[int, ...] = ()
    jobs: tuple[str, ...] = ()
    victim: str = ""


class Faults:
    """Does the planned faults in a thread of its own. Wires and clocks go by the names of the processes."""

    def __init__(
        self,
        processes: Processes,
        plan: list[Fault],
        *,
        wires: Mapping[str, Wire] | None = None,
        clocks: Clocks | None = None,
        prober: Prober | None = None,
        pause_seconds: float = PAUSE_SECONDS,
        running: Callable[[], set[int]] = set,
    ) -> None:
        self.processes = processes
        self.plan = plan
        self.wires = wires or {}
        self.clocks = clocks
        self.prober = prober
        self.pause_seconds = pause_seconds
        self.running = running
        self._stopped: dict[int, float] = {}
        """Workers that were stopped, and until when by the monotonic clock."""
        self.done: list[Done] = []
        self.missed: Counter[str] = Counter()
        self.thread = threading.Thread(target=self._run, name="faults", daemon=True)
        self._later: list[tuple[float, Callable[[], object]]] = []
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            row = connection.execute("SHOW data_directory").fetchone()
        assert row is not None
        self._postmaster = Path(row[0]) / "postmaster.pid"
        self._how: dict[str, Callable[[float], Hit]] = {
            "worker": self._worker,
            "worker_not_heart": self._worker_not_heart,
            "worker_child": lambda pick: self._child("worker", pick),
            "heart": self._heart,
            "worker_paused": lambda pick: self._pause(pick, whole=True),
            "worker_paused_heart": lambda pick: self._pause(pick, whole=True, kill_heart=True),
            "pool_paused": lambda pick: self._pause(pick, whole=False),
            "scheduler": lambda pick: self._leader("scheduler", pick),
            "web_worker": lambda pick: self._child("web", pick),
            "web": lambda pick: self._leader("web", pick),
            "flush": self._flush,
            "valkey": self._valkey,
            "postgres": self._postgres,
            "backends": self._backends,
            "pool_exhausted": self._exhaust,
            "wire_reset": lambda pick: self._wire("reset", pick),
            "wire_swallow": lambda pick: self._wire("swallow", pick),
            "wire_hole": lambda pick: self._wire("hole", pick),
            "clock": self._clock,
        }

    def _run(self) -> None:
        began = time.monotonic()
        for fault in self.plan:
            while (left := began + fault.at - time.monotonic()) > 0:
                self._undo()
                threading.Event().wait(min(left, 0.2))
            self._do(fault)
        while self._later:
            self._undo()
            threading.Event().wait(0.2)

    def _do(self, fault: Fault) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                at = time.time()
                hit = self._how[fault.kind](fault.pick)
            except (psycopg.Error, redis.RedisError, OSError, LookupError, ValueError):
                if time.monotonic() > give_up:
                    self.missed[fault.kind] += 1
                    return
                self._undo()
                threading.Event().wait(0.1)
            else:
                done = vars(hit) | {"at": hit.at or at}
                self.done.append(Done(kind=fault.kind, planned=fault.at, **done))
                return

    def _undo(self) -> None:
        """Do what was put off and is due: wake what was stopped, let pass what was held up."""
        now = time.monotonic()
        due, self._later = (
            [act for at, act in self._later if at <= now],
            [(at, act) for at, act in self._later if at > now],
        )
        for act in due:
            act()

    @staticmethod
    def _one(found: list[T], pick: float) -> T:
        """Raises: LookupError when there is none."""
        return found[int(pick * len(found))]

    def _of(self, kind: str, pick: float) -> Process:
        """Return a process that has come up, so that it has something to lose."""
        return self._one([process for process in self.processes.named(kind) if process.pool()], pick)

    def _at_work(self, pick: float) -> tuple[Process, int]:
        """Return a worker and a process of its pool, if possible one that has a body at work."""

        def pools(among: set[int] | None = None) -> list[tuple[Process, int]]:
            all_of_them = [(worker, pid) for worker in self.processes.named("worker") for pid in worker.pool()]
            return [one for one in all_of_them if among is None or one[1] in among]

        until(lambda: pools(self.running()), seconds=AT_WORK_SECONDS)
        return self._one(pools(self.running()) or pools(), pick)

    def _worker(self, pick: float) -> Hit:
        worker, _ = self._at_work(pick)
        pids, hearts, at = (worker.pid, *worker.pool()), worker.heart(), time.time()
        os.killpg(worker.pid, signal.SIGKILL)
        for pid in hearts:
            send(pid, signal.SIGKILL)
        return Hit(f"{worker.name} {worker.pid} with heart {hearts}", at=at, pids=(*pids, *hearts), victim=worker.name)

    def _worker_not_heart(self, pick: float) -> Hit:
        worker, _ = self._at_work(pick)
        pids, at = (worker.pid, *worker.pool()), time.time()
        os.killpg(worker.pid, signal.SIGKILL)
        return Hit(f"{worker.name} {worker.pid}", at=at, pids=pids, victim=worker.name)

    def _child(self, kind: str, pick: float) -> Hit:
        if kind == "worker":
            process, pid = self._at_work(pick)
        else:
            process = self._of(kind, pick)
            pid = self._one(process.pool(), pick * 7 % 1)
        at = time.time()
        os.kill(pid, signal.SIGKILL)
        return Hit(f"{process.name} child {pid}", at=at, pids=(pid,), victim=process.name)

    def _heart(self, pick: float) -> Hit:
        worker = self._one([one for one in self.processes.named("worker") if one.heart()], pick)
        pid = self._one(worker.heart(), 0)
        os.kill(pid, signal.SIGKILL)
        return Hit(f"{worker.name} heart {pid}", victim=worker.name)

    def _leader(self, kind: str, pick: float) -> Hit:
        process = self._one(self.processes.named(kind), pick)
        pids = (process.pid, *process.pool())
        os.killpg(process.pid, signal.SIGKILL)
        return Hit(f"{process.name} {process.pid}", pids=pids, victim=process.name)

    def _pause(self, pick: float, *, whole: bool, kill_heart: bool = False) -> Hit:
        now = time.monotonic()
        workers = [
            one
            for one in self.processes.named("worker")
            if one.pool() and (one.heart() or not whole) and self._stopped.get(one.pid, 0.0) < now
        ]
        worker = self._one(workers, pick)
        self._stopped[worker.pid] = now + self.pause_seconds
        hearts = worker.heart()
        victims = worker.pool() + ([worker.pid, *hearts] if whole else [])
        self._later.append((time.monotonic() + self.pause_seconds, lambda: _send_all(victims, signal.SIGCONT)))
        _send_all(victims, signal.SIGSTOP)
        if kill_heart:
            _send_all(hearts, signal.SIGKILL)
        return Hit(f"{worker.name} {victims} for {self.pause_seconds:.0f} s", victim=worker.name)

    def _flush(self, _pick: float) -> Hit:
        with redis.Redis.from_url(os.environ["BROKER_URL"], socket_timeout=3) as broker:
            jobs = waiting_hints(broker, empty=True)
        return Hit(f"{len(jobs)} jobs had hints", jobs=jobs)

    def _valkey(self, _pick: float) -> Hit:
        with redis.Redis.from_url(os.environ["BROKER_URL"], socket_timeout=3) as broker:
            pid = int(broker.info("server")["process_id"])
            jobs = waiting_hints(broker)
        os.kill(pid, signal.SIGKILL)
        return Hit(f"{pid}, {len(jobs)} jobs had hints", jobs=jobs)

    def _postgres(self, _pick: float) -> Hit:
        with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=3):
            pid = int(self._postmaster.read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        return Hit(str(pid))

    def _backends(self, pick: float) -> Hit:
        """End some sessions: the same places in the order of their start for the same seed."""
        with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=3, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                " ORDER BY backend_start, pid"
            ).fetchall()
            count = min(len(rows), 1 + int(pick * 8))
            for (pid,) in random.Random(pick).sample(rows, count):
                connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        return Hit(f"{count} of {len(rows)} sessions")

    def _exhaust(self, _pick: float) -> Hit:
        if self.prober is None:
            raise LookupError("nobody asks web meanwhile")
        return Hit(exhaust(self.prober))

    def _wire(self, how: str, pick: float) -> Hit:
        """Cut, deafen or bury the connections of a worker that has come up and consumes."""
        connected = [one for one in self.processes.named("worker") if self.wires[one.name].carrying >= CONSUMES]
        worker = self._one(connected, pick)
        wire = self.wires[worker.name]
        if how == "reset":
            count = wire.reset()
        elif how == "swallow":
            count = wire.swallow()
        else:
            count = wire.hole(True)
            self._later.append((time.monotonic() + HOLE_SECONDS, lambda: wire.hole(False)))
        return Hit(f"{worker.name}, {count} connections", victim=worker.name)

    def _clock(self, pick: float) -> Hit:
        """Let a process's wall clock jump to another of -2 h, 0 and +2 h."""
        if self.clocks is None:
            raise LookupError("no clocks")
        process = self._one(self.processes.all, pick)
        now = self.clocks.seconds.get(process.name, 0.0)
        other = [s for s in (0.0, *(hours * 3600.0 for hours in HOURS)) if s != now]
        then = self._one(other, pick * 13 % 1)
        self.clocks.set(process.name, then)
        return Hit(f"{process.name} from {now:+.0f} s to {then:+.0f} s", victim=process.name)

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


def waiting_hints(broker: "redis.Redis", *, empty: bool = False) -> tuple[str, ...]:
    """Return the jobs that hints wait for; `empty` throws everything away in the same transaction."""
    with broker.pipeline(transaction=True) as pipe:
        for tier in (1, 2, 3):
            pipe.lrange(f"tier{tier}", 0, -1)
        if empty:
            pipe.flushall()
        answers = pipe.execute()
    found: list[str] = []
    for message in (message for queue in answers[:3] for message in queue):
        found += json.loads(base64.b64decode(json.loads(message)["body"]))[0][0]
    return tuple(dict.fromkeys(found))


def _send_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        send(pid, number)
