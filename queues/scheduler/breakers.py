"""Judge the circuit breakers: open those whose dependency fails, try again after a while, close them when it works."""

import logging

from queues import breaker_actions, breakers
from queues.breakers import Change

log = logging.getLogger(__name__)


def run_once() -> bool:
    """Do one round."""
    breaker_actions.make_missing()
    breaker_actions.set_back()
    breaker_actions.expire()
    for reading in breakers.readings():
        wanted = breakers.judge(reading)
        if wanted is not None and breaker_actions.apply(reading, wanted) and isinstance(wanted, Change):
            log.warning("breaker of %s is %s: %s", reading.standing.name, wanted.became, wanted.why)
    # Also where a contract names another dependency now, or somebody had its type locked.
    breaker_actions.repeat()
    return False
