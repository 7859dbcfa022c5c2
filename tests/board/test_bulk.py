"""Many dead letters at once: what the dialog says, that a plan is of what was seen, and that a form makes one plan."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.test import Client

from dlq.models import PlanItem, ReplayPlan
from queues import actions, contracts
from queues.models import AuditEntry, Dependency, JobType
from tests.board.conftest import ClientOf
from tests.board.plans import BULK, HTMX, all_of, failure, form_of, healthy
from tests.board.verdicts import alert, fails
from tests.dlq.deaths import kill
from tests.factories import make_job, make_type

KIND = "mail.send"


@pytest.fixture(autouse=True)
def _types(db: None) -> None:
    make_type(KIND, tier_id=1)
    make_type("crm.sync", tier_id=2)


def text_of(response: Any) -> str:
    """Return a page's words."""
    return " ".join(re.sub(r"<[^>]+>", " ", response.text).split())


def jobs_of(found: ReplayPlan) -> set[UUID]:
    """Return what a plan is about."""
    return set(PlanItem.objects.filter(plan_id=found.id).values_list("job_id", flat=True))


def test_the_dialog_counts_looks_and_says_what_will_happen(operator: Client) -> None:
    healthy()
    group, ids = failure(5)
    actions.cancel_dead_letter(ids[0], actor="ada", reason="x", source="ui")
    response = operator.get(BULK, all_of(group), headers=HTMX)
    assert "<html" not in response.text
    text = text_of(response)
    assert "Replay 4 dead letters?" in text
    assert "4 all of mail.send with this failure, as of" in text
    assert "Are not known to be safe whether it was done (4), whether the key is still honoured (4) 4" in text
    assert "Pass every check 0" in text
    for name in ("rate", "stop", "concurrency", "dry_run", "reason"):
        assert f'name="{name}"' in response.text, name
    # Looking makes nothing.
    assert not ReplayPlan.objects.exists()


def test_over_50_only_the_newest_are_looked_at_and_it_says_so(operator: Client) -> None:
    healthy()
    group, _ = failure(52)
    text = text_of(operator.get(BULK, all_of(group)))
    assert "Replay 52 dead letters?" in text
    assert "Of the newest 50" in text
    assert "Are not known to be safe whether it was done (50), whether the key is still honoured (50) 50" in text


def test_all_matching_makes_a_plan_of_what_was_seen(operator: Client) -> None:
    """I-32: one that died after the look is not swept in; one that was resolved since is skipped, not lost."""
    group, ids = failure(4)
    form = form_of(operator, failure=group.id, all=1)
    actions.cancel_dead_letter(ids[0], actor="ada", reason="x", source="ui")
    later = failure(2)[1]
    response = operator.post(BULK, {**form, "rate": "2", "stop": "0.25", "concurrency": "7"})
    found = ReplayPlan.objects.get()
    assert (response.status_code, response["Location"]) == (303, f"/replays/{found.id}/")
    assert jobs_of(found) == set(ids)
    assert not jobs_of(found) & set(later)
    assert (found.total, found.rate_per_second, found.stop_on_failure_ratio, found.concurrency) == (4, 2.0, 0.25, 7)
    assert (found.created_by, found.reason, found.source) == ("operator", "the relay is back", "ui")
    assert found.selection == {
        "type": KIND, "reason": "attempts_exhausted", "fingerprint": "f" * 16, "state": "dead",
    }  # fmt: skip
    assert AuditEntry.objects.get(action="replay_plan.created").object_id == str(found.id)


def test_a_changed_count_comes_back_with_the_new_number(operator: Client) -> None:
    """I-32: 409, nothing is made, and the dialog's own form then makes it."""
    group, _ = failure(4)
    form = form_of(operator, failure=group.id, all=1)
    response = operator.post(BULK, {**form, "expected": "9"}, headers=HTMX)
    assert response.status_code == 409
    assert alert(response) == "4 are dead and unresolved now, not 9. Look again."
    assert 'name="expected" value="4"' in response.text
    assert 'value="the relay is back"' in response.text
    assert not ReplayPlan.objects.exists()
    assert operator.post(BULK, {**form, "expected": "4"}).status_code == 303


