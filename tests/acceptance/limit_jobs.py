"""Handlers that take too long, each in its own way, and those that run beside them."""

from __future__ import annotations

import re
import threading
import time
from typing import Final

from queues.handlers import Confirmed, JobContext, handler
from tests.acceptance.jobs import _note as note

SOFT, DEAF, STUCK, BESIDE, STOPPABLE = "limit.soft", "limit.deaf", "limit.stuck", "limit.beside", "limit.stoppable"
LONG: Final = 60.0


@handler(SOFT)
def soft(job: JobContext) -> Confirmed:
    """Work in steps, so that a soft limit finds a way in."""
    note(job)
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        time.sleep(0.05)
    return Confirmed("too late")


@handler(DEAF)
def deaf(job: JobContext) -> Confirmed:
    """Hang in calls into C, and swallow whatever anybody raises."""
    note(job)
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        try:
            time.sleep(LONG)
        except BaseException:  # noqa: S112 (what this handler is for)
            continue
    return Confirmed("too late")


@handler(STUCK)
def stuck(job: JobContext) -> Confirmed:
    """Hold the interpreter: no other thread of this process runs any more."""
    note(job)
    re.match(r"(a+)+$", "a" * 64 + "b")
    return Confirmed("in a few million years")


@handler(BESIDE)
def beside(job: JobContext) -> Confirmed:
    """Run a while and be confirmed."""
    note(job)
    time.sleep(3.0)
    return Confirmed(f"ref-{job.id}")


@handler(STOPPABLE)
def stoppable(job: JobContext) -> Confirmed:
    """Stop when told."""
    note(job)
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        if job.cancelled:
            raise InterruptedError("stopped")
        threading.Event().wait(0.02)
    return Confirmed("too late")
