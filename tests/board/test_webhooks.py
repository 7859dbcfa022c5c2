"""The page Webhooks: which receiver fails, what was sent, and what admins do about it."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobsboard.board.webhooks import PAGE
from jobsboard.models import WebhookDelivery, WebhookEndpoint
from queues.models import AuditEntry
from tests.alerts.endpoints import make_endpoint
from tests.board.alerting import ago, deliver, fire, now, resolve
from tests.board.conftest import ClientOf
from tests.factories import sql

URL = "/webhooks/"
HTMX = {"HX-Request": "true", "HX-Current-URL": "https://jobs.example/webhooks/"}
MARK = '"><img src=x onerror=window.__xss=1>'
TRY: dict[str, Any] = {"at": "2026-11-22T02:41:00.000Z", "status": 500, "took_seconds": 0.42, "error": "answered 500",
                       "excerpt": "boom"}  # fmt: skip


@pytest.fixture
def admin(client_of: ClientOf) -> Client:
    """Return the client of an admin who may open the Django admin too."""
    client = client_of("admin")
    sql("UPDATE auth_user SET is_staff = true WHERE username = 'admin'")
    return client


def heading(text: str) -> str:
    found = re.search(r"<h1[^>]*>(.*?)</h1>", text)
    assert found
    return found[1]


def row(text: str, name: str) -> str:
    """Return a table row by its id, without tags, in one line."""
    found = re.search(rf'<tr id="{name}".*?</tr>', text, re.DOTALL)
    assert found, name
    return " ".join(re.sub(r"<[^>]+>", " ", found[0]).split())


def pill(text: str) -> str:
    """Return the number beside Webhooks in the navigation."""
    found = re.search(r'href="/webhooks/".*?</a>', text, re.DOTALL)
    assert found
    number = re.search(r'<span class="n (\w*)">(\d+)</span>', found[0])
    return f"{number[1]} {number[2]}" if number else ""


def test_without_an_endpoint_it_says_that_nobody_hears(viewer: Client, admin: Client) -> None:
    """And leads whoever may to the form."""
    text = viewer.get(URL).text
    assert heading(text) == "No endpoint is set up: nobody hears of alerts"
    assert "An admin can add an endpoint." in text and "/add/" not in text
    assert "/admin/jobsboard/webhookendpoint/add/" in admin.get(URL).text


def test_what_fails_comes_first_with_the_reason(viewer: Client) -> None:
    """Which receiver is failing, since when, and what waits for it."""
    well = make_endpoint("well", last_ok_at=ago(minutes=2), secret_at=ago(hours=72))
    bad = make_endpoint("bad", failures=3, last_failed_at=ago(minutes=5), last_error="answered 500")
    gone = make_endpoint("gone", enabled=False, disabled_reason="The receiver answered 410 Gone.")
    make_endpoint("off", enabled=False)
    make_endpoint("switch", format="heartbeat", last_ok_at=ago(seconds=20), every_seconds=30)
    alert = fire()
    for _ in range(3):
        deliver(alert, well)
    deliver(alert, well, "failed", attempts=[TRY])
    deliver(alert, well, "failed", created_at=ago(hours=25))
    deliver(alert, bad, "pending", attempts=[TRY], due_at=ago(minutes=-5))
    deliver(alert, bad, "superseded")
    text = viewer.get(URL).text
    assert heading(text) == "2 of 5 endpoints fail: bad, gone"
    assert pill(text) == "bad 2"
    names = re.findall(r'<tr id="endpoint-\d+".*?title="(\w+), ', text)
    assert names == ["bad", "gone", "switch", "well", "off"]
    said = row(text, f"endpoint-{bad.pk}")
    assert "Fails 3 in a row" in said and "5 min ago : answered 500" in said
    assert "Gone" in row(text, f"endpoint-{gone.pk}") and "410 Gone" in row(text, f"endpoint-{gone.pk}")
    said = row(text, f"endpoint-{well.pk}")
    assert "Answers" in said and "all 75% 2 min ago 0 1 3 d ago" in said
    lead = "bad: answered 500. gone: The receiver answered 410 Gone. 1 delivery waits. 1 given up in the last 24 h."
    assert f"<p>{lead}</p>" in text
    assert "Dead man’s switch" in text and "every 30 s" in text


def test_healthy_it_is_calm(viewer: Client) -> None:
    """No colour, no number in the navigation."""
    make_endpoint(last_ok_at=ago(minutes=2))
    text = viewer.get(URL).text
    assert heading(text) == "The endpoint answers" and pill(text) == ""
    assert "breach" not in text.split('id="region"')[1]
    make_endpoint("two")
    assert heading(viewer.get(URL).text) == "All 2 endpoints answer"
    WebhookEndpoint.objects.update(last_ok_at=None)
    assert heading(viewer.get(URL).text) == "2 endpoints, not tried yet"
    WebhookEndpoint.objects.update(enabled=False)
    assert heading(viewer.get(URL).text) == "Every endpoint is disabled: nobody hears of alerts"


def test_a_failing_switch_is_in_the_navigation_too(viewer: Client) -> None:
    """Nobody would notice that it does not beat, but for its other side."""
    make_endpoint("switch", format="heartbeat", failures=1, last_failed_at=now(), last_error="No connection.")
    text = viewer.get(URL).text
    assert pill(text) == "bad 1" and heading(text) == "1 of 1 endpoint fails: switch"


@pytest.mark.parametrize(
    ("state", "overrides", "words"),
    [
        ("delivered", {"attempts": [{**TRY, "status": 204, "error": "", "excerpt": ""}]}, "Delivered 1 204 420ms –"),
        ("pending", {"attempt": 0, "due": -1}, "Waiting 0 – – now"),
        ("pending", {"attempt": 1, "due": 59}, "Being sent 1 – – now"),
        ("pending", {"attempt": 2, "attempts": [TRY], "due": 59}, "Being sent 2 500 420ms now"),
        ("pending", {"attempts": [TRY], "due": 299}, "Retrying 1 500 420ms in 4 min answered 500: boom"),
        ("failed", {"attempts": [TRY, {**TRY, "status": None, "took_seconds": None, "excerpt": ""}], "attempt": 2},
         "Given up 2 – – – answered 500"),
        ("superseded", {"attempt": 0, "attempts": []}, "Superseded 0 – – – –"),
    ],
)  # fmt: skip
def test_a_delivery_in_each_state(viewer: Client, state: str, overrides: dict[str, Any], words: str) -> None:
    """State, tries, code, time, next try, last answer; the alert page has the same row."""
    given = {name: value for name, value in overrides.items() if name != "due"}
    if "due" in overrides:
        given["due_at"] = ago(seconds=-overrides["due"])
    alert = fire(title="Tier 2 is late")
    one = deliver(alert, make_endpoint(), state, **given)
    said = row(viewer.get(URL).text, f"delivery-{one.pk}")
    assert words in said and "ops firing Tier 2 is late" in said
    of_alert = row(viewer.get(f"/alerts/{alert.pk}/").text, f"delivery-{one.pk}")
    assert words in of_alert and "Tier 2 is late" not in of_alert


def test_what_waits_for_a_disabled_endpoint_says_so(viewer: Client) -> None:
    """No time of a next try that will not be."""
    one = deliver(fire(), make_endpoint(enabled=False), "pending", attempts=[TRY], due_at=ago(hours=-1))
    assert "disabled" in row(viewer.get(URL).text, f"delivery-{one.pk}")


def test_filters_and_pages(viewer: Client) -> None:
    """Newest first, 50 a page, forth and back without a gap; by endpoint and by state."""
    ops, other = make_endpoint("ops"), make_endpoint("other")
    alert = fire()
    made = [deliver(alert, ops, created_at=ago(minutes=200 - n)) for n in range(PAGE * 2 + 5)]
    lost = deliver(alert, other, "failed", created_at=ago(minutes=500), attempts=[TRY])
    pages, url = [], URL
    while url:
        text = viewer.get(url).text
        pages.append(re.findall(r'id="delivery-(msg_\w+)"', text))
        older = re.search(r'rel="next" href="([^"]+)"', text)
        url = URL + older[1].replace("&amp;", "&") if older else ""
    assert [len(page) for page in pages] == [PAGE, PAGE, 6]
    assert [pk for page in pages for pk in page] == [one.pk for one in (*reversed(made), lost)]
    back = re.search(r'rel="prev" href="([^"]+)"', text)
    assert back
    assert re.findall(r'id="delivery-(msg_\w+)"', viewer.get(URL + back[1].replace("&amp;", "&")).text) == pages[1]
    for query in (f"endpoint={other.pk}", "state=failed", f"endpoint={other.pk}&state=failed"):
        assert re.findall(r'id="delivery-(msg_\w+)"', viewer.get(f"{URL}?{query}").text) == [lost.pk]
    assert "No deliveries match" in viewer.get(f"{URL}?state=pending").text


@pytest.mark.parametrize(
    "query",
    ["endpoint=x", "endpoint=999", "state=lost", "after=x", "after=1.msg_x", "before=99999999999999999.msg_1",
     "after=.", "after=1&before=2", "state[]=failed"],
)  # fmt: skip
def test_odd_query_strings_are_answered(viewer: Client, query: str) -> None:
    """Said in a chip, never a 500 or a silent empty list."""
    deliver(fire(), make_endpoint())
    assert viewer.get(f"{URL}?{query}").status_code == 200


def test_statements_of_the_page_are_bounded(viewer: Client) -> None:
    """Session, user, role, board, signals; then counts, endpoints, deliveries. However many there are."""
    found = []
    for times in (1, 12):
        for number in range(times):
            endpoint = make_endpoint(f"{times} {number}")
            deliver(fire(f"{times} {number}"), endpoint)
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(URL).status_code == 200
        found.append(len(captured))
        assert len(captured) <= 8, "\n".join(query["sql"][:150] for query in captured)
    assert found[0] == found[1]
    assert not any("url_sealed" in query["sql"] or '"body"' in query["sql"] for query in captured)


# ---- what admins do


@pytest.mark.parametrize("role", ["viewer", "operator", "owner"])
def test_who_may_act(client_of: ClientOf, role: str) -> None:
    """S-02: endpoints are for admins; a message is sent again by whoever is on call. No button, no dialog, no deed."""
    endpoint, alert = make_endpoint(), fire()
    one, client = deliver(alert, endpoint), client_of(role)
    for path in [f"{URL}{endpoint.pk}/{verb}/" for verb in ("test", "disable", "enable")]:
        assert client.get(path).status_code == 403
        assert client.post(path, {"reason": "x"}).status_code == 403
    may = role != "viewer"
    for page in (URL, f"/alerts/{alert.pk}/"):
        assert ("Resend" in client.get(page).text) == may
        assert 'id="test-' not in client.get(page).text
    again = f"{URL}deliveries/{one.pk}/resend/"
    assert client.get(again).status_code == (200 if may else 403)
    assert client.post(again, {"reason": "x"}).status_code == (303 if may else 403)
    assert WebhookDelivery.objects.count() == 1 + may


def test_a_test_once_for_each_click(admin: Client) -> None:
    """The second press says so; a GET sends nothing; the dialog names the endpoint."""
    endpoint = make_endpoint()
    path = f"{URL}{endpoint.pk}/test/"
    assert "Send a test to this endpoint?" in admin.get(path, headers=HTMX).text
    assert "<html" in admin.get(path).text and not WebhookDelivery.objects.exists()
    first, second = (admin.post(path, headers=HTMX) for _ in range(2))
    assert "A test to ops is on its way." in first.text and "A test was sent a moment ago." in second.text
    assert first.text.lstrip().startswith('<div class="stack" id="region"')
    one = WebhookDelivery.objects.get()
    assert "none, a test" in row(first.text, f"delivery-{one.pk}") and "by admin" in row(
        first.text, f"delivery-{one.pk}"
    )
    plain = admin.post(path)
    assert (plain.status_code, plain["Location"]) == (303, URL)


def test_a_resend_from_either_page(admin: Client) -> None:
    """The page behind the dialog is the one that is drawn again."""
    endpoint, alert = make_endpoint(), fire(title="Tier 2 is late")
    one = deliver(alert, endpoint, "failed", attempts=[TRY])
    path = f"{URL}deliveries/{one.pk}/resend/"
    assert path in admin.get(f"/alerts/{alert.pk}/").text and path in admin.get(URL).text
    on_alert = {**HTMX, "HX-Current-URL": f"https://jobs.example/alerts/{alert.pk}/"}
    drawn = admin.post(path, {"reason": "the pager was off"}, headers=on_alert)
    assert "It is on its way to ops again." in drawn.text and "<h1 data-say>Tier 2 is late</h1>" in drawn.text
    again = admin.post(path, headers=HTMX)
    assert "It was sent again a moment ago." in again.text and 'id="endpoints"' in again.text
    assert WebhookDelivery.objects.filter(body=one.body).count() == 2
    assert AuditEntry.objects.get(action="webhook.resent").reason == "the pager was off"


def test_disable_and_enable(admin: Client) -> None:
    """With a reason; the same again changes nothing; what a disabled endpoint cannot do is refused with words."""
    endpoint = make_endpoint(failures=4, last_error="answered 500")
    one = deliver(fire(), endpoint)
    off, on = f"{URL}{endpoint.pk}/disable/", f"{URL}{endpoint.pk}/enable/"
    assert admin.post(off, headers=HTMX).status_code == 422
    assert "ops is disabled." in admin.post(off, {"reason": "moves house"}, headers=HTMX).text
    assert "ops is disabled already." in admin.post(off, {"reason": "moves house"}, headers=HTMX).text
    for path in (f"{URL}{endpoint.pk}/test/", f"{URL}deliveries/{one.pk}/resend/"):
        refused = admin.post(path, headers=HTMX)
        assert refused.status_code == 409 and "Enable it first." in refused.text
    assert "ops is enabled." in admin.post(on, headers=HTMX).text
    endpoint.refresh_from_db()
    assert (endpoint.enabled, endpoint.failures, endpoint.last_error) == (True, 0, "")
    entries = AuditEntry.objects.filter(object_type="webhook").order_by("id")
    assert [(entry.action, entry.reason, entry.source) for entry in entries] == [
        ("webhook.disabled", "moves house", "ui"), ("webhook.enabled", "", "ui"),
    ]  # fmt: skip
    for path in (f"{URL}999/test/", f"{URL}{endpoint.pk}/explode/", f"{URL}deliveries/msg_0/resend/"):
        assert admin.get(path).status_code == 404 and admin.post(path).status_code == 404


def test_forms_need_a_token(client_of: ClientOf) -> None:
    """S-11."""
    endpoint = make_endpoint()
    client = client_of("admin", enforce_csrf_checks=True)
    assert client.post(f"{URL}{endpoint.pk}/test/").status_code == 403


@pytest.mark.parametrize(
    "said", [MARK, "{{ 7|add:1 }}", "<script>alert(1)</script>", "javascript:alert(1)", "\u202eevil"]
)
def test_what_a_receiver_or_a_name_says_is_shown_as_text(admin: Client, said: str) -> None:
    """S-20: names, errors, excerpts, persons, titles; on the page, the alert's, the dialogs and in the audit log."""
    tried = {**TRY, "error": said, "excerpt": said}
    endpoint = make_endpoint(said, failures=2, last_error=said, last_failed_at=now(), url_shown=said)
    off = make_endpoint(said + "2", enabled=False, disabled_reason=said)
    alert = resolve("tier2", title=said)
    one = deliver(alert, endpoint, "failed", attempts=[tried, tried], attempt=2, created_by=said)
    deliver(alert, off, "pending", attempts=[tried])
    AuditEntry.objects.create(
        action="webhook.disabled", actor=said, object_type="webhook", object_id=said, reason=said, after={"name": said}
    )
    pages = [
        URL, f"{URL}?endpoint={endpoint.pk}", f"/alerts/{alert.pk}/", f"{URL}{endpoint.pk}/test/", "/audit/",
        f"{URL}deliveries/{one.pk}/resend/", "/admin/jobsboard/webhookendpoint/",
        f"/admin/jobsboard/webhookendpoint/{endpoint.pk}/change/",
    ]  # fmt: skip
    for path in pages:
        text = admin.get(path).text
        assert "<img src=x" not in text and "<script>alert" not in text and 'href="javascript:' not in text, path
        # It is there, as text.
        assert said in html.unescape(text), path
