"""Keep a test from the broker, and from what the test before it left in caches."""

import contextlib
from collections.abc import Iterator
from unittest import mock

from queues import backlog, broker, contracts


@contextlib.contextmanager
def no_broker() -> Iterator[None]:
    """Send no hints: nobody waits for a broker that is not there, nor is warned of it."""
    # A queue that is not short is what accept leaves to the scheduler; that is what a test has `run_pending` for.
    with (
        mock.patch.object(broker, "is_short", lambda name: False),
        mock.patch.object(broker, "publish", lambda hints, *, task=broker.TASK: True),
    ):
        yield


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """For the time of one test: no broker, and no contracts remembered from a test that was rolled back."""
    with no_broker():
        _forget()
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    contracts.forget()
    backlog.forget_cached()
