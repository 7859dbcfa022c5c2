"""Pausing all job types of a queue together and resuming them, with a reason and an optional end.

Each type is turned by queues.contract_switches, with an audit entry of its own, all in one transaction. The reason
begins with the queue's mark: by it resuming finds the types that were paused with it, and leaves those that somebody
paused by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from jobsboard.board.asking import Asked, Deed, Refused, ask, note, until
from jobsboard.board.pool_lines import mark_of
from jobsboard.board.queues import queues_page
from jobsboard.roles import require
from queues import contract_switches
from queues.contract_switches import SwitchRefused
from queues.models import JobType

NAMES_SHOWN: Final = 5
_QUEUE: Final = re.compile(r"tier[123](\.[a-z0-9_-]{1,32})?")
_TURNS: Final = {
    "pause": Deed(
        verb="pause", title="Pause all of {queue}?",
        lead="Jobs of these types are still accepted, none is started. What runs now goes on, and so does the clock of"
        " their promises.",
        ok="Pause", keep="Let it run", icon="pause", why="must",
    ),
    "resume": Deed(
        verb="resume", title="Resume {queue}?",
        lead="Waiting jobs of these types are started again, at the pace of its workers.",
        ok="Resume", keep="Keep it paused", icon="play", why="must",
    ),
}  # fmt: skip

_NOTHING: Final = {
    "pause": "Every job type of it is paused already.",
    "resume": "No job type is paused with it. One that was paused by itself is resumed on its own page.",
}


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def act_on_queue(request: HttpRequest, name: str, verb: str) -> HttpResponse:
    """Ask for a reason, then pause or resume a queue. Done twice, it answers the same again."""
    deed = _TURNS.get(verb)
    if deed is None or not _QUEUE.fullmatch(name):
        raise Http404
    paused = dict(_types_of(name).values_list("name", "paused"))
    marked = list(_marked(name).values_list("name", flat=True))
    if not paused and not marked:
        raise Http404
    chosen = marked if verb == "resume" else [one for one, is_paused in paused.items() if not is_paused]
    rest = [one for one, is_paused in paused.items() if is_paused and one not in marked] if verb == "resume" else []
    back = reverse("queues")
    asked = Asked(
        deed=replace(deed, title=deed.title.format(queue=name)),
        about=_listed(chosen),
        detail=f"Paused by themselves, and stay so: {_listed(rest)}" if rest else "",
        icon="queue",
        action=reverse("queue-act", args=[name, verb]),
        back=back,
        crumbs=[("Queues and tiers", back), (deed.ok, "")],
        draw=lambda seen, toast: queues_page(seen, toast=toast),
        extra={"until": request.POST.get("until", "")[:40], "then": "Then they resume by themselves"},
        fields="board/_ask_pause.html" if verb == "pause" and chosen else "",
        refusal="" if chosen else _NOTHING[verb],
    )
    return ask(request, asked, lambda: _do(request, name, deed))


def _do(request: HttpRequest, queue: str, deed: Deed) -> str:
    """Do it; return what was done. Raises: Refused."""
    who: dict[str, Any] = {
        "actor": request.user.get_username(),
        "reason": note(request, deed),
        "request_id": getattr(request, "request_id", ""),
    }
    if deed.verb == "resume":
        turned = resume(queue, **who)
        return f"{queue} goes on: {_types(turned)} resumed." if turned else f"{queue}: {_NOTHING['resume']}"
    try:
        turned = pause(queue, until=until(request), **who)
    except SwitchRefused as refused:
        raise Refused(str(refused), status=422) from None
    return f"{queue} is paused: {_types(turned)}." if turned else f"{queue}: {_NOTHING['pause']}"


def pause(queue: str, *, actor: str, reason: str, until: datetime | None, request_id: str = "") -> list[str]:
    """Pause the types of a queue that are not paused; return which. One that is paused keeps its reason and end.

    Raises: SwitchRefused, and then none is paused.
    """
    with transaction.atomic():
        # All at once and in one order: two who do this at the same time wait for each other, and find it done.
        rows = list(_types_of(queue).select_for_update(of=("self",)).values_list("name", "paused"))
        turned = [name for name, paused in rows if not paused]
        for name in turned:
            contract_switches.set_switch(
                name, paused=True, until=until, actor=actor, reason=mark_of(queue) + reason, source="ui",
                request_id=request_id,
            )  # fmt: skip
    return turned


def resume(queue: str, *, actor: str, reason: str, request_id: str = "") -> list[str]:
    """Resume the types that were paused with a queue, wherever they are now; return which."""
    with transaction.atomic():
        turned = list(_marked(queue).select_for_update(of=("self",)).values_list("name", flat=True))
        for name in turned:
            contract_switches.set_switch(
                name, paused=False, actor=actor, reason=mark_of(queue) + reason, source="ui", request_id=request_id
            )
    return turned


def _types_of(queue: str) -> QuerySet[JobType]:
    # "tier1" or "tier1.mail".
    return JobType.objects.filter(tier_id=queue[4], pool=queue[6:]).order_by("name")


def _marked(queue: str) -> QuerySet[JobType]:
    return JobType.objects.filter(paused=True, paused_reason__startswith=mark_of(queue)).order_by("name")


def _types(names: Sequence[str]) -> str:
    return f"{len(names):,} job type{'' if len(names) == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (
        f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    )
