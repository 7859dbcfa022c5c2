"""Deferral as people see and switch it: the page of a type, the overview, what changed, the admin."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse

from queues import contracts, deferral
from queues.contract_switches import database_now, set_switch
from queues.models import AuditEntry, JobType, Tier
from tests.board.conftest import ClientOf
from tests.factories import accept, fold_all, make_type, set_columns
from tests.queues.test_admin import client_of as staff
from tests.queues.test_admin import errors_of, form_data

NAME = "mail.send"
DEFER, UNDEFER, PAGE = (f"/types/{NAME}/{end}" for end in ("defer/", "undefer/", ""))
ADMIN = reverse("admin:queues_jobtype_change", args=[NAME])


@pytest.fixture(autouse=True)
def kind(db: None) -> JobType:
    return make_type(NAME, deferrable=True)


def words(client: Client, url: str = PAGE) -> str:
    """Return the text of a page."""
    return " ".join(re.sub(r"<[^>]+>", " ", client.get(url).text).split())


def starve() -> None:
    """Let tier 1 wait, and the scheduler look."""
    Tier.objects.filter(pk=1).update(defer_after_seconds=30)
    make_type("pay", tier_id=1)
    [job_id] = accept(kind="pay")
    set_columns(job_id, raw_due_at="jobs_now() - interval '42 s'")
    fold_all()
    contracts.forget()
    deferral.sweep()
    contracts.forget()


def test_an_operator_defers_and_undefers_with_a_reason(operator: Client) -> None:
    until = database_now().replace(second=0, microsecond=0) + timedelta(hours=3)
    assert f'href="{DEFER}"' in operator.get(PAGE).text
    response = operator.post(DEFER, {"reason": "launch first", "until": f"{until:%Y-%m-%dT%H:%M}"})
    assert (response.status_code, response["Location"]) == (303, PAGE)
    row = JobType.objects.get()
    assert (row.deferred, row.deferred_reason, row.deferred_by, row.deferred_until, row.paused) == (
        True, "launch first", "operator", until, False,
    )  # fmt: skip
    text = words(operator)
    assert f"Deferred by operator until {until:%Y-%m-%d %H:%M} UTC, nothing is started: launch first" in text
    assert f'href="{UNDEFER}"' in operator.get(PAGE).text
    assert f'href="{DEFER}"' not in operator.get(PAGE).text
    assert operator.post(UNDEFER, {"reason": "done"}).status_code == 303
    row = JobType.objects.get()
    assert (row.deferred, row.deferred_reason, row.deferred_by, row.deferred_until) == (False, "", "", None)
    assert list(AuditEntry.objects.order_by("id").values_list("action", "actor", "reason", "source")) == [
        ("contract.deferred", "operator", "launch first", "ui"), ("contract.undeferred", "operator", "done", "ui"),
    ]  # fmt: skip
    assert "Deferred" not in words(operator).replace("No longer deferred.", "")


def test_who_may(client_of: ClientOf) -> None:
    for url in (DEFER, UNDEFER):
        assert client_of("viewer").post(url, {"reason": "x"}).status_code == 403
        assert Client().post(url, {"reason": "x"}).status_code == 302
    assert 'id="turn-deferral"' not in client_of("viewer").get(PAGE).text
    assert not AuditEntry.objects.filter(object_id=NAME).exists()


def test_only_what_the_contract_allows_can_be_deferred(operator: Client) -> None:
    JobType.objects.update(deferrable=False)
    assert 'id="turn-deferral"' not in operator.get(PAGE).text
    page = operator.get(DEFER)
    assert "deferrable is off" in page.text
    response = operator.post(DEFER, {"reason": "x"})
    assert response.status_code == 422
    assert not JobType.objects.get().deferred


def test_the_pages_say_why_and_since_when(viewer: Client) -> None:
    """A sign in the lists, one line on the overview for what was deferred for one reason, one in what changed."""
    make_type("score", tier_id=3, deferrable=True)
    make_type("report", tier_id=3, deferrable=True)
    accept(2, kind="score")
    starve()
    text = words(viewer, "/")
    assert re.search(r"3 job types are deferred Tier 1 waits 4\d s for a worker, more than 30 s \(by scheduler\);"
                     r" 2 jobs open, nothing of them is started", text)  # fmt: skip
    assert "scheduler deferred 3 job types" in text
    assert viewer.get("/").text.count("Deferred</span>") == 3
    listed = words(viewer, "/types/?show=deferred")
    assert "pay" not in re.findall(r"3 of 4, .*", listed)[0].split("Oldest")[0]
    assert viewer.get("/types/?show=deferred").text.count("Deferred</span>") == 3
    assert "Deferred by scheduler until" in words(viewer)
    set_switch("score", deferred=True, actor="bob", reason="<b>quiet</b>")
    page = viewer.get("/").text
    assert "2 job types are deferred" in page
    assert "score is deferred" in page
    assert "<b>quiet</b>" not in page


def test_the_explanation_leads_to_the_switch_who_may_turn_it(viewer: Client, operator: Client) -> None:
    accept(kind=NAME)
    fold_all()
    set_switch(NAME, deferred=True, actor="bob", reason="quiet hours")
    for client, found in ((viewer, False), (operator, True)):
        page = client.get(PAGE).text
        assert f"{NAME} is deferred: nothing of it is started" in page
        assert (f'href="{UNDEFER}">Stop deferring' in re.sub(r"<svg.*?</svg>", "", page)) == found


def test_owners_have_the_switch_in_the_admin() -> None:
    owner = staff("owner")
    until = database_now().replace(second=0, microsecond=0) + timedelta(hours=2)
    changes = {"deferred": "on", "deferred_until": f"{until:%Y-%m-%dT%H:%M}", "reason": "launch first"}
    owner.post(ADMIN, form_data(owner, ADMIN, **changes))
    row = JobType.objects.get()
    assert (row.deferred, row.deferred_by, row.deferred_reason, row.deferred_until) == (
        True, "owner", "launch first", until,
    )  # fmt: skip
    assert row.version == 1
    page = owner.get(ADMIN).text
    assert "<strong>Deferred</strong> by owner" in page
    # A save of something else leaves what somebody set meanwhile.
    data = form_data(owner, ADMIN, window_seconds="45")
    set_switch(NAME, deferred=False, actor="bob", reason="x")
    owner.post(ADMIN, data)
    row = JobType.objects.get()
    assert (row.window_seconds, row.deferred) == (45, False)
    refused = owner.post(ADMIN, form_data(owner, ADMIN, deferred="on", deferrable=None))
    assert errors_of(refused) == {"deferred": ["Only what is deferrable can be deferred."]}
    assert staff("viewer").get(ADMIN).status_code == 200


def test_a_mark_stands_in_the_charts_of_the_type(viewer: Client) -> None:
    set_switch(NAME, deferred=True, actor="kim", reason="x")
    set_switch(NAME, deferred=False, actor="kim", reason="x")
    page = viewer.get(PAGE).text
    assert "F deferred" in page
    assert "U no longer deferred" in page
