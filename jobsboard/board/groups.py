"""One failure group: what died of it, since when, what people made of it, and its dead letters. And groups in words.

Counts and states are `dlq.groups`'. Not here: the list of groups (`dead_letters`), acting (`group_acting`, `bulk`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_safe

from dlq import groups
from dlq.groups import GroupRow
from jobsboard.board.params import Params, seal
from jobsboard.board.refresh import answer, live
from jobsboard.roles import can, require
from queues import outcomes
from queues.outcomes import JobFilter

CHECKS: Final[Mapping[str, tuple[str, str, str]]] = {
    "open": ("Already resolved", "cancelled", "ok"),
    "already_done": ("Already done", "cancelled", "ok"),
    "superseded": ("Superseded", "cancelled", "cancelled"),
    "max_age": ("Past max age", "expired", "expired"),
    "contract": ("Needs an edit", "retrying", "edit"),
    "idempotency_key": ("Could act twice", "dead", "bad"),
    "dependency": ("Would fail again", "dead", "bad"),
}
"""A check that speaks against replays → what the list says, its colour, its symbol."""
PLAIN: Final[Mapping[str, str]] = {
    "open": "resolved already",
    "already_done": "whether it was done",
    "superseded": "a newer job has the key",
    "max_age": "past max age",
    "contract": "the contract refuses it",
    "idempotency_key": "whether the key is still honoured",
    "dependency": "how the dependency is",
    "cause": "failed for good",
}
"""A check in a few words."""
_STATES: Final[Mapping[str, tuple[str, str, str]]] = {
    "open": ("Open", "dead", "deadst"),
    "replaying": ("Being replayed", "processing", "replay"),
    "resolved": ("Resolved", "confirmed", "ok"),
    "ignored": ("Ignored", "cancelled", "cancelled"),
}
_MIXED: Final = " All of this type and reason are listed: these failures are not told apart."


@dataclass(frozen=True, kw_only=True)
class Line:
    """A group as a row of the list: what is known of its replays, why, and the one thing to do."""

    row: GroupRow
    check: str
    css: str
    icon: str
    because: str
    action: str
    action_url: str
    """Opens the bulk dialog where `dialog`, else a page."""
    dialog: bool

    @property
    def state(self) -> tuple[str, str, str]:
        """Word, colour and symbol of its state."""
        return state_of(self.row)

    @property
    def hours_words(self) -> str:
        """The bars in words."""
        return hours_words(self.row)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the preflight found in the newest dead letters of a group. `looked` 0: nothing yet."""

    word: str
    css: str
    icon: str
    because: str
    worst: str = ""
    looked: int = 0


def state_of(row: GroupRow) -> tuple[str, str, str]:
    """Return word, colour and symbol of a group's state; one that came back says so."""
    if row.state == "open" and row.regressed_at is not None:
        return "Came back", "dead", "warn"
    if row.state == "open" and row.open <= 0:
        return "None left", "cancelled", "ok"
    return _STATES.get(row.state, _STATES["open"])


def hours_words(row: GroupRow) -> str:
    """Say how many died in the last 24 hours."""
    n = sum(row.hours)
    return f"{n:,} died of it in the last 24 h" if n else "None died of it in the last 24 h"


def judged(row: GroupRow) -> Judged:
    """Say what is known about replays of a group: the worst answer decides, and what is not known is not green."""
    triage = row.triage or {}
    looked = int(triage.get("looked", 0))
    if not looked:
        return Judged(word="Not looked at yet", css="cancelled", icon="help", because="")
    verdicts, of = triage.get("verdicts", {}), f"of the newest {looked}" if looked < row.open else f"of {looked}"
    worst = _most(triage.get("against", {}))
    if worst:
        word, css, icon = CHECKS.get(worst, ("Do not replay", "dead", "bad"))
        n = verdicts.get("unsafe", 0)
        return Judged(word=word, css=css, icon=icon, because=f"{n} {of}: {_plain(worst)}", worst=worst, looked=looked)
    if triage.get("notes", {}).get("cause"):
        n = triage["notes"]["cause"]
        return Judged(
            word="Failed for good", css="retrying", icon="warn", because=f"{n} {of} for good: {row.reason}",
            worst="cause", looked=looked,
        )  # fmt: skip
    unknown = _most(triage.get("unknown", {}))
    if unknown:
        n = verdicts.get("unknown", 0)
        return Judged(
            word="Not known to be safe", css="cancelled", icon="help",
            because=f"{n} {of}: not known {PLAIN.get(unknown, unknown)}", worst=unknown, looked=looked,
        )  # fmt: skip
    return Judged(
        word="Safe to replay", css="confirmed", icon="ok", because=f"{verdicts.get('safe', 0)} {of} pass", looked=looked
    )


