"""The probes page in a browser: nothing for axe to find, light and dark, and one probe for a double click."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import expect

from queues.models import ProbeRun
from tests.board.test_probes import NAME, a_type, begin, failed, passed, skipped
from tests.browser.conftest import Visit

pytestmark = pytest.mark.browser


def test_the_page_and_its_dialog(visit: Callable[..., Visit], person: Callable[[str], User]) -> None:
    person("operator")
    a_type()
    a_type("report.build", tier_id=3)
    for _ in range(12):
        passed("report.build")
    for deed in (passed, skipped, failed, failed):
        deed()
    begin("report.build")
    window = visit(color_scheme="light")
    window.login("operator")
    page = window.open("/probes/")
    page.wait_for_load_state("networkidle")
    window.holds_everywhere()
    page.click(f"[id='send-{NAME}']")
    expect(page.locator("#dialog #reason")).to_be_focused()
    page.fill("#dialog #reason", "looks dead")
    assert window.axe() == []
    page.locator("#dialog button.go").dblclick()
    expect(page.locator("#toasts")).to_contain_text("is on its way")
    expect(page.locator(f"[id='probe-{NAME}']")).to_contain_text("running")
    assert ProbeRun.objects.filter(by="operator").count() == 1
    assert window.errors == []
