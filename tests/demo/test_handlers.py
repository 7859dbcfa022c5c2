"""The handlers as a worker calls them: what they return, and what a second run does.

The mail is in `test_mail`; that runs may be repeated in every way, in `test_replayable`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time

import pytest

from jobsboard.demo import handlers, partner, place, scoring
from jobsboard.demo.journal import read
from jobsboard.demo.world import World
from queues.handlers import Confirmed, Rejected, find, find_check
from tests.demo.conftest import MakeContext, awaiting, confirmed

BILLING = "billing.handoff"
INVOICE = {"invoice_id": "INV-000007", "amount_cents": 4200}


def book_everything() -> int:
    return partner.book_due(now=time.time() + 60)


def test_every_python_type_has_its_handler_and_its_check() -> None:
    assert [find(name).function for name in ("onboarding.welcome_email", "scoring.account", BILLING)] == [
        handlers.welcome_email,
        handlers.score_account,
        handlers.hand_over_invoice,
    ]
    assert find_check("onboarding.welcome_email") is handlers.welcome_email_sent
    assert find_check(BILLING) is handlers.invoice_booked


def test_an_invoice_is_confirmed_when_it_stands_in_the_books(context: MakeContext) -> None:
    job = context(BILLING, INVOICE)
    assert handlers.invoice_booked(job) is None
    assert awaiting(handlers.hand_over_invoice(job)).ref == "handoff-1"
    assert partner.book_due(now=time.time()) == 0
    assert handlers.invoice_booked(job) is None
    assert book_everything() == 1
    assert handlers.invoice_booked(job) == Confirmed(ref="BK-00000001")


def test_whoever_gets_a_probe_is_told(context: MakeContext) -> None:
    """The partner's row and the log of scores; the mail is in `test_mail`, the CRM has its header."""
    plain, probe = (context(BILLING, INVOICE, idempotency_key=key, probe=key == "b") for key in "ab")
    for job in (plain, probe):
        handlers.hand_over_invoice(job)
    assert partner.probe_keys() == {"b"}
    for key in "ab":
        job = context("scoring.account", {"user_id": 1, "seats": 1, "visits": 0}, idempotency_key=key, probe=key == "b")
        handlers.score_account(job)
    assert [line["probe"] for line in read(place.score_log())] == [False, True]
    assert World.now().probes == {"b"}


def test_the_books_of_an_older_demo_learn_what_a_probe_is(context: MakeContext) -> None:
    with contextlib.closing(sqlite3.connect(place.books())) as books:
        books.executescript(
            "CREATE TABLE handoff (id integer PRIMARY KEY, key text NOT NULL, invoice text NOT NULL,"
            " amount_cents integer NOT NULL, at real NOT NULL, seen integer NOT NULL DEFAULT 0);"
            "INSERT INTO handoff (key, invoice, amount_cents, at) VALUES ('old', 'INV-0001', 1, 1.0)"
        )
    handlers.hand_over_invoice(context(BILLING, INVOICE, probe=True))
    assert len(partner.handoffs()) == 2
    assert len(partner.probe_keys()) == 1


def test_an_invoice_above_the_limit_is_refused(context: MakeContext) -> None:
    job = context(BILLING, {**INVOICE, "amount_cents": partner.LIMIT_CENTS + 1})
    handlers.hand_over_invoice(job)
    book_everything()
    found = handlers.invoice_booked(job)
    assert isinstance(found, Rejected)
    assert "above the limit of 10,000.00 EUR" in str(found)


def test_an_invoice_that_is_handed_over_twice_is_booked_once(context: MakeContext) -> None:
    """Without a row to keep its step in, `once` does it again; the partner goes by the key."""
    job = context(BILLING, INVOICE)
    assert [awaiting(handlers.hand_over_invoice(job)).ref for _ in range(2)] == ["handoff-1", "handoff-2"]
    assert book_everything() == 2
    assert [entry.ref for entry in partner.entries()] == ["BK-00000001"]
    assert [key for key, _ in partner.handoffs()] == [job.idempotency_key] * 2


def test_the_partner_takes_one_to_five_seconds() -> None:
    delays = [partner.delay_of(f"jb_{n}") for n in range(200)]
    assert min(delays) >= 1.0
    assert max(delays) <= 5.0
    assert max(delays) - min(delays) > 3.0


def test_a_score_is_the_same_in_every_run_and_logged(context: MakeContext) -> None:
    job = context("scoring.account", {"user_id": 7, "seats": 5, "visits": 30})
    first, second = (confirmed(handlers.score_account(job)) for _ in range(2))
    assert first == second
    assert first.ref is None
    assert 0.0 < first.result["score"] < 1.0
    assert [line["score"] for line in read(place.score_log())] == [first.result["score"]] * 2


@pytest.mark.parametrize("visits", [0, 30, 59])
def test_a_score_takes_some_milliseconds(visits: int) -> None:
    seen: list[float] = []
    began = time.process_time()
    scoring.score(user_id=1, seats=5, visits=visits, progress=lambda share, text: seen.append(share))
    assert 0.001 < time.process_time() - began < 0.5
    assert seen == [0.25, 0.5, 0.75, 1.0]
