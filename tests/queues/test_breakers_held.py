"""Breakers that a person holds: what wins, until when, what the audit log has; the command and the admin."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client
from django.urls import reverse

from queues import breaker_actions, contract_rules
from queues.breaker_actions import NotPossible, force, let_go
from queues.contract_switches import SCHEDULER, database_now
from queues.models import AuditEntry, BreakerFlip, Dependency, JobType
from queues.scheduler import breakers as service
from tests.queues.breaking import (
    CRM,
    KIND,
    Shift,
    begin,
    call,
    changes,
    end,
    half_opened,
    judged,
    make_dependency,
    opened,
    standing,
)

pytestmark = pytest.mark.django_db
ANN: dict[str, Any] = {"by": "ann", "reason": "the provider told us", "until": None}


def entries() -> list[tuple[str, str]]:
    return list(AuditEntry.objects.order_by("id").values_list("action", "actor"))


def test_one_that_is_held_open_lets_nothing_through_however_well_it_goes(shift_clock: Shift) -> None:
    make_dependency()
    running = begin(3)
    found = force(CRM, state="open", **ANN)
    assert (found.state, found.forced, found.forced_by, found.forced_reason) == (
        "open", "open", "ann", "the provider told us",
    )  # fmt: skip
    assert found.why == "Held open by ann: the provider told us"
    # At once: no round of the service in between.
    assert JobType.objects.get(name=KIND).breaker == "open"
    assert begin(5) == []
    end(running, "ok")
    shift_clock("2 hours")
    assert judged().state == "open"
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.object_type, entry.object_id) == ("breaker.forced_open", "dependency", CRM)
    assert entry.before == {"state": "closed", "forced": "", "until": None}
    assert entry.after == {"state": "open", "forced": "open", "until": None}
    assert BreakerFlip.objects.get().by == "ann"


def test_one_that_is_held_closed_stays_so_however_ill_it_goes(shift_clock: Shift) -> None:
    make_dependency()
    opened()
    force(CRM, state="closed", **ANN)
    shift_clock("2 s")
    call(40, "failed")
    assert judged().state == "closed"
    let_go(CRM, by="ann", reason="enough")
    assert standing().forced == ""
    assert judged().state == "open"
    assert changes() == [("closed", "open"), ("open", "closed"), ("closed", "open")]
    assert entries() == [("breaker.forced_closed", "ann"), ("breaker.let_go", "ann")]


def test_a_click_twice_is_one_change() -> None:
    """I-45: each act that changed something has its entry, and only those."""
    make_dependency()
    first = force(CRM, state="open", **ANN)
    assert force(CRM, state="open", **ANN) == first
    assert (len(changes()), len(entries())) == (1, 1)
    # Another reason replaces the first, and changes no state.
    again = force(CRM, state="open", by="bob", reason="longer", until=None)
    assert (again.forced_by, again.forced_reason, again.since) == ("bob", "longer", first.since)
    assert (len(changes()), len(entries())) == (1, 2)
    let_go(CRM, by="ann", reason="done")
    let_go(CRM, by="ann", reason="done")
    assert len(entries()) == 3


def test_one_that_is_let_go_open_tries_at_once() -> None:
    make_dependency()
    force(CRM, state="open", **ANN)
    let_go(CRM, by="ann", reason="they are back")
    found = judged()
    assert (found.state, found.trials_left) == ("half_open", 3)
    end(begin(10), "ok")
    assert judged().state == "closed"


def test_the_end_of_its_time_lets_it_go(shift_clock: Shift) -> None:
    make_dependency()
    until = database_now() + timedelta(minutes=10)
    found = force(CRM, state="open", by="ann", reason="maintenance", until=until)
    assert (found.forced_until, found.retry_at) == (until, until)
    shift_clock("9 min")
    assert judged().forced == "open"
    shift_clock("11 min")
    found = judged()
    assert (found.state, found.forced, found.forced_by, found.forced_until) == ("half_open", "", "", None)
    entry = AuditEntry.objects.latest("id")
    assert (entry.action, entry.actor, entry.source) == ("breaker.let_go", SCHEDULER, "command")
    assert "maintenance" in entry.reason and entry.before == {"forced": "open", "until": until.isoformat()}


def test_a_half_open_one_can_be_held_as_well(shift_clock: Shift) -> None:
    make_dependency()
    half_opened(shift_clock)
    trials = begin(3)
    force(CRM, state="closed", **ANN)
    end(trials, "failed")
    assert judged().state == "closed"
    assert len(begin(10)) == 10


@pytest.mark.parametrize(
    ("name", "given", "code"),
    [
        ("nobody", {}, "unknown_dependency"),
        (CRM, {"state": "half_open"}, "state"),
        (CRM, {"reason": " \x00 "}, "reason"),
        (CRM, {"until": "past"}, "until"),
        (CRM, {"until": "far"}, "until"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(name: str, given: dict[str, Any], code: str) -> None:
    make_dependency()
    ends = {"past": -timedelta(seconds=1), "far": timedelta(days=400)}
    if "until" in given:
        given = {"until": database_now() + ends[given["until"]]}
    with pytest.raises(NotPossible) as refused:
        force(name, **{**ANN, "state": "open", **given})
    assert (refused.value.code, bool(refused.value.words)) == (code, True)
    assert (standing().forced, changes(), entries()) == ("", [], [])


def test_letting_go_wants_a_reason_and_a_dependency() -> None:
    make_dependency()
    for name, reason, code in ((CRM, "", "reason"), ("nobody", "why", "unknown_dependency")):
        with pytest.raises(NotPossible) as refused:
            let_go(name, by="ann", reason=reason)
        assert refused.value.code == code


def run(*words: str) -> str:
    out = StringIO()
    call_command("breaker", *words, stdout=out)
    return out.getvalue().strip()


def test_the_command_lists_holds_and_releases() -> None:
    make_dependency()
    call(3, "failed")
    judged()
    assert run("list").endswith("3 calls in 60 s, 3 failed, 0 slow; types: crm.sync")
    said = run("open", CRM, "--reason", "maintenance", "--actor", "ann", "--minutes", "30")
    assert said.startswith("crm: open since ") and "held by ann until" in said and "(maintenance)" in said
    assert standing().forced_until is not None
    assert run("close", CRM, "--reason", "try", "--actor", "ann").startswith("crm: closed since")
    assert "held" not in run("release", CRM, "--reason", "done", "--actor", "ann")
    assert [entry[0] for entry in entries()] == ["breaker.forced_open", "breaker.forced_closed", "breaker.let_go"]
    assert set(AuditEntry.objects.values_list("source", flat=True)) == {"command"}
    for words in (("open", "nobody", "--reason", "x"), ("open", CRM, "--reason", "x", "--minutes", "-5")):
        with pytest.raises(CommandError):
            run(*words)
    with pytest.raises(CommandError):
        run("open", CRM, "--reason", "x", "--minutes", "1e300")


def client_of(role: str) -> Client:
    user = User.objects.create(username=role, is_staff=True)
    user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(user)
    return client


def test_the_admin_edits_settings_with_a_reason_and_shows_the_state() -> None:
    make_dependency()
    opened()
    owner, url = client_of("owner"), reverse("admin:queues_dependency_change", args=[CRM])
    page = owner.get(url).content.decode()
    assert "Of 20 calls in 60 s 20 failed" in page and KIND in page
    fields = {name: getattr(Dependency.objects.get(), name) for name in breaker_actions.SETTINGS}
    refused = owner.post(url, {**fields, "trial_jobs": 5})
    assert refused.status_code == 200 and Dependency.objects.get().trial_jobs == 3
    # What is no setting is not taken, whoever sends it.
    sent = {**fields, "trial_jobs": 5, "state": "closed", "name": "other", "reason": "more of them"}
    assert owner.post(url, sent).status_code == 302
    found = Dependency.objects.get()
    assert (found.name, found.trial_jobs, found.state) == (CRM, 5, "open")
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.reason) == ("dependency.changed", "owner", "more of them")
    assert (entry.before, entry.after) == ({"trial_jobs": 3}, {"trial_jobs": 5})
    assert owner.post(url, {**sent, "window_seconds": 1}).status_code == 200
    assert Dependency.objects.get().window_seconds == 60


def test_the_admin_adds_one_and_deletes_what_no_type_names() -> None:
    make_dependency()
    owner = client_of("owner")
    fields = {name: getattr(Dependency.objects.get(), name) for name in breaker_actions.SETTINGS}
    assert (
        owner.post(reverse("admin:queues_dependency_add"), {**fields, "name": "mail", "reason": "new"}).status_code
        == 302
    )
    assert (
        owner.post(reverse("admin:queues_dependency_add"), {**fields, "name": "A b", "reason": "x"}).status_code == 200
    )
    for name in (CRM, "mail"):
        owner.post(reverse("admin:queues_dependency_delete", args=[name]), {"post": "yes"})
    assert list(Dependency.objects.values_list("name", flat=True)) == [CRM]
    assert entries() == [("dependency.created", "owner"), ("dependency.deleted", "owner")]


@pytest.mark.parametrize(("role", "status"), [("viewer", 200), ("operator", 200), ("owner", 200), ("stranger", 403)])
def test_who_may_look_and_who_may_edit(role: str, status: int) -> None:
    make_dependency()
    client, url = client_of(role), reverse("admin:queues_dependency_change", args=[CRM])
    assert client.get(url).status_code == status
    posted = client.post(url, {"reason": "x"}).status_code
    assert posted == (200 if role == "owner" else 403)


def test_a_contract_names_a_dependency_as_one_is_named() -> None:
    assert contract_rules.check({"dependency": "mail-provider"}).errors == {}
    assert contract_rules.check({"dependency": "mail-provider"}).warnings == contract_rules.check({}).warnings
    for name in ("Mail", "mail provider", "-x"):
        assert list(contract_rules.check({"dependency": name}).errors) == ["dependency"]


def test_what_is_held_is_no_business_of_a_round() -> None:
    """A held one has no time to try again, and a round leaves it as it is."""
    make_dependency()
    opened()
    force(CRM, state="open", **ANN)
    before = standing()
    assert before.retry_at is None
    service.run_once()
    assert standing() == before
