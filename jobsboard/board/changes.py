"""What changed, in words: audit entries and annotations. Not here: writing them (queues.audit, annotations)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from jobsboard.board.marks import Happened
from queues.models import AuditEntry
from queues.outcomes import Span
from queues.outcomes.breakers import Flip
from queues.redaction import redact_text

# Action → (icon, what somebody did). Actions without an entry are shown by their own name.
WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "job.replayed": ("replay", "replayed"),
    "job.cancelled": ("cancelled", "cancelled"),
    "job.cancel_requested": ("cancelled", "asked to stop"),
    "job.retried_now": ("retrying", "retried"),
    "job.confirmed_by_hand": ("confirmed", "confirmed"),
    "job.rejected_by_hand": ("deadst", "rejected"),
    "dead_letter.cancelled": ("trash", "closed"),
    "dead_letter.ignored": ("cancelled", "ignored"),
    "dead_letters.exported": ("out", "exported dead letters"),
    "payload.revealed": ("eye", "revealed values of"),
    "replay_plan.created": ("replay", "began"),
    "replay_plan.paused": ("pause", "paused"),
    "replay_plan.resumed": ("play", "resumed"),
    "replay_plan.stopped": ("bad", "stopped"),
    "replay_plan.aborted": ("cancelled", "aborted"),
    "replay_plan.finished": ("ok", "finished"),
    "failure_group.ignored": ("cancelled", "ignored"),
    "failure_group.resolved": ("ok", "resolved"),
    "failure_group.reopened": ("replay", "reopened"),
    "failure_group.regressed": ("warn", "saw come back"),
    "failure_group.annotated": ("edit", "annotated"),
    "contract.created": ("contract", "created"),
    "contract.changed": ("contract", "changed"),
    "contract.deleted": ("trash", "deleted"),
    "contract.paused": ("pause", "paused"),
    "contract.resumed": ("play", "resumed"),
    "contract.deferred": ("clock", "deferred"),
    "contract.undeferred": ("play", "no longer defers"),
    "contract.enabled": ("play", "enabled"),
    "contract.disabled": ("cancelled", "disabled"),
    "tier.changed": ("types", "changed"),
    "breaker.forced_open": ("breaker", "opened breaker"),
    "breaker.forced_closed": ("plug", "closed breaker"),
    "breaker.let_go": ("play", "let go of breaker"),
    "schedule.created": ("clock", "created"),
    "schedule.changed": ("clock", "changed"),
    "schedule.deleted": ("trash", "deleted"),
    "schedule.paused": ("pause", "paused"),
    "schedule.resumed": ("play", "resumed"),
    "schedule.run": ("play", "ran"),
    "dependency.created": ("plug", "created"),
    "dependency.changed": ("plug", "changed"),
    "dependency.deleted": ("trash", "deleted"),
    "alert.acknowledged": ("user", "acknowledged"),
    "alert.silenced": ("pause", "silenced"),
    "alert.unsilenced": ("play", "let speak"),
    "alert_rule.created": ("alert", "created"),
    "alert_rule.changed": ("alert", "changed"),
    "alert_rule.reset": ("alert", "reset"),
    "alert_rule.deleted": ("trash", "deleted"),
    "alert_rule.silenced": ("pause", "silenced"),
    "alert_rule.unsilenced": ("play", "let speak"),
    "alert_rule.test_fired": ("alert", "test-fired"),
    "webhook.created": ("hook", "created"),
    "webhook.changed": ("hook", "changed"),
    "webhook.rotated": ("key", "rotated"),
    "webhook.enabled": ("play", "enabled"),
    "webhook.disabled": ("pause", "disabled"),
    "webhook.deleted": ("trash", "deleted"),
    "webhook.test_sent": ("hook", "tested"),
    "webhook.resent": ("replay", "resent"),
    "annotation.created": ("info", "annotated"),
    "login": ("user", "signed in"),
    "logout": ("out", "signed out"),
    "login_failed": ("warn", "failed to sign in"),
    "login_refused": ("warn", "was refused, too many tries"),
}
NEWEST: Final = 300
"""How many entries the overview looks through for those that change what jobs do."""
_SHOWN: Final = 7
_TOLD: Final = (
    "job.", "dead_letter.", "replay_plan.", "contract.", "tier.", "job_type.", "breaker.", "dependency.",
    "schedule.",
)  # fmt: skip
_TOGETHER: Final = frozenset({"contract.deferred", "contract.undeferred"})
_BECAME: Final = {"open": "opened", "closed": "closed", "half_open": "tries again"}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One line of "What changed"; several equal acts in a row are one."""

    at: datetime
    icon: str
    text: str
    detail: str
    url: str
    elsewhere: bool = False
    """The address is somebody else's."""


