"""Handlers that hand their work to the downstream of test_twice; it says where it is in a file."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any, Final

from queues.handlers import Confirmed, JobContext, check, handler

PAY: Final = "twice.pay"
CHECKED: Final = "twice.checked"
ONCE: Final = "twice.once"
FOLDER: Final = Path(os.environ.get("ACCEPTANCE_FOLDER", "."))
PATIENCE: Final = 60.0


def _url(path: str) -> str:
    return (FOLDER / "downstream.url").read_text() + path


def _read(request: urllib.request.Request) -> Any:
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


@handler(PAY)
@handler(CHECKED)
@handler(ONCE)
def pay(job: JobContext) -> Confirmed:
    """Let the downstream do it, and bring its reference. It may kill this process before it answers."""
    body = json.dumps({**job.payload, "pid": os.getpid()}).encode()
    answer = _read(urllib.request.Request(_url("/pay"), data=body, method="POST"))
    return Confirmed(answer["ref"])


@check(CHECKED)
def was_it_paid(job: JobContext) -> Confirmed | None:
    """Ask the downstream for its own record."""
    found = _read(urllib.request.Request(_url(f"/pay/{job.payload['key']}")))["ref"]
    return Confirmed(found) if found else None
