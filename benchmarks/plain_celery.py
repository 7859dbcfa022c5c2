"""The peer: plain Celery on the same broker, out of the box but for its concurrency; one message a job, no result."""

import os

from celery import Celery

app = Celery("plain", broker=os.environ["BROKER_URL"])
app.conf.task_ignore_result = True
app.conf.task_default_queue = "plain"


@app.task  # type: ignore[untyped-decorator]
def noop(number: int) -> str:
    """Return a reference at once; it goes nowhere."""
    return "r-1"
