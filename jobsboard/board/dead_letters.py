"""Dead letters: what is dead and why, one of them, and replaying or closing it with a reason.

A dialog with htmx, a plain page without. What is done is done by queues.actions, the audit entry inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_safe

from jobsboard.board import job_view, shell
from jobsboard.board.jobs import job_page, tier_filter, type_filter
from jobsboard.board.params import Params, scope_of, seal
from jobsboard.board.refresh import answer, live
from jobsboard.roles import require
from queues import actions, outcomes
from queues.actions import REASON_CHARACTERS
from queues.models import Job
from queues.outcomes import JobFilter
from queues.states import DEAD_REASONS, JobState

_REASONS: Final = {reason.value: reason.value.replace("_", " ") for reason in DEAD_REASONS}


@require("view")
@require_safe
@live
def dead_letters(request: HttpRequest) -> HttpResponse:
    """List unresolved dead letters, newest first."""
    params = Params(request)
    board = shell.board_of(request)
    tier = params.choice("tier", {str(number) for number in board.tiers})
    wanted = JobFilter(
        type=params.choice("type", board.types, word="type"),
        tiers=(int(tier),) if tier else (),
        reason=params.choice("reason", _REASONS),
        dead_letters=True,
    )
    scope = "dlq " + scope_of({"type": wanted.type, "tier": tier, "reason": wanted.reason})
    page = outcomes.jobs(
        wanted,
        types=list(board.types),
        counts={},
        after=params.cursor("after", scope=scope),
        before=params.cursor("before", scope=scope),
    )
    n = board.count("dead", tier=int(tier) if tier else None, name=wanted.type)
    context = {
        "title": "Dead letters",
        "rows": page.rows,
        "newer": seal(page.newer, scope=scope),
        "older": seal(page.older, scope=scope),
        "verdict": f"{n:,} dead letter{'' if n == 1 else 's'}" if n else "No dead letters",
        "by_type": _by_type(request),
        "filtered": bool(wanted.type or tier or wanted.reason),
        "searched": _searched(page, wanted),
        "notes": params.notes,
        "filters": [
            tier_filter(board, tier or ""),
            type_filter(board, wanted.type),
            {"name": "reason", "label": "Reason", "value": wanted.reason or "", "options": list(_REASONS.items())},
        ],
    }
    return answer(request, "board/dead_letters.html", context)


def _by_type(request: HttpRequest) -> list[tuple[str, int]]:
    board = shell.board_of(request)
    counts = [(name, board.count("dead", name=name)) for name in board.types]
    return sorted(((name, n) for name, n in counts if n), key=lambda item: -item[1])[:4]


def _searched(page: outcomes.JobPage, wanted: JobFilter) -> str:
    if page.looked is not None and page.looked >= outcomes.LOOK_AT_MOST:
        return f"Looked at {page.looked:,} dead letters, last accepted first. Older ones follow."
    return f"{len(page.rows):,} shown, last accepted first. Replayed and cancelled ones are no longer listed."


@require("view")
@require_safe
@live
def dead_letter(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """Show one dead letter: the job, and whether it may be replayed."""
    return job_page(request, job_id, place="dlq")


@dataclass(frozen=True, kw_only=True)
class Deed:
    """What a person is about to do, in words. `{type}` stands for the job's type."""

    verb: str
    title: str
    lead: str
    ok: str
    keep: str
    icon: str
    danger: bool


