"""Pausing and resuming a job type, with a reason and an optional end.

What is done is done by queues.contract_switches, the audit entry inside. Disabling is the contract's own (the admin).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from jobsboard.board.asking import Asked, Deed, Refused, ask, note, until
from jobsboard.board.job_types import type_page
from jobsboard.roles import require
from queues import contract_switches
from queues.contract_switches import SwitchRefused
from queues.models import JobType

_TURNS: Final = {
    "pause": Deed(
        verb="pause", title="Pause {type}?",
        lead="Jobs are still accepted, none is started. What runs now goes on, and so does the clock of the promise.",
        ok="Pause", keep="Let it run", icon="pause", why="must",
    ),
    "resume": Deed(
        verb="resume", title="Resume {type}?", lead="Waiting jobs are started again, at the pace of its workers.",
        ok="Resume", keep="Keep it paused", icon="play", why="must",
    ),
}  # fmt: skip
_DONE: Final = {"pause": "Paused.", "resume": "Resumed."}


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def turn(request: HttpRequest, name: str, verb: str) -> HttpResponse:
    """Ask for a reason, then pause or resume one type. Done twice, it answers the same again."""
    deed = _TURNS.get(verb)
    if deed is None or not JobType.objects.filter(name=name).exists():
        raise Http404
    back = reverse("job-type", args=[name])
    asked = Asked(
        deed=replace(deed, title=deed.title.format(type=name)),
        about="",
        action=reverse("job-type-turn", args=[name, verb]),
        back=back,
        crumbs=[("Job types", reverse("job-types")), (name, back), (deed.ok, "")],
        draw=lambda seen, toast: type_page(seen, name, toast=toast),
        extra={"until": request.POST.get("until", "")[:40], "then": "Then it resumes by itself"},
        fields="board/_ask_pause.html" if verb == "pause" else "",
    )
    return ask(request, asked, lambda: _turn(request, name, deed))


def _turn(request: HttpRequest, name: str, deed: Deed) -> str:
    """Do it; return what was done. Raises: Refused."""
    try:
        contract_switches.set_switch(
            name,
            paused=deed.verb == "pause",
            until=until(request) if deed.verb == "pause" else None,
            actor=request.user.get_username(),
            reason=note(request, deed),
            source="ui",
            request_id=getattr(request, "request_id", ""),
        )
    except SwitchRefused as refused:
        raise Refused(str(refused), status=422) from None
    except JobType.DoesNotExist:
        raise Http404 from None
    return _DONE[deed.verb]
