"""Dead letters: what is dead and why, by failure or one by one, so many a page.

Not here: one of them (`dead_letter`), one failure (`groups`), acting on many (`bulk`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

from django.core import signing
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_safe

from dlq import groups, watch
from dlq.groups import COUNTED_MOST, Cursor, GroupFilter, GroupPage
from jobsboard.board import shell
from jobsboard.board.groups import line
from jobsboard.board.jobs import tier_filter, type_filter
from jobsboard.board.params import Params, scope_of, seal
from jobsboard.board.refresh import answer, live
from jobsboard.roles import can, require
from queues import outcomes
from queues.outcomes import JobFilter
from queues.states import DEAD_REASONS

_REASONS: Final = {reason.value: reason.value.replace("_", " ") for reason in DEAD_REASONS}
_STATES: Final = {"ignored": "ignored", "resolved": "resolved", "all": "all"}
_SALT: Final = "jobsboard.board.groups"


@require("view")
@require_safe
@live
def dead_letters(request: HttpRequest) -> HttpResponse:
    """List unresolved dead letters: by failure, or with `view=flat` each by itself."""
    params = Params(request)
    board = shell.board_of(request)
    tier = params.choice("tier", {str(number) for number in board.tiers})
    found: dict[str, Any] = {
        "type": params.choice("type", board.types, word="type"),
        "tier": int(tier) if tier else None,
        "reason": params.choice("reason", _REASONS),
    }
    filters = [
        tier_filter(board, tier or ""),
        type_filter(board, found["type"]),
        {"name": "reason", "label": "Reason", "value": found["reason"] or "", "options": list(_REASONS.items())},
    ]
    given = {name: value for name, value in found.items() if value}
    context = {
        "title": "Dead letters",
        "filters": filters,
        "filtered": bool(given),
        "may_act": can(request.user, "act"),
        "flat_url": f"?{urlencode({**given, 'view': 'flat'})}",
        "grouped_url": f"{reverse('dead-letters')}?{urlencode(given)}" if given else reverse("dead-letters"),
        # The dialog has a reason of its own.
        "bulk_given": [("died_of" if name == "reason" else name, value) for name, value in given.items()],
    }
    if params.choice("view", {"flat"}):
        return _flat(request, params, found, context)
    return _grouped(request, params, found, context)


def _grouped(request: HttpRequest, params: Params, found: dict[str, Any], context: dict[str, Any]) -> HttpResponse:
    board = shell.board_of(request)
    state = params.choice("state", _STATES) or "open"
    scope = "groups " + scope_of({**found, "state": state})
    after = _mark(params, scope)
    page = groups.groups(GroupFilter(types=list(board.types), state=state, **found), after=after)
    whole = after is None and page.older is None
    n, reasons = board.count("dead", tier=found["tier"], name=found["type"]), len(page.rows)
    ignored = 0
    if state != "open" or found["reason"]:
        n = sum(max(row.open, 0) for row in page.rows)
    elif n:
        ignored = min(n, _ignored(found, since=board.now))
    if not whole:
        reasons = groups.open_groups() if state == "open" and not context["filtered"] else reasons
    context |= {
        "rows": [line(row, may_act=context["may_act"]) for row in page.rows],
        "verdict": _verdict(n, reasons, whole=whole, counted=bool(not whole and state == "open"), ignored=ignored),
        "triage": _triage(page),
        "newer": None,
        "older": _seal(page.older, scope=scope),
        "first": after is not None,
        "searched": f"{len(page.rows):,} shown, tier 1 first, then the last death first.",
        "state": state,
        "notes": params.notes,
    }
    choice = {"name": "state", "label": "State", "any": "open", "value": "" if state == "open" else state}
    context["filters"] = [*context["filters"], {**choice, "options": list(_STATES.items())}]
    context["filtered"] = context["filtered"] or state != "open"
    return answer(request, "board/dead_letters.html", context)


def _ignored(found: dict[str, Any], *, since: dt.datetime) -> int:
    """Return how many of the unresolved dead letters are of failures that somebody ignores."""
    wanted = (found["tier"], found["type"])
    return sum(
        one.open
        for one in watch.ignored(since=since)
        if wanted[0] in (None, one.tier) and wanted[1] in (None, one.type)
    )


def _verdict(n: int, reasons: int, *, whole: bool, counted: bool, ignored: int) -> str:
    """Answer how many are dead, of how many failures; where one page is not all of them, say so."""
    letters = f"{n:,} dead letter{'' if n == 1 else 's'}" if n else "No dead letters"
    if ignored:
        letters += f" ({ignored:,} of them ignored)"
    if not reasons:
        return letters
    many = f"{reasons - 1:,}+" if reasons >= COUNTED_MOST else f"{reasons:,}"
    word = f"{many} reason{'' if reasons == 1 else 's'}"
    return f"{letters}, {word}" if whole or counted else f"{letters}, {word} on this page"


def _triage(page: GroupPage) -> str:
    """Sum up what is known of the replays of a page's groups."""
    looked = sum(int((row.triage or {}).get("looked", 0)) for row in page.rows)
    if not looked:
        return "Nothing is known yet of replays: the newest of each failure are looked at within a minute."
    sums = {
        name: sum(int((row.triage or {}).get("verdicts", {}).get(name, 0)) for row in page.rows)
        for name in ("safe", "unknown", "unsafe")
    }
    said = [
        (sums["safe"], "safe to replay"),
        (sums["unknown"], "not known to be safe"),
        (sums["unsafe"], "not to be replayed as they are"),
    ]
    parts = [f"{n:,} {'is' if n == 1 else 'are'} {words}" for n, words in said if n]
    return f"Of the newest {looked:,} looked at, {', '.join(parts)}. Nobody was asked; a replay asks again."


