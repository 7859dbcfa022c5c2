"""Handlers for measurements: no work, so that what is left is ours."""

import json
import os
import threading

from queues.handlers import Confirmed, JobContext, handler


@handler("bench.noop")
def noop(job: JobContext) -> Confirmed:
    """Return a reference at once."""
    return Confirmed(ref="r-1")


@handler("bench.sleep")
def sleep(job: JobContext) -> Confirmed:
    """Write a line to the effect log, then work for the payload's `seconds`."""
    line = json.dumps({"key": job.payload["key"], "run": job.run, "maybe_duplicate": job.maybe_duplicate})
    # One write of less than a page with O_APPEND: lines of several processes do not mix.
    log = os.open(os.environ["EFFECT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(log, line.encode() + b"\n")
    finally:
        os.close(log)
    threading.Event().wait(job.payload["seconds"])
    return Confirmed(ref=f"effect-{job.payload['key']}")
