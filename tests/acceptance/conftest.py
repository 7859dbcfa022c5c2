"""A real worker and a real scheduler against the test's database, and a broker's database of their own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import redis
from celery import current_app
from cryptography.fernet import Fernet
from django.db import connection, connections
from pytest_django import DjangoDbBlocker

from jobsboard.api import keys
from jobsboard.local import processes
from jobsboard.models import SCOPES
from queues import broker, secrets_box
from queues.models import JobType, WorkerProcess
from queues.runtime.leases import alive
from tests.acceptance.jobs import ATOMIC, CALLBACK, CHECKED, MAIL, MAIL_CHECKED, POISON, QUICK, SLOW, STEPS
from tests.acceptance.wire import Web
from tests.conftest import _empty as empty_database
from tests.factories import make_type, sql

ROOT: Final = Path(__file__).resolve().parents[2]
BROKER_DATABASE: Final = 9
"""So that emptying it empties nothing that anybody else put there."""


class Stack:
    """Processes that a test started, and what their jobs did."""

    def __init__(self, folder: Path, env: dict[str, str], client: redis.Redis) -> None:
        self.folder = folder
        self.broker = client
        self.env = env
        self._started: list[subprocess.Popen[bytes]] = []
        self._hearts: set[int] = set()

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(process)
        return process

    def scheduler(self) -> subprocess.Popen[bytes]:
        """Start a scheduler."""
        return self._start("scheduler", "manage.py", "scheduler")

    def worker(self, *, concurrency: int = 2) -> subprocess.Popen[bytes]:
        """Start a worker of tier 2 and wait until it reports itself."""
        flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO", "-Q", "tier2"]
        name = f"w{len(self._started)}"
        process = self._start(
            "worker", "-m", "celery", "-A", "jobsboard", "worker", "-n", f"{name}@%h", "-c", str(concurrency), *flags
        )
        self.until(lambda: WorkerProcess.objects.filter(kind="worker", pid=process.pid).exists(), seconds=60)
        self._hearts |= set(self.children(process)) - set(self.pool(process))
        return process

    @staticmethod
    def children(process: subprocess.Popen[bytes]) -> list[int]:
        """Return the process ids of a worker's children: its pool and its heartbeat process."""
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]

    def pool(self, process: subprocess.Popen[bytes]) -> list[int]:
        """Return the process ids of a worker's pool."""
        return [
            pid
            for pid in self.children(process)
            if b"django\0heartbeat" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def hearts(self, process: subprocess.Popen[bytes]) -> list[int]:
        """Return the process ids of a worker's heartbeat process."""
        return [pid for pid in self.children(process) if pid not in self.pool(process)]

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        """End a worker and its pool with SIGKILL; its heartbeat process is in a session of its own."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def go(self) -> None:
        """Let the slow jobs end."""
        (self.folder / "go").touch()

    def runs(self, kind: str = "accept.") -> list[dict[str, Any]]:
        """Return what ran, in order."""
        path = self.folder / "runs.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [run for run in map(json.loads, lines) if run["type"].startswith(kind)]

    @staticmethod
    def states(kind: str = "%") -> dict[str, int]:
        """Return how many jobs are in which state: all, or those of a type."""
        found = sql("SELECT state, count(*) FROM queues_job WHERE type LIKE %s GROUP BY state", kind)
        return {state: int(n) for state, n in found}

    def until(self, condition: Callable[[], object], *, seconds: float) -> float:
        """Wait for a condition; returns how long it took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                logs = "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*.log")))
                pytest.fail(f"waited {seconds} s in vain: {self.states()}, runs {len(self.runs())}\n{logs}")
            # Each look is a query or more; the processes that are waited for need the processors.
            threading.Event().wait(0.05)
        return time.monotonic() - began

    def all_confirmed(self, n: int, *, kind: str = "%", seconds: float) -> float:
        """Wait until all jobs are confirmed, or those of a type."""
        return self.until(lambda: self.states(kind) == {"confirmed": n}, seconds=seconds)

    def close(self) -> None:
        """Kill what runs, and wait until nothing of it writes any more. Who looks at an end signals it himself."""
        self.go()
        running = [process for process in self._started if process.poll() is None]
        for process in running:
            # A worker that ends just now has no children to name.
            with contextlib.suppress(OSError):
                self._hearts |= set(self.hearts(process))
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                self.kill(process)
        for pid in filter(alive, self._hearts):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        give_up = time.monotonic() + 20
        # What a killed process asked for last, its session may be about to commit.
        while (any(map(alive, self._hearts)) or _sessions_at_work()) and time.monotonic() < give_up:
            threading.Event().wait(0.02)


def _sessions_at_work() -> int:
    """Count the other sessions of the test's database that run a statement or have a transaction open."""
    [(count,)] = sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend' AND state IS DISTINCT FROM 'idle'"
    )
    return int(count)


@pytest.fixture
def stack(transactional_db: None, tmp_path: Path) -> Iterator[Stack]:
    """Job types, an empty broker, and a way to start processes."""
    with stack_in(tmp_path) as made:
        yield made


