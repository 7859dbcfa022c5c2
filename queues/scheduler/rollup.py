"""Fold the deltas that transitions wrote into rollups."""

from typing import Final

from queues import lifecycle

BATCH: Final = 20_000


def run_once() -> bool:
    """Fold one batch."""
    return lifecycle.fold(limit=BATCH) == BATCH
