"""A worker whose connection to the broker is dead without having said so."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from benchmarks.chaos.wire import Wire
from queues.models import WorkerProcess
from tests.acceptance.conftest import Stack
from tests.acceptance.jobs import QUICK
from tests.factories import accept

pytestmark = pytest.mark.acceptance


@pytest.fixture
def wire(stack: Stack) -> Iterator[Wire]:
    """A wire between this stack's processes and their broker; a worker counts as deaf after eight seconds."""
    url = urlsplit(stack.env["BROKER_URL"])
    made = Wire(url.hostname or "", url.port or 6379)
    password = f":{url.password}@" if url.password else ""
    stack.env["BROKER_URL"] = f"redis://{password}127.0.0.1:{made.port}{url.path}"
    stack.env["WORKER_DEAF_SECONDS"] = "8"
    yield made
    made.close()


def test_a_deaf_worker_is_found_and_replaced(stack: Stack, wire: Wire) -> None:
    """I-23: its connections swallow everything; within the time it says so, ends, and its successor does the work."""
    stack.scheduler()
    worker = stack.worker()
    accept(1, kind=QUICK)
    stack.all_confirmed(1, seconds=20)
    wire.swallow()
    accept(1, kind=QUICK)
    stack.until(lambda: WorkerProcess.objects.filter(pid=worker.pid).exclude(trouble="").exists(), seconds=30)
    stack.until(lambda: worker.poll() is not None, seconds=30)
    stack.worker()
    stack.all_confirmed(2, seconds=30)
