"""Acting on one job, with a reason: cancel, retry now, confirm by hand; cancel or ignore a dead letter.

What is done is done by queues.actions and queues.confirmation, the audit entry inside. Done twice, each answers the
same again. Not here: replaying, which looks first (`replaying`, `editing`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from jobsboard.board.asking import Asked, Deed, Done, Refused, ask, note
from jobsboard.board.jobs import job_page
from jobsboard.roles import require
from queues import actions, confirmation
from queues.confirmation import REF_CHARACTERS, Applied, Evidence, Outcome
from queues.models import Job
from queues.states import OPEN, JobState

_DEEDS: Final = {
    "close": Deed(
        verb="close", title="Cancel this {type} dead letter?",
        lead="It will not run again and leaves the list of dead letters. Its history stays.",
        ok="Cancel 1", keep="Keep as it is", icon="trash", why="must", danger=True,
    ),
    "ignore": Deed(
        verb="ignore", title="Ignore this {type} dead letter?",
        lead="Nothing is to be done about it. It leaves the list of dead letters; its history stays.",
        ok="Ignore 1", keep="Keep as it is", icon="cancelled", why="must",
    ),
    "cancel": Deed(
        verb="cancel", title="Cancel this {type} job?",
        lead="A waiting job is cancelled at once. A running one is asked to stop; what it did so far stays done.",
        ok="Cancel 1", keep="Let it go on", icon="trash", why="must", danger=True,
    ),
    "retry": Deed(
        verb="retry", title="Retry this {type} job now?",
        lead="Its next attempt is due at once instead of later. It costs the attempt that it would have cost then.",
        ok="Retry 1", keep="Let it wait", icon="retrying", why="must",
    ),
    "confirm": Deed(
        verb="confirm", title="Confirm this {type} job by hand?", lead="",
        ok="Record outcome", keep="Keep as it is", icon="confirmed", why="must",
    ),
}  # fmt: skip

_OUTCOMES: Final = {"confirmed": "Confirmed: the work was done", "rejected": "Rejected: the work was not done"}


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def act(request: HttpRequest, job_id: UUID, verb: str, place: str) -> HttpResponse:
    """Ask for a reason, then do one thing to one job."""
    deed, job = _DEEDS.get(verb), Job.objects.filter(id=job_id).first()
    if deed is None or job is None:
        raise Http404
    return ask(request, _asked(request, job, deed, place), lambda: _do(request, job, deed, place))


def question(job: Job, deed: Deed, place: str, **more: Any) -> Asked:
    """Return what is asked about one job; behind it is its page below Jobs or below Dead letters."""
    name = "dead-letter" if place == "dlq" else "job"
    back = reverse(name, args=[job.id])
    used = f"{job.attempt} of {job.attempt_limit} attempts used"
    return Asked(
        deed=replace(deed, title=deed.title.format(type=job.type)),
        about=str(job.id),
        detail=f"{used}, key {job.dedupe_key}" if job.dedupe_key else used,
        icon="jobs",
        action=reverse(f"{name}-act", args=[job.id, deed.verb]),
        back=back,
        crumbs=[("Jobs", reverse("jobs")), (str(job.id)[-12:], back), (deed.ok, "")],
        draw=lambda seen, toast: job_page(seen, job.id, place=place, toast=toast),
        **more,
    )


def who(request: HttpRequest, reason: str) -> dict[str, Any]:
    """Return on whose word something is done."""
    return {
        "actor": request.user.get_username(),
        "reason": reason,
        "source": "ui",
        "request_id": getattr(request, "request_id", ""),
    }


def _asked(request: HttpRequest, job: Job, deed: Deed, place: str) -> Asked:
    by_hand = deed.verb == "confirm"
    extra = {
        "run": job.fence,
        "by_hand": by_hand,
        "ref": request.POST.get("ref", "")[:REF_CHARACTERS],
        "outcome": request.POST.get("outcome", ""),
        "outcomes": _OUTCOMES.items() if by_hand and job.fence else (),
        "ref_limit": REF_CHARACTERS,
    }
    lead = _lead(job) if by_hand else deed.lead
    return question(job, replace(deed, lead=lead), place, extra=extra, fields="board/_ask_outcome.html")


def _do(request: HttpRequest, job: Job, deed: Deed, place: str) -> Done:
    """Do it. Raises: Refused."""
    try:
        return _done(request, job, deed, who(request, note(request, deed)))
    except actions.JobNotFound:
        raise Http404 from None
    except (actions.NotCancellable, actions.NotRetrying) as refused:
        words = str(refused).capitalize() + "."
    except Refused as refused:
        if refused.status != 409:
            raise
        words = str(refused)
    # Asked again, it is about the job as it is now, which the refusal has just said.
    now = Job.objects.filter(id=job.id).first() or job
    raise Refused(words, status=409, instead=_asked(request, now, deed, place))


def _done(request: HttpRequest, job: Job, deed: Deed, why: dict[str, Any]) -> Done:
    """Do it. Raises: Refused, and what queues.actions raises."""
    if deed.verb == "close":
        changed = actions.cancel_dead_letter(job.id, **why)
        return Done(text="Dead letter cancelled." if changed else "It was cancelled before.")
    if deed.verb == "ignore":
        changed = actions.ignore_dead_letter(job.id, **why)
        return Done(text="Dead letter ignored." if changed else "It was ignored before.")
    if deed.verb == "retry":
        return _retry(job, _run(request), why)
    if deed.verb == "confirm":
        return _confirm(request, job, why)
    result = actions.cancel_job(job.id, **why)
    if result.requested:
        return Done(text="Asked the run to stop.")
    return Done(text="Job cancelled." + (" A run may have begun." if result.effect == "possible" else ""))


def _run(request: HttpRequest) -> int | None:
    """Return the run that the form spoke of: what a person saw may be over by now."""
    text = request.POST.get("run", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _retry(job: Job, run: int | None, who: dict[str, Any]) -> Done:
    """Retry now. A second click, after the attempt has begun, asks for no other one. Raises: actions.NotRetrying."""
    try:
        if run is None or job.fence == run:
            actions.retry_now(job.id, **who)
            return Done(text="The next attempt is due now.")
    except actions.NotRetrying:
        if run is None or not Job.objects.filter(id=job.id, fence__gt=run).exists():
            raise
    return Done(text="The next attempt has begun already.")


def _confirm(request: HttpRequest, job: Job, who: dict[str, Any]) -> Done:
    """Take a person's word for the outcome. Raises: Refused."""
    outcome = request.POST.get("outcome", "")
    if outcome not in _OUTCOMES:
        raise Refused("Say whether the work was done.", status=422)
    ref = request.POST.get("ref", "").replace("\x00", "").strip()
    if len(ref) > REF_CHARACTERS:
        raise Refused(f"The reference has at most {REF_CHARACTERS:,} characters.", status=422)
    if outcome == "rejected" and not job.fence:
        raise Refused("No run has begun, so there is nothing to reject. Cancel the job instead.", status=409)
    evidence = Evidence(
        outcome="confirmed" if outcome == "confirmed" else "rejected",
        ref=ref or None,
        detail=who["reason"],
        run=_run(request),
        kind="manual",
    )
    return _told(job, evidence, confirmation.confirm_job(job.id, evidence, **who))