@contextlib.contextmanager
def stack_in(folder: Path) -> Iterator[Stack]:
    """Make a stack whose files are in this folder; what it starts ends with it. Who calls empties the database."""
    env = {
        **os.environ, **own_servers(), "JOBSBOARD_HANDLERS": "tests.acceptance.jobs", "ACCEPTANCE_FOLDER": str(folder),
    }  # fmt: skip
    messages = env["BROKER_URL"]
    if not messages.startswith("redis"):
        pytest.skip("these tests empty a Redis database of their own")
    for name in (QUICK, SLOW, POISON):
        make_type(name, success="reference", lease_seconds=60)
    make_type(ATOMIC, success="reference", poison_after=20)
    make_type(STEPS, success="reference", poison_after=20)
    for name in (MAIL, MAIL_CHECKED):
        make_type(name, success="reference", backoff="fixed", backoff_base_seconds=0.5)
    make_type(CALLBACK, success="callback")
    make_type(CHECKED, success="check", check_every_seconds=1)
    with redis.Redis.from_url(messages) as client, pytest.MonkeyPatch.context() as patch:
        for name in ("broker_url", "broker_write_url", "broker_read_url"):
            patch.setitem(current_app.conf, name, messages)
        patch.setattr(broker, "_channel", broker._Channel())
        client.flushdb()
        made = Stack(folder, env, client)
        try:
            yield made
        finally:
            made.close()
            client.flushdb()
            broker._channel._close()


@pytest.fixture
def sending(stack: Stack, settings: Any) -> Stack:
    """Return processes that may send to this machine, and seal with the key that the test seals with."""
    key = Fernet.generate_key().decode()
    settings.OUTBOUND_ALLOWED_CIDRS = ["127.0.0.0/8"]
    settings.WEBHOOK_ALLOW_HTTP, settings.WEBHOOK_ALLOWED_PORTS = True, None
    settings.ENCRYPTION_KEYS = [key]
    stack.env |= {
        "OUTBOUND_ALLOWED_CIDRS": "127.0.0.0/8", "WEBHOOK_ALLOW_HTTP": "1", "WEBHOOK_ALLOWED_PORTS": "*",
        "ENCRYPTION_KEYS": key,
    }  # fmt: skip
    return stack


def limbo() -> list[UUID]:
    """Return rows that nobody will move on (DESIGN.md section 5)."""
    return [
        i
        for (i,) in sql(
            "SELECT id FROM queues_job WHERE state IN ('processing', 'awaiting_confirmation')"
            " AND due_at < jobs_now() - interval '30 s' OR state IN ('accepted', 'retrying', 'awaiting_confirmation')"
            " AND expires_at < jobs_now() - interval '30 s'"
        )
    ]


IN_CALL_SECRET: Final = "whsec_" + base64.b64encode(b"in.call, a secret of the tests").decode()
IN_NEXT_SECRET: Final = "whsec_" + base64.b64encode(b"in.call, the one that follows.").decode()
OLD_SECRET: Final = "whsec_" + base64.b64encode(b"the one before a rotation").decode()


@pytest.fixture(scope="module")
def committed(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Let the tests of a module commit into one database, emptied before and after all of them.

    The module names its own `transactional_db` after it, since pytest-django looks for that name.
    """
    with django_db_blocker.unblock():
        empty_database()
        try:
            yield
        finally:
            empty_database()
            connections.close_all()


@pytest.fixture(scope="module")
def web(committed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """gunicorn as the local stack starts it, with job types `in.*`, for a whole module."""
    kinds: dict[str, dict[str, Any]] = {
        "in.plain": {},
        "in.strict": {"max_payload_bytes": 2000, "schema": {"type": "object", "required": ["n"]}},
        "in.off": {"enabled": False},
        "in.call": {"success": "callback", "callback_secret_env": "IN_CALL_SECRET", "confirm_within_seconds": 86400},
        "in.other": {"success": "callback"},
    }
    for name, more in kinds.items():
        make_type(name, **more)
    # One type in the middle of a rotation, one after its end; before the web reads the contracts.
    for name, left in (("in.rotating", timedelta(hours=1)), ("in.rotated", timedelta(0))):
        make_type(name, success="callback")
        JobType.objects.filter(name=name).update(
            callback_secret=secrets_box.seal(IN_NEXT_SECRET),
            callback_secret_old=secrets_box.seal(OLD_SECRET),
            callback_secret_old_until=datetime.now(UTC) + left,
        )
    key = keys.issue_key(label="input", scopes=SCOPES)[1]
    folder = tmp_path_factory.mktemp("web")
    env = {**os.environ, **own_servers(), "IN_CALL_SECRET": f"{IN_CALL_SECRET},{IN_NEXT_SECRET}"}
    env["REQUEST_BODY_SECONDS"] = "2"
    with socket.create_server(("127.0.0.1", 0)) as listening, open(folder / "web.log", "ab") as log:
        table = processes.table(web_socket=listening.fileno(), demo=None, traffic=False)
        [entry] = [one for one in table if one.name == "web"]
        process = subprocess.Popen(
            entry.argv, cwd=ROOT, env=env, stdout=log, stderr=log, pass_fds=entry.pass_fds, start_new_session=True
        )
        try:
            made = Web(address=listening.getsockname(), key=key)
            # The socket listens already: the first request waits until somebody accepts it.
            assert made.raw(made.head("GET", "/livez"), method="GET", seconds=60).status == 200
            yield made
            # RELIABILITY C: no 500 in the log, whatever came.
            said = (folder / "web.log").read_text()
            assert "Traceback" not in said and "ERROR" not in said, said[-3000:]
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            with redis.Redis.from_url(env["BROKER_URL"]) as client:
                client.flushdb()


def own_servers() -> dict[str, str]:
    """Return what points a process at the test's database and at a broker's database of its own."""
    database = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{connection.settings_dict['NAME']}").geturl()
    messages = urlsplit(os.environ["BROKER_URL"])._replace(path=f"/{BROKER_DATABASE}").geturl()
    return {"DATABASE_URL": database, "BROKER_URL": messages}
