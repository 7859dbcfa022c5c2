"""What every page shows around its content: navigation with counts that need action, environment, clock.

Nothing is asked of the database unless the template uses it, and then one statement for all.
"""

from __future__ import annotations

from typing import Any, Final

from django.conf import settings
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import SimpleLazyObject

from jobsboard.board import signals
from jobsboard.roles import can
from queues import outcomes

Row = tuple[str, str, str, int | None, str]
KEPT: Final = "_jobsboard_board"


def board_of(request: HttpRequest) -> outcomes.Board:
    """Return how things stand, read once for a request."""
    kept = request.__dict__
    if KEPT not in kept:
        kept[KEPT] = outcomes.board()
    board: outcomes.Board = kept[KEPT]
    return board


def context(request: HttpRequest) -> dict[str, Any]:
    """Add the shell to a page; nothing for who is not logged in."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {}
    return {
        "environment": settings.JOBSBOARD_ENVIRONMENT,
        "nav": SimpleLazyObject(lambda: _nav(request)),
    }


def _nav(request: HttpRequest) -> list[Row]:
    if not can(request.user, "view"):
        return []
    board = board_of(request)
    dead, found = board.count("dead"), signals.of(request)
    firing, unwell = found.firing, found.endpoints_unwell
    rows: list[Row] = [
        ("Overview", "home", reverse("overview"), None, ""),
        ("Job types", "types", reverse("job-types"), len(board.types), ""),
        ("Jobs", "jobs", reverse("jobs"), None, ""),
        ("Dead letters", "dead", reverse("dead-letters"), dead, "bad" if dead else ""),
        ("Replays", "replay", reverse("replays"), found.plans or None, "warn" if found.plans_stopped else ""),
        ("Runtime", "", "", None, ""),
        ("Queues and tiers", "queue", reverse("queues"), None, ""),
        ("Circuit breakers", "breaker", reverse("dependencies"), board.breakers_open or None, "bad"),
        ("Probes", "probe", reverse("probes"), board.probes_failing, "bad" if board.probes_failing else ""),
        ("Schedules", "clock", reverse("schedules"), found.schedules_refused or None, "bad"),
        ("Signals", "", "", None, ""),
        ("Alerts", "alert", reverse("alerts"), firing, "bad" if firing else ""),
        ("Webhooks", "hook", reverse("webhooks"), unwell or None, "bad"),
        ("Audit log", "audit", reverse("audit"), None, ""),
    ]
    if getattr(request.user, "is_staff", False):
        rows += [
            ("Set up", "", "", None, ""),
            ("Contracts", "contract", reverse("admin:queues_jobtype_changelist"), None, ""),
        ]
    return rows
