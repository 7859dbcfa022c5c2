"""Steering one plan: pause, resume, abort, each with a reason.

What is done is done by `dlq.plans.people`, the audit entry inside. Done twice, each answers the same again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from dlq.models import ReplayPlan
from dlq.plans import people, read
from dlq.plans.people import NotPossible, PlanNotFound
from dlq.replaying import Who
from jobsboard.board.acting import who
from jobsboard.board.asking import Asked, Deed, Refused, ask, note
from jobsboard.board.replays import line, plan_page
from jobsboard.roles import can, require

_DEEDS: Final = {
    "pause": Deed(
        verb="pause", title="Pause this plan?",
        lead="Nothing further is begun until somebody resumes it. What it has replayed goes on.",
        ok="Pause", keep="Let it run", icon="pause", why="must",
    ),
    "resume": Deed(
        verb="resume", title="Resume this plan?",
        lead="It goes on where it was, at its pace. Its stop rule counts afresh from now.",
        ok="Resume", keep="Leave it", icon="play", why="must",
    ),
    "abort": Deed(
        verb="abort", title="Abort this plan?",
        lead="What was not begun stays dead and leaves this plan for ever. What it has replayed goes on.",
        ok="Abort", keep="Keep the plan", icon="cancelled", why="must", danger=True,
    ),
}  # fmt: skip
_DO: Final[dict[str, Callable[..., ReplayPlan]]] = {
    "pause": people.pause, "resume": people.resume, "abort": people.abort,
}  # fmt: skip
_DONE: Final = {"pause": "Paused.", "resume": "It goes on.", "abort": "Aborted."}


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def act_on_plan(request: HttpRequest, plan_id: UUID, verb: str) -> HttpResponse:
    """Ask for a reason, then do one thing to one plan."""
    deed, plan = _DEEDS.get(verb), read.plan(plan_id)
    if deed is None or plan is None:
        raise Http404
    if verb == "resume" and plan.forced and not can(request.user, "replay_anyway"):
        raise PermissionDenied
    back, shown = reverse("replay-plan", args=[plan_id]), line(plan)
    asked = Asked(
        deed=deed,
        about=shown.title,
        detail=shown.words,
        icon="replay",
        action=reverse("replay-plan-act", args=[plan_id, verb]),
        back=back,
        crumbs=[("Replays", reverse("replays")), (shown.title, back), (deed.ok, "")],
        draw=lambda seen, toast: plan_page(seen, plan_id, toast=toast),
    )
    return ask(request, asked, lambda: _do(request, plan_id, deed))


def _do(request: HttpRequest, plan_id: UUID, deed: Deed) -> str:
    """Do it; return what was done. Raises: Refused."""
    by = Who(**who(request, note(request, deed)))
    try:
        _DO[deed.verb](plan_id, who=by)
    except PlanNotFound:
        raise Http404 from None
    except NotPossible as refused:
        words = str(refused)
        raise Refused(f"{words[:1].upper()}{words[1:]}.", status=409) from None
    return _DONE[deed.verb]
