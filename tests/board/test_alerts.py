"""The pages of alerts: what fired, did anyone get it; filters, paging, rules, hostile text, cost."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.html import escape

from jobsboard import alert_rules
from jobsboard.alerts import defaults
from jobsboard.board import alerts as alerts_view
from jobsboard.board import signals
from jobsboard.board.signals import Reach, Signals
from jobsboard.models import Alert, AlertFinding, AlertRule, Metric, WebhookDelivery
from tests.alerts.endpoints import make_endpoint, make_finding
from tests.board.alert_pages import MARKER, URL, heading, listed, row, words
from tests.board.alerting import ago, deliver, fire, make_pages, now, resolve
from tests.board.conftest import ClientOf

# ---- did anyone get it?


def test_the_headline_says_what_fires_and_whom_it_reached(viewer: Client) -> None:
    assert heading(viewer.get(URL).text) == "No alert fires."
    late = fire(title="Tier 2 is late: 40 open past their window, 3 of 50 that ended; most of it mail.send")
    assert heading(viewer.get(URL).text) == "1 alert fires, nobody was told: no endpoint is set up."
    ops, chat = make_endpoint("ops"), make_endpoint("chat")
    deliver(late, ops)
    deliver(late, chat, "failed")
    assert heading(viewer.get(URL).text) == "1 alert fires: Tier 2 is late. It reached 1 of 2 endpoints."
    deliver(late, chat)
    assert heading(viewer.get(URL).text) == "1 alert fires: Tier 2 is late. It reached 2 of 2 endpoints."
    gone = fire("workers", severity="critical", title="No worker takes jobs of tier1 for 31s; 4 wait")
    said = "2 alerts fire, worst of them: No worker takes jobs of tier1 for 31s."
    assert heading(viewer.get(URL).text) == f"{said} 1 of them reached nobody."
    deliver(gone, ops)
    assert heading(viewer.get(URL).text) == f"{said} Nobody is left untold."
    Alert.objects.filter(pk=gone.pk).update(state="acknowledged")
    Alert.objects.filter(pk=late.pk).update(state="resolved", resolved_at=now())
    assert heading(viewer.get(URL).text) == "No alert fires. 1 is acknowledged and not over."


@pytest.mark.parametrize(
    ("reach", "given", "says"),
    [
        ({"reached": 0, "asked": 2}, {"untold": 1}, "1 alert fires: X. It reached none of 2 endpoints."),
        ({"reached": 0, "asked": 1, "fresh": True}, {}, "1 alert fires: X. It is being sent to 1 endpoint."),
        ({"quiet": True}, {"quiet": 1}, "1 alert fires: X. It is silenced, so nobody was told."),
        ({}, {"untold": 1}, "1 alert fires: X. It reached nobody: no endpoint takes it."),
        (
            {},
            {"untold": 1, "endpoints": 0, "endpoints_known": 2},
            "1 alert fires, nobody was told: every endpoint is disabled.",
        ),
        (
            {},
            {"firing": 2, "untold": 2, "endpoints": 0, "endpoints_known": 0},
            "2 alerts fire, nobody was told: no endpoint is set up.",
        ),
        ({"asked": 1}, {"firing": 2, "untold": 2}, "2 alerts fire, worst of them: X. They reached nobody."),
        ({"quiet": True}, {"firing": 2, "quiet": 2}, "2 alerts fire, worst of them: X. All are silenced."),
    ],
)
def test_words_of_the_headline(reach: dict[str, Any], given: dict[str, Any], says: str) -> None:
    first = Reach(**{"quiet": False, "forgotten": False, "asked": 0, "reached": 0, "fresh": False, **reach})
    found = {
        "firing": 1, "quiet": 0, "untold": 0, "acknowledged": 0, "endpoints": 2, "endpoints_known": 2,
        "endpoints_failing": 0, "endpoints_unwell": 0, "title": "X", "reach": first, **given,
    }  # fmt: skip
    assert signals.heading(Signals(**found)) == says


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("Tier 2 is outside its promise: 1 of 9 confirmed", "Tier 2 is outside its promise"),
        ("mail.send: p95 of the lag is 9s, its window 5s", "mail.send: p95 of the lag is 9s, its window 5s"),
        ("Tier 1: 7 new dead letters in 10m (7 boom); most of them x", "Tier 1: 7 new dead letters in 10m (7 boom)"),
    ],
)
def test_a_title_is_cut_where_its_numbers_begin(title: str, said: str) -> None:
    assert signals.short(title) == said


def test_told_counts_endpoints_and_not_messages(viewer: Client) -> None:
    """Two messages to one endpoint reached one; one of this moment has not failed yet; silence is no failure."""
    ops, chat = make_endpoint("ops"), make_endpoint("chat")
    alert, silent = fire(), fire("tier3", told="")
    deliver(alert, ops)
    deliver(alert, ops, event="alert.updated")
    deliver(alert, chat, "superseded")
    page = viewer.get(URL).text
    assert "> 1 of 2 <" in re.sub(r"\s+", " ", row(page, "alert", alert.pk))
    assert ">silenced<" in row(page, "alert", silent.pk)
    waiting = fire("tier1")
    made = deliver(waiting, ops, "pending", attempt=0)
    assert "Nobody is told" not in viewer.get("/").text
    assert "being sent" in row(viewer.get(URL).text, "alert", waiting.pk)
    WebhookDelivery.objects.filter(pk=made.pk).update(created_at=ago(seconds=40))
    seen = row(viewer.get(URL).text, "alert", waiting.pk)
    assert 'class="bad"' in seen
    assert "nobody , 0 of 1" in words(seen)
    assert "Nobody is told" in viewer.get("/").text


def test_nobody_is_red_only_while_it_fires(viewer: Client) -> None:
    make_endpoint()
    firing, known, over = fire(), fire("tier1", state="acknowledged"), resolve("tier3")
    page = viewer.get(URL).text
    assert 'class="bad"' in row(page, "alert", firing.pk)
    for alert in (known, over):
        assert "nobody" in row(page, "alert", alert.pk)
        assert 'class="bad"' not in row(page, "alert", alert.pk)


def test_messages_that_are_no_longer_kept_are_no_sign_that_nobody_was_told(viewer: Client) -> None:
    """An alert is kept for longer than its messages, and may fire for longer."""
    old, over = fire(told_at=ago(days=31), started_at=ago(days=31)), resolve("tier1", told_at=ago(days=31))
    new = resolve("tier3", told_at=ago(days=29))
    page = viewer.get(URL).text
    for alert, said in ((old, "not kept"), (over, "not kept"), (new, "nobody")):
        assert f'<span class="mute">{said}</span>' in row(page, "alert", alert.pk)
    assert "It was told more than 30 days ago" in heading(page)
    assert "Nobody is told" not in viewer.get("/").text
    deliver(old, make_endpoint(), "failed")
    assert "Nobody is told" in viewer.get("/").text


def test_the_overview_says_when_nobody_is_told(viewer: Client) -> None:
    said = "Nobody is told of alerts"
    assert said not in viewer.get("/").text
    alert = fire()
    page = viewer.get("/").text
    assert page.count(f'<b title="{said}">') == 1
    assert "1 alert fires, and no endpoint is set up" in page
    deliver(alert, make_endpoint())
    assert said not in viewer.get("/").text
    fire("tier1", told="")
    assert said not in viewer.get("/").text, "silence is wanted"


def test_the_navigation_counts_what_fires(viewer: Client) -> None:
    def pill() -> str:
        return words(viewer.get("/jobs/").text.split('id="nav"')[1].split(">Alerts")[1].split("</a>")[0])

    fire("tier1", state="acknowledged")
    assert 'class="n bad"' not in viewer.get("/jobs/").text.split(">Alerts")[1].split("</a>")[0]
    fire()
    fire("tier3")
    assert pill() == "2"
    assert 'class="n bad">2<' in viewer.get("/jobs/").text


# ---- the list


def test_what_fires_comes_first_then_acknowledged_then_resolved_newest_first(viewer: Client) -> None:
    old, new = fire("tier1", started_at=ago(hours=9)), fire("tier2", started_at=ago(minutes=1))
    known = fire("tier3", state="acknowledged", acknowledged_by="ada", started_at=ago(seconds=5))
    first, last = resolve("workers", started_at=ago(days=3)), resolve("limbo:all", started_at=ago(hours=1))
    page = viewer.get(URL).text
    assert listed(page) == [alert.pk for alert in (new, old, known, last, first)]
    assert "ada" in row(page, "alert", known.pk)


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("?state=firing", ["tier2", "tier1"]),
        ("?state=resolved", ["workers"]),
        ("?severity=critical", ["tier1", "workers"]),
        ("?tier=2", ["tier2"]),
        ("?state=resolved&severity=critical&tier=1", ["workers"]),
        ("?state=acknowledged", []),
    ],
)
def test_filters(viewer: Client, query: str, keys: list[str]) -> None:
    fire("tier2")
    fire("tier1", severity="critical", tier=1, started_at=ago(hours=1))
    resolve("workers", severity="critical", tier=1)
    page = viewer.get(URL + query).text
    assert [Alert.objects.get(pk=pk).key for pk in listed(page)] == keys
    assert ("No alerts match" in page) == (not keys)


def test_unknown_filters_are_cleared_and_said(viewer: Client) -> None:
    alert = fire()
    page = viewer.get(f"{URL}?state=gone&severity=loud&tier=9&after=1.x.3").text
    assert listed(page) == [alert.pk]
    for said in ("state “gone” does not exist", "severity “loud”", "tier “9”", "the page mark is not one of this list"):
        assert said in page
    for mark in ("9.1.1", "-1.1.1", "0.1", "0.99999999999999999999.1", "\u0661.1.1"):
        assert viewer.get(URL, {"after": mark}).status_code == 200
    assert viewer.get(f"{URL}?state=%00").status_code == 400


@pytest.mark.parametrize("same", [True, False])
def test_pages_go_on_and_back_over_all_states(viewer: Client, monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    """Also where many began in the same instant, as after an outage."""
    monkeypatch.setattr(alerts_view, "PAGE", 4)
    begin = ago(hours=1)
    for index in range(5):
        at = begin if same else begin + dt.timedelta(seconds=index)
        fire(f"f{index}", started_at=at)
        fire(f"a{index}", started_at=at, state="acknowledged")
        resolve(f"r{index}", started_at=at)
    pages, page = [listed(viewer.get(URL).text)], viewer.get(URL).text
    while older := re.search(r'rel="next" href="([^"]+)"', page):
        page = viewer.get(URL + older[1].replace("&amp;", "&")).text
        pages.append(listed(page))
    keys = [Alert.objects.get(pk=pk).key for ids in pages for pk in ids]
    assert keys == [f"{kind}{index}" for kind in "far" for index in (4, 3, 2, 1, 0)]
    assert [len(ids) for ids in pages] == [4, 4, 4, 3]
    for wanted in reversed(pages[:-1]):
        newer = re.search(r'rel="prev" href="([^"]+)"', page)
        assert newer
        page = viewer.get(URL + newer[1].replace("&amp;", "&")).text
        assert listed(page) == wanted
    assert 'rel="prev"' not in page


def test_findings_that_go_on_are_told_from_those_that_cleared(viewer: Client) -> None:
    one, two = make_finding(), make_finding(subject="tier1", cleared_at="2026-11-22T03:00:00+00:00")
    alert, over = fire(findings=[one, two, two]), resolve("x", findings=[two, two])
    page = viewer.get(URL).text
    assert '<td class="num">1 of 3</td>' in row(page, "alert", alert.pk)
    assert '<td class="num">2</td>' in row(page, "alert", over.pk)


# ---- rules


def test_rules_say_what_they_do_and_how_they_stand(viewer: Client) -> None:
    defaults.ensure()
    page = viewer.get(URL).text
    assert len(re.findall(r'<tr id="rule-\d+"', page)) == len(defaults.DEFAULTS)
    late = AlertRule.objects.get(default_key="late_ratio.tier2")
    assert alert_rules.threshold_words(late) in row(page, "rule", late.pk)
    assert "Watching" in row(page, "rule", late.pk)
    found = AlertFinding.objects.create(rule=late, subject="tier2", value=0.282, words="28% late", since=ago(seconds=9))
    page = viewer.get(URL).text
    assert "Pending" in row(page, "rule", late.pk)
    assert 'title="28% late">28.2%' in row(page, "rule", late.pk)
    AlertFinding.objects.filter(pk=found.pk).update(fired_at=now())
    AlertRule.objects.filter(default_key="limbo").update(enabled=False)
    AlertRule.objects.filter(default_key="rollup_age").update(silenced_until=now() + dt.timedelta(hours=1))
    page = viewer.get(URL).text
    order = [int(pk) for pk in re.findall(r'<tr id="rule-(\d+)"', page)]
    assert "Firing" in row(page, "rule", order[0])
    assert "Silenced" in row(page, "rule", order[1])
    assert "Disabled" in row(page, "rule", order[-1])
    assert order[0] == late.pk
    AlertRule.objects.filter(pk=late.pk).update(trouble="OperationalError: canceling statement password=hunter22")
    seen = row(viewer.get(URL).text, "rule", late.pk)
    assert "Not measured" in seen and "canceling statement" in seen
    assert "hunter22" not in seen


@pytest.mark.parametrize("metric", Metric.values)
def test_every_metric_has_words(metric: str) -> None:
    """A threshold is said with its unit, and a value that is not known is not zero."""
    rule = AlertRule(metric=metric, threshold=2, scope="all", severity="warning")
    said = alert_rules.threshold_words(rule)
    assert said.startswith("above 2") and len(said) >= len("above 2")
    assert alert_rules.value_words(metric, None) == "no data"
    assert rule.get_metric_display() in alert_rules.sentence(rule)


# ---- hostile text, cost


def test_hostile_text_is_shown_as_text(client_of: ClientOf) -> None:
    """S-20, S-21: in titles, words, notes, names of rules, endpoints and people."""
    paths = make_pages(MARKER)
    client = client_of("owner")
    User.objects.filter(username="owner").update(is_staff=True)
    for path in [*paths, "/", f"{URL}?state={MARKER}"]:
        page = client.get(path).text
        assert "<img" not in page, path
        assert escape(MARKER) in page or path == "/", path
    client.post(f"{URL}{Alert.objects.get(state='firing').pk}/speak/", {"reason": MARKER})
    page = client.get(paths[2]).text
    assert "<img" not in page
    assert f'<p title="{escape(MARKER)}">' in page, "the reason, from the audit log"


def statements(client: Client, url: str) -> int:
    client.get(url)
    with CaptureQueriesContext(connection) as captured:
        assert client.get(url).status_code == 200
    return len(captured)


def test_statements_are_as_many_with_ten_alerts_as_with_a_thousand(viewer: Client) -> None:
    """Session, user, role, board, signals; the list, whom it reached, rules, findings. One: rules of it, deliveries."""
    defaults.ensure()
    ops = make_endpoint()
    for index in range(10):
        deliver(resolve(f"r{index}"), ops)
    alert = fire()
    few = statements(viewer, URL), statements(viewer, f"{URL}{alert.pk}/"), statements(viewer, "/jobs/")
    at = ago(days=2)
    made = Alert.objects.bulk_create(
        Alert(key=f"k{n}", severity="warning", title="old", state="resolved", started_at=at, resolved_at=at, told="x")
        for n in range(990)
    )
    WebhookDelivery.objects.bulk_create(
        WebhookDelivery(id=f"msg_x{one.pk}", alert=one, endpoint=ops, event="alert.firing", body="{}",
                        state="delivered", due_at=None, settled_at=at) for one in made
    )  # fmt: skip
    many = statements(viewer, URL), statements(viewer, f"{URL}{alert.pk}/"), statements(viewer, "/jobs/")
    assert few == many
    assert many[:2] == (9, 10)
