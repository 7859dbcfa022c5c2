"""The two systems under test: Jobsboard by its HTTP API, plain Celery by `send_task`."""

import base64
import contextlib
import http.client
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import kombu.exceptions
import psycopg
import redis

from benchmarks.cells import plain
from benchmarks.cells.effect import TYPE
from benchmarks.cells.lanes import ACKNOWLEDGED, REFUSED, UNKNOWN, WORKER_FLAGS, Lane
from jobsboard.local import ports

REQUEST_SECONDS: Final = 5.0
ROWS: Final = """
SELECT dedupe_key, state || CASE WHEN reason <> '' THEN ' ' || reason ELSE '' END, evidence ->> 'ref'
FROM queues_job WHERE dedupe_key LIKE %s
"""


class Jobsboard(Lane):
    """Web, one worker, one scheduler."""

    name = "jobsboard"
    keeps_rows = True

    def __init__(self, cell: str, *, folder: Path, env: Mapping[str, str], api_key: str) -> None:
        super().__init__(cell, folder=folder, env=env)
        self._port = ports.free()
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}

    def start_processes(self) -> None:
        """Start the product as its users would."""
        web = ["gunicorn", "jobsboard.wsgi", "--bind", f"127.0.0.1:{self._port}", "--workers", "2", "--threads", "4"]
        self.processes.start("web", "-m", *web, "--no-control-socket")
        celery = ["-m", "celery", "-A", "jobsboard", "worker", "-Q", "tier2", "-n", "cells@%h"]
        self.processes.start("worker", *celery, *WORKER_FLAGS)
        self.processes.start("scheduler", "manage.py", "scheduler")

    def ready(self) -> bool:
        """Tell whether the web process answers."""
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_SECONDS)
        try:
            client.request("GET", "/livez")
            return client.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            client.close()

    def send(self, key: str, seconds: float) -> tuple[str, str]:
        """Post a job."""
        body = {"type": TYPE, "payload": {"key": key, "seconds": seconds}, "dedupe_key": key}
        # A connection for each request: one kept alive dies under faults that have nothing to do with the request.
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_SECONDS)
        try:
            client.request("POST", "/api/v1/jobs", json.dumps(body), self._headers)
            answer = client.getresponse()
            text = answer.read()
        except ConnectionRefusedError:
            return REFUSED, "no connection"
        except (OSError, http.client.HTTPException) as error:
            return UNKNOWN, type(error).__name__
        finally:
            client.close()
        if answer.status in (200, 201):
            return ACKNOWLEDGED, str(answer.status)
        return REFUSED, f"{answer.status} {json.loads(text).get('code')}"

    def _rows(self) -> list[tuple[str, str, str | None]]:
        with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=3) as connection:
            return connection.execute(ROWS, [self.prefix + "%"]).fetchall()

    def held(self) -> int:
        """Count the jobs in state processing."""
        with contextlib.suppress(psycopg.Error):
            return sum(state == "processing" for _, state, _ in self._rows())
        return 0

    def traces(self) -> dict[str, str]:
        """Return the state of every job."""
        return {key: state for key, state, _ in self._rows()}

    def broken(self, effects: Mapping[str, list[dict[str, Any]]]) -> list[str]:
        """Return the keys of jobs that are confirmed by a reference which the ledger did not give for them."""
        refs = {key: {one["ref"] for one in mine} for key, mine in effects.items()}
        return [key for key, state, ref in self._rows() if state == "confirmed" and ref not in refs.get(key, set())]


class PlainCelery(Lane):
    """One worker with late acknowledgement, on a Redis database of its own in the same Valkey."""

    keeps_rows = False

    def __init__(
        self, cell: str, *, name: str, database: int, visibility: int | None, folder: Path, env: Mapping[str, str]
    ) -> None:
        self.name = name
        super().__init__(cell, folder=folder, env=env)
        self._url = f"{os.environ['BROKER_URL'].rpartition('/')[0]}/{database}"
        self._env |= {plain.URL: self._url, plain.VISIBILITY: "" if visibility is None else str(visibility)}
        self._env.pop("DJANGO_SETTINGS_MODULE", None)
        self._app = plain.make(self._url, visibility=visibility)

    def start_processes(self) -> None:
        """Start the worker."""
        celery = ["-m", "celery", "-A", "benchmarks.cells.plain", "worker", "-n", f"{self.name}@%h"]
        self.processes.start("worker", *celery, *WORKER_FLAGS)

    def send(self, key: str, seconds: float) -> tuple[str, str]:
        """Send a task, with Celery's own policy of tries."""
        try:
            self._app.send_task(TYPE, args=[key, seconds], queue=plain.QUEUE)
        except (kombu.exceptions.OperationalError, redis.RedisError, OSError) as error:
            return UNKNOWN, type(error).__name__
        return ACKNOWLEDGED, ""

    def held(self) -> int:
        """Count the messages that are not acknowledged."""
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self._url, socket_timeout=3) as broker:
            return int(broker.hlen("unacked"))
        return 0

    def traces(self) -> dict[str, str]:
        """Return the tasks whose message is still in the broker."""
        with redis.Redis.from_url(self._url, socket_timeout=3) as broker:
            waiting: Any = broker.lrange(plain.QUEUE, 0, -1)
            given: Any = broker.hvals("unacked")
        found = {_key(json.loads(text)): "queued" for text in waiting}
        return found | {_key(json.loads(text)[0]): "unacknowledged" for text in given}

    def broken(self, effects: Mapping[str, list[dict[str, Any]]]) -> list[str]:
        """Celery says nothing of a task that is done."""
        return []


def _key(message: Mapping[str, Any]) -> str:
    """Return the key of the job that a message of kombu's names."""
    return str(json.loads(base64.b64decode(message["body"]))[0][0])
