"""From a delivery to its receiver: what is sent, what each answer becomes, and what a death leaves behind.

I-36: every alert reaches a 2xx or is shown as given up, under one id.
"""

from __future__ import annotations

import datetime as dt
import email.utils
from collections.abc import Callable
from typing import Any

import pytest
from standardwebhooks import Webhook

from jobsboard.alerts import endpoints, ledger, sending
from jobsboard.alerts.delivery import Webhooks
from jobsboard.alerts.endpoints import Who
from jobsboard.models import WebhookDelivery
from queues.models import AuditEntry
from tests.alerts.deliveries import announced, due_in, eventually, fresh
from tests.alerts.receivers import HANG, RESET, SECRETS, Receiver, Say, hurry, receiving, settle

pytestmark = pytest.mark.django_db

Pending = WebhookDelivery.State.PENDING


# ---- what is sent


def test_the_request(receiver: Receiver, service: Webhooks) -> None:
    """S-17: id, time of sending, signature over exactly the bytes that arrive; verified by the library."""
    endpoint = receiving(receiver)
    row = announced()
    settle(service)
    [got] = receiver.got
    assert got.body == row.body.encode()
    assert got.headers["webhook-id"] == row.pk
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"] == "Jobsboard"
    assert abs(int(got.headers["webhook-timestamp"]) - dt.datetime.now(tz=dt.UTC).timestamp()) < 30
    said = Webhook(SECRETS[endpoint.pk]).verify(got.body, dict(got.headers))
    assert said["type"] == "alert.firing"
    row, endpoint = fresh(row), fresh(row).endpoint
    assert (row.state, row.attempt, row.due_at) == ("delivered", 1, None)
    assert (endpoint.failures, endpoint.last_error) == (0, "") and endpoint.last_ok_at is not None
    [attempt] = row.attempts
    assert (attempt["status"], attempt["error"], attempt["excerpt"]) == (200, "", "ok")
    assert 0 <= attempt["took_seconds"] < 15


def test_slack_is_not_signed(receiver: Receiver, service: Webhooks) -> None:
    """Nobody there verifies: the address is the secret."""
    endpoint = receiving(receiver, format="slack")
    announced()
    settle(service)
    assert SECRETS[endpoint.pk] == "" and "webhook-signature" not in receiver.got[0].headers


def test_i_36_three_failures_then_a_success_under_one_id(receiver: Receiver, service: Webhooks) -> None:
    """I-36: equal id and text, a new time and signature for each try; each try is in the log."""
    endpoint = receiving(receiver)
    receiver.answers = [*[Say(status=500, body=b"broken")] * 3, Say()]
    row = announced()
    for tries in range(1, 5):
        settle(service)
        assert len(receiver.got) == tries
        if tries < 4:
            step = ledger.STEPS[tries - 1]
            assert step * 0.8 - 1 < due_in(row) <= step * 1.2
            assert fresh(row).endpoint.failures == tries
        hurry()
    assert set(receiver.ids) == {row.pk} and {got.body for got in receiver.got} == {row.body.encode()}
    for got in receiver.got:
        Webhook(SECRETS[endpoint.pk]).verify(got.body, dict(got.headers))
    row = fresh(row)
    assert (row.state, row.attempt) == ("delivered", 4)
    assert [one["status"] for one in row.attempts] == [500, 500, 500, 200]
    assert [one["excerpt"] for one in row.attempts] == ["broken"] * 3 + ["ok"]
    assert row.endpoint.failures == 0


