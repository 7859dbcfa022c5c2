"""Dead letters: what is dead and why, and one of them. Not here: replaying or closing it (`board.acting`)."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from jobsboard.board import shell
from jobsboard.board.jobs import job_page, tier_filter, type_filter
from jobsboard.board.params import Params, scope_of, seal
from jobsboard.board.refresh import answer, live
from jobsboard.roles import require
from queues import outcomes
from queues.outcomes import JobFilter
from queues.states import DEAD_REASONS

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
        "searched": _searched(page),
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


def _searched(page: outcomes.JobPage) -> str:
    if page.looked is not None and not page.complete:
        return f"Looked at {page.looked:,} dead letters, last accepted first. Older ones follow."
    return f"{len(page.rows):,} shown, last accepted first. Replayed and cancelled ones are no longer listed."


@require("view")
@require_safe
@live
def dead_letter(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """Show one dead letter: the job, and whether it may be replayed."""
    return job_page(request, job_id, place="dlq")
