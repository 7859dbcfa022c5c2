"""Handlers for measurements: no work, so that what is left is ours."""

from queues.handlers import Confirmed, JobContext, handler


@handler("bench.noop")
def noop(job: JobContext) -> Confirmed:
    """Return a reference at once."""
    return Confirmed(ref="r-1")