def test_selected_ids_make_a_plan_of_these(operator: Client) -> None:
    """R-05: an id twice counts once; what is not known is left out and counted."""
    _, ids = failure(4)
    chosen = [str(ids[0]), str(ids[1]), str(ids[1]), str(uuid4())]
    form = form_of(operator, ids=chosen)
    assert "1 of the selected are not kept any more" in text_of(operator.get(BULK, {"verb": "replay", "ids": chosen}))
    assert operator.post(BULK, form).status_code == 303
    found = ReplayPlan.objects.get()
    assert jobs_of(found) == {ids[0], ids[1]}
    assert found.left_out == 1


def test_a_filter_of_the_flat_list_chooses_all_that_match(operator: Client) -> None:
    _, mail = failure(3)
    _, crm = failure(2, kind="crm.sync", fingerprint="c" * 16)
    page = operator.get("/dlq/?view=flat&type=crm.sync").text
    href = re.search(r'id="replay-all" href="([^"]+)"', page)
    assert href is not None
    response = operator.get(href[1].replace("&amp;", "&"))
    assert "2 all with type crm.sync" in text_of(response)
    operator.post(BULK, form_of(operator, type="crm.sync", all=1))
    assert jobs_of(ReplayPlan.objects.get()) == set(crm)
    operator.post(BULK, form_of(operator, died_of="attempts_exhausted", all=1))
    assert jobs_of(ReplayPlan.objects.exclude(total=2).get()) == {*mail, *crm}


def test_a_form_sent_often_makes_one_plan(operator: Client) -> None:
    """I-30: a double click, and a retry after a lost answer."""
    group, _ = failure(3)
    form = form_of(operator, failure=group.id, all=1)
    answers = {operator.post(BULK, form)["Location"] for _ in range(5)}
    found = ReplayPlan.objects.get()
    assert answers == {f"/replays/{found.id}/"}
    assert AuditEntry.objects.filter(action="replay_plan.created").count() == 1
    changed = operator.post(BULK, {**form, "reason": "another"})
    assert changed.status_code == 409
    assert "made a plan already" in alert(changed)
    assert ReplayPlan.objects.count() == 1


def test_htmx_is_led_to_the_plan(operator: Client) -> None:
    group, _ = failure(3)
    response = operator.post(BULK, form_of(operator, failure=group.id, all=1), headers=HTMX)
    assert (response.status_code, response["HX-Redirect"]) == (200, f"/replays/{ReplayPlan.objects.get().id}/")


@pytest.mark.parametrize("verb", ["cancel", "ignore"])
def test_cancel_and_ignore_have_fewer_fields(operator: Client, verb: str) -> None:
    group, _ = failure(3)
    response = operator.get(BULK, all_of(group, verb=verb))
    assert f"{verb.capitalize()} 3 dead letters?" in text_of(response)
    for name in ("rate", "stop", "concurrency", "dry_run", "forced"):
        assert f'name="{name}"' not in response.text, name
    operator.post(BULK, form_of(operator, verb=verb, failure=group.id, all=1))
    assert ReplayPlan.objects.get().action == verb


def test_a_dry_run_says_so(operator: Client) -> None:
    group, _ = failure(3)
    operator.post(BULK, {**form_of(operator, failure=group.id, all=1), "dry_run": "on"})
    assert ReplayPlan.objects.get().dry_run


def test_only_an_admin_may_force(client_of: ClientOf) -> None:
    group, _ = failure(3)
    given = all_of(group)
    assert 'name="forced"' not in client_of("owner").get(BULK, given).text
    form = form_of(client_of("owner"), failure=group.id, all=1)
    assert client_of("owner").post(BULK, {**form, "forced": "on"}).status_code == 422
    assert not ReplayPlan.objects.exists()
    assert 'name="forced"' in client_of("admin").get(BULK, given).text
    client_of("admin").post(BULK, {**form_of(client_of("admin"), failure=group.id, all=1), "forced": "on"})
    assert ReplayPlan.objects.get().forced


