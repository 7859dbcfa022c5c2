"""Handlers that hand their work to the downstream of test_twice; it says where it is in a file."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from queues.handlers import Confirmed, JobContext, check, handler

PAY: Final = "twice.pay"
CHECKED: Final = "twice.checked"
ONCE: Final = "twice.once"
FOLDER: Final = Path(os.environ.get("ACCEPTANCE_FOLDER", "."))
PATIENCE: Final = 60.0


def _ask(method: str, path: str, body: Any = None) -> Any:
    """Ask the downstream and return what it answers."""
    address = (FOLDER / "downstream.address").read_text()
    with contextlib.closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body))
        return json.load(connection.getresponse())


@handler(PAY)
@handler(CHECKED)
@handler(ONCE)
def pay(job: JobContext) -> Confirmed:
    """Let the downstream do it, and bring its reference. It may kill this process before it answers."""
    answer = _ask("POST", "/pay", {**job.payload, "pid": os.getpid()})
    return Confirmed(answer["ref"])


@check(CHECKED)
def was_it_paid(job: JobContext) -> Confirmed | None:
    """Ask the downstream for its own record."""
    found = _ask("GET", f"/pay/{quote(job.payload['key'])}")["ref"]
    return Confirmed(found) if found else None
