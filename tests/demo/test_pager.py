"""The demo's receiver of alerts: what it believes, and what its log says."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from standardwebhooks import Webhook

from jobsboard.demo import journal
from jobsboard.demo.journal import Journal
from jobsboard.demo.pager import Pager
from jobsboard.models import WebhookEndpoint
from queues import secrets_box

SECRET: Final = "whsec_" + base64.b64encode(b"a secret of 32 bytes for pagers.").decode()
Send = Callable[..., tuple[int, str]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return where the pager writes."""
    return tmp_path / "pager.jsonl"


@pytest.fixture
def send(log: Path) -> Send:
    """Return a function that sends a signed alert to a pager."""
    pager = Pager(Journal(log), secret=SECRET)

    def sent(
        message: str, *, sequence: int = 1, alert: int = 7, ago: int = 0, secret: str = SECRET, tamper: str = ""
    ) -> tuple[int, str]:
        at = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=ago)
        data: dict[str, Any] = {"id": alert, "sequence": sequence, "title": "Tier 2 is late", "state": "firing"}
        body = json.dumps({"type": "alert.firing", "data": data})
        headers = {
            "webhook-id": message,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": Webhook(secret).sign(message, at, body),
        }
        answer = pager.receive(headers, (body + tamper).encode())
        return answer.status, answer.word

    return sent


def words(log: Path) -> list[str]:
    """Return what the pager wrote down."""
    return [line["event"] for line in journal.read(log)]


def test_a_signed_alert_is_taken_once(send: Send, log: Path) -> None:
    assert send("msg_1") == (200, "taken")
    assert send("msg_1") == (200, "known")
    assert words(log) == ["alert", "repeated"]
    [first, _] = journal.read(log)
    assert (first["title"], first["state"], first["sequence"]) == ("Tier 2 is late", "firing", 1)


def test_an_older_state_does_not_replace_a_newer_one(send: Send, log: Path) -> None:
    assert [send("msg_2", sequence=2), send("msg_1", sequence=1), send("msg_3", alert=8)] == [
        (200, "taken"), (200, "older"), (200, "taken"),
    ]  # fmt: skip
    assert words(log) == ["alert", "older", "alert"]


@pytest.mark.parametrize(
    "wrong", [{"ago": 400}, {"ago": -400}, {"tamper": " "}, {"secret": "whsec_" + base64.b64encode(b"x" * 32).decode()}]
)
def test_what_is_not_signed_so_is_refused(send: Send, log: Path, wrong: dict[str, Any]) -> None:
    assert send("msg_1", **wrong) == (401, "not verified")
    assert words(log) == ["refused"]
    assert send("msg_1") == (200, "taken"), "a forged message does not use up the id of the real one"


def test_the_endpoint_follows_the_address_and_keeps_the_rest(
    db: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    with pytest.raises(CommandError, match="PAGER_SECRET"):
        call_command("demo_endpoint", url="http://127.0.0.1:1/alerts")
    monkeypatch.setenv("PAGER_SECRET", SECRET)
    call_command("demo_endpoint", url="http://127.0.0.1:1/alerts")
    WebhookEndpoint.objects.update(enabled=False)
    call_command("demo_endpoint", url="http://127.0.0.1:2/alerts")
    endpoint = WebhookEndpoint.objects.get()
    assert secrets_box.open(endpoint.url_sealed) == "http://127.0.0.1:2/alerts"
    assert secrets_box.open(bytes(endpoint.secret_sealed or b"")) == SECRET
    assert not endpoint.enabled, "somebody disabled it"
