"""What endpoints are sent: an alert at one moment, as the text of a message. Pure functions.

The text is made once, kept with its delivery and sent as it is, so that a retry is equal byte for byte.
Not here: who is sent what (`outbox`), signing (`signing`), sending (`delivery`).
Source: the Standard Webhooks specification (`type`, `timestamp`, `data`); Slack's "Formatting message text" and Block
Kit reference (text object, header block: what to escape, 150 and 3,000 characters, 50 blocks); Alertmanager's
`template.Data` and `notify/webhook` (`Message`, version 4) and Prometheus' `model.Fingerprint`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

TEST_ENDS: Final = timedelta(minutes=5)
"""Systems that keep firing alerts until they end let a test go by itself."""
_HEADER: Final = 150
_SECTION: Final = 3_000
_TEXT: Final = 3_000
_LISTED: Final = 10
"""Findings in a message to a chat; the page has the others."""
_NEVER: Final = "0001-01-01T00:00:00Z"
_STATES: Final = {"firing": "Firing", "acknowledged": "Acknowledged", "resolved": "Resolved"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule breached for one subject."""

    rule: str
    subject: str
    severity: str
    words: str
    value: float | None
    since: datetime | None
    cleared_at: datetime | None
    runbook_url: str
    tier: int | None = None
    job_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """An alert as it was when `event` happened. `id` is None and `test` true when nothing is wrong."""

    event: str
    at: datetime
    id: int | None
    key: str
    sequence: int
    state: str
    severity: str
    title: str
    tier: int | None
    job_type: str
    started_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str
    resolved_at: datetime | None
    findings: Sequence[Finding]
    url: str
    public_url: str
    test: bool = False


def render(kind: str, snapshot: Snapshot, *, receiver: str) -> str:
    """Return the message for an endpoint of a format; `receiver` is the endpoint's name. Raises: KeyError."""
    return _RENDER[kind](snapshot, receiver)


def heartbeat(at: datetime) -> str:
    """Return the message of a dead man's switch."""
    return _dumped({"type": "heartbeat", "timestamp": _rfc3339(at)})


def _dumped(value: Any) -> str:
    # ASCII only: no reader, log or middlebox can get a byte of it wrong.
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _moment(at: datetime | None) -> str | None:
    return _rfc3339(at) if at else None


# ---- Standard Webhooks


def _standard(one: Snapshot, receiver: str) -> str:
    data = {
        "id": one.id,
        "key": one.key,
        "sequence": one.sequence,
        "state": one.state,
        "severity": one.severity,
        "title": one.title,
        "tier": one.tier,
        "job_type": one.job_type or None,
        "started_at": _rfc3339(one.started_at),
        "acknowledged_at": _moment(one.acknowledged_at),
        "acknowledged_by": one.acknowledged_by or None,
        "resolved_at": _moment(one.resolved_at),
        "url": one.url,
        "findings": [_finding(found) for found in one.findings],
    }
    if one.test:
        data["test"] = True
    return _dumped({"type": one.event, "timestamp": _rfc3339(one.at), "data": data})


def _finding(found: Finding) -> dict[str, Any]:
    value = found.value if found.value is not None and math.isfinite(found.value) else None
    return {
        "rule": found.rule,
        "subject": found.subject,
        "severity": found.severity,
        "words": found.words,
        "value": value,
        "since": _moment(found.since),
        "cleared_at": _moment(found.cleared_at),
        "runbook_url": found.runbook_url or None,
    }


# ---- Slack


def _slack(one: Snapshot, receiver: str) -> str:
    head = " ".join(f"{_said(one)}: {one.title}".split())
    blocks: list[dict[str, Any]] = [{"type": "header", "text": _plain(head, limit=_HEADER)}]
    if one.findings:
        blocks.append({"type": "section", "text": _plain("\n".join(_lines(one.findings)), limit=_SECTION)})
    if one.state == "acknowledged" and one.acknowledged_by:
        blocks.append({"type": "section", "text": _plain(f"Acknowledged by {one.acknowledged_by}", limit=_SECTION)})
    links = [_link(one.url, "Open the alert")]
    runbook = next((found.runbook_url for found in one.findings if found.runbook_url), "")
    if runbook:
        links.append(_link(runbook, "Runbook"))
    # The only markup there is, and made by us. Verbatim: what looks like an address or a name stays text.
    context = {"type": "mrkdwn", "text": " · ".join(links), "verbatim": True}
    blocks.append({"type": "context", "elements": [context]})
    # Beside blocks the text is what notifications show; other chats that take this format show only it.
    text = _fit("\n".join([head, *_lines(one.findings), one.url]), limit=_TEXT)
    return _dumped({"text": text, "mrkdwn": False, "blocks": blocks})


