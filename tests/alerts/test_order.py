"""Which delivery is tried when: newer and older states of an alert, disabled endpoints, and each endpoint's share.

I-37: a dead receiver delays nobody else.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection

from jobsboard.alerts import delivery, endpoints, ledger, outbox
from jobsboard.alerts.delivery import Webhooks
from jobsboard.alerts.endpoints import Who
from jobsboard.models import Event, WebhookDelivery
from queues.models import BoardVersion
from tests.alerts.deliveries import announced, eventually, fresh, told_of
from tests.alerts.receivers import HANG, Receiver, Say, hurry, receiving, run_until, settle
from tests.factories import analyze, sql

pytestmark = pytest.mark.django_db


# ---- newer and older states of one alert


def test_older_states_end_when_a_newer_one_arrives(receiver: Receiver, service: Webhooks) -> None:
    """Who hears that it is over needs not hear that it began; other alerts and endpoints are not touched."""
    receiver.answers = [Say(status=500), Say(status=500), Say()]
    receiving(receiver)
    first, other = announced("tier2"), announced("tier3")
    settle(service)
    alert = first.alert
    second = told_of(alert, Event.RESOLVED)
    settle(service)
    assert [fresh(row).state for row in (first, other, second)] == ["superseded", "pending", "delivered"]
    assert receiver.events()[-1] == "resolved"


def test_an_older_state_waits_while_a_newer_one_is_tried(receiver: Receiver, service: Webhooks) -> None:
    """The newest is tried first; given up, it takes the older ones with it. Nothing waits for ever."""
    receiver.answers = [Say(status=500)]
    receiving(receiver)
    first = announced()
    settle(service)
    second = told_of(first.alert, Event.ACKNOWLEDGED)
    for _ in range(len(ledger.STEPS) + 1):
        settle_some(service)
        hurry()
    assert receiver.events() == ["firing"] + ["acknowledged"] * 15
    assert [fresh(row).state for row in (first, second)] == ["failed", "failed"]
    assert "newer state" in fresh(first).attempts[-1]["error"]


def settle_some(service: Webhooks) -> None:
    """Run rounds until nothing is under way; what must wait may be due."""
    service.run_once()
    run_until(service, lambda: not service.run_once())


def test_what_a_person_sends_again_waits_for_nothing_and_is_not_superseded(
    receiver: Receiver, service: Webhooks
) -> None:
    """It was asked for; the sequence in its text tells the receiver that it is older."""
    receiver.answers = [Say(status=500), Say(status=500), Say(status=500), Say()]
    receiving(receiver)
    first = announced()
    settle(service)
    second = told_of(first.alert, Event.RESOLVED)
    settle(service)
    again, _ = outbox.resend(first.pk, actor="ada")
    settle_some(service)
    assert [fresh(row).attempt for row in (first, second, again)] == [1, 1, 1]
    hurry()
    settle_some(service)
    settle_some(service)
    assert fresh(second).state == "delivered" and fresh(first).state == "superseded"
    assert fresh(again).state == "delivered"


# ---- disabled, old, forgotten


def test_what_waits_for_a_disabled_endpoint_is_kept_then_given_up(
    receiver: Receiver, service: Webhooks, shift_clock: Any
) -> None:
    """A person may enable it again in time; after four days the delivery is shown as given up."""
    endpoint = receiving(receiver, enabled=True)
    row = announced()
    endpoints.enable(endpoint.pk, on=False, who=Who(actor="ada"))
    settle(service)
    assert not receiver.got
    shift_clock("95 hours")
    ledger.give_up_old()
    assert fresh(row).state == "pending"
    shift_clock("97 hours")
    ledger.give_up_old()
    row = fresh(row)
    assert (row.state, row.attempts[-1]["error"]) == ("failed", "given up: older than 96 hours")
    shift_clock("29 days")
    ledger.give_up_old()
    assert WebhookDelivery.objects.filter(pk=row.pk).exists()
    shift_clock("31 days")
    ledger.give_up_old()
    assert not WebhookDelivery.objects.exists()


def test_a_try_under_way_is_not_given_up(receiver: Receiver, shift_clock: Any) -> None:
    """What happens just now is left to whoever does it; and what is pending is never forgotten."""
    receiving(receiver)
    row = announced()
    shift_clock("97 hours")
    [claimed] = ledger.claim(answering=9, failing=9)
    ledger.give_up_old()
    assert fresh(row).state == "pending" and claimed.id == row.pk
    shift_clock("98 hours")
    ledger.give_up_old()
    assert fresh(row).state == "failed"


# ---- shares


def test_i_37_an_endpoint_has_its_share_and_a_failing_one_a_single_try(receiver: Receiver, service: Webhooks) -> None:
    """I-37: four at a time, one while its last try failed, however many wait; counted at the receiver."""
    receiver.answers = [HANG]
    receiving(receiver)
    failing = Receiver()
    failing.answers = [HANG]
    receiving(failing, "failing", failures=3)
    for number in range(10):
        announced(f"tier{number}")
    for _ in range(3):
        service.run_once()
        # Another scheduler finds no room either.
        Webhooks().run_once()
    eventually(lambda: len(receiver.got) >= 4 and len(failing.got) >= 1)
    assert (receiver.most_at_once, failing.most_at_once) == (4, 1)
    assert (len(receiver.got), len(failing.got)) == (4, 1)
    failing.close()


def test_i_37_endpoints_that_fail_never_hold_the_threads_of_the_others(receiver: Receiver, service: Webhooks) -> None:
    """I-37: more dead endpoints than there are threads for them, and a message to a live one arrives in a round."""
    dead = Receiver()
    dead.answers = [HANG]
    for number in range(delivery.FAILING_MOST + 6):
        receiving(dead, f"dead {number}", failures=1)
    announced("tier1")
    service.run_once()
    eventually(lambda: dead.at_once == delivery.FAILING_MOST)
    live = receiving(receiver, "live")
    announced("tier2")
    service.run_once()
    eventually(lambda: len(receiver.got) == 1)
    assert dead.most_at_once == delivery.FAILING_MOST
    run_until(service, lambda: WebhookDelivery.objects.filter(endpoint=live, state="delivered").exists())
    dead.close()


@pytest.mark.parametrize(("failures", "first"), [(0, "oldest"), (2, "newest")])
def test_who_answers_is_sent_the_oldest_first_who_fails_the_newest(
    receiver: Receiver, failures: int, first: str
) -> None:
    """In a storm none waits for all the others; and a receiver that comes back hears of what matters now."""
    receiving(receiver, failures=failures)
    rows = [announced(f"tier{number}") for number in range(6)]
    for age, row in zip((1, 2, 3, 4, 5, 6), rows, strict=True):
        sql("UPDATE jobsboard_webhookdelivery SET due_at = jobs_now() - make_interval(secs => %s) WHERE id = %s", age,
            row.pk)  # fmt: skip
    claimed = {one.id for one in ledger.claim(answering=9, failing=9)}
    assert claimed == ({row.pk for row in rows[2:]} if first == "oldest" else {rows[0].pk})


def test_open_pages_are_told_that_something_was_sent(receiver: Receiver, service: Webhooks) -> None:
    """Their next poll draws them again."""
    receiving(receiver)
    announced()
    before = BoardVersion.objects.get().n
    settle(service)
    assert BoardVersion.objects.get().n == before + 1


def test_a_round_without_work_costs_two_statements(
    django_assert_num_queries: Any, service: Webhooks, receiver: Receiver
) -> None:
    """Twice a second, always."""
    receiving(receiver)
    with django_assert_num_queries(2):
        service.run_once()


def test_the_claim_reads_what_is_due_by_its_index(receiver: Receiver) -> None:
    """A thousand deliveries that wait for days cost a round nothing."""
    endpoint = receiving(receiver)
    sql(
        "INSERT INTO jobsboard_webhookdelivery (id, endpoint_id, event, sequence, body, state, attempt, attempts,"
        " due_at, created_at, created_by) SELECT 'msg_' || n, %s, 'alert.firing', 0, '{}', 'pending', 1, '[{}]',"
        " jobs_now() + interval '1 day', jobs_now(), '' FROM generate_series(1, 5000) AS n", endpoint.pk,
    )  # fmt: skip
    analyze("jobsboard_webhookdelivery")
    params: dict[str, int | str] = {"at_once": 4, "lease": 60, "answering": 48, "failing": 24, "lost": ""}
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + ledger._CLAIM, params)
        text = cursor.fetchone()[0]
    plan = json.loads(text) if isinstance(text, str) else text
    read = [node for node in _nodes(plan[0]["Plan"]) if node.get("Relation Name") == "jobsboard_webhookdelivery"]
    assert {node.get("Index Name") for node in read if node["Actual Loops"]} >= {"delivery_due"}
    assert sum(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in read) < 50


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]
