"""What restarts need beside a `Stack`: web processes, processes of another release's tree, and steady producers."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jobsboard.local import ports
from tests.acceptance.conftest import ROOT, Stack
from tests.acceptance.rolling_jobs import QUICK, WORK
from tests.factories import sql

START_SECONDS: Final = 60.0
_WORKER_FLAGS: Final = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO")
_numbers: Final = itertools.count(1)
"""One for each process, in the names of workers and log files."""
Process = subprocess.Popen[bytes]
JOBS: Final[Sequence[Mapping[str, Any]]] = (
    {"type": QUICK, "payload": {}},
    {"type": WORK, "payload": {"seconds": 0.2}},
    {"type": QUICK, "payload": {}, "delay_seconds": 2},
)
"""What producers post: jobs that are run at once, that run when a stop comes, and that only a scheduler publishes."""


class Fleet:
    """Starts processes of one tree and waits until they serve. The stack ends what is left at the end."""

    def __init__(
        self,
        stack: Stack,
        *,
        tree: Path = ROOT,
        env: Mapping[str, str] | None = None,
        ask: Callable[..., list[tuple[Any, ...]]] = sql,
    ) -> None:
        self.stack = stack
        self.tree = tree
        # Words that say that a process serves must not wait in its buffer.
        self.env = {**stack.env, **(env or {}), "PYTHONUNBUFFERED": "1"}
        self.ask = ask
        """Asks the database of these processes."""
        self._waiting: list[Callable[[], bool]] | None = None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Start what the block starts at the same time, as a machine that boots does, and wait for all of it."""
        waiting: list[Callable[[], bool]] = []
        self._waiting = waiting
        try:
            yield
        finally:
            self._waiting = None
        for serves in waiting:
            self._until(serves)

    def _until(self, serves: Callable[[], bool]) -> None:
        if self._waiting is None:
            self.stack.until(serves, seconds=START_SECONDS)
        else:
            self._waiting.append(serves)

    def _start(self, name: str, *command: str) -> tuple[Process, Path]:
        path = self.stack.folder / f"{name}-{next(_numbers)}.log"
        with open(path, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=self.tree, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        self.stack._started.append(process)
        return process, path

    def _reported(self, process: Process) -> bool:
        return bool(self.ask("SELECT 1 FROM queues_workerprocess WHERE pid = %s", process.pid))

    def worker(self, *, pool: str = "prefork", concurrency: int = 2, queue: str = "tier2") -> Process:
        """Start a worker and wait until it takes messages and its heartbeat process beats."""
        name = f"w{next(_numbers)}@%h"
        command = ("-m", "celery", "-A", "jobsboard", "worker", "-P", pool, "-c", str(concurrency), "-n", name)
        process, log = self._start("worker", *command, "-Q", queue, *_WORKER_FLAGS)

        def serves() -> bool:
            if " ready." not in log.read_text() or not self._reported(process):
                return False
            self.stack._hearts |= set(self.stack.hearts(process))
            return True

        self._until(serves)
        return process

    def scheduler(self) -> Process:
        """Start a scheduler and wait until it reports itself."""
        process, _ = self._start("scheduler", "manage.py", "scheduler")
        self._until(lambda: self._reported(process))
        return process

    def web(self, port: int) -> Process:
        """Start gunicorn as docs/operations.md has it and wait until it answers."""
        process, _ = self._start(
            "web", "-m", "gunicorn", "jobsboard.wsgi", "--bind", f"{ports.LOOPBACK}:{port}", "--workers", "2",
            "--threads", "4", "--graceful-timeout", "10", "--no-control-socket",
        )  # fmt: skip
        self._until(lambda: answers(port))
        return process

    def run(self, *command: str, seconds: float = START_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, *command], cwd=self.tree, env=self.env, capture_output=True, text=True, timeout=seconds
        )

    def end(self) -> None:
        """Kill what runs."""
        self.stack.close()


def answers(port: int) -> bool:
    """Say whether a web process listens and answers."""
    connection = http.client.HTTPConnection(ports.LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def stop(process: Process, *, seconds: float) -> int:
    """Send SIGTERM to one process and return how it ended. Raises: TimeoutExpired when it takes longer."""
    process.send_signal(signal.SIGTERM)
    return process.wait(seconds)


class Producers:
    """Clients that post jobs at a steady rate, each job with a key, and try again elsewhere when a connection fails."""

    def __init__(
        self,
        web: Sequence[int],
        api_key: str,
        jobs: Sequence[Mapping[str, Any]] = JOBS,
        *,
        threads: int = 2,
        rate: float = 10,
    ) -> None:
        self.web = list(web)
        """Ports; a test may change them while the clients run."""
        self.jobs = jobs
        """Type and payload of the jobs, taken in turn."""
        self.rate = rate
        """Jobs a second of each thread, while nothing holds it up."""
        self.accepted: dict[str, str] = {}
        """Dedupe key → job id, as the first 2xx said."""
        self.taken_by: dict[str, int] = {}
        """Job id → the port that said it."""
        self.answers: Counter[int] = Counter()
        self.refused: list[str] = []
        """Answers of 4xx and 5xx, in words."""
        self.cut: Counter[str] = Counter()
        """Connections that were refused or cut, by error class; the same key was posted again."""
        self.slowest = 0.0
        """Seconds that the slowest answered request took."""
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self, *, seconds: float = 20.0) -> None:
        """Let each client get the answer that it waits for, and end."""
        self._over.set()
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive(), "a client found nobody who took its job"

    @property
    def ids(self) -> set[str]:
        """The jobs that were acknowledged."""
        return set(self.accepted.values())

    def _run(self, number: int) -> None:
        connections: dict[int, http.client.HTTPConnection] = {}
        count = 0
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1 / self.rate, time.monotonic() - 1)
            key = f"client-{number}-{count}"
            body = json.dumps({**self.jobs[count % len(self.jobs)], "dedupe_key": key})
            turn = number + count
            while not self._post(connections, self.web[turn % len(self.web)], key, body):
                turn += 1
                threading.Event().wait(0.05)
            count += 1
        for connection in connections.values():
            connection.close()

    def _post(self, connections: dict[int, http.client.HTTPConnection], port: int, key: str, body: str) -> bool:
        """Post once; False when the connection failed."""
        connection = connections.setdefault(port, http.client.HTTPConnection(ports.LOOPBACK, port, timeout=15))
        began = time.monotonic()
        try:
            connection.request("POST", "/api/v1/jobs", body, self._headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.cut[type(error).__name__] += 1
            return False
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.answers[response.status] += 1
        if response.status in (200, 201):
            self.accepted[key] = job_id = json.loads(text)["id"]
            self.taken_by[job_id] = port
        else:
            self.refused.append(f"{response.status} {text[:300].decode()}")
        return True
