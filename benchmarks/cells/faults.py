"""What each cell does to the system. A fault returns the time of its last stroke; what follows is recovery.

Not here: when (`__main__.py`), and what is called recovered (`verdict.py`).
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import redis

from benchmarks.cells.lanes import Lane
from benchmarks.chaos.processes import Process, send, until

BACKEND_KILLS, CONNECTION_KILLS, WORKER_KILLS, CHILD_KILLS = 12, 10, 5, 6
TAKEN_SECONDS: Final = 8.0


@dataclass(frozen=True)
class Stroke:
    """What was done, and when its last part was (Unix time)."""

    at: float
    what: str


@dataclass(frozen=True)
class Cell:
    """A named cell. One of PostgreSQL's leaves plain Celery alone, which has no PostgreSQL."""

    name: str
    strike: Callable[[Sequence[Lane]], Stroke]
    postgres: bool = False


def _connect() -> "psycopg.Connection[tuple[Any, ...]]":
    return psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=3, autocommit=True)


def _broker() -> Any:
    return redis.Redis.from_url(os.environ["BROKER_URL"], socket_timeout=3)


def _kill(worker: Process) -> None:
    """SIGKILL a worker with all that belongs to it, the heartbeat process included: the machine is gone."""
    family = [*worker.heart(), *worker.pool()]
    os.killpg(worker.pid, signal.SIGKILL)
    for pid in family:
        send(pid, signal.SIGKILL)


def _alive(lanes: Sequence[Lane]) -> bool:
    return all(lane.processes.named("worker") for lane in lanes)


def crash_recovery(lanes: Sequence[Lane]) -> Stroke:
    """Kill the worker; the supervisor starts a new one after a second."""
    for lane in lanes:
        _kill(lane.worker())
    return Stroke(time.time(), "worker killed with all its processes")


def repeated_kills(lanes: Sequence[Lane]) -> Stroke:
    """Kill the worker again and again, after two to five seconds."""
    chance = random.Random(1)
    for number in range(WORKER_KILLS):
        if number:
            threading.Event().wait(chance.uniform(2, 5))
        until(lambda: _alive(lanes), seconds=10)
        for lane in lanes:
            _kill(lane.worker())
    return Stroke(time.time(), f"worker killed {WORKER_KILLS} times, every 2 to 5 s")


def child_kill(lanes: Sequence[Lane]) -> Stroke:
    """Kill one process of the worker's pool a second."""
    chance = random.Random(2)
    for _ in range(CHILD_KILLS):
        for lane in lanes:
            send(chance.choice(lane.worker().pool()), signal.SIGKILL)
        threading.Event().wait(1.0)
    return Stroke(time.time(), f"{CHILD_KILLS} pool processes killed, one a second")


def postgres_restart(_lanes: Sequence[Lane]) -> Stroke:
    """Stop PostgreSQL at once, as a crash would; it comes back by recovery."""
    with _connect() as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    postmaster = int((Path(row[0]) / "postmaster.pid").read_text().split()[0])
    at = time.time()
    os.kill(postmaster, signal.SIGQUIT)
    until(lambda: not _answers(), seconds=10, every=0.02)
    if not until(_answers, seconds=60):
        raise SystemExit("PostgreSQL did not come back")
    return Stroke(at, f"PostgreSQL stopped at once, away for {time.time() - at:.1f} s")


def _answers() -> bool:
    try:
        _connect().close()
    except psycopg.Error:
        return False
    return True


def _end_sessions(connection: "psycopg.Connection[tuple[Any, ...]]", *, but: Sequence[int] = ()) -> int:
    """Terminate every client's session but ours; returns how many."""
    row = connection.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND pid <> ALL(%s)",
        [list(but)],
    ).fetchone()
    return int(row[0]) if row else 0


def pg_backend_kill(_lanes: Sequence[Lane]) -> Stroke:
    """Terminate all sessions of the application once a second, idle ones too."""
    ended = 0
    with _connect() as connection:
        for _ in range(BACKEND_KILLS):
            ended += _end_sessions(connection)
            at = time.time()
            threading.Event().wait(1.0)
    return Stroke(at, f"all sessions terminated {BACKEND_KILLS} times, once a second: {ended}")


def pool_exhaustion(_lanes: Sequence[Lane]) -> Stroke:
    """Take every connection that the server has, the application's own too, and hold them all for a while."""
    held: list[psycopg.Connection[tuple[Any, ...]]] = []
    ended = 0
    # Rounds: end the application's sessions, take the places before it does.
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        _fill(held)
        now = _end_sessions(held[0], but=[connection.info.backend_pid for connection in held])
        ended += now
        if not now:
            break
    began = time.monotonic()
    threading.Event().wait(TAKEN_SECONDS)
    left = _end_sessions(held[0], but=[connection.info.backend_pid for connection in held])
    for connection in held:
        connection.close()
    lasted = time.monotonic() - began
    return Stroke(
        time.time(),
        f"all {len(held)} connections taken for {lasted:.0f} s; {ended} sessions of the application ended before,"
        f" {left} came in between",
    )


def _fill(held: list["psycopg.Connection[tuple[Any, ...]]"]) -> None:
    while True:
        try:
            held.append(_connect())
        except psycopg.OperationalError:
            return


def broker_flush(_lanes: Sequence[Lane]) -> Stroke:
    """FLUSHALL."""
    with _broker() as broker:
        broker.flushall()
    return Stroke(time.time(), "FLUSHALL")


def broker_restart(_lanes: Sequence[Lane]) -> Stroke:
    """Kill the broker; it keeps nothing on disk, so it comes back empty."""
    with _broker() as broker:
        pid = int(broker.info("server")["process_id"])
    at = time.time()
    os.kill(pid, signal.SIGKILL)
    if not until(_broker_answers, seconds=60, every=0.05):
        raise SystemExit("the broker did not come back")
    return Stroke(at, f"Valkey killed, back empty after {time.time() - at:.1f} s")


def _broker_answers() -> bool:
    try:
        with _broker() as broker:
            return bool(broker.ping())
    except redis.RedisError:
        return False


def broker_connections(_lanes: Sequence[Lane]) -> Stroke:
    """Kill all connections to the broker once a second."""
    ended = 0
    with _broker() as broker:
        for _ in range(CONNECTION_KILLS):
            ended += int(broker.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
            at = time.time()
            threading.Event().wait(1.0)
    return Stroke(at, f"all broker connections killed {CONNECTION_KILLS} times, once a second: {ended}")


CELLS: Final = (
    Cell("crash_recovery", crash_recovery),
    Cell("postgres_restart", postgres_restart, postgres=True),
    Cell("repeated_kills", repeated_kills),
    Cell("pg_backend_kill", pg_backend_kill, postgres=True),
    Cell("pool_exhaustion", pool_exhaustion, postgres=True),
    Cell("child_kill", child_kill),
    Cell("broker_flush", broker_flush),
    Cell("broker_restart", broker_restart),
    Cell("broker_connections", broker_connections),
)
"""The first five are those of the public harness, the rest are the broker's and the pool's."""
