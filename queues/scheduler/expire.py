"""End waiting jobs that are past their max age."""

from typing import Final

from queues import lifecycle
from queues.faults import fault

BATCH: Final = 500


def run_once() -> bool:
    """Expire one batch."""
    ids = lifecycle.stale(limit=BATCH)
    if not ids:
        return False
    fault("expire.selected")
    return bool(lifecycle.expire(ids)) and len(ids) == BATCH
