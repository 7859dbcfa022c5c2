"""One dead letter: its page, and the verdict about its replay, for which a worker is asked.

Not here: what the page shows (`jobs.job_page`, `replay_checks`, `death`), acting on it (`acting`, `replaying`).
"""

from __future__ import annotations

from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from jobsboard.board import replay_checks
from jobsboard.board.jobs import act_urls, job_page
from jobsboard.board.refresh import live
from jobsboard.roles import can, require
from queues.models import Job


@require("view")
@require_safe
@live
def dead_letter(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """Show one dead letter: the job, and whether it may be replayed."""
    return job_page(request, job_id, place="dlq")


@require("view")
@require_safe
def verdict(request: HttpRequest, job_id: UUID, place: str) -> HttpResponse:
    """Ask a worker whether the work was done, wait at most two seconds, and show the card; without htmx the page."""
    job = Job.objects.filter(id=job_id).first()
    if job is None:
        raise Http404
    back = reverse("dead-letter" if place == "dlq" else "job", args=[job_id])
    if not replay_checks.possible(job):
        return _back(request, back)
    card = replay_checks.asked(job, request.user)
    if "HX-Request" not in request.headers:
        return _back(request, back)
    context = {
        "job": job,
        "card": card,
        "now": card.at,
        "may_act": can(request.user, "act"),
        "act_url": act_urls(job, place),
    }
    return render(request, "board/_verdict_card.html", context)


def _back(request: HttpRequest, back: str) -> HttpResponse:
    """Lead to the page; htmx opens it whole, since the card is no longer part of it."""
    if "HX-Request" in request.headers:
        return HttpResponse(status=204, headers={"HX-Redirect": back})
    return HttpResponseRedirect(back)
