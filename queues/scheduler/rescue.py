"""Give up runs whose lease ran out: their process is dead, cut off or frozen."""

import logging
from typing import Final

from queues import lifecycle
from queues.faults import fault

log = logging.getLogger(__name__)

BATCH: Final = 500


def run_once() -> bool:
    """Rescue one batch."""
    ids = lifecycle.lost(limit=BATCH)
    if not ids:
        return False
    fault("rescue.selected")
    moved = lifecycle.rescue(ids)
    # Another scheduler may have been faster.
    if moved:
        log.warning("rescued %d runs whose lease ran out", len(moved))
    return len(ids) == BATCH and bool(moved)
