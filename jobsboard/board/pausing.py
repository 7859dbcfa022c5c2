"""Pausing and resuming a job type, deferring and undeferring it, with a reason and an optional end.

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
from queues.contract_switches import NOT_DEFERRABLE, SwitchRefused
from queues.deferral import LEFT_ALONE_SECONDS
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
    "defer": Deed(
        verb="defer", title="Defer {type}?",
        lead="It gives way to what is more urgent: jobs are still accepted, none is started. What runs now goes on,"
        " and so does the clock of the promise.",
        ok="Defer", keep="Let it run", icon="clock", why="must",
    ),
    "undefer": Deed(
        verb="undefer", title="Stop deferring {type}?",
        lead="Waiting jobs are started again, at the pace of its workers. The scheduler leaves it alone for"
        f" {LEFT_ALONE_SECONDS // 60} minutes.",
        ok="Stop deferring", keep="Keep it deferred", icon="play", why="must",
    ),
}  # fmt: skip
_DONE: Final = {
    "pause": "Paused.", "resume": "Resumed.", "defer": "Deferred.", "undefer": "No longer deferred.",
}  # fmt: skip
_PAUSED: Final = {"pause": True, "resume": False}
_DEFERRED: Final = {"defer": True, "undefer": False}
_ENDS: Final = {"pause": "Then it resumes by itself", "defer": "Then it is no longer deferred"}
"""What can have an end, and what happens then."""


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def turn(request: HttpRequest, name: str, verb: str) -> HttpResponse:
    """Ask for a reason, then turn one switch of a type. Done twice, it answers the same again."""
    deed = _TURNS.get(verb)
    allowed = JobType.objects.filter(name=name).values_list("deferrable", flat=True).first()
    if deed is None or allowed is None:
        raise Http404
    back = reverse("job-type", args=[name])
    asked = Asked(
        deed=replace(deed, title=deed.title.format(type=name)),
        about="",
        action=reverse("job-type-turn", args=[name, verb]),
        back=back,
        crumbs=[("Job types", reverse("job-types")), (name, back), (deed.ok, "")],
        draw=lambda seen, toast: type_page(seen, name, toast=toast),
        extra={"until": request.POST.get("until", "")[:40], "then": _ENDS.get(verb, "")},
        fields="board/_ask_pause.html" if verb in _ENDS else "",
        refusal=NOT_DEFERRABLE if verb == "defer" and not allowed else "",
    )
    return ask(request, asked, lambda: _turn(request, name, deed))


def _turn(request: HttpRequest, name: str, deed: Deed) -> str:
    """Do it; return what was done. Raises: Refused."""
    try:
        contract_switches.set_switch(
            name,
            paused=_PAUSED.get(deed.verb),
            deferred=_DEFERRED.get(deed.verb),
            until=until(request) if deed.verb in _ENDS else None,
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
