"""What the tests of alerts share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.fernet import Fernet

from jobsboard.alerts.delivery import Webhooks
from tests.alerts.receivers import Receiver
from tests.alerts.rounds import Rounds
from tests.queues.test_outbound import resolver

__all__ = ["resolver"]


@pytest.fixture
def rounds(db: None, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """Return rounds whose outbox only records."""
    made = Rounds()
    monkeypatch.setattr("jobsboard.alerts.outbox.announce", made.announce)
    return made


@pytest.fixture
def reachable(settings: Any) -> None:
    """Let endpoints be on this machine, on any port, without TLS; and let secrets be stored."""
    settings.OUTBOUND_ALLOWED_CIDRS = ["127.0.0.0/8"]
    settings.WEBHOOK_ALLOW_HTTP, settings.WEBHOOK_ALLOWED_PORTS = True, None
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    settings.PUBLIC_URL = "https://jobs.example"


@pytest.fixture
def receiver(reachable: None) -> Iterator[Receiver]:
    """Return a receiver that answers 200 until it is told otherwise."""
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def service() -> Webhooks:
    """Return the service as one scheduler has it."""
    return Webhooks()
