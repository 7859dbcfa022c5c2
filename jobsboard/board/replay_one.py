"""Replaying one job as it is: a dialog with what speaks for and against it, whose fingerprint comes back with it.

Looking, asking a worker and replaying are `dlq.replaying`'s. Not here: with another payload or key (`editing`), many
jobs at once (`bulk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from dlq import replaying
from dlq.preflight import Change, Preflight
from dlq.replaying import Unsafe, VerdictChanged, Who
from jobsboard.board import acting, replay_checks
from jobsboard.board.asking import Asked, Deed, Done, Refused, ask, form, note
from jobsboard.roles import can, require
from queues import actions
from queues.edited_replay import Edited
from queues.models import Job

CHANGED: Final = "What is known has changed since you looked. Look again before you replay."
_DEED: Final = Deed(
    verb="replay", title="Replay this {type} job?",
    lead="It becomes a new job with the same payload and the same idempotency key. This one stays as it is.",
    ok="Replay 1", keep="Keep as it is", icon="replay", why="must",
)  # fmt: skip
_ANYWAY: Final = replace(_DEED, title="Replay this {type} job anyway?", ok="Replay anyway", danger=True)


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def replay(request: HttpRequest, job_id: UUID, place: str) -> HttpResponse:
    """Show the verdict and ask for a reason, then replay one job. Done twice, the same new job is the answer."""
    job = Job.objects.filter(id=job_id).first()
    if job is None:
        raise Http404
    if request.method != "POST":
        return form(request, _asked(request, job, replaying.look(job, ask=replay_checks.possible(job)), place))
    return ask(request, acting.question(job, _DEED, place), lambda: _replay(request, job, place))


def _replay(request: HttpRequest, job: Job, place: str) -> Done:
    """Do it. Raises: Refused."""
    try:
        child = do(request, job, reason=note(request, _DEED))
    except VerdictChanged as changed:
        raise Refused(
            CHANGED, status=409, instead=_asked(request, job, changed.found, place, changed.changes)
        ) from None
    except Unsafe as unsafe:
        raise Refused(f"{unsafe}.", status=409, instead=_asked(request, job, unsafe.found, place)) from None
    except Refused as refused:
        found = replaying.look(job, ask=False)
        raise Refused(str(refused), status=refused.status, instead=_asked(request, job, found, place)) from None
    return Done(text="Replayed 1 job.", url=reverse("job", args=[child]), link="View the new job")


def do(request: HttpRequest, job: Job, *, reason: str, edited: Edited | None = None) -> UUID:
    """Replay a job as the form says; returns the new one, also when it was made before.

    Raises: Refused, VerdictChanged, Unsafe.
    """
    # A double click, or somebody was faster: the same child is the answer.
    if job.replayed_by is not None:
        return job.replayed_by
    who = Who(**acting.who(request, reason))
    anyway = "anyway" in request.POST and can(request.user, "replay_anyway")
    # A form without a verdict was drawn by nobody: an empty fingerprint is another one than any.
    verdict = request.POST.get("verdict", "")[:40]
    try:
        return replaying.replay(job.id, who=who, verdict=verdict, anyway=anyway, edited=edited)
    except actions.NotReplayable as refused:
        child = Job.objects.filter(id=job.id).values_list("replayed_by", flat=True).first()
        if refused.code == "already_replayed" and child is not None:
            return child
        raise Refused(f"{refused.detail[:1].upper()}{refused.detail[1:]}.", status=409) from None
    except actions.JobNotFound:
        raise Http404 from None


def _asked(request: HttpRequest, job: Job, found: Preflight, place: str, changes: Sequence[Change] = ()) -> Asked:
    """Return the question with the verdict that it stands on."""
    press = replay_checks.pressable(found, request.user)
    extra = {
        "lines": replay_checks.lines(found),
        "fingerprint": found.fingerprint,
        "anyway": press == "anyway",
        "changes": changes,
        "instead": replay_checks.taken_by(job, replay_checks.facts_of(job)) if found.final else None,
    }
    deed = _ANYWAY if press == "anyway" else _DEED
    return acting.question(
        job, deed, place, extra=extra, fields="board/_ask_verdict.html", refusal=refusal(press, found)
    )


def refusal(press: str, found: Preflight) -> str:
    """Say why nothing can be pressed; empty where something can."""
    if press == "never":
        return f"It cannot be replayed. {found.worst.evidence}."
    return replay_checks.NOT_ALLOWED if press == "not_allowed" else ""
