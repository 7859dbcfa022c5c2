"""The board in Chromium: the way to a replay, accessibility, the content security policy, no script, hostile text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import expect

from jobsboard.models import AlertRule
from queues import audit, lifecycle, workers
from queues.accept import enqueue
from queues.lifecycle import End, Verdict
from queues.models import AuditEntry, ContractRevision, Job
from tests.board import alerting
from tests.browser.conftest import Visit
from tests.factories import accept, claim, confirmed, fold_all, make_type, set_columns

pytestmark = pytest.mark.browser

Start = Callable[..., Visit]
Person = Callable[..., User]
MARKER = '"><img src=x onerror=window.__xss=1>'

POWERED = "#replay[data-htmx-powered]"
"""Before htmx has taken it over, the control is a link to a page of its own: right for people, not what is tested."""


def die(*, message: str = "550 no such mailbox", name: str = "mail.send") -> Job:
    make_type(name, tier_id=1, redact=["/to"])
    job_id = enqueue(name, {"to": "kim@shop.example", "subject": "Hello"}, dedupe_key="mail-1").job_id
    run = claim([job_id])[0]
    trace = (
        f'Traceback (most recent call last):\n  File "/srv/mail.py", line 3, in send\n    relay.send()\nBoom: {message}'
    )
    failure = {"error_class": "Boom", "message": message, "traceback": trace}
    lifecycle.settle(
        [
            End(
                id=run.id,
                fence=run.fence,
                verdict=Verdict.FAILED,
                reason="permanent_error",
                failure=failure,
                seconds=0.2,
            )
        ]
    )
    lifecycle.settle([confirmed(one) for one in claim(accept(3, kind=name))])
    accept(2, kind=name)
    workers.report("w/1", kind="worker", hostname="w", pid=1, queues=["tier1"], slots=4, busy=1)
    fold_all()
    return Job.objects.get(id=job_id)


def pages(job: Job, *, said: str = "Tier 2 is late") -> list[str]:
    name = quote(job.type, safe="")
    alerts = alerting.make_pages(said)
    # The list, what fires, the form with most fields; hostile text may hide in every one.
    alerts = alerts if said == MARKER else [alerts[0], alerts[2], alerts[-2]]
    return [
        "/", "/types/", f"/types/{name}/", "/jobs/", f"/jobs/?type={name}&state=dead", f"/jobs/{job.id}/", "/dlq/",
        f"/dlq/{job.id}/", f"/dlq/{job.id}/replay/", "/audit/", "/jobs/?type=nope&key=none", "/webhooks/", *alerts,
    ]  # fmt: skip


def test_a_dead_letter_is_replayed_through_the_dialog(visit: Start, person: Person) -> None:
    person("operator")
    job = die()
    window = visit()
    window.login("operator")
    page = window.page
    expect(page.locator("h1")).to_contain_text("promise")
    page.click("nav >> text=Dead letters")
    expect(page.locator("h1")).to_have_text("1 dead letter, 1 reason")
    page.click("text=Review")
    expect(page.locator("h1")).to_have_text("1 dead letter is unresolved, 1 died of this")
    page.click(f"a[href='/dlq/{job.id}/']")
    expect(page.locator("h1")).to_contain_text("mail.send died")

    page.wait_for_selector(POWERED)
    page.click("#replay")
    dialog = page.locator("#dialog")
    expect(dialog).to_be_visible()
    expect(page.locator("#live")).to_contain_text("Held")
    dialog.locator("#reason").fill("   ")
    dialog.locator("button.go").click()
    expect(dialog.locator("[role=alert]")).to_contain_text("Say why")
    dialog.locator("#reason").fill("relay is back")
    dialog.locator("button.go").dblclick()
    expect(page.locator("#toasts")).to_contain_text("Replayed 1 job.")
    expect(dialog).not_to_be_visible()
    expect(page.locator("#region")).to_contain_text("Replayed by operator")
    child = Job.objects.get(replay_of=job.id)
    page.click("#toasts >> text=View the new job")
    expect(page).to_have_url(re.compile(str(child.id)))
    # The browser itself reports an answer of 422 in the console.
    assert [error for error in window.errors if "422" not in error] == []


def test_keys_and_focus_of_the_dialog(visit: Start, person: Person) -> None:
    person("operator")
    window = visit()
    window.login("operator")
    page = window.open(f"/dlq/{die().id}/")
    page.wait_for_selector(POWERED)
    page.keyboard.press("r")
    expect(page.locator("#dialog #reason")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#dialog")).not_to_be_visible()
    expect(page.locator("#replay")).to_be_focused()
    assert not Job.objects.filter(replay_of__isnull=False).exists()


def test_a_page_follows_what_happens(visit: Start, person: Person) -> None:
    person("viewer")
    make_type("mail.send", tier_id=1)
    accept(1, kind="mail.send")
    fold_all()
    window = visit()
    window.login("viewer")
    page = window.open("/jobs/")
    expect(page.locator("h1")).to_have_text("1 open job")
    accept(2, kind="mail.send")
    run = claim(accept(1, kind="mail.send"))[0]
    lifecycle.settle([End(id=run.id, fence=run.fence, verdict=Verdict.FAILED, reason="permanent_error")])
    fold_all()
    expect(page.locator("h1")).to_have_text("3 open jobs", timeout=15_000)
    expect(page.locator("tbody tr")).to_have_count(4)
    expect(page.locator("#nav")).to_contain_text("Dead letters1")
    expect(page.locator("#live")).to_contain_text("Live")
    page.select_option("select[name=tier]", "1")
    expect(page).to_have_url(re.compile(r"/jobs/\?tier=1$"))
    page.select_option("select[name=tier]", "3")
    expect(page.locator("#region")).to_contain_text("No jobs match")
    assert window.errors == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_the_console_is_silent(visit: Start, person: Person, theme: str) -> None:
    person("owner")
    job = die()
    window = visit(color_scheme=theme)
    window.login("owner")
    for path in pages(job):
        page = window.open(path)
        page.wait_for_load_state("networkidle")
        assert window.axe() == [], path
        assert window.errors == [], path
        assert not page.locator("[style]").count(), path
        assert not page.locator("script:not([src])").count(), path
        assert not page.locator("[data-poll] [aria-live]").count(), path
        small = page.locator("button:visible, input:visible").evaluate_all(
            "found => found.filter(e => e.getBoundingClientRect().height < 24).map(e => e.outerHTML.slice(0, 120))"
        )
        assert small == [], path


def test_an_alert_and_a_rule_are_acted_on_through_the_dialog(visit: Start, person: Person) -> None:
    person("operator")
    _, _, path, *_ = alerting.make_pages()
    window = visit()
    window.login("operator")
    page = window.open(path)
    page.wait_for_selector("#acknowledge[data-htmx-powered]")
    page.click("#acknowledge")
    expect(page.locator("#dialog #reason")).to_be_focused()
    page.locator("#dialog button.go").dblclick()
    expect(page.locator("#toasts")).to_contain_text("Acknowledged.")
    expect(page.locator("#region")).to_contain_text("operator: alert.acknowledged")
    expect(page.locator("#acknowledge")).to_have_count(0)
    assert AuditEntry.objects.filter(action="alert.acknowledged").count() == 1

    rule = AlertRule.objects.get()
    page = window.open("/alerts/?state=resolved")
    page.wait_for_selector(f"#rule-{rule.pk}-silence[data-htmx-powered]")
    page.click(f"#rule-{rule.pk}-silence")
    dialog = page.locator("#dialog")
    dialog.locator("#reason").fill("   ")
    dialog.locator("button.go").click()
    expect(dialog.locator("[role=alert]")).to_contain_text("Say why")
    assert window.axe() == []
    dialog.locator("#reason").fill("known, on it")
    dialog.locator("#for").select_option(index=1)
    dialog.locator("button.go").click()
    expect(page.locator("#toasts")).to_contain_text("Silenced until")
    expect(page.locator(f"#rule-{rule.pk}-speak")).to_be_visible()
    expect(page.locator("#list tbody tr")).to_have_count(1)
    assert page.url.endswith("/alerts/?state=resolved")
    page.select_option("select[name=state]", "acknowledged")
    expect(page).to_have_url(re.compile(r"/alerts/\?state=acknowledged$"))
    # The browser itself reports an answer of 422 in the console.
    assert [error for error in window.errors if "422" not in error] == []


def test_axe_finds_nothing_in_the_open_dialog(visit: Start, person: Person) -> None:
    person("operator")
    window = visit()
    window.login("operator")
    page = window.open(f"/dlq/{die().id}/")
    page.wait_for_selector(POWERED)
    page.click("#replay")
    expect(page.locator("#dialog #reason")).to_be_visible()
    assert window.axe() == []


def test_a_phone_scrolls_no_page_sideways(visit: Start, person: Person) -> None:
    person("operator")
    job = die()
    window = visit(viewport={"width": 390, "height": 844})
    window.login("operator")
    for path in pages(job):
        page = window.open(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


def test_everything_works_without_javascript(visit: Start, person: Person) -> None:
    person("operator")
    job = die()
    window = visit(java_script_enabled=False)
    window.login("operator")
    page = window.page
    page.fill("#search", str(job.id))
    page.press("#search", "Enter")
    expect(page.locator("h1")).to_contain_text("mail.send died")
    window.open("/jobs/")
    page.select_option("select[name=type]", "mail.send")
    page.click("text=Apply")
    expect(page).to_have_url(re.compile("type=mail.send"))
    window.open(f"/dlq/{job.id}/")
    page.click("#replay")
    expect(page.locator("h1")).to_have_text("Replay this mail.send job?")
    page.fill("#reason", "relay is back")
    page.click("button.go")
    child = Job.objects.get(replay_of=job.id)
    expect(page).to_have_url(re.compile(f"/jobs/{child.id}/$"))
    expect(page.locator("#toasts")).to_contain_text("Replayed 1 job.")


def test_hostile_text_is_shown_as_text(visit: Start, person: Person) -> None:
    """S-20: stored markup in every field that a stranger fills."""
    person("operator", username=MARKER)
    job = die(message=MARKER, name=MARKER)
    (open_job,) = accept(1, kind=MARKER)
    set_columns(
        open_job,
        dedupe_key=MARKER,
        group=MARKER,
        worker=MARKER,
        payload=json.dumps({MARKER: MARKER}),
        failures=json.dumps([{"error_class": MARKER, "message": MARKER, "traceback": MARKER, "worker": MARKER}]),
    )
    run = claim([open_job])[0]
    lifecycle.settle([confirmed(run, ref=MARKER)])
    audit.record("job.replayed", actor=MARKER, object_type="job", object_id=job.id, after={"x": MARKER}, reason=MARKER)
    ContractRevision.objects.create(
        job_type_id=MARKER, version=2, fields={}, diff={MARKER: [MARKER, MARKER]}, actor=MARKER, reason=MARKER
    )
    fold_all()
    window = visit()
    window.login(MARKER)
    mark = quote(MARKER, safe="")
    searched = [
        f"/jobs/?key={mark}",
        f"/jobs/?group={mark}&type={mark}",
        f"/audit/?actor={mark}",
        f"/dlq/?reason={mark}",
    ]
    for path in [*pages(job, said=MARKER), f"/jobs/{open_job}/", *searched]:
        response = window.page.goto(window.base + path)
        assert response is not None
        assert response.status == 200, path
        body = response.text()
        assert MARKER not in body, path
        assert "<img" not in body, path
        assert window.page.evaluate("window.__xss") is None, path
    page = window.open(f"/jobs/{open_job}/")
    expect(page.locator("#region")).to_contain_text(MARKER)
    page.wait_for_timeout(300)
    assert window.errors == []
