"""Pausing and resuming a job type, with a reason and an optional end: a dialog with htmx, a plain page without.

What is done is done by queues.contract_switches, the audit entry inside. Disabling is the contract's own (the admin).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from jobsboard.board import shell
from jobsboard.board.job_types import type_page
from jobsboard.roles import require
from queues import contract_switches
from queues.actions import REASON_CHARACTERS
from queues.contract_switches import SwitchRefused
from queues.models import JobType


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a person is about to do, in words. `{type}` stands for the job type."""

    verb: str
    title: str
    lead: str
    ok: str
    keep: str
    icon: str
    done: str


_TURNS: Final = {
    "pause": Turn(
        verb="pause", title="Pause {type}?",
        lead="Jobs are still accepted, none is started. What runs now goes on, and so does the clock of the promise.",
        ok="Pause", keep="Let it run", icon="pause", done="Paused.",
    ),
    "resume": Turn(
        verb="resume", title="Resume {type}?", lead="Waiting jobs are started again, at the pace of its workers.",
        ok="Resume", keep="Keep it paused", icon="play", done="Resumed.",
    ),
}  # fmt: skip


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def turn(request: HttpRequest, name: str, verb: str) -> HttpResponse:
    """Ask for a reason, then pause or resume one type. Done twice, it answers the same again."""
    wanted = _TURNS.get(verb)
    if wanted is None or not JobType.objects.filter(name=name).exists():
        raise Http404
    if request.method != "POST":
        return _form(request, name, wanted)
    reason = request.POST.get("reason", "").replace("\x00", "").strip()
    if not reason:
        return _form(request, name, wanted, error="Say why. It is written to the audit log.")
    if len(reason) > REASON_CHARACTERS:
        return _form(request, name, wanted, error=f"At most {REASON_CHARACTERS:,} characters.")
    try:
        contract_switches.set_switch(
            name,
            paused=verb == "pause",
            until=_until(request) if verb == "pause" else None,
            actor=request.user.get_username(),
            reason=reason,
            source="ui",
            request_id=getattr(request, "request_id", ""),
        )
    except SwitchRefused as refused:
        return _form(request, name, wanted, error=str(refused))
    except JobType.DoesNotExist:
        raise Http404 from None
    here = reverse("job-type", args=[name])
    if "HX-Request" in request.headers:
        request.__dict__.pop(shell.KEPT, None)
        return type_page(request, name, here=here, toast={"text": wanted.done, "url": "", "link": ""})
    messages.success(request, wanted.done)
    response = HttpResponseRedirect(here)
    response.status_code = 303
    return response


def _until(request: HttpRequest) -> datetime | None:
    """Read the end, in UTC where it names no zone. Raises: SwitchRefused."""
    text = request.POST.get("until", "").strip()
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise SwitchRefused("This is not a time. Example: 2026-05-31 18:00 (UTC).") from None


def _form(request: HttpRequest, name: str, wanted: Turn, *, error: str = "") -> HttpResponse:
    back = reverse("job-type", args=[name])
    context: dict[str, Any] = {
        "title": wanted.ok,
        "heading": wanted.title.format(type=name),
        "turn": wanted,
        "error": error,
        "given": request.POST.get("reason", "")[:REASON_CHARACTERS],
        "until": request.POST.get("until", "")[:40],
        "action": reverse("job-type-turn", args=[name, wanted.verb]),
        "back": back,
        "limit": REASON_CHARACTERS,
        "alone": "HX-Request" in request.headers,
        "crumbs": [("Job types", reverse("job-types")), (name, back), (wanted.ok, "")],
    }
    template = "board/_pause_form.html" if context["alone"] else "board/pause.html"
    return render(request, template, context, status=422 if error else 200)
