"""The demo's own handlers may be run again, late, half done and out of order: `jobsboard.testing.assert_replayable`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import pytest

from jobsboard.demo import digest, handlers, mail, partner, place
from jobsboard.demo.crm import Callbacks, Crm
from jobsboard.demo.journal import Journal, note, read
from jobsboard.testing import assert_replayable
from queues import http_target, outbound
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext
from tests.demo.test_crm import CALLBACK_SECRET, PROVIDER, SECRET, Inbox, feel

__all__ = ["feel"]
pytestmark = pytest.mark.django_db

MAIL = {"user_id": 7, "email": "customer-7@example.org"}
INVOICE = {"invoice_id": "INV-000007", "amount_cents": 4200}
TICK = {"until": "2126-11-22T03:00:00Z", "minutes": 60 * 24 * 365 * 200}
ACCOUNT = {"user_id": 7, "seats": 5, "visits": 30}
URL = "http://127.0.0.1:8091/contacts"


class Mails:
    """A mail server that takes whatever comes, and can be asked."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str, str]] = []

    def send(
        self, *, to: str, subject: str, body: str, idempotency_key: str, maybe_duplicate: bool, probe: bool
    ) -> str:
        self.taken.append((to, subject, idempotency_key))
        return f"Q{len(self.taken)}"

    def find(self, idempotency_key: str) -> str | None:
        return next((f"Q{n}" for n, (_, _, key) in enumerate(self.taken, 1) if key == idempotency_key), None)


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Mails:
    made = Mails()
    monkeypatch.setattr(mail, "send", made.send)
    monkeypatch.setattr(mail, "find", made.find)
    return made


def test_a_welcome_goes_out_once(mails: Mails) -> None:
    """SMTP takes no key: the check finds what was sent. Only a worker that froze before it sent cannot be helped."""
    options: dict[str, Any] = {"effects": lambda: mails.taken, "reset": mails.taken.clear}
    assert_replayable(handlers.welcome_email, MAIL, **options, skip=("overtaken",))
    with pytest.raises(AssertionError, match="overtaken"):
        assert_replayable(handlers.welcome_email, MAIL, **options)
    with pytest.raises(AssertionError, match="twice instead of once"):
        assert_replayable(handlers.welcome_email, MAIL, **options, check=lambda job: None, skip=("overtaken",))


def test_an_invoice_is_handed_over_once() -> None:
    """Its step is kept; should the worker die inside it, the partner goes by the key."""

    def forget() -> None:
        place.books().unlink(missing_ok=True)

    def booked() -> list[tuple[str, str]]:
        partner.book_due(now=time.time() + 60)
        return [(entry.key, entry.refused) for entry in partner.entries()]

    def handed_over() -> list[str]:
        return [key for key, _ in partner.handoffs()]

    assert_replayable(handlers.hand_over_invoice, INVOICE, effects=handed_over, reset=forget)
    assert_replayable(handlers.hand_over_invoice, INVOICE, effects=booked, reset=forget, inside_steps=True)


def test_a_score_that_is_computed_twice_is_the_same() -> None:
    """What counts is what is known afterwards; the log has a line for each time."""

    def scores() -> set[tuple[str, float]]:
        return {(line["key"], line["score"]) for line in read(place.score_log())}

    def forget() -> None:
        place.score_log().unlink(missing_ok=True)

    assert_replayable(handlers.score_account, ACCOUNT, effects=scores, reset=forget)


def test_a_digest_is_written_once_and_stays_as_it_was() -> None:
    def forget() -> None:
        for path in place.digests().iterdir():
            path.unlink()
        place.traffic_log().unlink(missing_ok=True)

    def effects() -> list[tuple[str, int]]:
        assert all(path.suffix == ".json" for path in place.digests().iterdir()), "nothing half written is left"
        # What comes in later changes nothing.
        note(place.traffic_log(), "accepted", type="billing.handoff", job_id="x", duplicate=False)
        return sorted((key, one["invoices"]) for key, one in digest.written().items())

    assert_replayable(handlers.write_digest, TICK, effects=effects, reset=forget)


@dataclass(frozen=True)
class Target:
    """The part of the contract that says where the contact goes."""

    target_url: str = URL
    target_secret_env: str = "CRM_SECRET"
    target_secret: bytes | None = None


def test_a_contact_is_written_once(monkeypatch: pytest.MonkeyPatch, feel: Any) -> None:
    """The request is signed and has the key; the CRM drops what it knows."""
    monkeypatch.setenv("CRM_SECRET", SECRET)
    crms: list[Crm] = []

    def restart() -> None:
        place.crm_log().unlink(missing_ok=True)
        log = Journal(place.crm_log())
        callbacks = Callbacks(log, secret=CALLBACK_SECRET, post=Inbox().post)
        crms[:] = [Crm(log, callbacks, secret=SECRET, provider_url=PROVIDER)]

    def post(url: str, *, body: bytes, headers: Any, seconds: float = 0.0) -> outbound.Answer:
        assert url == URL
        status, said = crms[0].receive({name.lower(): value for name, value in headers.items()}, body)
        return outbound.Answer(status=status, headers={}, body=json.dumps(said).encode(), seconds=0.0)

    monkeypatch.setattr(outbound, "post", post)

    def sync(job: JobContext) -> Confirmed | AwaitingConfirmation:
        return http_target.deliver(job, Target())

    assert_replayable(
        sync,
        MAIL,
        type="crm.sync_contact",
        effects=lambda: [line["key"] for line in read(place.crm_log()) if line["event"] == "effect"],
        reset=restart,
    )
