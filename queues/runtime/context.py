"""What a claimed run or check gives to its handler: the `JobContext`, made in one place."""

from collections.abc import Callable

from queues.handlers import JobContext, NoSteps, Steps
from queues.lifecycle import DueCheck, Run


def context_of(
    claimed: Run | DueCheck, *, cancelled: Callable[[], bool] = lambda: False, steps: Steps | None = None
) -> JobContext:
    """Return the context of a claim. A check that is polled has no steps and nobody to stop it."""
    return JobContext(
        id=claimed.id,
        type=claimed.type,
        run=claimed.fence,
        attempt=claimed.attempt,
        payload_text=claimed.payload,
        idempotency_key=claimed.idempotency_key,
        group=claimed.group,
        accepted_epoch=claimed.accepted_at,
        deadline_epoch=claimed.expires_at,
        maybe_duplicate=claimed.begun > 1,
        failures_text=claimed.failures,
        reference=claimed.reference,
        probe=claimed.probe,
        trace_text=claimed.trace,
        _cancelled=cancelled,
        _steps=steps or NoSteps(),
    )