def entries_of(span: Span, *, now: datetime) -> Iterable[AuditEntry]:
    """Return the newest audit entries of a span."""
    if span.until < now:
        return AuditEntry.objects.filter(at__gte=span.since, at__lte=span.until).order_by("-at", "-id")[:NEWEST]
    return AuditEntry.objects.order_by("-id")[:NEWEST]


def recent(
    entries: Iterable[AuditEntry], *, span: Span, happened: Happened, flips: Iterable[Flip] = ()
) -> list[Change]:
    """Return what changed jobs or contracts, what was deployed, what broke and what people asked, newest first."""
    found = [*_acts(entries, since=span.since), *_annotations(happened), *_flips(flips)]
    return sorted(found, key=lambda change: change.at, reverse=True)[:_SHOWN]


def _flips(flips: Iterable[Flip]) -> list[Change]:
    """Return what breakers did by themselves; what people did is an audit entry. One that flaps is told once."""
    newest: dict[tuple[str, str], list[Flip]] = {}
    for flip in flips:
        if not flip.by:
            newest.setdefault((flip.dependency, flip.became), []).append(flip)
    return [
        Change(
            at=found[0].at,
            icon="breaker" if found[0].became == "open" else "plug",
            text=changed_words(found[0]) + (f", {len(found)} times" if len(found) > 1 else ""),
            detail=redact_text(found[0].why),
            url=url_of_dependency(found[0].dependency),
        )
        for found in newest.values()
    ]


def changed_words(flip: Flip) -> str:
    """Say in one sentence what a breaker did."""
    return f"Breaker {flip.dependency} {_BECAME[flip.became]}"


def url_of_dependency(name: str) -> str:
    """Return where a dependency is shown."""
    return f"/dependencies/#dependency-{name}"


def url_of_schedule(name: str) -> str:
    """Return where a schedule is shown."""
    return f"/schedules/#schedule-{name}"


def _annotations(happened: Happened) -> list[Change]:
    lines = [
        Change(
            at=event.at,
            icon="deploy" if event.kind == "deploy" else "warn",
            text=" ".join(part for part in (event.kind.capitalize(), event.job_type) if part),
            detail="; ".join(part for part in (event.word, event.who) if part),
            url=event.url or _type_url(event.job_type),
            elsewhere=bool(event.url),
        )
        for event in happened.events
        if event.kind in ("deploy", "incident")
    ]
    asked: dict[tuple[str, str], tuple[datetime, int]] = {}
    for one in happened.contacts:
        at, n = asked.get((one.job_type, one.category), (one.at, 0))
        asked[one.job_type, one.category] = (max(at, one.at), n + one.n)
    for (job_type, category), (at, n) in asked.items():
        about = f" about {job_type}" if job_type else ""
        words = f"{n:,} {'person' if n == 1 else 'people'} asked support{about}"
        lines.append(Change(at=at, icon="user", text=words, detail=category, url=_type_url(job_type)))
    return lines


def _type_url(name: str) -> str:
    return f"/types/{name}/" if name else ""


def _acts(entries: Iterable[AuditEntry], *, since: datetime) -> list[Change]:
    groups: list[list[AuditEntry]] = []
    for entry in entries:
        if entry.at < since:
            break
        if not entry.action.startswith(_TOLD):
            continue
        # The scheduler defers many job types at once, and takes them back at once.
        many = entry.object_type == "job" or entry.action in _TOGETHER
        if groups and _kind(groups[-1][0]) == _kind(entry) and many:
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
    things = "jobs" if entry.object_type == "job" else "job types"
    what = f"{len(group)} {things}" if len(group) > 1 else _object(entry)
    return Change(
        at=entry.at,
        icon=icon,
        text=f"{entry.actor} {verb} {what}",
        detail=detail_of(entry),
        url=url_of(entry) if len(group) == 1 else "/audit/?action=" + entry.action,
    )


def _object(entry: AuditEntry) -> str:
    if entry.object_type == "job":
        return "1 job"
    if entry.object_type != "replay_plan":
        return entry.object_id
    after = _plain(entry.after)
    if "total" not in after:
        return "a plan"
    verb = {"cancel": "cancel", "ignore": "ignore"}.get(str(after.get("action")), "replay")
    dry = ", as a dry run" if after.get("dry_run") else ""
    return f"to {verb} {after['total']:,} job{'' if after['total'] == 1 else 's'}{dry}"


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
    if entry.object_type == "alert_rule":
        return f"/alerts/#rule-{entry.object_id}"
    if entry.object_type == "dependency":
        return url_of_dependency(entry.object_id)
    if entry.object_type == "schedule":
        return url_of_schedule(entry.object_id)
    if entry.object_type == "webhook":
        return f"/webhooks/#endpoint-{entry.object_id}"
    of = {"job_type": "types", "alert": "alerts", "replay_plan": "replays", "failure_group": "dlq/groups"}.get(
        entry.object_type
    )
    return f"/{of}/{entry.object_id}/" if of else ""


def _plain(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    text = "empty" if value in (None, "") else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
