"""The audit log: who did what. Not here: writing it (queues.audit)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from jobsboard.board.changes import WORDS, detail_of, url_of
from jobsboard.board.params import Params
from jobsboard.board.refresh import answer, live
from jobsboard.roles import require
from queues.models import AuditEntry
from queues.outcomes import LOOK_AT_MOST

PAGE: Final = 50
_OBJECTS: Final = {"job": "jobs", "job_type": "job types", "tier": "tiers", "user": "users", "api_key": "API keys",
                   "annotation": "annotations", "alert": "alerts", "alert_rule": "alert rules",
                   "webhook": "endpoints", "replay_plan": "replay plans", "failure_group": "failures",
                   "dependency": "dependencies", "schedule": "schedules"}  # fmt: skip
_SOURCES: Final = {"ui": "board", "admin": "admin", "api": "API", "command": "command"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry in words."""

    row: AuditEntry
    icon: str
    detail: str
    url: str
    source: str


@require("view")
@require_safe
@live
def audit(request: HttpRequest) -> HttpResponse:
    """List the audit log, newest first."""
    params = Params(request)
    filters: dict[str, Any] = {
        "action": params.choice("action", WORDS),
        "object_type": params.choice("object", _OBJECTS),
        "source": params.choice("source", _SOURCES),
        "actor": params.text("actor", longest=150),
        "object_id": params.text("id", longest=200),
    }
    given = {name: value for name, value in filters.items() if value}
    after, before = _mark(params, "after"), _mark(params, "before")
    rows, newer, older = _page(given, after=after, before=before)
    context = {
        "title": "Audit log",
        "entries": [_entry(row) for row in rows],
        "newer": newer,
        "older": older,
        "given": given,
        "searched": "Append-only: entries are never changed or deleted.",
        "notes": params.notes,
        "keep": [(query, given[name]) for query, name in (("actor", "actor"), ("id", "object_id")) if name in given],
        "chips": [(query, given[name]) for query, name in (("actor", "actor"), ("id", "object_id")) if name in given],
        "filters": [
            _select("action", "Action", filters["action"], {name: name for name in WORDS}),
            _select("object", "On", filters["object_type"], _OBJECTS),
            _select("source", "From", filters["source"], _SOURCES),
        ],
    }
    return answer(request, "board/audit.html", context)


def _select(name: str, label: str, value: str | None, options: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "label": label, "value": value or "", "options": list(options.items())}


def _mark(params: Params, name: str) -> int | None:
    """Return an entry's number, which is no secret and needs no signature."""
    text = params.text(name)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    params.notes.append("the page mark is not one of this list, so it begins with the newest")
    return None


def _page(
    given: dict[str, str], *, after: int | None, before: int | None
) -> tuple[Sequence[AuditEntry], int | None, int | None]:
    """Read one page. With a filter at most 10,000 entries are looked at."""
    base = AuditEntry.objects.all()
    if before is not None:
        base = base.filter(id__gt=before).order_by("id")
    else:
        base = (base.filter(id__lt=after) if after is not None else base).order_by("-id")
    if given:
        # By object there is an index; any other filter looks at the newest only.
        if "object_id" in given and "object_type" in given:
            base = base.filter(**given)
        else:
            looked = base.values("id")[:LOOK_AT_MOST]
            order = "id" if before is not None else "-id"
            base = AuditEntry.objects.filter(id__in=looked, **given).order_by(order)
    rows = list(base[: PAGE + 1])
    more = len(rows) > PAGE
    rows = rows[:PAGE]
    if before is not None:
        rows.reverse()
        return rows, rows[0].id if more and rows else None, rows[-1].id if rows else None
    return rows, rows[0].id if after is not None and rows else None, rows[-1].id if more else None


def _entry(row: AuditEntry) -> Entry:
    icon = WORDS.get(row.action, ("info", ""))[0]
    source = _SOURCES.get(row.source, row.source)
    return Entry(row=row, icon=icon, detail=detail_of(row), url=url_of(row), source=source)
