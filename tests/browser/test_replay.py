"""Replaying, editing and revealing in Chromium: asked once, a changed verdict in the dialog, once however often."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from queues import broker, lifecycle
from queues.accept import enqueue
from queues.models import AuditEntry, Job
from queues.states import Reason
from tests.board.conftest import bury
from tests.board.verdicts import Worker, fails, works
from tests.browser.conftest import Visit
from tests.factories import get, make_type

pytestmark = pytest.mark.browser

Start = Callable[..., Visit]
Person = Callable[..., User]


@pytest.fixture(autouse=True)
def _no_hints(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "publish", lambda *a, **k: None)
    make_type("mail.send", redact=["/to"], provider_key_ttl_seconds=86_400)


def dead(n: int = 1) -> Job:
    payload = {"to": "kim@shop.example", "n": n}
    job_id = enqueue("mail.send", payload, dedupe_key=f"mail-{n}").job_id
    bury([job_id], reason=Reason.ATTEMPTS_EXHAUSTED, message="the relay did not answer")
    works("mail.send")
    return get(job_id)


def ask(page: Page, control: str) -> None:
    """Open the dialog of a control, once htmx has taken it over."""
    page.wait_for_selector(f"{control}[data-htmx-powered]")
    page.click(control)
    expect(page.locator("#dialog #reason")).to_be_focused()


def test_the_card_asks_once_and_a_changed_verdict_comes_back_into_the_dialog(
    visit: Start, person: Person, worker: Worker
) -> None:
    person("operator")
    job = dead()
    window = visit()
    window.login("operator")
    page = window.open(f"/dlq/{job.id}/")
    expect(page.locator("#verdict h2")).to_have_text("Safe to replay")
    assert worker.asked == [job.id]
    # A poll draws what is known and asks nobody.
    page.evaluate("htmx.trigger(document.querySelector('[data-poll]'), 'every')")
    page.wait_for_load_state("networkidle")
    expect(page.locator("#verdict h2")).to_have_text("Safe to replay")
    assert worker.asked == [job.id]
    page.locator("h1").click()
    page.keyboard.press("r")
    expect(page.locator("#dialog #reason")).to_be_focused()
    expect(page.locator("#dialog")).to_contain_text("The check did not find the work done")
    fails("mail.send", n=3)
    page.fill("#dialog #reason", "the relay is back")
    page.locator("#dialog button.go").click()
    expect(page.locator("#dialog [role=alert]")).to_contain_text("changed since you looked")
    expect(page.locator("#dialog #changed")).to_contain_text("was pass, now note")
    expect(page.locator("#dialog #reason")).to_have_value("the relay is back")
    page.locator("#dialog button.go").dblclick()
    expect(page.locator("#toasts")).to_contain_text("Replayed 1 job.")
    expect(page.locator("#dialog")).not_to_be_visible()
    expect(page.locator("#region")).to_contain_text("Replayed by operator")
    assert Job.objects.filter(replay_of=job.id).count() == 1
    assert AuditEntry.objects.filter(action="job.replayed").count() == 1
    assert [error for error in window.errors if "409" not in error] == []


def test_an_edit_without_javascript_and_a_reveal_that_hides_itself(visit: Start, person: Person) -> None:
    person("owner")
    job = dead()
    window = visit(java_script_enabled=False)
    window.login("owner")
    page = window.open(f"/dlq/{job.id}/")
    page.click("#edit")
    text = page.input_value("#payload")
    page.fill("#payload", text.replace('"n": 1', '"n": 2'))
    page.click("button[value=preview]")
    expect(page.locator("#replay")).to_have_text("Replay with 1 change")
    page.fill("#reason", "wrong number")
    page.click("#replay")
    expect(page.locator("h1")).to_contain_text("waits to be started")
    child = Job.objects.get(replay_of=job.id)
    assert child.payload is not None
    assert "kim@shop.example" in child.payload
    page = window.open(f"/jobs/{job.id}/")
    expect(page.locator("#reveal")).to_have_count(1)

    script = visit()
    script.login("owner")
    page = script.open(f"/jobs/{job.id}/")
    page.clock.install()
    ask(page, "#reveal")
    page.fill("#dialog #reason", "match the order")
    page.locator("#dialog button.go").click()
    expect(page.locator("#dialog #revealed")).to_contain_text("kim@shop.example")
    expect(page.locator("#dialog")).to_be_visible()
    page.clock.fast_forward(61_000)
    expect(page.locator("#dialog")).not_to_contain_text("kim@shop.example")
    expect(page.locator("#dialog")).to_contain_text("Reveal the hidden values")
    page.locator("#dialog [data-close]").click()
    expect(page.locator("#dialog")).not_to_be_visible()
    assert "kim@shop.example" not in page.content()
    assert script.errors == []


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390)], ids=lambda v: str(v))
def test_the_pages_are_accessible(visit: Start, person: Person, theme: str, width: int) -> None:
    person("operator")
    job, other = dead(1), dead(2)
    lifecycle.replay(other.id, by="ann")
    window = visit(color_scheme=theme, viewport={"width": width, "height": 844})
    window.login("operator")
    page = window.open(f"/dlq/{job.id}/")
    expect(page.locator("#verdict h2")).to_have_text("Safe to replay")
    assert window.axe() == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ask(page, "#replay")
    assert window.axe() == []
    fails("mail.send")
    page = window.open(f"/dlq/{job.id}/")
    expect(page.locator("#verdict h2")).to_have_text("Do not replay")
    assert window.axe() == []
    page = window.open(f"/dlq/{job.id}/edit/")
    page.fill("#payload", page.input_value("#payload").replace('"n": 1', '"n": 2'))
    page.fill("#key", "mail-9")
    page.click("button[value=preview]")
    expect(page.locator("#h-diff")).to_be_visible()
    assert window.axe() == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page = window.open(f"/jobs/{other.id}/")
    assert window.axe() == []
    assert window.errors == []
