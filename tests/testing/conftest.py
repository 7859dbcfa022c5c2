"""What the tests of `jobsboard.testing` share: no broker, and handlers that are forgotten again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobsboard.testing import isolated
from queues import handlers


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    known, asked = dict(handlers._handlers), dict(handlers._checks)
    with isolated():
        yield
    for name in handlers._handlers.keys() - known.keys():
        del handlers._handlers[name]
    for name in handlers._checks.keys() - asked.keys():
        del handlers._checks[name]
