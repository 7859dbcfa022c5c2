"""Handlers for measurements: no work, so that what is left is ours."""

import json
import os
import random
import signal
import threading
from functools import partial

from django.db import connection

from queues.handlers import Confirmed, JobContext, handler


@handler("bench.noop")
def noop(job: JobContext) -> Confirmed:
    """Return a reference at once."""
    return Confirmed(ref="r-1")


@handler("bench.sleep")
def sleep(job: JobContext) -> Confirmed:
    """Write a line to the effect log, then work for the payload's `seconds`."""
    _effect({"key": job.payload["key"], "run": job.run, "maybe_duplicate": job.maybe_duplicate})
    threading.Event().wait(job.payload["seconds"])
    return Confirmed(ref=f"effect-{job.payload['key']}")


@handler("bench.atomic", atomic=True)
def atomic(job: JobContext) -> Confirmed:
    """Write a row of its own, and take a little time so that kills find it at work."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO bench_effect (job_id, run) VALUES (%s, %s)", [job.id, job.run])
    threading.Event().wait(job.payload["seconds"])
    return Confirmed(ref=f"effect-{job.id}")


@handler("bench.steps")
def steps(job: JobContext) -> Confirmed:
    """Do four steps with an effect each; the first runs die between two of them."""
    for number in range(4):
        key = f"{job.payload['n']}/{number}"
        job.once(f"step {number}", partial(_effect, {"key": key, "run": job.run}))
        if job.run <= job.payload["dies"] and random.random() < 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
    return Confirmed(ref=f"steps-{job.payload['n']}")


def _effect(what: dict[str, object]) -> None:
    # One write of less than a page with O_APPEND: lines of several processes do not mix.
    log = os.open(os.environ["EFFECT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(log, json.dumps(what).encode() + b"\n")
    finally:
        os.close(log)
