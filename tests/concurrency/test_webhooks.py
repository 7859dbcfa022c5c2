"""Senders beside each other claim each try once; two presses at the same moment are one (promise 7, I-36)."""

from __future__ import annotations

import datetime as dt
import functools
from collections import Counter
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.db import transaction

from jobsboard.alerts import endpoints, ledger, outbox
from jobsboard.alerts.endpoints import EndpointRefused, Who
from jobsboard.alerts.ledger import Claimed
from jobsboard.alerts.sending import Tried
from jobsboard.models import Event, WebhookDelivery, WebhookEndpoint
from queues.models import AuditEntry
from tests.alerts.endpoints import make_alert, make_endpoint
from tests.alerts.receivers import receiving
from tests.alerts.rounds import make_rule
from tests.concurrency.rivals import Rival, outcomes, together
from tests.factories import sql

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db")]

DELIVERED = Tried(verdict="delivered", at=dt.datetime(2026, 11, 22, tzinfo=dt.UTC), status=200, took_seconds=0.1)
GONE = Tried(verdict="gone", at=dt.datetime(2026, 11, 22, tzinfo=dt.UTC), status=410, took_seconds=0.1)


@pytest.fixture(autouse=True)
def _keys(settings: Any) -> None:
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    settings.WEBHOOK_ALLOW_HTTP, settings.WEBHOOK_ALLOWED_PORTS = True, None


def announce(n: int) -> None:
    """Tell of so many alerts."""
    now = sql("SELECT jobs_now()")[0][0]
    for number in range(n):
        outbox.announce(make_alert(f"key {number} {now}"), Event.FIRING, now=now)


def claim() -> list[Claimed]:
    return ledger.claim(answering=99, failing=99)


def test_i_36_four_senders_claim_each_try_once() -> None:
    """I-36: guarded and committed: what one has no other gets, and what is recorded twice is kept once."""
    for number in range(5):
        make_endpoint(f"end {number}")
    for _ in range(5):
        announce(4)
        found = outcomes(together(*[claim] * 4))
        ids = Counter(one.id for claimed in found for one in claimed)
        assert set(ids.values()) == {1} and len(ids) == 20
        results = [(one, DELIVERED) for claimed in found for one in claimed]
        outcomes(together(*[functools.partial(ledger.record, results)] * 2))
    rows = WebhookDelivery.objects.all()
    assert {(row.state, row.attempt, len(row.attempts)) for row in rows} == {("delivered", 1, 1)}
    assert len(rows) == 100


def test_a_claim_passes_by_what_another_one_holds() -> None:
    """It does not wait: a sender that hangs in the middle delays nobody."""
    make_endpoint()
    announce(2)
    first = WebhookDelivery.objects.order_by("id")[0]
    with transaction.atomic():
        WebhookDelivery.objects.select_for_update(no_key=True).get(pk=first.pk)
        rival: Rival[list[Claimed]] = Rival(claim)
        assert not rival.waits()
        [claimed] = rival.outcome()
        assert claimed.id != first.pk


def test_an_endpoint_that_is_gone_is_disabled_once() -> None:
    """Two senders hear 410 at the same moment: one entry in the audit log, everything given up, no deadlock."""
    for number in range(8):
        WebhookEndpoint.objects.update(enabled=False)
        endpoint = make_endpoint(f"end {number}")
        announce(9)
        claimed = claim()
        halves = [[(one, GONE) for one in claimed[:2]], [(one, GONE) for one in claimed[2:]]]
        outcomes(together(*[functools.partial(ledger.record, half) for half in halves]))
        assert AuditEntry.objects.filter(action="webhook.disabled", object_id=str(endpoint.pk)).count() == 1
        assert set(WebhookDelivery.objects.values_list("state", flat=True)) == {"failed"}


def test_pressed_at_the_same_moment_it_happens_once() -> None:
    """Promise 7: a test, a test-fire and a resend, by the same person in two windows."""
    endpoint, rule = make_endpoint(), make_rule()
    announce(1)
    first = WebhookDelivery.objects.get().pk
    for press in (
        lambda: outbox.send_test(endpoint.pk, actor="ada")[1],
        lambda: outbox.test_fire(rule.pk, actor="ada")[1],
        lambda: outbox.resend(first, actor="ada")[1],
        lambda: endpoints.enable(endpoint.pk, on=False, who=Who(actor="ada")),
    ):
        assert sorted(outcomes(together(*[press] * 4))) == [False, False, False, True]
    assert WebhookDelivery.objects.count() == 4
    assert AuditEntry.objects.filter(actor="ada").count() == 4


def test_a_secret_is_rotated_once() -> None:
    """Promise 7: the one before the first press is still valid, which a second rotation would have ended."""
    endpoint = receiving("http://93.184.215.14/")
    rivals = together(*[lambda: endpoints.rotate(endpoint.pk, seen=endpoint.secret_at, who=Who(actor="ada"))] * 4)
    assert sum(rival.error is None for rival in rivals) == 1
    assert all(isinstance(rival.error, EndpointRefused) for rival in rivals if rival.error)
    before = endpoint.secret_sealed
    endpoint.refresh_from_db()
    assert endpoint.secret_old_sealed is not None and before is not None
    assert bytes(endpoint.secret_old_sealed) == bytes(before)


def test_an_announcement_and_a_deletion_do_not_cross() -> None:
    """A message to an endpoint that is being deleted is made, or the endpoint goes; never both, never neither."""
    for _ in range(5):
        WebhookDelivery.objects.all().delete()
        endpoint = make_endpoint(f"end {AuditEntry.objects.count()}")
        delete = functools.partial(endpoints.delete, endpoint.pk, who=Who(actor="ada"))
        gone, _ = together(delete, lambda: announce(1))
        kept = WebhookEndpoint.objects.filter(pk=endpoint.pk).exists()
        assert kept == WebhookDelivery.objects.filter(endpoint_id=endpoint.pk).exists()
        assert kept == isinstance(gone.error, EndpointRefused)
        WebhookDelivery.objects.all().delete()
        WebhookEndpoint.objects.all().delete()
