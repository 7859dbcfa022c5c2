"""Real processes: an alarm that does not need what it watches, and a flood of dead letters that is told once."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from jobsboard.alerts import defaults
from jobsboard.demo import journal
from jobsboard.demo.journal import Journal
from jobsboard.demo.pager import Pager
from jobsboard.demo.pager_server import PATH, Server
from jobsboard.models import Alert, AlertRule, WebhookDelivery, WebhookEndpoint
from queues import lifecycle, secrets_box
from queues.lifecycle import End, Verdict
from queues.models import OutcomeRollup
from tests.acceptance.conftest import Stack
from tests.acceptance.jobs import QUICK
from tests.factories import accept, claim, make_type
from tests.scenarios.servers import own_broker

pytestmark = pytest.mark.acceptance

SECRET: Final = "whsec_" + base64.b64encode(b"the pager of these tests, 32 byt").decode()


class Paged:
    """A pager that verifies every message, and what it was told."""

    def __init__(self, log: Path) -> None:
        self.log = log
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"
        self.server = Server(Pager(Journal(log), secret=SECRET), listener)
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def told(self) -> list[tuple[str, str]]:
        """Return event and title of what was verified; nothing may have been refused."""
        lines = list(journal.read(self.log))
        assert not [line for line in lines if line["event"] == "refused"]
        return [(line["type"], line["title"]) for line in lines if line["event"] == "alert"]

    def close(self) -> None:
        """End it."""
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def pagers(sending: Stack, tmp_path: Path) -> Iterator[list[Paged]]:
    """Two receivers with endpoints, which the processes may reach."""
    made = [Paged(tmp_path / f"pager{n}.jsonl") for n in range(2)]
    for n, one in enumerate(made):
        WebhookEndpoint.objects.create(
            name=f"pager {n}", url_sealed=secrets_box.seal(one.url), url_shown=one.url,
            secret_sealed=secrets_box.seal(SECRET),
        )  # fmt: skip
    yield made
    for one in made:
        one.close()


def test_the_alarm_does_not_depend_on_what_it_watches(stack: Stack, pagers: list[Paged]) -> None:
    """Promise 8: with every worker and the broker killed, the alert leaves, is verified, and resolves."""
    defaults.ensure()
    AlertRule.objects.filter(default_key="no_worker").update(for_seconds=5, clear_for_seconds=5, edited=True)
    with own_broker() as messages:
        stack.env["BROKER_URL"] = messages.url
        stack.scheduler()
        worker = stack.worker()
        accept(3, kind=QUICK)
        stack.all_confirmed(3, seconds=60)
        stack.until(lambda: OutcomeRollup.objects.filter(grain="total", type=QUICK, accepted=3).exists(), seconds=20)
        messages.kill()
        stack.kill(worker)
        accept(2, kind=QUICK)
        took = stack.until(lambda: all(one.told() for one in pagers), seconds=120)
        [(event, title)] = pagers[0].told()
        assert event == "alert.firing"
        assert title.startswith("No worker takes jobs of tier2"), title
        assert took < 60, "15 s without a sign of a worker, 5 that it lasts, a round, a delivery"
        messages.start()
        stack.worker()
        stack.until(lambda: all(len(one.told()) == 2 for one in pagers), seconds=120)
        assert [event for event, _ in pagers[1].told()] == ["alert.firing", "alert.resolved"]
        assert Alert.objects.count() == 1


def test_ten_thousand_dead_letters_are_one_alert(stack: Stack, pagers: list[Paged]) -> None:
    """I-38: 10,000 jobs die in a minute; each endpoint is told once, and once more at most that it got worse."""
    make_type("flood", tier_id=2, max_attempts=1, window_seconds=5)
    # This test kills the jobs itself: that no worker is there is true, and another test's.
    defaults.ensure()
    AlertRule.objects.filter(default_key="no_worker").update(enabled=False)
    stack.scheduler()
    for _ in range(20):
        ids = accept(500, kind="flood")
        runs = claim(ids)
        lifecycle.settle([
            End(id=run.id, fence=run.fence, verdict=Verdict.FAILED, reason="permanent_error", fingerprint="f" * 16,
                failure={"error_class": "Broken", "message": "it broke"})
            for run in runs
        ])  # fmt: skip
    stack.until(lambda: all(one.told() for one in pagers), seconds=60)
    stack.until(lambda: "10,000 new dead letters" in _found_words(), seconds=60)
    stack.until(lambda: not WebhookDelivery.objects.filter(state="pending").exists(), seconds=30)
    assert [alert.key for alert in Alert.objects.all()] == ["tier2"]
    assert WebhookDelivery.objects.count() <= 4
    for one in pagers:
        assert [event for event, _ in one.told()] in (["alert.firing"], ["alert.firing", "alert.updated"])


def _found_words() -> str:
    return " ".join(str(one["words"]) for alert in Alert.objects.all() for one in alert.findings)
