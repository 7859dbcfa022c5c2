"""Running a schedule now, pausing and resuming it, each with a reason.

What is done is done by queues.schedules, the audit entry inside. Lines, zones and payloads are edited in the admin.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from jobsboard.board.asking import Asked, Deed, Done, Refused, ask, note, until
from jobsboard.board.schedules import schedules_page
from jobsboard.roles import require
from queues import schedules
from queues.outcomes.schedules import ScheduleNow, named
from queues.redaction import redact_text
from queues.schedules import NotPossible

_DEEDS: Final = {
    "run": Deed(
        verb="run", title="Run {name} now?",
        lead="One job is enqueued at once, with the payload that a tick of this moment would have. The line goes on"
        " beside it.",
        ok="Run now", keep="Run nothing", icon="play", why="must",
    ),
    "pause": Deed(
        verb="pause", title="Pause {name}?",
        lead="Its ticks pass and become no jobs, also afterwards. Jobs that are enqueued run on.",
        ok="Pause", keep="Let it run", icon="pause", why="must",
    ),
    "resume": Deed(
        verb="resume", title="Resume {name}?",
        lead="Its next tick becomes a job again. Those that passed meanwhile are not caught up with.",
        ok="Resume", keep="Keep it paused", icon="play", why="must",
    ),
}  # fmt: skip
_FIELDS: Final = {"run": "board/_ask_after.html", "pause": "board/_ask_pause.html"}


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def act_on_schedule(request: HttpRequest, name: str, verb: str) -> HttpResponse:
    """Ask for a reason, then run, pause or resume one schedule. Done twice, it answers the same again."""
    deed = _DEEDS.get(verb)
    known = named(name) if deed is not None and "\x00" not in name else None
    if deed is None or known is None:
        raise Http404
    back = reverse("schedules")
    asked = Asked(
        deed=replace(deed, title=deed.title.format(name=name)),
        about=f"{known.type}: {known.cron}" + (f" in {known.timezone}" if known.timezone != "UTC" else ""),
        detail=known.words,
        icon="clock",
        action=reverse("schedule-act", args=[name, verb]),
        back=back,
        crumbs=[("Schedules", back), (deed.ok, "")],
        draw=lambda seen, toast: schedules_page(seen, toast=toast),
        extra={
            "until": request.POST.get("until", "")[:40],
            "then": "Then it goes on by itself",
            "after": _after(request) if request.method == "POST" else _newest(known),
        },
        fields=_FIELDS.get(verb, ""),
    )
    return ask(request, asked, lambda: _do(request, name, deed))


def _do(request: HttpRequest, name: str, deed: Deed) -> str | Done:
    """Do it; return what was done. Raises: Refused."""
    who: dict[str, Any] = {
        "actor": request.user.get_username(),
        "reason": note(request, deed),
        "source": "ui",
        "request_id": getattr(request, "request_id", ""),
    }
    try:
        if deed.verb == "run":
            return _said(name, schedules.run_now(name, after=_after(request), **who))
        if deed.verb == "pause":
            schedules.pause(name, until=until(request), **who)
            return f"{name} is paused."
        schedules.resume(name, **who)
        return f"{name} goes on."
    except NotPossible as refused:
        if refused.code == "unknown_schedule":
            raise Http404 from None
        raise Refused(refused.words, status=422 if refused.code in ("reason", "until") else 409) from None


def _said(name: str, pressed: schedules.Pressed) -> Done:
    if pressed.job_id is None:
        return Done(text=f"{name} became no job: {redact_text(pressed.detail)}", level="warning")
    text = f"A job of {name} is enqueued." if pressed.fresh else f"{name} was run already."
    return Done(text=text, url=reverse("job", args=[pressed.job_id]), link="View its job")


def _newest(known: ScheduleNow) -> int:
    """Return the newest tick that the form knows."""
    return max((tick.id for tick in known.ticks), default=0)


def _after(request: HttpRequest) -> int | None:
    said = request.POST.get("after", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 19 else None
