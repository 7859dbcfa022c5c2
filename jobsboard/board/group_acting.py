"""Acting on one failure: ignore it until a time, say that it is resolved, take that back, write a note and an owner.

What is done is done by `dlq.groups`, the audit entry inside. Not here: acting on its dead letters (`bulk`).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from dlq import groups
from dlq.groups import GroupNotFound, GroupRow
from dlq.replaying import Who
from jobsboard.board import shell
from jobsboard.board.acting import who
from jobsboard.board.asking import Asked, Deed, Refused, ask, note
from jobsboard.board.groups import group_page
from jobsboard.roles import require

NOTE_CHARACTERS: Final = 1_000
OWNER_CHARACTERS: Final = 150
LONGEST: Final = timedelta(days=366)
_DEEDS: Final = {
    "ignore": Deed(
        verb="ignore", title="Ignore this failure?",
        lead="It leaves the list of open failures and wakes nobody. Its dead letters stay, and stay counted here.",
        ok="Ignore", keep="Keep it open", icon="cancelled", why="must",
    ),
    "resolve": Deed(
        verb="resolve", title="Is this failure resolved?",
        lead="It says that the cause is dealt with. It comes back by itself when another job dies of it.",
        ok="Resolve", keep="Keep it open", icon="ok", why="must",
    ),
    "reopen": Deed(
        verb="reopen", title="Reopen this failure?", lead="It is listed as open again.",
        ok="Reopen", keep="Keep it as it is", icon="replay", why="must",
    ),
    "note": Deed(
        verb="note", title="Note and owner of this failure",
        lead="For whoever is on call next: what is known, and who looks after it.",
        ok="Save", keep="Change nothing", icon="edit", why="",
    ),
}  # fmt: skip
_DONE: Final = {
    "ignore": "Ignored.", "resolve": "Resolved. It comes back when another job dies of it.",
    "reopen": "Open again.", "note": "Saved.",
}  # fmt: skip


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def act_on_group(request: HttpRequest, group_id: int, verb: str) -> HttpResponse:
    """Ask, then do one thing to one failure."""
    deed, row = _DEEDS.get(verb), groups.group(group_id)
    if deed is None or row is None:
        raise Http404
    back = reverse("failure-group", args=[group_id])
    asked = Asked(
        deed=replace(deed),
        about=f"{row.type}: {row.reason}",
        detail=row.message,
        icon="dead",
        action=reverse("failure-group-act", args=[group_id, verb]),
        back=back,
        crumbs=[("Dead letters", reverse("dead-letters")), (f"Failure {group_id}", back), (deed.ok, "")],
        draw=lambda seen, toast: group_page(seen, group_id, toast=toast),
        extra=_extra(request, row, deed),
        fields={"ignore": "board/_ask_ignore.html", "note": "board/_ask_note.html"}.get(verb, ""),
    )
    return ask(request, asked, lambda: _do(request, group_id, deed))


def _extra(request: HttpRequest, row: GroupRow, deed: Deed) -> dict[str, Any]:
    if deed.verb == "note":
        return {
            "note": request.POST.get("note", row.note)[:NOTE_CHARACTERS],
            "owner": request.POST.get("owner", row.owner)[:OWNER_CHARACTERS],
            "note_limit": NOTE_CHARACTERS,
            "owner_limit": OWNER_CHARACTERS,
        }
    return {"until": request.POST.get("until", "")[:40]}


def _do(request: HttpRequest, group_id: int, deed: Deed) -> str:
    """Do it; return what was done. Raises: Refused."""
    by = Who(**who(request, note(request, deed)))
    try:
        if deed.verb == "ignore":
            until = _until(request)
            groups.ignore(group_id, until=until, who=by)
            return f"Ignored until {until:%-d %b %H:%M} UTC." if until else "Ignored."
        if deed.verb == "resolve":
            groups.resolve(group_id, who=by)
        elif deed.verb == "reopen":
            groups.reopen(group_id, who=by)
        else:
            text, owner = _text(request, "note", NOTE_CHARACTERS), _text(request, "owner", OWNER_CHARACTERS)
            groups.annotate(group_id, note=text, owner=owner, who=by)
    except GroupNotFound:
        raise Http404 from None
    return _DONE[deed.verb]


def _text(request: HttpRequest, name: str, longest: int) -> str:
    text = request.POST.get(name, "").replace("\x00", "").strip()
    if len(text) > longest:
        raise Refused(f"The {name} has at most {longest:,} characters.", status=422)
    return text


def _until(request: HttpRequest) -> datetime | None:
    """Read until when, in UTC where it names no zone; None is for ever. Raises: Refused."""
    text = request.POST.get("until", "").strip()
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refused("This is not a time. Example: 2026-05-31 18:00 (UTC).", status=422) from None
    now = shell.board_of(request).now
    if not now < at <= now + LONGEST:
        raise Refused("Until when must be in the future, at most 366 days from now.", status=422)
    return at