@pytest.mark.parametrize(
    ("given", "status", "error"),
    [
        ({"reason": " "}, 422, "Say why."),
        ({"reason": "x" * 1_001}, 422, "At most 1,000 characters."),
        ({"concurrency": "0"}, 422, "is from 1 to"),
        ({"concurrency": "many"}, 422, "is no number"),
        ({"expected": ""}, 422, "is no number"),
        ({"token": "x"}, 422, "not one of ours"),
    ],
)
def test_what_is_refused_says_so_and_keeps_what_was_typed(
    operator: Client, given: dict[str, str], status: int, error: str
) -> None:
    """R-07: and nothing is made."""
    group, _ = failure(3)
    form = form_of(operator, failure=group.id, all=1)
    response = operator.post(BULK, {**form, "rate": "100", "stop": "0.5", **given})
    assert response.status_code == status
    assert error in alert(response)
    assert '<option value="100" selected>' in response.text
    assert '<option value="0.5" selected>' in response.text
    assert not ReplayPlan.objects.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "Nothing is selected."),
        ({"ids": ["abc"]}, "One of the selected is no job."),
        ({"all": "1", "type": "no.such"}, "This filter means nothing."),
        ({"all": "1", "tier": "9"}, "This filter means nothing."),
        ({"all": "1", "died_of": "'; --"}, "This filter means nothing."),
    ],
)
def test_nothing_chosen_is_422(operator: Client, given: dict[str, Any], words: str) -> None:
    """R-05."""
    for response in (operator.get(BULK, {"verb": "replay", **given}), operator.post(BULK, {"verb": "replay", **given})):
        assert response.status_code == 422
        assert words in response.text
        assert '<button class="btn go' not in response.text


def test_what_is_resolved_by_now_cannot_be_chosen(operator: Client) -> None:
    group, ids = failure(1)
    actions.cancel_dead_letter(ids[0], actor="ada", reason="x", source="ui")
    response = operator.get(BULK, all_of(group))
    assert "Nothing like this is dead any more." in response.text
    assert 'class="btn go' not in response.text


def test_a_failing_dependency_is_said_before_it_begins(operator: Client) -> None:
    group, _ = failure(2)
    fails(KIND, n=60)
    text = text_of(operator.get(BULK, all_of(group)))
    assert "The plan stops before it begins as long as this is so." in text


def test_an_open_breaker_is_said_to_hold_the_plan(operator: Client) -> None:
    group, _ = failure(2)
    JobType.objects.filter(name=KIND).update(dependency="smtp")
    Dependency.objects.create(name="smtp", state="open", why="20 of 20 failed.")
    contracts.forget()
    text = text_of(operator.get(BULK, all_of(group)))
    assert "The circuit breaker of smtp is open" in text
    assert "20 of 20 failed. The plan waits as long as this is so." in text


def test_who_may_and_what_is_unknown(client_of: ClientOf) -> None:
    group, _ = failure(1)
    given = all_of(group)
    assert client_of("viewer").get(BULK, given).status_code == 403
    assert client_of("viewer").post(BULK, given).status_code == 403
    assert client_of("operator", enforce_csrf_checks=True).post(BULK, given).status_code == 403
    assert client_of("operator").get(BULK, {**given, "verb": "explode"}).status_code == 404
    assert client_of("operator").get(BULK, {**given, "failure": "999999"}).status_code == 404
    assert client_of("operator").get(BULK, {**given, "failure": "x"}).status_code == 404


def test_probes_are_never_chosen(operator: Client) -> None:
    failure(1)
    probe = make_job(type=KIND, probe=True)
    kill([probe.id])
    form = form_of(operator, all=1)
    assert form["expected"] == "1"
