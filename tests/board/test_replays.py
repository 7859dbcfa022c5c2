"""Replay plans on the board: how far, what went wrong, why one waits or stopped; pausing, resuming, aborting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse

from dlq.models import PlanItem, ReplayPlan
from dlq.plans import advance
from dlq.plans import step as stepping
from dlq.plans.selection import Selection
from jobsboard.board.replays import CODES, LOOKS
from queues import actions, contract_switches, contracts
from queues.models import AuditEntry
from tests.board.conftest import ClientOf
from tests.board.plans import HTMX, failure, healthy, plan, step, succeed
from tests.board.verdicts import alert
from tests.dlq.deaths import kill
from tests.factories import fold_all, make_type

URL = "/replays/"


@pytest.fixture(autouse=True)
def _types(db: None) -> None:
    make_type("mail.send", tier_id=1)
    healthy()


def words(client: Client, url: str = URL) -> str:
    """Return the text of a page's region."""
    page = client.get(url)
    assert page.status_code == 200
    return " ".join(re.sub(r"<[^>]+>", " ", page.text.split('id="region"')[1]).split())


def children(found: ReplayPlan) -> list[PlanItem]:
    return list(PlanItem.objects.filter(plan_id=found.id, child__isnull=False).order_by("number"))


def nav(client: Client) -> str:
    """Return the line of the navigation."""
    found = re.search(r'<a href="/replays/".*?</a>', client.get("/audit/").text, re.S)
    assert found is not None
    return found[0]


def stopped(n: int = 12) -> ReplayPlan:
    """Make a plan whose first replays fail again, so that its rule stops it."""
    _, ids = failure(n)
    found = step(plan(*ids, stop_on_failure_ratio=0.0, rate_per_second=2.0))
    kill([item.child for item in children(found)[:3] if item.child], message="relay refused")
    return step(found)


def test_a_plan_says_how_far_it_is_and_how_its_replays_end(viewer: Client) -> None:
    _, ids = failure(5)
    found = plan(*ids, stop_on_failure_ratio=1.0)
    url = f"{URL}{found.id}/"
    text = words(viewer, url)
    assert "Replay 5 jobs: running" in text
    assert "ann, " in text
    assert "the relay is back" in text
    assert "0 of 5 acted on" in text
    found = step(found)
    succeed(*[item.child for item in children(found)[:3] if item.child])
    kill([item.child for item in children(found)[3:4] if item.child], message="again")
    found = step(found)
    text = words(viewer, url)
    assert "5 of 5 acted on" in text
    assert "5 replayed, 3 confirmed, 1 on their way, 1 dead again" in text
    assert "Left: none is left" in text
    page = viewer.get(url).text
    assert 'role="img" aria-label="5 of 5 acted on"' in page
    # What went wrong is listed, with links to the job and to its replay; what went well is not.
    bad = children(found)[3]
    assert f'href="/jobs/{bad.job_id}/"' in page
    assert f'href="/jobs/{bad.child}/"' in page
    assert "dead again" in text
    assert str(children(found)[0].child) not in page
    assert str(children(found)[0].child) in viewer.get(f"{url}?which=all").text
    assert 'data-poll="2"' in page


def test_skipped_ones_say_why_in_words(viewer: Client) -> None:
    _, ids = failure(3)
    found = plan(*ids)
    actions.cancel_dead_letter(ids[0], actor="ada", reason="x", source="ui")
    step(found)
    text = words(viewer, f"{URL}{found.id}/")
    assert "Resolved since they were chosen 1" in text
    assert "skipped: resolved since they were chosen" in text


def test_a_held_plan_says_what_it_waits_for(viewer: Client) -> None:
    _, ids = failure(2)
    found = plan(*ids)
    contract_switches.set_switch("mail.send", paused=True, reason="relay", actor="ada")
    contracts.forget()
    step(found)
    text = words(viewer, f"{URL}{found.id}/")
    assert "Held: mail.send is paused. It goes on by itself." in text
    assert "Left: not while it waits" in text


def test_a_stopped_plan_is_said_everywhere(viewer: Client) -> None:
    """R-06: the banner, the list, the navigation in amber, the overview's attention and what changed."""
    found = stopped()
    assert found.state == "stopped"
    url = f"{URL}{found.id}/"
    text = words(viewer, url)
    assert "Stopped." in text
    assert "failed again" in text.split("Stopped.")[1]
    assert "Stopped by its rule" in words(viewer)
    assert "1 replay plan: 1 stopped by its rule" in words(viewer)
    assert '<span class="n warn">1</span>' in nav(viewer)
    overview = viewer.get("/").text
    assert "A replay of 12 jobs stopped" in overview
    assert f'href="{url}"' in overview.split('id="h-att"')[1].split("</section>")[0]
    changed = overview.split('id="h-chg"')[1].split("</section>")[0]
    assert "ann began to replay 12 jobs" in changed
    assert "system stopped a plan" in changed


