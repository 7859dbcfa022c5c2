"""Contracts, traffic and panel: the demo as a viewer and its producers see it."""

from __future__ import annotations

import random
import tomllib
from collections import Counter
from io import StringIO
from itertools import islice

import pytest
from django.core.management import call_command
from django.test import Client

from jobsboard.demo import place, traffic
from jobsboard.demo.crm_moods import MOODS
from jobsboard.demo.journal import Journal, read
from jobsboard.demo.mail_server import BEHAVIOURS
from jobsboard.management.commands.demo_contracts import DEPENDENCIES, FILE, PAUSED, SCHEDULES, WRITTEN
from queues import breaker_actions, schedules
from queues.handlers import find_check, load
from queues.models import Dependency, Job, JobType, Schedule
from tests.board.conftest import ClientOf, client_of, viewer

__all__ = ["ClientOf", "client_of", "viewer"]
URL = "http://127.0.0.1:23456/contacts"


@pytest.fixture
def contracts(db: None) -> None:
    call_command("demo_contracts", crm_url=URL, stdout=StringIO(), stderr=StringIO())


def test_the_contracts_are_in_order_and_name_this_stacks_crm(contracts: None) -> None:
    call_command("contracts", "check", str(FILE), stdout=StringIO(), stderr=StringIO())
    assert {kind.name: (kind.tier_id, kind.success) for kind in JobType.objects.all()} == {
        "onboarding.welcome_email": (2, "reference"),
        "crm.sync_contact": (2, "callback"),
        "scoring.account": (3, "return"),
        "billing.handoff": (1, "check"),
        "reports.digest": (3, "reference"),
    }
    assert JobType.objects.get(name="crm.sync_contact").target_url == URL
    assert WRITTEN in FILE.read_text()


def test_a_second_start_changes_no_contract(contracts: None) -> None:
    out = StringIO()
    call_command("demo_contracts", crm_url=URL, stdout=out, stderr=StringIO())
    assert JobType.objects.filter(version=1).count() == 5


def test_what_they_depend_on_has_settings_that_nobody_loses(contracts: None) -> None:
    """In a storm the CRM's breaker opens, and that of the mail server, which defers 88 %, does not."""
    named = set(JobType.objects.exclude(dependency="").values_list("dependency", flat=True))
    assert named == set(DEPENDENCIES) == set(Dependency.objects.values_list("name", flat=True))
    storm = BEHAVIOURS["storm"].deferred, MOODS["storm"].busy
    mail, crm = (Dependency.objects.get(name=name) for name in ("mail-provider", "crm"))
    assert storm[0] + 0.05 < mail.error_ratio
    assert crm.error_ratio < storm[1]
    breaker_actions.save_settings("crm", {"minimum_calls": 7}, actor="ann", reason="it is mine")
    call_command("demo_contracts", crm_url=URL, stdout=StringIO(), stderr=StringIO())
    assert Dependency.objects.get(name="crm").minimum_calls == 7


def test_there_are_schedules_that_nobody_gets_back_once_they_are_changed(contracts: None) -> None:
    """One of them is paused; their payloads fit the contract, or they would not have been saved."""
    found = {one.name: one for one in Schedule.objects.all()}
    assert set(found) == set(SCHEDULES)
    assert {name: one.paused_reason for name, one in found.items() if one.paused} == PAUSED
    assert all(one.next_at is not None for one in found.values())
    schedules.resume("weekly-report", actor="ann", reason="I read it")
    schedules.delete("minute-digest", actor="ann", reason="too often")
    call_command("demo_contracts", crm_url=URL, stdout=StringIO(), stderr=StringIO())
    assert dict(Schedule.objects.values_list("name", "paused")) == {"nightly-report": False, "weekly-report": False}


def test_what_waits_for_a_check_has_one() -> None:
    types = tomllib.loads(FILE.read_text())["job_types"]
    load(["jobsboard.demo.handlers"])
    assert all(find_check(name) for name, fields in types.items() if fields["success"] == "check")


def test_traffic_is_about_four_jobs_a_second_and_repeats_some() -> None:
    sent = list(islice(traffic.requests(1000, random.Random(3)), 3000))
    jobs = Counter(item.type for request in sent for item in request)
    first = {id(request) for request in sent}
    assert 0.03 < 1 - len(first) / len(sent) < 0.05
    per_request = sum(jobs.values()) / len(sent)
    assert 3.5 < per_request * (traffic.SIGN_UPS + traffic.INVOICES) < 4.5
    assert jobs["onboarding.welcome_email"] == jobs["crm.sync_contact"] == jobs["scoring.account"]


def test_seldom_an_invoice_is_above_the_partners_limit() -> None:
    sent = islice(traffic.requests(1000, random.Random(3)), 12_000)
    amounts = [item.payload["amount_cents"] for request in sent for item in request if item.type == "billing.handoff"]
    share = sum(amount > 1_000_000 for amount in amounts) / len(amounts)
    assert 0 < share <= 1 / traffic.TOO_LARGE_EVERY


def test_a_sign_up_is_three_jobs_and_a_repeat_none(contracts: None) -> None:
    log = Journal(place.traffic_log())
    request = traffic.sign_up(77, random.Random(1))
    traffic.send(request, log)
    traffic.send(request, log)
    assert Job.objects.count() == 3
    assert [line["duplicate"] for line in read(place.traffic_log())] == [False] * 3 + [True] * 3


def test_the_overview_says_how_the_weather_is_and_how_to_change_it(
    viewer: Client, contracts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = viewer.get("/").text
    assert 'id="demo"' in text
    assert "demo_weather storm" in text
    place.set_weather("storm")
    storm = viewer.get("/").text
    assert "Demo: storm" in storm
    assert "/types/onboarding.welcome_email/" in storm
    place.set_weather("calm")
    assert "are well again" in viewer.get("/").text
    monkeypatch.delenv(place.VARIABLE)
    assert 'id="demo"' not in viewer.get("/").text


def test_the_command_says_and_sets_the_weather() -> None:
    out = StringIO()
    call_command("demo_weather", stdout=out)
    call_command("demo_weather", "storm", stdout=out)
    assert out.getvalue().splitlines()[0] == "calm"
    assert out.getvalue().splitlines()[1].startswith("storm since ")
