"""Handlers of the stack that `benchmarks.fuzz_api` fuzzes: one for each way in which a run can go on."""

import threading

from queues.handlers import AwaitingConfirmation, Confirmed, JobContext, PermanentError, RetryLater, handler

DONE, DEAD, RETRY, AWAIT, SLOW = "fuzz.done", "fuzz.dead", "fuzz.retry", "fuzz.await", "fuzz.slow"


@handler(DONE)
def done(job: JobContext) -> Confirmed:
    """Return a reference and a result with text that needs care."""
    return Confirmed(f"ref-{job.id}", result={"text": "<b>\u202e\x1b[31m", "n": 1.5})


@handler(DEAD)
def dead(job: JobContext) -> Confirmed:
    """Fail for good."""
    raise PermanentError("<script>alert(1)</script> no such customer 🚀")


@handler(RETRY)
def retry(job: JobContext) -> Confirmed:
    """Ask for a later attempt."""
    raise RetryLater(3600)


@handler(AWAIT)
def hand_over(job: JobContext) -> AwaitingConfirmation:
    """Leave the proof to a callback."""
    return AwaitingConfirmation(f"ext-{job.id}")


@handler(SLOW)
def slow(job: JobContext) -> Confirmed:
    """Run for three seconds, or until somebody cancels: long enough to be found at it, and no stop waits long."""
    job.progress(0.5, "half")
    for _ in range(30):
        if job.cancelled:
            break
        threading.Event().wait(0.1)
    return Confirmed("slow")
