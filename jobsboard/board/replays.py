"""Replay plans: the list, and one plan with how far it is, what it waits for and what went wrong.

Not here: making one (`bulk`), pausing, resuming and aborting one (`replay_acting`), carrying them out (`dlq.plans`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_safe

from dlq.models import PlanItem, ReplayPlan
from dlq.plans import read
from dlq.plans.people import ALIVE
from jobsboard.board import signals
from jobsboard.board.params import Params, seal
from jobsboard.board.refresh import answer, live
from jobsboard.board.verdict import Concern
from jobsboard.durations import duration
from jobsboard.roles import can, require

_State = ReplayPlan.State
PAGE: Final = 50
ITEMS: Final = 100
RUNNING_POLL: Final = 2
STOPPED_MOST: Final = 7
LOOKS: Final[Mapping[str, tuple[str, str, str]]] = {
    _State.RUNNING: ("Running", "processing", "processing"),
    _State.PAUSED: ("Paused", "cancelled", "pause"),
    _State.STOPPED: ("Stopped by its rule", "dead", "bad"),
    _State.ABORTED: ("Aborted", "cancelled", "cancelled"),
    _State.FOLLOWING: ("Waiting for outcomes", "awaiting", "awaiting"),
    _State.FINISHED: ("Finished", "confirmed", "ok"),
}
CODES: Final[Mapping[str, str]] = {
    "changed": "resolved since they were chosen",
    "gone": "no longer kept",
    "already_done": "done already",
    "superseded": "a newer job has the key",
    "idempotency_key": "could act twice",
    "max_age": "past max age",
    "contract": "refused by today's contract",
    "aborted": "left when it was aborted",
    "not_replayed": "could not be replayed",
    "not_open": "not in a state for this",
    "asked_to_stop": "runs, asked to stop",
    "safe": "safe to replay",
    "unknown": "not known to be safe",
}
_OUTCOMES: Final[Mapping[str, str]] = {
    "open": "on its way",
    "awaiting": "waits for its proof",
    "confirmed": "confirmed",
    "dead": "dead again",
    "expired": "expired",
    "cancelled": "cancelled",
    "lost": "not known",
}
_NOUNS: Final = {"replay": "Replay", "cancel": "Cancel", "ignore": "Ignore"}


@dataclass(frozen=True, kw_only=True)
class PlanLine:
    """A plan as the list and its page name it."""

    plan: ReplayPlan
    title: str
    chosen: str
    words: str
    look: tuple[str, str, str]
    share: float
    share_words: str


@dataclass(frozen=True, kw_only=True)
class ItemLine:
    """An item in words."""

    item: PlanItem
    word: str
    css: str
    icon: str


def line(plan: ReplayPlan) -> PlanLine:
    """Return a plan in words."""
    word, css, icon = LOOKS[plan.state]
    acted = plan.total - read.left(plan)
    held = bool(plan.held) and plan.state == _State.RUNNING
    return PlanLine(
        plan=plan,
        title=f"{_NOUNS[plan.action]} {plan.total:,} job{'' if plan.total == 1 else 's'}"
        + (", dry run" if plan.dry_run else ""),
        chosen=chosen_words(plan.selection),
        words=read.words(plan),
        look=("Held", "retrying", "pause") if held else (word, css, icon),
        share=acted / plan.total if plan.total else 1.0,
        share_words=f"{acted:,} of {plan.total:,} acted on",
    )


def chosen_words(selection: Mapping[str, Any]) -> str:
    """Say what a plan is about."""
    if "ids" in selection:
        return f"{selection['ids']:,} selected by hand"
    parts = [f"{name} {value}" for name, value in selection.items() if name != "state" and value not in (None, "")]
    state = "waiting jobs" if selection.get("state") == "waiting" else "dead letters"
    return f"all {state}" + (f" with {', '.join(parts)}" if parts else "")


@require("view")
@require_safe
@live
def replays(request: HttpRequest) -> HttpResponse:
    """List plans, newest first."""
    params = Params(request)
    after = params.cursor("after", scope="replays")
    found = read.plans(before=after, limit=PAGE + 1)
    rows, more = found[:PAGE], len(found) > PAGE
    seen = signals.of(request)
    context = {
        "title": "Replays",
        "lines": [line(plan) for plan in rows],
        "verdict": _verdict(seen.plans, seen.plans_stopped),
        "newer": None,
        "older": seal(rows[-1].id, scope="replays") if more else None,
        "searched": f"{len(rows):,} shown, newest first.",
        "notes": params.notes,
        "first": after is not None,
    }
    return answer(request, "board/replays.html", context)


def _verdict(alive: int, stopped: int) -> str:
    running = alive - stopped
    if not alive:
        return "No replay plan is running"
    said = [(running, "runs" if running == 1 else "run"), (stopped, "stopped by its rule")]
    parts = [f"{n:,} {words}" for n, words in said if n]
    return f"{alive:,} replay plan{'' if alive == 1 else 's'}: {', '.join(parts)}"


@require("view")
@require_safe
def replay_plan(request: HttpRequest, plan_id: UUID) -> HttpResponse:
    """Show one plan. It moves faster than the board's version does, so each poll draws it."""
    return plan_page(request, plan_id)


