"""Acting on one job, with a reason: replay, close, cancel, retry now, confirm by hand.

A dialog with htmx, a plain page without. What is done is done by queues.actions and queues.confirmation, the audit
entry inside. Done twice, each answers the same again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from jobsboard.board import shell
from jobsboard.board.jobs import job_page
from jobsboard.roles import require
from queues import actions, confirmation
from queues.actions import REASON_CHARACTERS
from queues.confirmation import REF_CHARACTERS, Applied, Evidence, Outcome
from queues.models import Job
from queues.states import OPEN, JobState


@dataclass(frozen=True, kw_only=True)
class Deed:
    """What a person is about to do, in words. `{type}` stands for the job's type."""

    verb: str
    title: str
    lead: str
    ok: str
    keep: str
    icon: str
    danger: bool = False


_DEEDS: Final = {
    "replay": Deed(
        verb="replay", title="Replay this {type} job?",
        lead="It becomes a new job with the same payload and the same idempotency key. This one stays as it is.",
        ok="Replay 1", keep="Keep as it is", icon="replay",
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
    "retry": Deed(
        verb="retry", title="Retry this {type} job now?",
        lead="Its next attempt is due at once instead of later. It costs the attempt that it would have cost then.",
        ok="Retry 1", keep="Let it wait", icon="retrying",
    ),
    "confirm": Deed(
        verb="confirm", title="Confirm this {type} job by hand?", lead="",
        ok="Record outcome", keep="Keep as it is", icon="confirmed",
    ),
}  # fmt: skip

_OUTCOMES: Final = {"confirmed": "Confirmed: the work was done", "rejected": "Rejected: the work was not done"}


class _Refused(Exception):
    """What was asked cannot be done; said to the person. `status` is 409 or 422."""

    def __init__(self, words: str, *, status: int) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class _Done:
    """What was done in words, with a link."""

    text: str
    url: str = ""
    link: str = ""
    level: Literal["success", "warning"] = "success"


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def act(request: HttpRequest, job_id: UUID, verb: str, place: str) -> HttpResponse:
    """Ask for a reason, then do one thing to one job."""
    deed, job = _DEEDS.get(verb), Job.objects.filter(id=job_id).first()
    if deed is None or job is None:
        raise Http404
    if request.method != "POST":
        return _form(request, job, deed, place)
    try:
        done = _do(request, job, deed, _reason(request))
    except actions.JobNotFound:
        raise Http404 from None
    except _Refused as refused:
        return _form(request, job, deed, place, error=str(refused), status=refused.status)
    except (actions.NotCancellable, actions.NotReplayable, actions.NotRetrying) as refused:
        return _form(request, job, deed, place, error=str(refused).capitalize() + ".", status=409)
    here = reverse("dead-letter" if place == "dlq" else "job", args=[job_id])
    if "HX-Request" in request.headers:
        request.__dict__.pop(shell.KEPT, None)
        toast = {"text": done.text, "url": done.url, "link": done.link, "level": done.level}
        return job_page(request, job_id, place=place, here=here, toast=toast)
    messages.add_message(request, getattr(messages, done.level.upper()), done.text)
    response = HttpResponseRedirect(done.url or here)
    response.status_code = 303
    return response


def _reason(request: HttpRequest) -> str:
    """Read why. Raises: _Refused."""
    reason = request.POST.get("reason", "").replace("\x00", "").strip()
    if not reason:
        raise _Refused("Say why. It is written to the audit log.", status=422)
    if len(reason) > REASON_CHARACTERS:
        raise _Refused(f"At most {REASON_CHARACTERS:,} characters.", status=422)
    return reason


def _do(request: HttpRequest, job: Job, deed: Deed, reason: str) -> _Done:
    """Do it. Raises: _Refused, and what queues.actions raises."""
    who: dict[str, Any] = {
        "actor": request.user.get_username(),
        "reason": reason,
        "source": "ui",
        "request_id": getattr(request, "request_id", ""),
    }
    if deed.verb == "replay":
        return _Done(text="Replayed 1 job.", url=reverse("job", args=[_replay(job, who)]), link="View the new job")
    if deed.verb == "close":
        changed = actions.cancel_dead_letter(job.id, **who)
        return _Done(text="Dead letter cancelled." if changed else "It was cancelled before.")
    if deed.verb == "retry":
        return _retry(job, _run(request), who)
    if deed.verb == "confirm":
        return _confirm(request, job, who)
    result = actions.cancel_job(job.id, **who)
    if result.requested:
        return _Done(text="Asked the run to stop.")
    return _Done(text="Job cancelled." + (" A run may have begun." if result.effect == "possible" else ""))


def _replay(job: Job, who: dict[str, Any]) -> UUID:
    try:
        return actions.replay_job(job.id, **who)
    except actions.NotReplayable as refused:
        # A double click, or somebody was faster: the same child is the answer.
        child = Job.objects.filter(id=job.id).values_list("replayed_by", flat=True).first()
        if refused.code != "already_replayed" or child is None:
            raise
        return child


def _run(request: HttpRequest) -> int | None:
    """Return the run that the form spoke of: what a person saw may be over by now."""
    text = request.POST.get("run", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _retry(job: Job, run: int | None, who: dict[str, Any]) -> _Done:
    """Retry now. A second click, after the attempt has begun, asks for no other one. Raises: actions.NotRetrying."""
    try:
        if run is None or job.fence == run:
            actions.retry_now(job.id, **who)
            return _Done(text="The next attempt is due now.")
    except actions.NotRetrying:
        if run is None or not Job.objects.filter(id=job.id, fence__gt=run).exists():
            raise
    return _Done(text="The next attempt has begun already.")


def _confirm(request: HttpRequest, job: Job, who: dict[str, Any]) -> _Done:
    """Take a person's word for the outcome. Raises: _Refused."""
    outcome = request.POST.get("outcome", "")
    if outcome not in _OUTCOMES:
        raise _Refused("Say whether the work was done.", status=422)
    ref = request.POST.get("ref", "").replace("\x00", "").strip()
    if len(ref) > REF_CHARACTERS:
        raise _Refused(f"The reference has at most {REF_CHARACTERS:,} characters.", status=422)
    if outcome == "rejected" and not job.fence:
        raise _Refused("No run has begun, so there is nothing to reject. Cancel the job instead.", status=409)
    evidence = Evidence(
        outcome="confirmed" if outcome == "confirmed" else "rejected",
        ref=ref or None,
        detail=who["reason"],
        run=_run(request),
        kind="manual",
    )
    return _told(job, evidence, confirmation.confirm_job(job.id, evidence, **who))


def _told(job: Job, evidence: Evidence, outcome: Outcome) -> _Done:
    """Say what a person's word did. Raises: _Refused."""
    applied, positive = outcome.applied, evidence.outcome == "confirmed"
    if applied is Applied.CONTRADICTION:
        raise _Refused("The job has its proof already. The rejection is kept beside it, nothing else.", status=409)
    if applied is Applied.SUPERSEDED:
        words = "Another run has begun since, so this is not about the newest one. It is kept and changes nothing."
        raise _Refused(words, status=409)
    if applied is Applied.LATE:
        return _Done(text=f"Too late: the job is {outcome.state} already. Kept as late evidence.", level="warning")
    if applied is Applied.DUPLICATE:
        return _Done(text=f"Nothing changed: it {'has its proof already' if positive else 'was rejected before'}.")
    if applied is Applied.KEPT:
        unless = "" if positive else ", unless that run brings a proof"
        done = _Done(text=f"Kept: a run goes on, and this counts when it ends{unless}.")
    elif applied is Applied.CONFIRMED:
        done = _Done(text="Confirmed by hand. It will not run again.")
    else:
        done = _Done(text="Rejected by hand. It is a dead letter now.")
    if outcome.job_id in (None, job.id):
        return done
    url = reverse("job", args=[outcome.job_id])
    return _Done(text=f"It was replayed; this went to its newest replay. {done.text}", url=url, link="View it")


def _lead(job: Job, deed: Deed) -> str:
    """Say what the deed will do to this job."""
    if deed.verb != "confirm":
        return deed.lead
    if job.state not in OPEN:
        return f"The job is {job.state} already. What you say is kept beside it and changes nothing."
    if not job.fence:
        return "The job will be confirmed with this reference; it will not run at all."
    if job.state == JobState.PROCESSING:
        return (
            "A run goes on and is not stopped. Confirmed: the job is confirmed when that run ends, and will not run "
            "again. Rejected: it becomes a dead letter then, unless that run brings a proof."
        )
    return (
        "Confirmed: the job will be confirmed with this reference; it will not run again. "
        "Rejected: it becomes a dead letter."
    )


def _form(
    request: HttpRequest, job: Job, deed: Deed, place: str, *, error: str = "", status: int = 200
) -> HttpResponse:
    if status == 409:
        # Asked again, it is about the job as it is now, which the refusal has just said.
        job = Job.objects.filter(id=job.id).first() or job
    name = "dead-letter" if place == "dlq" else "job"
    context = {
        "title": deed.ok,
        "heading": deed.title.format(type=job.type),
        "deed": deed,
        "lead": _lead(job, deed),
        "job": job,
        "error": error,
        "given": request.POST.get("reason", "")[:REASON_CHARACTERS],
        "ref": request.POST.get("ref", "")[:REF_CHARACTERS],
        "outcome": request.POST.get("outcome", ""),
        "outcomes": _OUTCOMES.items() if deed.verb == "confirm" and job.fence else (),
        "action": reverse(f"{name}-act", args=[job.id, deed.verb]),
        "back": reverse(name, args=[job.id]),
        "limit": REASON_CHARACTERS,
        "ref_limit": REF_CHARACTERS,
        "attempts": f"{job.attempt} of {job.attempt_limit} attempts used",
        "crumbs": [("Jobs", reverse("jobs")), (str(job.id)[-12:], reverse(name, args=[job.id])), (deed.ok, "")],
    }
    template = "board/_act_dialog.html" if "HX-Request" in request.headers else "board/act.html"
    return render(request, template, context, status=status)
