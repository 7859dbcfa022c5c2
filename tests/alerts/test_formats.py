"""The three texts of an alert, byte for byte where others read them, and what nobody can smuggle into them."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from jobsboard.alerts import formats
from jobsboard.alerts.formats import Finding, Snapshot, fingerprint, render

T0 = dt.datetime(2026, 11, 22, 2, 41, 7, 250_000, tzinfo=dt.UTC)
MARK = '"><img src=x onerror=window.__xss=1>'


def finding(**overrides: Any) -> Finding:
    """Make a finding."""
    values: dict[str, Any] = {
        "rule": "Tier 2: late and stale", "subject": "tier2", "severity": "critical", "words": "28.2% late in 5 min",
        "value": 0.282, "since": T0, "cleared_at": None, "runbook_url": "https://wiki.example/late", "tier": 2,
        **overrides,
    }  # fmt: skip
    return Finding(**values)


def snapshot(**overrides: Any) -> Snapshot:
    """Make an alert that fires."""
    values: dict[str, Any] = {
        "event": "alert.firing", "at": T0 + dt.timedelta(seconds=5), "id": 7, "key": "tier2", "sequence": 1,
        "state": "firing", "severity": "critical", "title": "28.2% late in 5 min", "tier": 2, "job_type": "",
        "started_at": T0, "acknowledged_at": None, "acknowledged_by": "", "resolved_at": None,
        "findings": [finding()], "url": "https://jobs.example/alerts/7/", "public_url": "https://jobs.example",
        **overrides,
    }  # fmt: skip
    return Snapshot(**values)


RESOLVED: dict[str, Any] = {
    "event": "alert.resolved", "state": "resolved", "resolved_at": T0 + dt.timedelta(minutes=9), "sequence": 3,
    "findings": [finding(cleared_at=T0 + dt.timedelta(minutes=8))],
}  # fmt: skip


def made(kind: str, **overrides: Any) -> dict[str, Any]:
    """Return a message, read as its receiver would read it."""
    found: dict[str, Any] = json.loads(render(kind, snapshot(**overrides), receiver="ops"))
    return found


def test_standard_webhooks() -> None:
    """type, timestamp, data; every field that the documentation names, and no other."""
    assert made("standard") == {
        "type": "alert.firing",
        "timestamp": "2026-11-22T02:41:12.250Z",
        "data": {
            "id": 7, "key": "tier2", "sequence": 1, "state": "firing", "severity": "critical",
            "title": "28.2% late in 5 min", "tier": 2, "job_type": None, "started_at": "2026-11-22T02:41:07.250Z",
            "acknowledged_at": None, "acknowledged_by": None, "resolved_at": None,
            "url": "https://jobs.example/alerts/7/",
            "findings": [
                {
                    "rule": "Tier 2: late and stale", "subject": "tier2", "severity": "critical",
                    "words": "28.2% late in 5 min", "value": 0.282, "since": "2026-11-22T02:41:07.250Z",
                    "cleared_at": None, "runbook_url": "https://wiki.example/late",
                }
            ],
        },
    }  # fmt: skip


def test_times_are_utc_whatever_zone_they_come_in() -> None:
    """RFC 3339 with Z."""
    zone = dt.timezone(dt.timedelta(hours=-8))
    assert made("standard", started_at=T0.astimezone(zone))["data"]["started_at"] == "2026-11-22T02:41:07.250Z"


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_value_that_json_does_not_know_is_null(value: float) -> None:
    """A burn rate without a budget is infinite; `Infinity` would be no JSON."""
    assert made("standard", findings=[finding(value=value)])["data"]["findings"][0]["value"] is None


def test_a_text_is_ascii_and_the_same_each_time() -> None:
    """What is kept is what is sent, and no reader gets a byte of it wrong."""
    for kind in ("standard", "slack", "alertmanager"):
        one = render(kind, snapshot(title="Zürich – ☃"), receiver="ops")
        assert one.isascii() and one == render(kind, snapshot(title="Zürich – ☃"), receiver="ops")


# ---- Alertmanager


def test_alertmanager() -> None:
    """Exactly the fields of template.Data and Message of version 4, with their types."""
    labels = {
        "alertname": "Tier 2: late and stale", "severity": "critical", "tier": "2", "subject": "tier2",
        "alert_key": "tier2",
    }  # fmt: skip
    annotations = {
        "summary": "28.2% late in 5 min", "description": "28.2% late in 5 min",
        "runbook_url": "https://wiki.example/late",
    }  # fmt: skip
    assert made("alertmanager") == {
        "version": "4", "groupKey": '{}:{alert_key="tier2"}', "truncatedAlerts": 0, "status": "firing",
        "receiver": "ops", "groupLabels": {"alert_key": "tier2"}, "externalURL": "https://jobs.example",
        "commonLabels": labels, "commonAnnotations": annotations,
        "alerts": [
            {
                "status": "firing", "labels": labels, "annotations": annotations,
                "startsAt": "2026-11-22T02:41:07.250Z", "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "https://jobs.example/alerts/7/", "fingerprint": fingerprint(labels),
            }
        ],
    }  # fmt: skip


def test_the_fingerprint_is_that_of_prometheus() -> None:
    """The vectors of prometheus/common, model/signature_test.go: no labels, and two."""
    assert int(fingerprint({}), 16) == 14695981039346656037
    assert int(fingerprint({"name": "garland, briggs", "fear": "love is not enough"}), 16) == 5799056148416392346


def test_an_alert_keeps_its_labels_until_it_is_over() -> None:
    """Receivers know an alert by its labels: acknowledged it still fires, resolved it is the same one, ended."""
    states = [{}, {"event": "alert.acknowledged", "state": "acknowledged", "acknowledged_by": "ada"}, RESOLVED]
    messages = [made("alertmanager", **state) for state in states]
    assert [one["status"] for one in messages] == ["firing", "firing", "resolved"]
    assert [one["alerts"][0]["status"] for one in messages] == ["firing", "firing", "resolved"]
    assert len({one["alerts"][0]["fingerprint"] for one in messages}) == 1
    assert len({one["groupKey"] for one in messages}) == 1
    assert messages[1]["alerts"][0]["annotations"]["description"].endswith("Acknowledged by ada.")
    assert messages[2]["alerts"][0]["endsAt"] == "2026-11-22T02:49:07.250Z"


def test_two_findings_are_two_alerts_of_one_group() -> None:
    """One has cleared, the other goes on; what they share is said once."""
    lag = finding(rule="Tier 2: lag", words="p95 30 min", runbook_url="", severity="warning", cleared_at=T0)
    message = made("alertmanager", findings=[finding(), lag])
    assert message["status"] == "firing"
    assert [one["status"] for one in message["alerts"]] == ["firing", "resolved"]
    assert len({one["fingerprint"] for one in message["alerts"]}) == 2
    assert message["commonLabels"] == {"tier": "2", "subject": "tier2", "alert_key": "tier2"}
    assert message["commonAnnotations"] == {"description": "28.2% late in 5 min"}
    # A resolved alert ends what is in it, also where the engine has not said so.
    over = made("alertmanager", **{**RESOLVED, "findings": [finding()]})
    assert over["alerts"][0]["status"] == "resolved" and over["alerts"][0]["endsAt"] == "2026-11-22T02:50:07.250Z"


def test_a_test_ends_by_itself() -> None:
    """A pager that opens an incident for it closes it again."""
    [alert] = made("alertmanager", test=True, event="alert.test", id=None)["alerts"]
    assert (alert["labels"]["test"], alert["endsAt"]) == ("true", "2026-11-22T02:46:12.250Z")


def test_without_findings_there_is_an_alert_all_the_same() -> None:
    """No format is sent an empty list."""
    [alert] = made("alertmanager", findings=[])["alerts"]
    assert alert["labels"]["alertname"] == "28.2% late in 5 min"
    assert made("slack", findings=[])["blocks"][0]["type"] == "header"


# ---- Slack

HOSTILE = [
    "<!channel> all down", "<!here|here>", "<@U123>", "<https://evil.example|Open the alert>", "a & b < c > d",
    "@channel @here @everyone", "[Open](https://evil.example)", "x" * 5_000, "&" * 5_000, "line\nbreak\r\n• second",
    MARK, "*bold* _it_ ~no~ `code`", "\u202eevil", "",
]  # fmt: skip


def texts(value: Any) -> list[str]:
    """Return every text in a message."""
    if isinstance(value, dict):
        return [text for one in value.values() for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("words", HOSTILE, ids=range(len(HOSTILE)))
def test_slack_nobody_is_called_and_no_link_is_made(words: str) -> None:
    """S-20: whatever a title, a finding, a name or a person says; lengths are those that Slack takes."""
    bad = finding(words=words, subject=words, rule=words, runbook_url="")
    message = made("slack", title=words, findings=[bad] * 12, state="acknowledged", acknowledged_by=words)
    ours = "<https://jobs.example/alerts/7/|Open the alert>"
    for text in texts(message):
        rest = text.replace(ours, "")
        assert "<" not in rest and ">" not in rest
        assert "](" not in rest and "@channel" not in rest and "@here" not in rest and "@everyone" not in rest
        assert not any(piece.split(";")[0] not in ("amp", "lt", "gt") for piece in rest.split("&")[1:])
    header, *sections, context = message["blocks"]
    assert 1 <= len(header["text"]["text"]) <= 150 and header["text"]["type"] == "plain_text"
    assert all(1 <= len(one["text"]["text"]) <= 3000 and one["text"]["type"] == "plain_text" for one in sections)
    assert context["elements"] == [{"type": "mrkdwn", "text": ours, "verbatim": True}]
    assert 1 <= len(message["text"]) <= 3000 and message["mrkdwn"] is False
    assert len(message["blocks"]) <= 50
    # One line for each finding, whatever it says.
    assert len(sections[0]["text"]["text"].splitlines()) <= 11


def test_slack_says_what_a_person_needs() -> None:
    """State, severity, title, findings, who has it, and two links."""
    message = made("slack", state="acknowledged", acknowledged_by="ada", findings=[finding(), finding(cleared_at=T0)])
    assert message["blocks"][0]["text"]["text"] == "Acknowledged, critical: 28.2% late in 5 min"
    assert message["blocks"][1]["text"]["text"] == "• 28.2% late in 5 min\n✓ 28.2% late in 5 min"
    assert message["blocks"][2]["text"]["text"] == "Acknowledged by ada"
    assert message["blocks"][3]["elements"][0]["text"] == (
        "<https://jobs.example/alerts/7/|Open the alert> · <https://wiki.example/late|Runbook>"
    )
    assert message["text"].startswith("Acknowledged, critical: 28.2%") and message["text"].endswith("/alerts/7/")
    assert made("slack", test=True)["text"].startswith("Test, critical")
    assert made("slack", findings=[finding()] * 13)["blocks"][1]["text"]["text"].endswith("\nand 3 more")


def test_slack_a_runbook_cannot_leave_its_link() -> None:
    """An address is a person's; it may hold whatever addresses hold."""
    url = "https://wiki.example/?a=1&b=<!channel>|x y"
    context = made("slack", findings=[finding(runbook_url=url)])["blocks"][-1]["elements"][0]["text"]
    assert context.endswith("<https://wiki.example/?a=1&amp;b=%3C!channel%3E%7Cx%20y|Runbook>")


def test_a_heartbeat() -> None:
    """Type and time, nothing to be secret."""
    assert json.loads(formats.heartbeat(T0)) == {"type": "heartbeat", "timestamp": "2026-11-22T02:41:07.250Z"}
