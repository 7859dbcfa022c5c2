"""One alert: what it consists of, who may do what, and each action once."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from jobsboard.board import alert as alert_view
from jobsboard.models import Alert, Metric, WebhookDelivery
from queues.models import AuditEntry, BoardVersion
from tests.alerts.endpoints import make_endpoint, make_finding
from tests.alerts.rounds import make_rule
from tests.board.alert_pages import HTMX, URL, listed, toast
from tests.board.alerting import deliver, fire, now, resolve
from tests.board.conftest import ClientOf
from tests.factories import make_type

# ---- one alert


def test_an_alert_says_what_it_consists_of(viewer: Client) -> None:
    make_type("mail.send")
    rule = make_rule(Metric.LATE_RATIO, name="Tier 2: late and stale", threshold=0.1)
    finding = make_finding(rule=rule.pk, words="Tier 2 is late")
    over = make_finding(rule=0, rule_name="gone", subject="all", runbook_url="javascript:alert(1)",
                        cleared_at="2026-11-22T03:00:00+00:00", words="cleared")  # fmt: skip
    alert = fire(findings=[over, finding], job_type="mail.send", note="on it", acknowledged_by="ada",
                 acknowledged_at=now(), state="acknowledged")  # fmt: skip
    ops = make_endpoint("ops")
    deliver(alert, ops)
    page = viewer.get(f"{URL}{alert.pk}/").text
    rows = page.split('id="h-findings"')[1].split("</section>")[0]
    assert rows.index("Tier 2 is late") < rows.index("cleared")
    assert "28.2%" in rows and "at least 10% in 5m" in rows
    assert 'href="/types/?tier=2"' in rows
    assert 'href="https://wiki.example/late" rel="noreferrer noopener"' in rows
    assert "javascript:" not in page
    assert rows.count(">Runbook<") == 1
    assert re.findall(r'<li class="is-(\w+)"', rows) == ["retrying", "cancelled"]
    for said in ("1 of 2 go on", "on it", "ada", 'href="/types/mail.send/"', "reached 1 of 1 endpoint", "ops"):
        assert said in page, said


@pytest.mark.parametrize(
    ("subject", "metric", "reason", "url"),
    [
        ("tier2", "late_ratio", "", "/types/?tier=2"),
        ("tier2", "backlog", "", "/jobs/?state=accepted&tier=2"),
        ("tier1", "dead_open", "", "/dlq/?tier=1"),
        ("tier1", "new_failures", "", "/dlq/?tier=1"),
        ("type:mail.send", "regressed_failures", "", "/dlq/?type=mail.send"),
        ("all", "dead_inflow", "poison", "/dlq/?reason=poison"),
        ("type:mail.send", "lag", "", "/types/mail.send/"),
        ("type:mail.send", "suspected_duplicates", "", "/types/mail.send/twice/"),
        ("type:mail.send", "dead_inflow", "", "/dlq/?type=mail.send"),
        ("type:no/such", "lag", "", ""),
        ("queue:tier2.mail", "no_worker", "", "/jobs/?state=accepted&tier=2"),
        ("probe:mail.send", "probe_failed", "", "/probes/"),
        ("endpoint:3", "undelivered", "", "/webhooks/"),
        ("workers:tier1", "worker_memory", "", "/"),
        ("all", "replay_plans_stopped", "", "/replays/"),
        ("all", "limbo", "", "/jobs/?state=processing"),
        ("all", "rollup_age", "", "/"),
        ("tierx", "lag", "", ""),
        ("", "", "", ""),
    ],
)
def test_a_finding_leads_to_the_page_that_explains_it(
    viewer: Client, subject: str, metric: str, reason: str, url: str
) -> None:
    make_type("mail.send")
    found, said = alert_view.explained({"subject": subject}, metric=metric, reason=reason, types={"mail.send"})
    assert (found, bool(said)) == (url, bool(url))
    # The pages of probes and endpoints have tests of their own.
    if url and url not in ("/probes/", "/webhooks/"):
        assert viewer.get(url).status_code == 200


def test_odd_findings_break_no_page(viewer: Client) -> None:
    """What is stored as JSON is read with care."""
    odd = [{}, {"rule": "x"}, {"metric": "nope", "value": "high", "since": 3}, {"metric": "lag", "value": True}, None]
    alert = fire(findings=odd)
    assert viewer.get(f"{URL}{alert.pk}/").status_code == 200
    assert viewer.get(URL).status_code == 200


@pytest.mark.parametrize("pk", ["0", "999999", "99999999999999999999999999"])
def test_an_alert_that_is_not_there_is_404(operator: Client, pk: str) -> None:
    for url in (f"{URL}{pk}/", f"{URL}{pk}/acknowledge/", f"{URL}rules/{pk}/silence/"):
        assert operator.get(url).status_code == 404
    assert operator.get(f"{URL}{fire().pk}/nonsense/").status_code == 404
    assert operator.get(f"{URL}rules/{make_rule().pk}/acknowledge/").status_code == 404


# ---- people


def actions() -> list[str]:
    alert, rule = fire(), make_rule()
    return [*(f"{URL}{alert.pk}/{verb}/" for verb in ("acknowledge", "silence", "speak")),
            *(f"{URL}rules/{rule.pk}/{verb}/" for verb in ("silence", "speak", "test"))]  # fmt: skip


def test_who_may_do_what(client_of: ClientOf) -> None:
    urls = actions()
    alert = Alert.objects.get()
    for role, status in (("nobody", 403), ("viewer", 403), ("operator", 200), ("admin", 200)):
        for url in urls:
            assert client_of(role).get(url).status_code == status, (role, url)
            if status == 403:
                assert client_of(role).post(url, {"reason": "x"}).status_code == 403
    for url in (URL, f"{URL}{alert.pk}/"):
        assert client_of("nobody").get(url).status_code == 403
        seen = client_of("viewer").get(url)
        assert seen.status_code == 200
        assert 'hx-target="#dialog"' not in seen.text
        assert 'hx-target="#dialog"' in client_of("operator").get(url).text
        assert client_of("operator").post(url).status_code == 405
        assert Client().get(url).status_code == 302
    alert.refresh_from_db()
    assert alert.state == "firing"
    assert client_of("operator", enforce_csrf_checks=True).post(urls[0]).status_code == 403


def test_only_owners_are_led_to_the_admin(client_of: ClientOf) -> None:
    rule = make_rule()
    assert "/admin/" not in client_of("operator").get(URL).text
    owner = client_of("owner")
    assert "/admin/" not in owner.get(URL).text, "who is no staff is sent away there"
    User.objects.filter(username="owner").update(is_staff=True)
    for url in (URL, f"{URL}{fire(findings=[make_finding(rule=rule.pk)]).pk}/"):
        assert f"/admin/jobsboard/alertrule/{rule.pk}/change/" in owner.get(url).text


def test_an_alert_is_acknowledged_once(operator: Client) -> None:
    alert, version = fire(), BoardVersion.objects.get().n
    url = f"{URL}{alert.pk}/acknowledge/"
    assert "May stay empty" in operator.get(url).text
    assert toast(operator, operator.post(url, {"reason": "on it password=hunter22"})) == "Acknowledged."
    assert toast(operator, operator.post(url)) == "operator has acknowledged it before."
    alert.refresh_from_db()
    assert (alert.state, alert.acknowledged_by, alert.note) == ("acknowledged", "operator", "on it password=[redacted]")
    entry = AuditEntry.objects.get(action="alert.acknowledged")
    assert (entry.actor, entry.source, entry.object_id) == ("operator", "ui", str(alert.pk))
    assert BoardVersion.objects.get().n > version
    page = operator.get(f"{URL}{alert.pk}/").text
    assert "operator: alert.acknowledged" in page
    assert 'id="acknowledge"' not in page
    audit = operator.get("/audit/?object=alert").text
    assert f'href="/alerts/{alert.pk}/"' in audit


def test_what_is_over_is_not_acknowledged_or_silenced(operator: Client) -> None:
    alert = resolve("tier2")
    for verb, given in (("acknowledge", {}), ("silence", {"reason": "x", "until": f"{now() + dt.timedelta(hours=1)}"})):
        response = operator.post(f"{URL}{alert.pk}/{verb}/", given)
        assert response.status_code == 409
        assert "The alert is resolved already." in response.text
    assert not AuditEntry.objects.filter(object_type="alert").exists()
    assert 'hx-target="#dialog"' not in operator.get(f"{URL}{alert.pk}/").text


@pytest.mark.parametrize("kind", ["alert", "rule"])
def test_a_silence_is_offered_as_a_time_so_that_twice_is_once(operator: Client, kind: str) -> None:
    thing: Any = fire() if kind == "alert" else make_rule()
    path = f"{URL}{thing.pk}/" if kind == "alert" else f"{URL}rules/{thing.pk}/"
    form = operator.get(f"{path}silence/").text
    offered = re.findall(r'<option value="(\S+?)"', form)
    hours = [(dt.datetime.fromisoformat(one) - now()).total_seconds() / 3600 for one in offered]
    assert [round(one) for one in hours] == [1, 4, 24]
    assert all(0 <= one - whole < 0.02 for one, whole in zip(hours, (1, 4, 24), strict=True))
    for _ in range(2):
        response = operator.post(f"{path}silence/", {"for": offered[1], "reason": "known"})
        assert toast(operator, response).startswith("Silenced until")
    thing.refresh_from_db()
    assert thing.silenced_until == dt.datetime.fromisoformat(offered[1])
    assert thing.silenced_by == "operator"
    assert AuditEntry.objects.filter(action__endswith=".silenced", reason="known").count() == 1
    assert f"{path}speak/" in operator.get(URL if kind == "rule" else path).text
    for _ in range(2):
        assert toast(operator, operator.post(f"{path}speak/")) == "It speaks again."
    thing.refresh_from_db()
    assert (thing.silenced_until, thing.silenced_by) == (None, "")
    assert AuditEntry.objects.filter(action__endswith=".unsilenced").count() == 1


def test_a_time_of_ones_own_beats_the_offer(operator: Client) -> None:
    alert = fire()
    end = (now() + dt.timedelta(days=3)).replace(second=0, microsecond=0)
    offer = (now() + dt.timedelta(hours=1)).isoformat()
    given = {"for": offer, "until": f"{end:%Y-%m-%dT%H:%M}", "reason": "maintenance"}
    assert operator.post(f"{URL}{alert.pk}/silence/", given).status_code == 303
    alert.refresh_from_db()
    assert alert.silenced_until == end


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        ({"until": "2999-01-01"}, 422, "Say why."),
        ({"reason": "x"}, 422, "Say until when."),
        ({"reason": "x", "until": "soon"}, 422, "Say until when."),
        ({"reason": "x", "until": "9999-12-31T23:59:59-14:00"}, 422, "Say until when."),
        ({"reason": "x", "until": "2020-01-01"}, 409, "The end of a silence lies ahead."),
        ({"reason": "x", "until": "2999-01-01"}, 409, "A silence lasts 30 days at most."),
        ({"reason": "x" * 1001, "until": "2999-01-01"}, 422, "At most 1,000 characters."),
    ],
)
def test_a_silence_that_cannot_be_is_refused(operator: Client, given: dict[str, str], status: int, says: str) -> None:
    alert, rule = fire(), make_rule()
    for url in (f"{URL}{alert.pk}/silence/", f"{URL}rules/{rule.pk}/silence/"):
        for headers in ({}, HTMX):
            response = operator.post(url, given, headers=headers)
            assert response.status_code == status, response.text
            assert says in response.text
            assert ("<html" in response.text) == (not headers)
    assert not AuditEntry.objects.filter(action__contains="silenced").exists()


def test_htmx_gets_the_page_behind_the_dialog_with_its_filters(operator: Client) -> None:
    """And not the address that it posted to: filters and links go on from the page."""
    rule, over = make_rule(), resolve("tier1")
    fire()
    headers = {**HTMX, "HX-Current-URL": f"http://testserver{URL}?state=resolved"}
    given = {"until": f"{now() + dt.timedelta(hours=2):%Y-%m-%dT%H:%M}", "reason": "x"}
    response = operator.post(f"{URL}rules/{rule.pk}/silence/", given, headers=headers)
    assert response.status_code == 200
    assert "<html" not in response.text
    assert listed(response.text) == [over.pk]
    assert f'hx-get="{URL}?state=resolved"' in response.text
    assert f'hx-get="{URL}" hx-target="#region"' in response.text
    assert "Silenced until" in response.text.split('hx-target="#toasts"')[1]
    elsewhere = {**HTMX, "HX-Current-URL": "http://evil.example/?state=resolved"}
    assert len(listed(operator.post(f"{URL}rules/{rule.pk}/speak/", headers=elsewhere).text)) == 2
    alert = fire("tier3")
    response = operator.post(f"{URL}{alert.pk}/acknowledge/", headers=HTMX)
    assert f'hx-get="{URL}{alert.pk}/"' in response.text
    assert "Acknowledged." in response.text


def test_a_rule_is_test_fired_once(operator: Client) -> None:
    rule = make_rule()
    url = f"{URL}rules/{rule.pk}/test/"
    refused = operator.post(url)
    assert refused.status_code == 409
    assert "There is no enabled endpoint" in refused.text
    make_endpoint("ops")
    make_endpoint("chat")
    assert toast(operator, operator.post(url)) == "2 test messages are on their way."
    assert toast(operator, operator.post(url)) == "Sent a moment ago: 2 test messages are on their way."
    assert WebhookDelivery.objects.count() == 2
    assert AuditEntry.objects.filter(action="alert_rule.test_fired").count() == 1
    assert not Alert.objects.exists()