def test_the_navigation_counts_only_what_runs_or_stopped(viewer: Client) -> None:
    _, ids = failure(2)
    assert 'class="n' not in nav(viewer)
    found = plan(*ids)
    assert '<span class="n ">1</span>' in nav(viewer)
    ReplayPlan.objects.filter(id=found.id).update(state="paused")
    assert 'class="n' not in nav(viewer)


def test_people_pause_resume_and_abort_with_a_reason(operator: Client) -> None:
    _, ids = failure(3)
    found = plan(*ids)
    url = f"{URL}{found.id}/"
    for verb, state, told in (
        ("pause", "paused", "Paused."), ("resume", "running", "It goes on."), ("abort", "aborted", "Aborted."),
    ):  # fmt: skip
        assert f'id="{verb}"' in operator.get(url).text
        response = operator.post(f"{url}{verb}/", {"reason": f"because {verb}"}, headers=HTMX)
        assert response.status_code == 200
        assert told in response.text
        assert ReplayPlan.objects.get().state == state
        # Again: the same answer.
        assert operator.post(f"{url}{verb}/", {"reason": "again"}).status_code == 303
    assert "Aborted by operator: because abort" in words(operator, url)
    assert "Left when it was aborted 3" in words(operator, url)
    assert AuditEntry.objects.filter(object_type="replay_plan").count() == 4
    refused = operator.post(f"{url}resume/", {"reason": "x"})
    assert refused.status_code == 409
    assert "cannot be resumed" in alert(refused)
    assert 'id="abort"' not in operator.get(url).text


def test_a_reason_is_asked_for(operator: Client) -> None:
    """R-07."""
    _, ids = failure(1)
    url = f"{URL}{plan(*ids).id}/pause/"
    assert operator.post(url, {"reason": " "}).status_code == 422
    assert operator.post(url, {"reason": "x" * 1_001}).status_code == 422
    assert operator.post(url, {"reason": "<script>x</script>"}).status_code == 303
    assert "<script>x" not in operator.get(f"{URL}{ReplayPlan.objects.get().id}/").text


def test_who_may(client_of: ClientOf) -> None:
    _, ids = failure(1)
    found = plan(*ids)
    for verb in ("pause", "resume", "abort"):
        url = reverse("replay-plan-act", args=[found.id, verb])
        assert client_of("viewer").get(url).status_code == 403
        assert client_of("viewer").post(url, {"reason": "x"}).status_code == 403
        assert client_of("operator").get(url).status_code == 200
        assert client_of("operator", enforce_csrf_checks=True).post(url, {"reason": "x"}).status_code == 403
    assert 'id="abort"' not in client_of("viewer").get(f"{URL}{found.id}/").text
    assert client_of("operator").get(f"{URL}{found.id}/explode/").status_code == 404
    assert client_of("operator").get("/replays/00000000-0000-7000-8000-000000000000/").status_code == 404


def test_the_list_pages_by_50_and_every_state_has_words(viewer: Client) -> None:
    assert set(LOOKS) == set(ReplayPlan.State.values)
    _, ids = failure(1)
    for index in range(52):
        found = plan(*ids, idempotency_key=f"key-{index:04}")
        state = ReplayPlan.State.values[index % len(ReplayPlan.State.values)]
        ReplayPlan.objects.filter(id=found.id).update(state=state)
    first = viewer.get(URL).text
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older is not None
    second = viewer.get(URL + older[1].replace("&amp;", "&")).text
    found_ids = [set(re.findall(r'id="plan-([0-9a-f-]{36})"', page)) for page in (first, second)]
    assert [len(one) for one in found_ids] == [50, 2]
    assert not found_ids[0] & found_ids[1]


def test_items_page_by_100_and_odd_numbers_are_the_beginning(viewer: Client) -> None:
    _, ids = failure(103)
    found = plan(selection=Selection(type="mail.send"), expected_count=103)
    url = f"{URL}{found.id}/?which=waiting"
    first = viewer.get(url).text
    assert len(re.findall(r'id="item-', first)) == 100
    assert len(re.findall(r'id="item-', viewer.get(f"{url}&after=100").text)) == 3
    for odd in ("-1", "x", "9" * 30):
        assert viewer.get(url, {"which": "waiting", "after": odd}).status_code == 200
    assert "does not exist, cleared" in words(viewer, f"{URL}{found.id}/?which=nope")


def test_every_code_of_an_item_has_words() -> None:
    """The codes of dlq.plans, so that no page shows a bare name."""
    source = "".join(Path(str(module.__file__)).read_text() for module in (advance, stepping))
    named = set(re.findall(r'(?:skipped\(|code=)"(\w+)"', source))
    assert {"gone", "changed", "not_open", "not_replayed"} <= named
    assert named <= set(CODES)


def test_a_dry_run_says_what_it_would_do(viewer: Client) -> None:
    _, ids = failure(2)
    found = plan(*ids, dry_run=True)
    for _ in range(2):
        found = step(found)
    text = words(viewer, f"{URL}{found.id}/")
    assert "2 would be replayed" in text
    assert "Not known to be safe 2" in text
    fold_all()
    assert "2 dead letters" in words(viewer, "/dlq/")