def test_i_36_the_time_is_that_of_the_try(
    receiver: Receiver, service: Webhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-36: receivers refuse messages older than five minutes, so a retry hours later has a time of its own."""
    endpoint = receiving(receiver)
    receiver.answers = [Say(status=500), Say()]
    announced()
    settle(service)
    later = dt.datetime.now(tz=dt.UTC) + dt.timedelta(hours=3)

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Clock:
            return cls.fromtimestamp(later.timestamp(), tz=tz)

    monkeypatch.setattr(sending, "datetime", Clock)
    hurry()
    settle(service)
    first, second = receiver.got
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) >= 3 * 3600 - 60
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    assert endpoint.pk


# ---- what answers become


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_a_success(receiver: Receiver, service: Webhooks, status: int) -> None:
    """W-06: whatever the body says."""
    receiving(receiver)
    receiver.answers = [Say(status=status, body=b"" if status == 204 else b"<html><b>hi</b></html>")]
    row = announced()
    settle(service)
    assert fresh(row).state == "delivered"


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500, 502])
def test_other_answers_are_tried_again(receiver: Receiver, service: Webhooks, status: int) -> None:
    """A receiver that is being deployed answers 404 for a moment."""
    receiving(receiver)
    receiver.answers = [Say(status=status)]
    row = announced()
    settle(service)
    row = fresh(row)
    assert (row.state, row.endpoint.last_error) == ("pending", f"answered {status}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_nobody_is_asked(receiver: Receiver, service: Webhooks, status: int) -> None:
    """W-03: to the inside or to anywhere else."""
    inside = Receiver()
    receiver.answers = [Say(status=status, headers={"Location": inside.url})]
    receiving(receiver)
    row = announced()
    settle(service)
    inside.close()
    row = fresh(row)
    assert (row.state, len(receiver.got), inside.got) == ("pending", 1, [])
    assert row.attempts[0]["error"].startswith(f"redirect: answered {status}")


def test_i_36_no_answer_is_tried_again(receiver: Receiver, service: Webhooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-36: a receiver that hangs, and one that cuts the connection."""
    monkeypatch.setattr(sending, "SECONDS", 0.3)
    receiver.answers = [HANG, RESET, Say()]
    receiving(receiver)
    row = announced()
    for _ in range(3):
        settle(service)
        hurry()
    row = fresh(row)
    assert (row.state, row.attempt, set(receiver.ids)) == ("delivered", 3, {row.pk})
    assert [one["status"] for one in row.attempts] == [None, None, 200]
    assert "within 0.3 s" in row.attempts[0]["error"] and "broke" in row.attempts[1]["error"]


def test_i_36_gone_disables_the_endpoint(receiver: Receiver, service: Webhooks) -> None:
    """I-36, W-06: 410 ends what waits for the endpoint, and the audit log says why; nothing is sent again."""
    receiver.answers = [Say(status=410)]
    endpoint = receiving(receiver, failures=1)
    rows = [announced("tier1"), announced("tier2"), announced("tier3")]
    settle(service)
    assert len(receiver.got) == 1
    rows = [fresh(row) for row in rows]
    assert {row.state for row in rows} == {"failed"} and all(row.settled_at for row in rows)
    assert sum(any("410" in one["error"] for one in row.attempts) for row in rows) == 3
    endpoint.refresh_from_db()
    assert (endpoint.enabled, endpoint.disabled_reason) == (False, ledger.GONE)
    entry = AuditEntry.objects.get(action="webhook.disabled")
    assert (entry.actor, entry.object_id, entry.reason) == ("system", str(endpoint.pk), ledger.GONE)
    # A person may enable it again, and then it is sent to.
    assert endpoints.enable(endpoint.pk, on=True, who=Who(actor="ada"))
    receiver.answers = [Say()]
    row = announced("tier9")
    settle(service)
    endpoint.refresh_from_db()
    assert fresh(row).state == "delivered" and endpoint.disabled_reason == ""


def _in(seconds: float) -> str:
    return email.utils.format_datetime(dt.datetime.now(tz=dt.UTC) + dt.timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("status", "value", "least", "most"),
    [
        (429, lambda: "120", 119, 120), (503, lambda: "120", 119, 120), (429, lambda: "1000000000", 3599, 3600),
        (429, lambda: "9" * 5000, 3599, 3600), (503, lambda: _in(600), 590, 600), (503, lambda: _in(10**6), 3599, 3600),
        # It never brings a try forward, and without a usable value the schedule decides.
        (429, lambda: "1", 3, 6), (429, lambda: "-5", 3, 6), (503, lambda: "soon", 3, 6), (500, lambda: "120", 3, 6),
        (503, lambda: _in(-600), 3, 6),
    ],
)  # fmt: skip
def test_i_36_retry_after(
    receiver: Receiver, service: Webhooks, status: int, value: Callable[[], str], least: float, most: float
) -> None:
    """I-36, W-06: honoured in seconds and as a date, up to an hour."""
    receiver.answers = [Say(status=status, headers={"Retry-After": value()})]
    receiving(receiver)
    row = announced()
    settle(service)
    assert least - 2 <= due_in(row) <= most


def test_i_36_after_75_hours_it_is_given_up_and_shown(receiver: Receiver, service: Webhooks) -> None:
    """I-36: fifteen tries, then `failed`, with every one of them in the log; never pending for ever (promise 5)."""
    assert 74 * 3600 < sum(ledger.STEPS) < 76 * 3600
    receiver.answers = [Say(status=500)]
    receiving(receiver)
    row = announced()
    for _ in range(len(ledger.STEPS) + 1):
        assert fresh(row).state == Pending
        settle(service)
        hurry()
    row = fresh(row)
    assert (row.state, row.attempt, len(row.attempts), row.due_at) == ("failed", 15, 15, None)
    settle(service)
    assert len(receiver.got) == 15


# ---- what a death leaves behind


def test_i_36_a_death_before_the_record_sends_again_under_the_same_id(receiver: Receiver, service: Webhooks) -> None:
    """I-36: at least once; the try that nobody wrote down is in the log as lost."""
    receiving(receiver)
    row = announced()
    assert service.run_once()
    # The receiver took it, and this scheduler never comes to write that down.
    eventually(lambda: len(receiver.got) == 1 and not service._ended.empty())
    other = Webhooks()
    assert not other.run_once()
    assert 55 < due_in(row) <= 60
    hurry()
    settle(other)
    assert receiver.ids == [row.pk, row.pk]
    row = fresh(row)
    assert (row.state, row.attempt) == ("delivered", 2)
    assert [one["error"][:5] for one in row.attempts] == ["lost:", ""]
    # What comes of the first one after all changes nothing.
    before = row.attempts
    service.run_once()
    assert fresh(row).attempts == before


def test_what_cannot_be_written_down_now_is_written_down_later(
    receiver: Receiver, service: Webhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that does not answer for a moment costs no second message."""
    receiving(receiver)
    row = announced()
    real, fails = ledger.record, [True, True]

    def record(results: Any) -> None:
        if fails:
            fails.pop()
            raise ConnectionError
        real(results)

    monkeypatch.setattr(ledger, "record", record)
    service.run_once()
    eventually(lambda: not service._ended.empty())
    for _ in range(2):
        with pytest.raises(ConnectionError):
            service.run_once()
    settle(service)
    assert fresh(row).state == "delivered" and len(receiver.got) == 1