def _flat(request: HttpRequest, params: Params, found: dict[str, Any], context: dict[str, Any]) -> HttpResponse:
    board = shell.board_of(request)
    tier = found["tier"]
    wanted = JobFilter(
        type=found["type"], tiers=(tier,) if tier else (), reason=found["reason"], dead_letters=True
    )  # fmt: skip
    scope = "dlq " + scope_of(found)
    page = outcomes.jobs(
        wanted,
        types=list(board.types),
        counts={},
        after=params.cursor("after", scope=scope),
        before=params.cursor("before", scope=scope),
    )
    n = board.count("dead", tier=tier, name=wanted.type)
    context |= {
        "rows": page.rows,
        "newer": seal(page.newer, scope=scope),
        "older": seal(page.older, scope=scope),
        "verdict": f"{n:,} dead letter{'' if n == 1 else 's'}" if n else "No dead letters",
        "by_type": _by_type(request),
        "searched": _searched(page),
        "notes": params.notes,
        "keep": [("view", "flat")],
        "bulk_all": f"{reverse('bulk')}?{urlencode([*context['bulk_given'], ('all', 1), ('verb', 'replay')])}",
    }
    return answer(request, "board/dead_letters_flat.html", context)


def _by_type(request: HttpRequest) -> Sequence[tuple[str, int]]:
    board = shell.board_of(request)
    counts = [(name, board.count("dead", name=name)) for name in board.types]
    return sorted(((name, n) for name, n in counts if n), key=lambda item: -item[1])[:4]


def _searched(page: outcomes.JobPage) -> str:
    if page.looked is not None and not page.complete:
        return f"Looked at {page.looked:,} dead letters, last accepted first. Older ones follow."
    return f"{len(page.rows):,} shown, last accepted first. Replayed and cancelled ones are no longer listed."


def _seal(at: Cursor | None, *, scope: str) -> str | None:
    return None if at is None else signing.dumps([at[0], at[1].isoformat(), at[2], scope], salt=_SALT)


def _mark(params: Params, scope: str) -> Cursor | None:
    """Return where a page begins, if this list with these filters gave the mark."""
    text = params.text("after", longest=1_000)
    if text is None:
        return None
    try:
        tier, at, last, of_scope = signing.loads(text, salt=_SALT)
        if of_scope == scope:
            return int(tier), dt.datetime.fromisoformat(at), int(last)
    except (signing.BadSignature, ValueError, TypeError):
        pass
    params.notes.append("the page mark is not one of this list, so it begins with the newest")
    return None
