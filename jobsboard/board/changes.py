"""Audit entries in words: what changed, who did it, to what. Not here: writing them (queues.audit)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from queues.models import AuditEntry

# Action → (icon, what somebody did). Actions without an entry are shown by their own name.
WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "job.replayed": ("replay", "replayed"),
    "job.cancelled": ("cancelled", "cancelled"),
    "job.cancel_requested": ("cancelled", "asked to stop"),
    "job.retried_now": ("retrying", "retried"),
    "job.confirmed_by_hand": ("confirmed", "confirmed"),
    "job.rejected_by_hand": ("deadst", "rejected"),
    "dead_letter.cancelled": ("trash", "closed"),
    "contract.created": ("contract", "created"),
    "contract.changed": ("contract", "changed"),
    "contract.deleted": ("trash", "deleted"),
    "contract.paused": ("pause", "paused"),
    "contract.resumed": ("play", "resumed"),
    "contract.enabled": ("play", "enabled"),
    "contract.disabled": ("cancelled", "disabled"),
    "tier.changed": ("types", "changed"),
    "login": ("user", "signed in"),
    "logout": ("out", "signed out"),
    "login_failed": ("warn", "failed to sign in"),
    "login_refused": ("warn", "was refused, too many tries"),
}
NEWEST: Final = 300
"""How many entries the overview looks through for those that change what jobs do."""
_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True)
class Change:
    """One line of "What changed"; several equal acts in a row are one."""

    at: datetime
    icon: str
    text: str
    detail: str
    url: str


def recent(entries: Iterable[AuditEntry], *, since: datetime) -> list[Change]:
    """Return what changed jobs or contracts, newest first."""
    groups: list[list[AuditEntry]] = []
    for entry in entries:
        if entry.at < since:
            break
        if not entry.action.startswith(("job.", "dead_letter.", "contract.", "tier.", "job_type.")):
            continue
        if groups and _kind(groups[-1][0]) == _kind(entry) and entry.object_type == "job":
            groups[-1].append(entry)
        elif len(groups) < _SHOWN:
            groups.append([entry])
        else:
            break
    return [_change(group) for group in groups]


def _kind(entry: AuditEntry) -> tuple[str, str]:
    return entry.actor, entry.action


def _change(group: list[AuditEntry]) -> Change:
    entry = group[0]
    icon, verb = WORDS.get(entry.action, ("info", entry.action))
    what = f"{len(group)} jobs" if len(group) > 1 else "1 job" if entry.object_type == "job" else entry.object_id
    return Change(
        at=entry.at,
        icon=icon,
        text=f"{entry.actor} {verb} {what}",
        detail=detail_of(entry),
        url=url_of(entry) if len(group) == 1 else "/audit/?action=" + entry.action,
    )


def detail_of(entry: AuditEntry) -> str:
    """Say what changed: the fields of a contract from and to, and the reason given."""
    before, after = _plain(entry.before), _plain(entry.after)
    parts = [
        f"{name.replace('_', ' ')} {_shown(before[name])} to {_shown(after.get(name))}"
        for name in before
        if before.get(name) != after.get(name)
    ]
    return "; ".join(part for part in (", ".join(parts[:4]), entry.reason) if part)


def url_of(entry: AuditEntry) -> str:
    """Return where the object is shown; empty where nowhere."""
    if entry.object_type == "job":
        return f"/jobs/{entry.object_id}/"
    return f"/types/{entry.object_id}/" if entry.object_type == "job_type" else ""


def _plain(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    text = "empty" if value in (None, "") else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
