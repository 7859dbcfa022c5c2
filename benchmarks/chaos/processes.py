"""The application's processes, started again when they end, as a supervisor would.

Not here: PostgreSQL and Valkey, which `jobsboard.local isolated` starts and restarts.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESTART_SECONDS = 1.0
HEART = b"django\0heartbeat"


def until(condition: Callable[[], object], *, seconds: float, every: float = 0.1) -> bool:
    """Wait for a condition; False when it does not hold in time."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            return False
        threading.Event().wait(every)
    return True


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def command(pid: int) -> bytes:
    """Return a process's command line; empty when it is dead, reaped or not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False when the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@dataclass(eq=False)
class Process:
    """A command that is kept running."""

    name: str
    argv: list[str]
    popen: "subprocess.Popen[bytes]"
    starts: int = 1
    restart_at: float | None = None
    exits: list[str] = field(default_factory=list)
    env: Mapping[str, str] = field(default_factory=dict)
    """What it has beside the environment of all."""
    ended_at: list[float] = field(default_factory=list)
    """Unix times."""

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.restart_at is None and self.popen.poll() is None

    def heart(self) -> list[int]:
        """Return the heartbeat process of a worker."""
        return [pid for pid in children(self.pid) if HEART in command(pid)]

    def pool(self) -> list[int]:
        """Return the other children that live."""
        return [pid for pid in children(self.pid) if (said := command(pid)) and HEART not in said]


class Processes:
    """All of them, and the thread that looks after them."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.env = dict(env)
        self.all: list[Process] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="supervisor", daemon=True)
        self._thread.start()

    def start(self, name: str, *argv: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a command and keep it running; `env` is added to the environment of all."""
        words, own = [sys.executable, *argv], dict(env or {})
        process = Process(name=name, argv=words, popen=self._popen(name, words, own), env=own)
        self.all.append(process)
        return process

    def named(self, prefix: str) -> list[Process]:
        """Return the living processes of a kind."""
        return [process for process in self.all if process.name.startswith(prefix) and process.alive]

    def _popen(self, name: str, argv: list[str], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                argv, cwd=ROOT, env={**self.env, **env}, stdout=log, stderr=log, start_new_session=True
            )

    def _look_after(self) -> None:
        while not self._stop.wait(0.1):
            for process in list(self.all):
                self._look_at(process, time.monotonic())

    def _look_at(self, process: Process, now: float) -> None:
        if process.restart_at is None:
            code = process.popen.poll()
            if code is not None:
                process.exits.append(str(code))
                process.ended_at.append(time.time())
                # What a dead leader left of its group ends with it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.restart_at = now + RESTART_SECONDS
        elif now >= process.restart_at:
            process.popen = self._popen(process.name, process.argv, process.env)
            process.starts += 1
            process.restart_at = None

    def close(self) -> None:
        """End all: SIGTERM, then SIGKILL."""
        self._stop.set()
        self._thread.join()
        for process in self.all:
            send(process.pid, signal.SIGCONT)
            send(process.pid, signal.SIGTERM)
        for process in self.all:
            try:
                process.popen.wait(20)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.popen.wait()
