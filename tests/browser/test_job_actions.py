"""Retry now and confirm by hand in Chromium: once however often, refused in the dialog, without script, accessible."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from queues import broker, confirmation, lifecycle
from queues.confirmation import Evidence
from queues.lifecycle import End, Verdict
from queues.models import AuditEntry, Job
from queues.states import JobState
from tests.browser.conftest import Visit
from tests.factories import accept, claim, failed, get, make_type, set_columns

pytestmark = pytest.mark.browser

Start = Callable[..., Visit]
Person = Callable[..., User]
S = JobState


@pytest.fixture(autouse=True)
def _no_hints(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "publish", lambda *a, **k: None)
    make_type("crm.sync", success="callback", confirm_within_seconds=300)


def job_in(state: JobState) -> Job:
    (job_id,) = accept(1, kind="crm.sync")
    if state == S.ACCEPTED:
        return get(job_id)
    run = claim([job_id])[0]
    if state == S.RETRYING:
        lifecycle.settle([failed(run, retry_in=3600)])
    elif state == S.AWAITING_CONFIRMATION:
        end = End(
            id=job_id, fence=run.fence, verdict=Verdict.AWAITING, reference="crm_1", confirm_in=300.0, act_in=300.0
        )
        lifecycle.settle([end])
    else:
        lifecycle.set_progress(job_id, run.fence, share=0.62, text="batch 31 of 50")
        evidence = Evidence(outcome="rejected", detail="bounced", kind="manual")
        confirmation.confirm_job(job_id, evidence, actor="ada", reason="bounced", source="ui")
        set_columns(job_id, raw_due_at="jobs_now() + interval '1 hour'")
    return get(job_id)


def ask(page: Page, control: str) -> None:
    """Open the dialog of a control, once htmx has taken it over."""
    page.wait_for_selector(f"{control}[data-htmx-powered]")
    page.click(control)
    expect(page.locator("#dialog #reason")).to_be_focused()


def test_a_job_is_retried_and_then_confirmed_through_the_dialog(visit: Start, person: Person) -> None:
    person("operator")
    job = job_in(S.RETRYING)
    window = visit()
    window.login("operator")
    page = window.open(f"/jobs/{job.id}/")
    expect(page.locator("#region")).to_contain_text("Next attempt in 59 min")

    ask(page, "#retry")
    page.fill("#dialog #reason", "the CRM is back")
    page.locator("#dialog button.go").dblclick()
    expect(page.locator("#toasts")).to_contain_text("The next attempt is due now.")
    expect(page.locator("#dialog")).not_to_be_visible()
    expect(page.locator("#retry")).to_be_focused()
    expect(page.locator("#region")).to_contain_text("due now")
    assert AuditEntry.objects.filter(action="job.retried_now").count() == 1

    ask(page, "#by-hand")
    expect(page.locator("#dialog")).to_contain_text("will be confirmed with this reference; it will not run again")
    page.fill("#dialog #ref", "crm_77")
    page.fill("#dialog #reason", "   ")
    page.locator("#dialog button.go").click()
    expect(page.locator("#dialog [role=alert]")).to_contain_text("Say why")
    expect(page.locator("#dialog #ref")).to_have_value("crm_77")
    page.fill("#dialog #reason", "seen in the CRM")
    page.locator("#dialog button.go").dblclick()
    expect(page.locator("#toasts")).to_contain_text("Confirmed by hand. It will not run again.")
    expect(page.locator("h1")).to_have_text("crm.sync is confirmed")
    expect(page.locator("#region")).to_contain_text("Confirmed by hand by operator.")
    expect(page.locator("#by-hand")).to_have_count(0)
    assert AuditEntry.objects.filter(action="job.confirmed_by_hand").count() == 1
    # The browser itself reports an answer of 422 in the console.
    assert [error for error in window.errors if "422" not in error] == []


def test_what_changed_in_between_is_said_in_the_dialog(visit: Start, person: Person) -> None:
    person("operator")
    job = job_in(S.AWAITING_CONFIRMATION)
    window = visit()
    window.login("operator")
    page = window.open(f"/jobs/{job.id}/")
    ask(page, "#by-hand")
    confirmation.by_token(job.id, Evidence(outcome="confirmed", ref="crm_1", run=job.fence))
    page.select_option("#dialog #outcome", "rejected")
    page.fill("#dialog #reason", "not there")
    page.locator("#dialog button.go").click()
    expect(page.locator("#dialog [role=alert]")).to_contain_text("The job has its proof already")
    expect(page.locator("#dialog")).to_contain_text("The job is confirmed already")
    expect(page.locator("#toasts")).not_to_contain_text("Not done")
    page.click("#dialog [data-close]")
    expect(page.locator("#region")).to_contain_text("Contradicted", timeout=20_000)
    assert get(job.id).state == S.CONFIRMED


def test_both_work_without_javascript(visit: Start, person: Person) -> None:
    person("operator")
    job = job_in(S.RETRYING)
    window = visit(java_script_enabled=False)
    window.login("operator")
    page = window.open(f"/jobs/{job.id}/")
    page.click("#retry")
    expect(page.locator("h1")).to_have_text("Retry this crm.sync job now?")
    page.fill("#reason", "the CRM is back")
    page.click("button.go")
    expect(page.locator("#toasts")).to_contain_text("The next attempt is due now.")
    page.click("#by-hand")
    expect(page.locator("h1")).to_have_text("Confirm this crm.sync job by hand?")
    page.select_option("#outcome", "rejected")
    page.fill("#ref", "crm_77")
    page.fill("#reason", "the CRM does not know it")
    page.click("button.go")
    expect(page).to_have_url(f"{window.base}/jobs/{job.id}/")
    expect(page.locator("#toasts")).to_contain_text("Rejected by hand. It is a dead letter now.")
    assert get(job.id).state == S.DEAD


@pytest.mark.parametrize(
    ("theme", "width"), [("light", 1440), ("dark", 1440), ("light", 390), ("dark", 390)], ids=lambda v: str(v)
)
def test_the_page_of_every_open_state_is_accessible(visit: Start, person: Person, theme: str, width: int) -> None:
    person("operator")
    jobs = [job_in(state) for state in (S.ACCEPTED, S.PROCESSING, S.AWAITING_CONFIRMATION, S.RETRYING)]
    window = visit(color_scheme=theme, viewport={"width": width, "height": 844})
    window.login("operator")
    for job in jobs:
        page = window.open(f"/jobs/{job.id}/")
        assert window.axe() == [], job.state
        assert page.evaluate("document.documentElement.scrollWidth") <= width, job.state
        ask(page, "#by-hand")
        assert window.axe() == [], job.state
        page.keyboard.press("Escape")
        expect(page.locator("#by-hand")).to_be_focused()
    assert window.errors == []
