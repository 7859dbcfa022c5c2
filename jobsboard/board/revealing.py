"""Revealing the hidden values of one payload: with a reason, once, in the answer to that alone, and in the audit log.

The log says which values somebody saw, never what they are. They are gone after a minute, or with the next look.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from jobsboard.board import acting
from jobsboard.board.asking import Asked, Deed, Refused, form, note
from jobsboard.roles import require
from queues import audit, contracts, lifecycle
from queues.models import Job
from queues.redaction import redact

HIDDEN_AFTER_SECONDS: Final = 60
POINTERS_MOST: Final = 200
_DEED: Final = Deed(
    verb="reveal", title="Reveal the hidden values of this {type} job?",
    lead="They are shown once, for a minute. The audit log keeps that you saw them and why, never the values.",
    ok="Reveal for 60 s", keep="Keep them hidden", icon="eye", why="must",
)  # fmt: skip


@require("reveal")
@require_http_methods(["GET", "HEAD", "POST"])
def reveal(request: HttpRequest, job_id: UUID, place: str) -> HttpResponse:
    """Ask for a reason, then show the hidden values once."""
    job = Job.objects.filter(id=job_id).first()
    if job is None:
        raise Http404
    hidden = _hidden(job)
    asked = acting.question(job, _DEED, place, refusal="" if hidden else "Its payload hides nothing.", into="#dialog")
    if request.method != "POST":
        return form(request, asked)
    try:
        reason = note(request, _DEED)
        if not hidden:
            raise Refused("Its payload hides nothing, or cannot be read.", status=409)
    except Refused as refused:
        return form(request, asked, error=str(refused), status=refused.status)
    with transaction.atomic():
        audit.record(
            "payload.revealed",
            actor=request.user.get_username(),
            object_type="job",
            object_id=job.id,
            after={"pointers": [pointer for pointer, _ in hidden[:POINTERS_MOST]], "count": len(hidden)},
            reason=reason,
            source="ui",
            request_id=getattr(request, "request_id", ""),
        )
        lifecycle.touch_board()
    return _shown(request, job, asked, hidden)


def _shown(request: HttpRequest, job: Job, asked: Asked, hidden: list[tuple[str, Any]]) -> HttpResponse:
    alone = "HX-Request" in request.headers
    context = {
        "title": "Revealed",
        "job": job,
        "asked": asked,
        "alone": alone,
        "seconds": HIDDEN_AFTER_SECONDS,
        "values": [(pointer, json.dumps(value, ensure_ascii=False, indent=2)) for pointer, value in hidden],
        "crumbs": asked.crumbs,
    }
    response = render(request, "board/_revealed.html" if alone else "board/revealed.html", context)
    response["Cache-Control"] = "no-store"
    if not alone:
        # Without script it is the browser that leaves the page.
        response["Refresh"] = f"{HIDDEN_AFTER_SECONDS};url={asked.back}"
    return response


def _hidden(job: Job) -> list[tuple[str, Any]]:
    """Return the pointers of what the payload hides and what is there, in its order."""
    with contextlib.suppress(ValueError, RecursionError, contracts.UnknownContract):
        if job.payload is not None:
            value = json.loads(job.payload)
            pointers = contracts.of_version(job.type, job.contract_version).redact
            return list(_differing(value, redact(value, pointers=pointers), at=""))
    return []


def _differing(value: Any, shown: Any, *, at: str) -> Iterator[tuple[str, Any]]:
    """Yield where a value is not what is shown of it. A name that is hidden is told as it is shown."""
    if isinstance(value, dict) and isinstance(shown, dict):
        for (name, child), (label, seen) in zip(value.items(), shown.items(), strict=True):
            pointer = f"{at}/{label.replace('~', '~0').replace('/', '~1')}"
            if name != label:
                yield pointer, {name: child}
            else:
                yield from _differing(child, seen, at=pointer)
    elif isinstance(value, list) and isinstance(shown, list):
        for index, (child, seen) in enumerate(zip(value, shown, strict=True)):
            yield from _differing(child, seen, at=f"{at}/{index}")
    elif value != shown:
        yield at or "/", value
