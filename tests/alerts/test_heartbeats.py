"""Dead man's switches: told that all is well while alerts could leave, and only then (promise 8)."""

from __future__ import annotations

import json

import pytest
from standardwebhooks import Webhook

from jobsboard.alerts import engine, heartbeats, sending
from jobsboard.alerts.delivery import Webhooks
from jobsboard.models import AlertClock, WebhookDelivery, WebhookEndpoint
from queues import lifecycle
from queues.models import AuditEntry
from tests.alerts.receivers import HANG, SECRETS, Receiver, Say, receiving, run_until
from tests.factories import sql

pytestmark = pytest.mark.django_db


@pytest.fixture
def fresh(db: None) -> None:
    """Let rules have been evaluated, and numbers brought up to date, just now."""
    now = sql("SELECT jobs_now()")[0][0]
    AlertClock.objects.update_or_create(id=1, defaults={"evaluated_at": now, "completed_at": now})
    sql("UPDATE queues_boardversion SET folded_at = jobs_now()")


def beat_now() -> None:
    """Let the next beat of every switch be due."""
    sql(
        "UPDATE jobsboard_webhookendpoint SET next_beat_at = jobs_now() - interval '1 ms'"
        " WHERE next_beat_at IS NOT NULL"
    )


def rounds(n: int = 3) -> None:
    """Run rounds of a scheduler of its own, to their ends."""
    service = Webhooks()
    for _ in range(n):
        service._beaten_at = -1.0
        run_until(service, lambda: not service.run_once(), seconds=20)


def next_in(endpoint: WebhookEndpoint) -> float:
    """Return the seconds to the next beat."""
    return float(
        sql("SELECT extract(epoch FROM next_beat_at - jobs_now()) FROM jobsboard_webhookendpoint WHERE id = %s",
            endpoint.pk)[0][0]
    )  # fmt: skip


def test_it_beats_at_its_interval_and_leaves_no_rows(receiver: Receiver, fresh: None) -> None:
    """A small signed POST; how it did is on the endpoint."""
    endpoint = receiving(receiver, "switch", format="heartbeat", every_seconds=30)
    rounds()
    [got] = receiver.got
    assert set(Webhook(SECRETS[endpoint.pk]).verify(got.body, dict(got.headers))) == {"type", "timestamp"}
    assert json.loads(got.body)["type"] == "heartbeat"
    assert 28 < next_in(endpoint) <= 30
    beat_now()
    rounds()
    assert len(receiver.got) == 2 and len(set(receiver.ids)) == 2
    endpoint.refresh_from_db()
    assert endpoint.last_ok_at is not None and endpoint.failures == 0
    assert not WebhookDelivery.objects.exists()


@pytest.mark.parametrize(
    "stale",
    [
        "UPDATE jobsboard_alertclock SET completed_at = jobs_now() - interval '61 s'",
        "UPDATE jobsboard_alertclock SET completed_at = NULL",
        "DELETE FROM jobsboard_alertclock",
        "UPDATE queues_boardversion SET folded_at = jobs_now() - interval '61 s'",
        "UPDATE jobsboard_webhookendpoint SET enabled = false",
    ],
)
def test_it_is_silent_when_alerts_could_not_leave(receiver: Receiver, fresh: None, stale: str) -> None:
    """Nobody evaluates rules, or folds numbers: then silence is the alarm; it beats again once all is well."""
    receiving(receiver, "switch", format="heartbeat")
    now = sql("SELECT jobs_now()")[0][0]
    sql(stale)
    rounds()
    assert receiver.got == []
    AlertClock.objects.update_or_create(id=1, defaults={"evaluated_at": now, "completed_at": now})
    sql("UPDATE queues_boardversion SET folded_at = jobs_now()")
    sql("UPDATE jobsboard_webhookendpoint SET enabled = true")
    rounds()
    assert len(receiver.got) == 1


def test_the_engine_and_the_fold_keep_it_alive(receiver: Receiver) -> None:
    """What they write is what it looks at, on an installation without a single job."""
    receiving(receiver, "switch", format="heartbeat")
    sql("UPDATE queues_boardversion SET folded_at = jobs_now() - interval '1 hour'")
    AlertClock.objects.all().delete()
    rounds()
    assert receiver.got == []
    engine.run_once()
    lifecycle.fold(limit=100)
    rounds()
    assert len(receiver.got) == 1


def test_a_beat_that_fails_comes_again_soon(receiver: Receiver, fresh: None) -> None:
    """After 5 s, then 10 s, never later than its interval; so that one lost packet raises no alarm."""
    receiver.answers = [Say(status=500)]
    endpoint = receiving(receiver, "switch", format="heartbeat", every_seconds=60)
    for least, most in ((3, 5), (8, 10), (18, 20), (38, 40), (58, 60), (58, 60)):
        rounds(1)
        assert least < next_in(endpoint) <= most
        beat_now()
    endpoint.refresh_from_db()
    assert (endpoint.failures, endpoint.last_error) == (6, "answered 500")
    receiver.answers = [Say()]
    rounds(1)
    assert 58 < next_in(endpoint) <= 60


def test_410_disables_it_once(receiver: Receiver, fresh: None) -> None:
    """And the audit log says why."""
    receiver.answers = [Say(status=410)]
    endpoint = receiving(receiver, "switch", format="heartbeat")
    rounds()
    endpoint.refresh_from_db()
    assert (endpoint.enabled, len(receiver.got)) == (False, 1)
    assert AuditEntry.objects.get(action="webhook.disabled").actor == "system"


def test_one_that_hangs_is_not_asked_again_meanwhile(
    receiver: Receiver, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its interval: it holds one thread."""
    monkeypatch.setattr(sending, "SECONDS", 1.0)
    receiver.answers = [HANG]
    receiving(receiver, "switch", format="heartbeat", every_seconds=10)
    service = Webhooks()
    service.run_once()
    run_until(service, lambda: len(receiver.got) == 1)
    for _ in range(3):
        beat_now()
        service._beaten_at = -1.0
        service.run_once()
    assert len(receiver.got) == 1 and receiver.most_at_once == 1


def test_a_claim_is_for_one(receiver: Receiver, fresh: None) -> None:
    """Two schedulers: the second finds nothing due."""
    receiving(receiver, "switch", format="heartbeat")
    assert [len(heartbeats.claim(busy=[])) for _ in range(2)] == [1, 0]