def _most(counts: Mapping[str, int]) -> str:
    return max(counts, key=lambda name: counts[name], default="")


def _plain(name: str) -> str:
    """Say a check that failed."""
    said = {"already_done": "the work was done", "idempotency_key": "the key is no longer honoured",
            "dependency": "the dependency fails"}  # fmt: skip
    return said.get(name) or PLAIN.get(name, name)


def bulk_url(row: GroupRow, verb: str) -> str:
    """Return where the dialog for all dead letters of a group is."""
    return f"{reverse('bulk')}?{urlencode({'verb': verb, 'failure': row.id, 'all': 1})}"


def line(row: GroupRow, *, may_act: bool) -> Line:
    """Return a row of the list."""
    found = judged(row)
    action, url, dialog = "Review", reverse("failure-group", args=[row.id]), False
    if may_act and row.open > 0 and not row.mixed and row.state != "replaying" and found.looked:
        if found.worst in ("", "already_done", "idempotency_key") and found.css in ("confirmed", "cancelled"):
            verb = "cancel" if found.word == "Already done" else "replay"
        else:
            verb = {"superseded": "cancel", "max_age": "cancel"}.get(found.worst, "")
        if verb:
            action, url, dialog = f"{verb.capitalize()} {row.open:,}", bulk_url(row, verb), True
    return Line(
        row=row, check=found.word, css=found.css, icon=found.icon, because=found.because, action=action,
        action_url=url, dialog=dialog,
    )  # fmt: skip


@require("view")
@require_safe
@live
def group(request: HttpRequest, group_id: int) -> HttpResponse:
    """Show one failure group."""
    return group_page(request, group_id)


def group_page(request: HttpRequest, group_id: int, *, toast: dict[str, str] | None = None) -> HttpResponse:
    """Show one failure group, with what was just done."""
    row = groups.group(group_id)
    if row is None:
        raise Http404
    params, scope = Params(request), f"group {group_id}"
    page = outcomes.jobs(
        JobFilter(
            type=row.type, reason=row.reason, fingerprint=None if row.mixed else row.fingerprint, dead_letters=True
        ),
        types=[row.type],
        counts={},
        after=params.cursor("after", scope=scope),
        before=params.cursor("before", scope=scope),
    )
    context: dict[str, Any] = {
        "title": f"{row.type}: {row.reason.replace('_', ' ')}",
        "crumbs": [("Dead letters", reverse("dead-letters")), (f"Failure {row.id}", "")],
        "toast": toast,
        "group": row,
        "headline": _headline(row),
        "state": state_of(row),
        "judged": judged(row),
        "hours_words": hours_words(row),
        "rows": page.rows,
        "newer": seal(page.newer, scope=scope),
        "older": seal(page.older, scope=scope),
        "searched": f"{len(page.rows):,} shown, last accepted first." + (_MIXED if row.mixed else ""),
        "notes": params.notes,
        "may_act": can(request.user, "act"),
        "bulk": {} if row.mixed else {verb: bulk_url(row, verb) for verb in ("replay", "cancel", "ignore")},
    }
    return answer(request, "board/group.html", context)


def _headline(row: GroupRow) -> str:
    n = max(row.open, 0)
    if not n:
        return f"No dead letter is left of {row.died:,} that died of this"
    return f"{n:,} dead letter{' is' if n == 1 else 's are'} unresolved, {row.died:,} died of this"
