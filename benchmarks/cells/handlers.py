"""Jobsboard's side of the effect."""

from benchmarks.cells.effect import TYPE, act
from queues.handlers import Confirmed, JobContext, handler


@handler(TYPE)
def run(job: JobContext) -> Confirmed:
    """Have the effect, and bring its reference back."""
    payload = job.payload
    ref = act(key=payload["key"], seconds=payload["seconds"], run=str(job.run), told=job.maybe_duplicate)
    return Confirmed(ref=ref)