_DEEDS: Final = {
    "replay": Deed(
        verb="replay", title="Replay this {type} job?",
        lead="It becomes a new job with the same payload and the same idempotency key. This one stays as it is.",
        ok="Replay 1", keep="Keep as it is", icon="replay", danger=False,
    ),
    "close": Deed(
        verb="close", title="Cancel this {type} dead letter?",
        lead="It will not run again and leaves the list of dead letters. Its history stays.",
        ok="Cancel 1", keep="Keep as it is", icon="trash", danger=True,
    ),
    "cancel": Deed(
        verb="cancel", title="Cancel this {type} job?",
        lead="A waiting job is cancelled at once. A running one is asked to stop; what it did so far stays done.",
        ok="Cancel 1", keep="Let it go on", icon="trash", danger=True,
    ),
}  # fmt: skip


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def act(request: HttpRequest, job_id: UUID, verb: str, place: str) -> HttpResponse:
    """Ask for a reason, then replay, close or cancel one job. Done twice, it answers the same again."""
    deed, job = _DEEDS.get(verb), Job.objects.filter(id=job_id).first()
    if deed is None or job is None:
        raise Http404
    if request.method != "POST":
        return _form(request, job, deed, place)
    reason = request.POST.get("reason", "").replace("\x00", "").strip()
    if not reason:
        return _form(request, job, deed, place, error="Say why. It is written to the audit log.", status=422)
    if len(reason) > REASON_CHARACTERS:
        return _form(request, job, deed, place, error=f"At most {REASON_CHARACTERS:,} characters.", status=422)
    try:
        said, url, link = _do(request, job, deed, reason)
    except actions.JobNotFound:
        raise Http404 from None
    except (actions.NotCancellable, actions.NotReplayable) as refused:
        return _form(request, job, deed, place, error=str(refused).capitalize() + ".", status=409)
    if "HX-Request" in request.headers:
        request.__dict__.pop(shell.KEPT, None)
        here = reverse("dead-letter" if place == "dlq" else "job", args=[job_id])
        return job_page(request, job_id, place=place, here=here, toast={"text": said, "url": url, "link": link})
    messages.success(request, said)
    response = HttpResponseRedirect(url or reverse("dead-letter" if place == "dlq" else "job", args=[job_id]))
    response.status_code = 303
    return response


def _do(request: HttpRequest, job: Job, deed: Deed, reason: str) -> tuple[str, str, str]:
    """Do it. Shape: what was done in words, a link and its words."""
    who: dict[str, Any] = {
        "actor": request.user.get_username(),
        "reason": reason,
        "source": "ui",
        "request_id": getattr(request, "request_id", ""),
    }
    if deed.verb == "replay":
        child = _replay(job, who)
        return "Replayed 1 job.", reverse("job", args=[child]), "View the new job"
    if deed.verb == "close":
        changed = actions.cancel_dead_letter(job.id, **who)
        return ("Dead letter cancelled." if changed else "It was cancelled before."), "", ""
    result = actions.cancel_job(job.id, **who)
    if result.requested:
        return "Asked the run to stop.", "", ""
    return "Job cancelled." + (" A run may have begun." if result.effect == "possible" else ""), "", ""


def _replay(job: Job, who: dict[str, Any]) -> UUID:
    try:
        return actions.replay_job(job.id, **who)
    except actions.NotReplayable as refused:
        # A double click, or somebody was faster: the same child is the answer.
        child = Job.objects.filter(id=job.id).values_list("replayed_by", flat=True).first()
        if refused.code != "already_replayed" or child is None:
            raise
        return child


def _form(
    request: HttpRequest, job: Job, deed: Deed, place: str, *, error: str = "", status: int = 200
) -> HttpResponse:
    name = "dead-letter" if place == "dlq" else "job"
    context = {
        "title": deed.ok,
        "heading": deed.title.format(type=job.type),
        "deed": deed,
        "job": job,
        "error": error,
        "given": request.POST.get("reason", "")[:REASON_CHARACTERS],
        "action": reverse(f"{name}-act", args=[job.id, deed.verb]),
        "back": reverse(name, args=[job.id]),
        "limit": REASON_CHARACTERS,
        "attempts": f"{job.attempt} of {job.attempt_limit} attempts used",
        "running": job.state == JobState.PROCESSING,
        "allowed": job_view.allowed(job),
        "crumbs": [("Jobs", reverse("jobs")), (str(job.id)[-12:], reverse(name, args=[job.id])), (deed.ok, "")],
    }
    template = "board/_act_dialog.html" if "HX-Request" in request.headers else "board/act.html"
    return render(request, template, context, status=status)
