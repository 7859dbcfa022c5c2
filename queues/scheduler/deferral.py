"""Defer what can wait while a tier above waits for workers, and take it back afterwards."""

import logging

from queues import deferral

log = logging.getLogger(__name__)


def run_once() -> bool:
    """Look once. Returns whether a batch was full."""
    swept = deferral.sweep()
    if swept.deferred:
        log.warning("%s: deferred %s", swept.reason, ", ".join(swept.deferred))
    if swept.taken_back:
        log.info("no longer deferred: %s", ", ".join(swept.taken_back))
    return swept.more
