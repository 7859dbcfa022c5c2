"""Dead letters in bulk in Chromium: select, look, replay, watch the plan; without script; accessible in both themes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import expect

from dlq.models import PlanItem, ReplayPlan
from queues import broker
from tests.board.plans import failure, healthy, step, succeed
from tests.browser.conftest import Visit
from tests.factories import make_type

pytestmark = pytest.mark.browser

Start = Callable[..., Visit]
Person = Callable[..., User]


@pytest.fixture(autouse=True)
def _no_hints(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "publish", lambda *a, **k: None)
    make_type("mail.send", tier_id=1)
    healthy()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_selected_ones_are_replayed_by_a_plan_that_is_watched(visit: Start, person: Person, theme: str) -> None:
    person("operator")
    group, _ = failure(4)
    window = visit(color_scheme=theme)
    window.login("operator")

    def accessible(what: str) -> None:
        assert window.axe() == [], what
        if theme == "light":
            page.set_viewport_size({"width": 390, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, what
            page.set_viewport_size({"width": 1440, "height": 900})

    page = window.open("/dlq/")
    expect(page.locator("h1")).to_have_text("4 dead letters, 1 reason")
    accessible("the list")
    page.click(f"#group-{group.id} a.name")
    expect(page.locator("h1")).to_contain_text("4 dead letters are unresolved")
    expect(page.locator("#bulk")).not_to_be_visible()
    for box in page.locator("[data-select]").all()[:3]:
        box.check()
    expect(page.locator("#bulk [data-count]")).to_have_text("3")
    accessible("one failure, three selected")
    page.wait_for_selector("#bulk[data-htmx-powered]")
    page.click("#bulk button[value=replay]")
    expect(page.locator("#dialog #reason")).to_be_focused()
    expect(page.locator("#dialog")).to_contain_text("Replay 3 dead letters?")
    accessible("the dialog")
    page.fill("#dialog #reason", "   ")
    page.locator("#dialog button.go").click()
    expect(page.locator("#dialog [role=alert]")).to_contain_text("Say why")
    page.fill("#dialog #reason", "the relay is back")
    page.locator("#dialog button.go").dblclick()
    page.wait_for_url("**/replays/*/")
    found = ReplayPlan.objects.get()
    assert (found.total, found.reason) == (3, "the relay is back")
    expect(page.locator("h1")).to_have_text("Replay 3 jobs: running")
    expect(page.locator("#nav a[href='/replays/']")).to_contain_text("1")
    accessible("the plan")
    step(found)
    succeed(*[item.child for item in PlanItem.objects.filter(plan_id=found.id) if item.child])
    step(found)
    # The page polls every two seconds while the plan moves.
    expect(page.locator("#region")).to_contain_text("3 replayed, 3 confirmed", timeout=20_000)
    expect(page.locator("h1")).to_contain_text("finished")
    page = window.open("/replays/")
    expect(page.locator("#region")).to_contain_text("3 replayed, 3 confirmed")
    accessible("the plans")
    # The browser itself reports an answer of 422 in the console.
    assert [error for error in window.errors if "422" not in error] == []


def test_it_works_without_javascript(visit: Start, person: Person) -> None:
    person("operator")
    failure(3)
    window = visit(java_script_enabled=False)
    window.login("operator")
    page = window.open("/dlq/?view=flat")
    for box in page.locator("[name=ids]").all()[:2]:
        box.check()
    page.click("#bulk button[value=cancel]")
    expect(page.locator("h1")).to_have_text("Cancel 2 dead letters?")
    page.fill("#reason", "not needed")
    page.click("button.go")
    expect(page.locator("h1")).to_have_text("Cancel 2 jobs: running")
    page.click("#pause")
    page.fill("#reason", "wait a moment")
    page.click("button.go")
    expect(page.locator("#why")).to_contain_text("Paused by operator: wait a moment")
    found = ReplayPlan.objects.get()
    assert (found.action, found.total, found.state) == ("cancel", 2, "paused")
