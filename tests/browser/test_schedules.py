"""The schedules page in a browser: nothing for axe to find, light and dark, and one job for a double click."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import expect

from queues.models import Job, Schedule
from tests.browser.conftest import Visit
from tests.factories import accept
from tests.outcomes.test_schedules import KIND, NAME, ago, make_schedule, tick

pytestmark = pytest.mark.browser


def test_the_page_and_its_dialog(visit: Callable[..., Visit], person: Callable[[str], User]) -> None:
    person("operator")
    make_schedule(cron="*/15 9-17 * * MON-FRI", timezone="America/Argentina/Buenos_Aires")
    make_schedule("refused", refused=2, refused_since=ago(minutes=70))
    make_schedule("paused", paused=True, paused_by="ann", paused_reason="the mill is closed")
    make_schedule("late", next_at=ago(minutes=9))
    tick("refused", outcome="refused", detail="The payload breaks the contract.")
    tick(outcome="missed", ticks=12, minutes=3)
    tick(job_id=accept(1, kind=KIND)[0], minutes=1)
    window = visit(color_scheme="light")
    window.login("operator")
    page = window.open("/schedules/")
    page.wait_for_load_state("networkidle")
    window.holds_everywhere()
    page.click(f"[id='pause-{NAME}']")
    expect(page.locator("#dialog #until")).to_be_visible()
    assert window.axe() == []
    page.keyboard.press("Escape")
    page.click(f"[id='run-{NAME}']")
    expect(page.locator("#dialog #reason")).to_be_focused()
    page.fill("#dialog #reason", "the meeting is early")
    page.locator("#dialog button.go").dblclick()
    expect(page.locator("#toasts")).to_contain_text(f"A job of {NAME} is enqueued.")
    assert page.locator(f"[id='schedule-{NAME}'] title").last.inner_html().endswith(", run by operator")
    assert Job.objects.count() == 2
    assert not Schedule.objects.get(name=NAME).paused
    assert window.errors == []
