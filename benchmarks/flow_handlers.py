"""Handlers for `benchmarks.flow`: sleep, and note when."""

import json
import os
import threading
import time

from queues.handlers import Confirmed, JobContext, handler


def _sleep(job: JobContext) -> Confirmed:
    kind = str(job.type)
    began = time.time()
    threading.Event().wait(job.payload["seconds"])
    line = {"type": kind, "group": job.group or "", "n": job.payload["n"], "began": began, "ended": time.time()}
    # One write of less than a page with O_APPEND: lines of several processes do not mix.
    log = os.open(os.environ["FLOW_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(log, json.dumps(line).encode() + b"\n")
    finally:
        os.close(log)
    return Confirmed(ref=f"{kind}-{job.id}")


for name in ("flow.limit", "flow.rate", "flow.groups", "flow.order", "flow.merge"):
    handler(name)(_sleep)
