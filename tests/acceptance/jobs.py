"""Handlers for real workers. Each run writes a line, since its process may not live to tell."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

from queues.handlers import Confirmed, JobContext, handler

QUICK, SLOW, POISON = "accept.quick", "accept.slow", "accept.poison"
FOLDER = Path(os.environ.get("ACCEPTANCE_FOLDER", "."))


def _note(job: JobContext) -> None:
    line = {
        "id": str(job.id), "type": job.type, "run": job.run, "attempt": job.attempt, "pid": os.getpid(),
        "maybe_duplicate": job.maybe_duplicate, "previous": [p["error_class"] for p in job.previous_attempts],
    }  # fmt: skip
    with open(FOLDER / "runs.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@handler(QUICK)
def quick(job: JobContext) -> Confirmed:
    """Say that it ran."""
    _note(job)
    return Confirmed(f"ref-{job.id}")


@handler(SLOW)
def slow(job: JobContext) -> Confirmed:
    """Run until the test lets it go."""
    _note(job)
    give_up = time.monotonic() + 90
    while not (FOLDER / "go").exists() and time.monotonic() < give_up:
        threading.Event().wait(0.02)
    return Confirmed(f"ref-{job.id}")


@handler(POISON)
def poison(job: JobContext) -> Confirmed:
    """Kill the process that runs it."""
    _note(job)
    os.kill(os.getpid(), signal.SIGKILL)
    return Confirmed("never")
