"""A circuit breaker with a real worker and scheduler: the service behind it breaks, is left alone, heals."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

import pytest

from queues.models import BreakerFlip, Dependency, Job, JobType
from tests.acceptance.conftest import Stack, limbo
from tests.factories import accept, fold_all, make_type, state_counts, true_counts

pytestmark = pytest.mark.acceptance

KIND: Final = "accept.crm"
JOBS: Final = 40
MINIMUM: Final = 10
TRIALS: Final = 2
NONE: Final = timedelta(0)
REST: Final = timedelta(seconds=1)
"""So long after it opened a run may still begin: its claim looked before the change was committed."""


class Service:
    """A service of somebody else: answers 500 until it is well, and notes when it was called (epoch seconds)."""

    def __init__(self) -> None:
        self.well = False
        self.called_at: list[float] = []
        self._lock = threading.Lock()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with service._lock:
                    service.called_at.append(time.time())
                self.rfile.read(int(self.headers["Content-Length"]))
                body = b'{"ref": "re_1"}' if service.well else b"no database"
                self.send_response(200 if service.well else 500)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jobs"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.server.shutdown()
    made.server.server_close()


def _state() -> str:
    return Dependency.objects.get().state


def _became() -> list[str]:
    return list(BreakerFlip.objects.order_by("id").values_list("became", flat=True))


def _began() -> list[datetime]:
    """Return when each run began: those that failed, and the last one of each job."""
    jobs = list(Job.objects.values_list("failures", "started_at"))
    return sorted(
        [datetime.fromisoformat(one["started_at"]) for failures, _ in jobs for one in failures]
        + [last for _, last in jobs if last is not None]
    )


def test_a_service_that_breaks_is_left_alone_until_it_is_well(sending: Stack, service: Service) -> None:
    """Scenario 5, I-13: what waits behind an open breaker spends no attempt, and nothing is dead when it is over."""
    stack = sending
    stack.env |= {"SHOP_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    make_type(
        KIND, handler="http", target_url=service.url, target_secret_env="SHOP_SECRET", success="reference",
        dependency="crm", max_attempts=6, backoff="exponential", backoff_base_seconds=1.0,
    )  # fmt: skip
    Dependency.objects.create(name="crm", minimum_calls=MINIMUM, reset_seconds=2, trial_jobs=TRIALS)
    stack.scheduler()
    stack.worker(concurrency=2)
    accept(JOBS, kind=KIND)
    stack.until(lambda: _state() == "open", seconds=30)
    opened = BreakerFlip.objects.get().at.timestamp()
    # So many were enough; what came after those is what the second of a fold and the second of a round let through.
    took = opened - sorted(service.called_at)[MINIMUM - 1]
    assert took < 10
    # It still accepts; what it accepts now waits without an attempt, apart from the trials.
    fresh = accept(JOBS, kind=KIND)
    stack.until(lambda: _became().count("half_open") >= 1 and _state() == "open", seconds=30)
    service.well = True
    stack.until(lambda: _state() == "closed", seconds=30)
    assert set(_became()[:-1]) == {"open", "half_open"} and _became()[-1] == "closed"
    assert JobType.objects.get(name=KIND).breaker == "closed"
    stack.all_confirmed(2 * JOBS, seconds=60)

    began = _began()
    flips = list(BreakerFlip.objects.order_by("id").values_list("at", "became"))
    for (at, became), (until, _) in zip(flips, flips[1:], strict=False):
        runs = [run for run in began if at + (REST if became == "open" else NONE) < run < until]
        assert len(runs) <= (0 if became == "open" else TRIALS), (flips, began)
    assert len(service.called_at) == len(began)
    tried = _became().count("half_open")
    attempts = list(Job.objects.filter(id__in=fresh).values_list("attempt", flat=True))
    # Each of them ran once for its proof; only failed trials cost one more.
    assert sum(attempts) - JOBS <= TRIALS * (tried - 1)
    assert limbo() == []
    fold_all()
    assert state_counts() == true_counts()
