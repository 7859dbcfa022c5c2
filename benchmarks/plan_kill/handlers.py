"""The job type of the run: its effect is the provider's, its check asks the provider. What a job does is its fate."""

import http.client
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from queues.handlers import Confirmed, JobContext, PermanentError, check, handler

TYPE = "plan.work"
PLAIN, DONE, FLAKY, BAD, CLOSED = "plain", "done", "flaky", "bad", "closed"
"""Works; was done before it died, as the provider knows; fails once more; dies again; is resolved before the plan."""


class NotYet(Exception):
    """The first run of a replay fails."""


class _Line:
    """A connection to the provider that stays open: one for each process."""

    def __init__(self) -> None:
        self._pid = 0
        self._client = http.client.HTTPConnection("127.0.0.1")

    def ask(self, method: str, path: str, body: str | None) -> Any:
        if self._pid != os.getpid():
            self._client = http.client.HTTPConnection("127.0.0.1", int(os.environ["PLAN_PROVIDER_PORT"]), timeout=10)
            self._pid = os.getpid()
        try:
            self._client.request(method, path, body)
            return json.loads(self._client.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            self._client.close()
            raise


_line = _Line()
_turn = threading.Lock()


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask the provider. Raises: OSError, http.client.HTTPException, ValueError."""
    with _turn:
        return _line.ask(method, path, None if body is None else json.dumps(body))


@contextmanager
def _noted(job: JobContext) -> Iterator[None]:
    run = {"job": str(job.id), "run": job.run, "pid": os.getpid()}
    ask("POST", "/runs", {**run, "phase": "start"})
    try:
        yield
    finally:
        ask("POST", "/runs", {**run, "phase": "end"})


@handler(TYPE)
def act(job: JobContext) -> Confirmed:
    """Have the provider do the work, and bring its reference back."""
    with _noted(job):
        fate = job.payload["fate"]
        if fate == BAD:
            raise PermanentError("the provider refuses this one for good")
        if fate == FLAKY and job.attempt == 1:
            raise NotYet("the provider is not back yet")
        said = {"key": job.payload["key"], "idempotency_key": job.idempotency_key, "job": str(job.id)}
        said |= {"run": job.run, "maybe_duplicate": job.maybe_duplicate}
        return Confirmed(ref=ask("POST", "/effects", said)["ref"])


@check(TYPE)
def acted(job: JobContext) -> Confirmed | None:
    """Ask the provider whether an earlier run had its effect."""
    ref = ask("GET", f"/effects/{job.idempotency_key}")["ref"]
    return Confirmed(ref=ref) if ref else None