def plan_page(request: HttpRequest, plan_id: UUID, *, toast: dict[str, str] | None = None) -> HttpResponse:
    """Show one plan, with what was just done."""
    plan = read.plan(plan_id)
    if plan is None:
        raise Http404
    params = Params(request)
    which = params.choice("which", ("all", "waiting"), word="list") or "unwell"
    after = _number(params)
    found = read.items(plan.id, which=which, after=after, limit=ITEMS + 1)
    shown = line(plan)
    context = {
        "title": shown.title,
        "crumbs": [("Replays", reverse("replays")), (shown.title, "")],
        "toast": toast,
        "plan": plan,
        "line": shown,
        "headline": f"{shown.title}: {shown.look[0].lower()}",
        "eta": _eta(plan),
        "why": _why(plan),
        "outcomes": _outcomes(plan),
        "items": [item_line(item) for item in found[:ITEMS]],
        "which": which,
        "next": found[ITEMS - 1].number if len(found) > ITEMS else None,
        "stop_words": stop_words(plan),
        "may_act": can(request.user, "act"),
        "can_pause": plan.state == _State.RUNNING,
        "can_resume": plan.state in (_State.PAUSED, _State.STOPPED),
        "can_abort": plan.state in ALIVE,
        "notes": params.notes,
    }
    moving = plan.state in (_State.RUNNING, _State.FOLLOWING) or plan.open + plan.awaiting > 0
    return answer(request, "board/replay_plan.html", context, poll=RUNNING_POLL if moving else 15)


def _number(params: Params) -> int:
    text = params.text("after") or "0"
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def _eta(plan: ReplayPlan) -> str:
    """Say when the last one is acted on."""
    if plan.state in (_State.FINISHED, _State.ABORTED, _State.FOLLOWING):
        return "none is left"
    seconds = read.eta_seconds(plan)
    return "not while it waits" if seconds is None else f"about {duration(max(seconds, 1.0))}"


def _why(plan: ReplayPlan) -> Sequence[tuple[str, int]]:
    """Return why items were skipped or failed, or what a dry run found, most first. Shape: words, count."""
    return sorted(((CODES.get(code, code), n) for code, n in plan.why.items() if n), key=lambda pair: -pair[1])


def _outcomes(plan: ReplayPlan) -> Sequence[tuple[str, int, str]]:
    """Return how the replays ended so far. Shape: word, count, colour."""
    found = [
        ("Confirmed", plan.confirmed, "confirmed"),
        ("Waiting for their proof", plan.awaiting, "awaiting"),
        ("On their way", plan.open, "processing"),
        ("Of these, failed last", plan.failing, "retrying"),
        ("Dead again", plan.dead_again, "dead"),
        ("Expired", plan.expired, "expired"),
        ("Cancelled", plan.cancelled, "cancelled"),
        ("Not known", plan.lost, "cancelled"),
    ]
    if plan.action != ReplayPlan.Action.REPLAY or plan.dry_run:
        return []
    return [one for one in found if one[1] or one[0] in ("Confirmed", "Dead again")]


def stop_words(plan: ReplayPlan) -> str:
    """Say when the plan stops."""
    ratio = plan.stop_on_failure_ratio
    if ratio >= 1:
        return "never"
    return "when the first replay fails" if ratio == 0 else f"when more than {ratio:.0%} fail again"


def item_line(item: PlanItem) -> ItemLine:
    """Say what became of an item."""
    if item.state == PlanItem.State.WAITING:
        return ItemLine(item=item, word="waits", css="accepted", icon="accepted")
    if item.state == PlanItem.State.DONE and item.code:
        css, icon = ("confirmed", "ok") if item.code == "safe" else ("cancelled", "help")
        return ItemLine(item=item, word=CODES.get(item.code, item.code), css=css, icon=icon)
    if item.state == PlanItem.State.DONE:
        css = {"dead": "dead", "expired": "expired", "confirmed": "confirmed"}.get(item.outcome, "processing")
        icon = {"dead": "deadst", "expired": "expired", "confirmed": "confirmed"}.get(item.outcome, "processing")
        return ItemLine(item=item, word=_OUTCOMES.get(item.outcome, "done"), css=css, icon=icon)
    failed = item.state == PlanItem.State.FAILED
    word = f"{'failed' if failed else 'skipped'}: {CODES.get(item.code, item.code)}"
    return ItemLine(item=item, word=word, css="dead" if failed else "cancelled", icon="bad" if failed else "cancelled")


def concerns(request: HttpRequest) -> list[Concern]:
    """Return what the overview says of plans that stopped by their rule; one statement, and none where none stopped."""
    if not signals.of(request).plans_stopped:
        return []
    stopped = ReplayPlan.objects.filter(state=_State.STOPPED).order_by("-state_at")[:STOPPED_MOST]
    return [
        Concern(
            css="dead",
            text=f"A replay of {plan.total:,} job{'' if plan.total == 1 else 's'} stopped",
            evidence=plan.state_reason,
            since=plan.state_at,
            url=reverse("replay-plan", args=[plan.id]),
            action="See why",
        )
        for plan in stopped
    ]
