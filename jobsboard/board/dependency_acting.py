"""Holding a circuit breaker open or closed, and letting it go, with a reason and an optional end.

What is done is done by queues.breaker_actions, the audit entry inside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from jobsboard.board.asking import Asked, Deed, Refused, ask, note, until
from jobsboard.board.dependencies import dependencies_page
from jobsboard.roles import require
from queues import breaker_actions, breakers
from queues.breaker_actions import NotPossible
from queues.models import Breaker

_DEEDS: Final = {
    "open": Deed(
        verb="open", title="Force the breaker of {name} open?",
        lead="Jobs of its types are still accepted, none is started, and no trial is let through. What runs now goes"
        " on, and so does the clock of their promises.",
        ok="Force open", keep="Leave it as it is", icon="breaker", why="must", danger=True,
    ),
    "close": Deed(
        verb="close", title="Force the breaker of {name} closed?",
        lead="Jobs of its types are started, however many fail. Each that fails spends an attempt.",
        ok="Force closed", keep="Leave it as it is", icon="plug", why="must", danger=True,
    ),
    "release": Deed(
        verb="release", title="Let go of the breaker of {name}?",
        lead="It decides again by what runs tell: an open one lets trials through at once, a closed one opens when"
        " too many fail.",
        ok="Let go", keep="Keep holding it", icon="play", why="must",
    ),
}  # fmt: skip
_STATES: Final = {"open": Breaker.OPEN.value, "close": Breaker.CLOSED.value}
_DONE: Final = {"open": "is held open", "close": "is held closed", "release": "decides by itself again"}


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def act_on_dependency(request: HttpRequest, name: str, verb: str) -> HttpResponse:
    """Ask for a reason, then hold a breaker or let it go. Done twice, it answers the same again."""
    deed = _DEEDS.get(verb)
    known = breakers.standing(name) if deed is not None and "\x00" not in name else None
    if deed is None or known is None:
        raise Http404
    back = reverse("dependencies")
    asked = Asked(
        deed=replace(deed, title=deed.title.format(name=name)),
        about=", ".join(known.types) or "No job type names it",
        detail="They depend on it." if known.types else "",
        icon="plug",
        action=reverse("dependency-act", args=[name, verb]),
        back=back,
        crumbs=[("Circuit breakers", back), (deed.ok, "")],
        draw=lambda seen, toast: dependencies_page(seen, toast=toast),
        extra={"until": request.POST.get("until", "")[:40], "then": "Then it decides by itself again"},
        fields="board/_ask_pause.html" if verb in _STATES else "",
    )
    return ask(request, asked, lambda: _do(request, name, deed))


def _do(request: HttpRequest, name: str, deed: Deed) -> str:
    """Do it; return what was done. Raises: Refused."""
    who, why = request.user.get_username(), note(request, deed)
    request_id = getattr(request, "request_id", "")
    try:
        if deed.verb in _STATES:
            breaker_actions.force(
                name, state=_STATES[deed.verb], by=who, reason=why, until=until(request), request_id=request_id
            )
        else:
            breaker_actions.let_go(name, by=who, reason=why, request_id=request_id)
    except NotPossible as refused:
        if refused.code == "unknown_dependency":
            raise Http404 from None
        raise Refused(refused.words, status=422) from None
    return f"The breaker of {name} {_DONE[deed.verb]}."
