"""Handlers for restarts and for mixed releases: each run writes a line when its body starts and one when it ends.

It imports nothing but `queues.handlers`, in names that the oldest supported release has: tests also copy this file into
a folder of its own, where the workers of two releases find it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Final

from queues import handlers
from queues.handlers import Confirmed, JobContext, handler

QUICK: Final = "rolling.quick"
WORK: Final = "rolling.work"
HELD: Final = "rolling.held"
FOLDER: Final = Path(os.environ.get("ACCEPTANCE_FOLDER", "."))
LONGEST: Final = 90.0


def note(job: JobContext, what: str) -> None:
    """Write down that a body starts or ends. Shape: one JSON object a line."""
    line = {
        "id": str(job.id), "type": job.type, "run": job.run, "what": what, "pid": os.getpid(), "worker": os.getppid(),
        "tree": str(Path(handlers.__file__).parents[1]), "maybe_duplicate": job.maybe_duplicate,
        "previous": [failure["error_class"] for failure in job.previous_attempts],
    }  # fmt: skip
    with open(FOLDER / "runs.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@handler(QUICK)
def quick(job: JobContext) -> Confirmed:
    """Start and end."""
    note(job, "start")
    note(job, "end")
    return Confirmed(f"ref-{job.id}")


@handler(WORK)
def work(job: JobContext) -> Confirmed:
    """Take as long as the payload says."""
    note(job, "start")
    time.sleep(job.payload["seconds"])
    note(job, "end")
    return Confirmed(f"ref-{job.id}")


@handler(HELD)
def held(job: JobContext) -> Confirmed:
    """Run until the test lets it go."""
    note(job, "start")
    give_up = time.monotonic() + LONGEST
    while not (FOLDER / "go").exists() and time.monotonic() < give_up:
        threading.Event().wait(0.02)
    note(job, "end")
    return Confirmed(f"ref-{job.id}")
