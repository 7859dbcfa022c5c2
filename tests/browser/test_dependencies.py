"""The page of circuit breakers in a browser: nothing for axe to find, and one hold for a double click."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import expect

from queues.models import AuditEntry, Dependency
from tests.board.test_dependencies import depend, flip
from tests.browser.conftest import Visit

pytestmark = pytest.mark.browser


def test_the_page_and_its_dialog(visit: Callable[..., Visit], person: Callable[[str], User]) -> None:
    person("operator")
    depend("crm.sync", "crm.notify")
    depend("billing.handoff", name="books", state="half_open")
    depend("mail.send", name="mail-provider", state="closed", why="")
    for ago in (0.1, 3, 9):
        flip("closed", "open", ago=ago)
        flip("open", "closed", ago=ago - 0.05)
    window = visit(color_scheme="light")
    window.login("operator")
    page = window.open("/dependencies/")
    page.wait_for_load_state("networkidle")
    window.holds_everywhere()
    table = page.locator("#list .tbl-wrap")
    assert table.evaluate("one => one.scrollWidth - one.clientWidth") <= 0, "no column is hidden at 1440"
    page.click("[id='close-crm']")
    expect(page.locator("#dialog #reason")).to_be_focused()
    page.fill("#dialog #reason", "their errors are ours")
    assert window.axe() == []
    page.locator("#dialog button.go").dblclick()
    expect(page.locator("#toasts")).to_contain_text("is held closed")
    expect(page.locator("[id='dependency-crm']")).to_contain_text("Let go")
    assert Dependency.objects.get(name="crm").state == "closed"
    assert AuditEntry.objects.filter(action="breaker.forced_closed").count() == 1
    assert window.errors == []
