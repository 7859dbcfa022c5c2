"""Resume paused types and enable disabled ones when the time that was set for it has come."""

import logging
from typing import Final

from queues import contract_switches

log = logging.getLogger(__name__)

BATCH: Final = 100


def run_once() -> bool:
    """Turn one batch of switches back."""
    types = contract_switches.turn_back(limit=BATCH)
    if types:
        log.info("the time of a switch was up in %d job types", types)
    return types == BATCH
