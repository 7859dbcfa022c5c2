"""End waiting jobs that are past their max age."""

from typing import Final

from queues import lifecycle

BATCH: Final = 500


def run_once() -> bool:
    """Expire one batch."""
    ids = lifecycle.stale(limit=BATCH)
    return bool(ids) and bool(lifecycle.expire(ids)) and len(ids) == BATCH