def _told(job: Job, evidence: Evidence, outcome: Outcome) -> Done:
    """Say what a person's word did. Raises: Refused."""
    applied, positive = outcome.applied, evidence.outcome == "confirmed"
    if applied is Applied.CONTRADICTION:
        raise Refused("The job has its proof already. The rejection is kept beside it, nothing else.", status=409)
    if applied is Applied.SUPERSEDED:
        words = "Another run has begun since, so this is not about the newest one. It is kept and changes nothing."
        raise Refused(words, status=409)
    if applied is Applied.LATE:
        return Done(text=f"Too late: the job is {outcome.state} already. Kept as late evidence.", level="warning")
    if applied is Applied.DUPLICATE:
        return Done(text=f"Nothing changed: it {'has its proof already' if positive else 'was rejected before'}.")
    if applied is Applied.KEPT:
        unless = "" if positive else ", unless that run brings a proof"
        done = Done(text=f"Kept: a run goes on, and this counts when it ends{unless}.")
    elif applied is Applied.CONFIRMED:
        done = Done(text="Confirmed by hand. It will not run again.")
    else:
        done = Done(text="Rejected by hand. It is a dead letter now.")
    if outcome.job_id in (None, job.id):
        return done
    url = reverse("job", args=[outcome.job_id])
    return Done(text=f"It was replayed; this went to its newest replay. {done.text}", url=url, link="View it")


def _lead(job: Job) -> str:
    """Say what a confirmation by hand will do to this job."""
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
