"""The download of dead letters. Not here: what is in the file, and how it is read (`dlq.exporting`)."""

from __future__ import annotations

from django.core.exceptions import BadRequest
from django.http import HttpRequest, StreamingHttpResponse
from django.views.decorators.http import require_GET

from dlq import exporting
from dlq.exporting import By, Wanted
from jobsboard.board.params import Params
from jobsboard.roles import can, require
from queues import contracts
from queues.states import DEAD_REASONS


@require("view")
@require_GET
def export(request: HttpRequest) -> StreamingHttpResponse:
    """Download unresolved dead letters; the payload only for who may see it."""
    params = Params(request)
    types = list(contracts.all_current())
    tier = params.choice("tier", {"1", "2", "3"})
    form: exporting.Format = "jsonl" if params.choice("format", exporting.FORMATS) == "jsonl" else "csv"
    wanted = Wanted(
        types=types,
        type=params.choice("type", types, word="type"),
        tier=int(tier) if tier else None,
        reason=params.choice("reason", set(DEAD_REASONS)),
        fingerprint=params.text("fingerprint", longest=32),
        since=params.moment("since"),
        until=params.moment("until"),
    )
    if params.notes:
        # A page shows more when a filter means nothing; a file must not hold more than was asked for.
        raise BadRequest("; ".join(params.notes))
    by = By(actor=request.user.get_username(), source="ui", request_id=getattr(request, "request_id", ""))
    return StreamingHttpResponse(
        exporting.stream(wanted, form=form, payload=can(request.user, "see_payload"), by=by),
        content_type=exporting.CONTENT_TYPES[form],
        headers=exporting.headers(wanted, form=form),
    )