def _said(one: Snapshot) -> str:
    state = "Test" if one.test else _STATES.get(one.state, one.state)
    return f"{state}, {one.severity}"


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    for found in findings[:_LISTED]:
        # On one line: a name with a line break must not look like another finding.
        yield " ".join(["✓" if found.cleared_at else "•", *(found.words or found.subject).split()])
    if len(findings) > _LISTED:
        yield f"and {len(findings) - _LISTED} more"


def _plain(text: str, *, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": _fit(text, limit=limit) or " ", "emoji": False}


_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_GAP: Final = "\u200b"


def _fit(text: str, *, limit: int) -> str:
    """Escape a text for Slack and cut it to so many characters, never inside an entity."""
    pieces = [_ENTITIES.get(char, char) for char in _defused(text)]
    if sum(map(len, pieces)) <= limit:
        return "".join(pieces)
    kept, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > limit - 1:
            break
        kept.append(piece)
    return "".join(kept) + "…"


def _defused(text: str) -> str:
    """Break what would call people or make a link in Slack or in chats that read Slack's format as Markdown."""
    # The gap has no width: people read the same text, programs no mention and no link.
    return re.sub(r"(?<!\w)@(?=\w)", f"@{_GAP}", text).replace("](", f"]{_GAP}(")


_IN_LINK: Final = {"<": "%3C", ">": "%3E", "|": "%7C", "&": "&amp;", " ": "%20"}


def _link(url: str, words: str) -> str:
    return f"<{''.join(_IN_LINK.get(char, char) for char in url)}|{words}>"


# ---- Alertmanager


def _alertmanager(one: Snapshot, receiver: str) -> str:
    alerts = [_member(one, found) for found in one.findings] or [_member(one, _whole(one))]
    group = {"alert_key": one.key}
    return _dumped(
        {
            "version": "4",
            "groupKey": f"{{}}:{{alert_key={json.dumps(one.key)}}}",
            "truncatedAlerts": 0,
            "status": "firing" if any(alert["status"] == "firing" for alert in alerts) else "resolved",
            "receiver": receiver,
            "groupLabels": group,
            "commonLabels": _common([alert["labels"] for alert in alerts]),
            "commonAnnotations": _common([alert["annotations"] for alert in alerts]),
            "externalURL": one.public_url,
            "alerts": alerts,
        }
    )


def _whole(one: Snapshot) -> Finding:
    return Finding(
        rule=one.title, subject=one.key, severity=one.severity, words=one.title, value=None, since=one.started_at,
        cleared_at=None, runbook_url="", tier=one.tier, job_type=one.job_type,
    )  # fmt: skip


def _member(one: Snapshot, found: Finding) -> dict[str, Any]:
    # What is acknowledged still fires: this format knows no third state.
    ended = found.cleared_at or (one.resolved_at or one.at if one.state == "resolved" else None)
    tier = found.tier if found.tier is not None else one.tier
    # The subject keeps two findings of a rule apart: receivers know an alert by its labels.
    labels = _without_empty(
        {
            "alertname": found.rule,
            "severity": found.severity,
            "tier": "" if tier is None else str(tier),
            "job_type": found.job_type or one.job_type,
            "subject": found.subject,
            "alert_key": one.key,
            "test": "true" if one.test else "",
        }
    )
    return {
        "status": "resolved" if ended else "firing",
        "labels": labels,
        "annotations": _without_empty(
            {"summary": found.words or one.title, "description": _description(one), "runbook_url": found.runbook_url}
        ),
        "startsAt": _rfc3339(found.since or one.started_at),
        "endsAt": _rfc3339(ended) if ended else _rfc3339(one.at + TEST_ENDS) if one.test else _NEVER,
        "generatorURL": one.url,
        "fingerprint": fingerprint(labels),
    }


def _description(one: Snapshot) -> str:
    by = f" Acknowledged by {one.acknowledged_by}." if one.state == "acknowledged" and one.acknowledged_by else ""
    return f"{one.title}{by}"


def _without_empty(pairs: Mapping[str, str]) -> dict[str, str]:
    # To Prometheus a label without a value is not there.
    return {name: value for name, value in pairs.items() if value}


def _common(sets: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first, *others = sets
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def fingerprint(labels: Mapping[str, str]) -> str:
    """Return the fingerprint that Prometheus gives to a set of labels: FNV-1a of 64 bits, in hex."""
    total = 14_695_981_039_346_656_037
    for name in sorted(labels):
        for byte in (*name.encode(), 255, *labels[name].encode(), 255):
            total = (total ^ byte) * 1_099_511_628_211 % 2**64
    return f"{total:016x}"


_RENDER: Final = {"standard": _standard, "slack": _slack, "alertmanager": _alertmanager}
