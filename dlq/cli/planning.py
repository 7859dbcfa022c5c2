"""Plans from the command line: many replays, cancels or ignores at once, how far they are, pause, resume, abort."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from dlq.cli import choosing, printing
from dlq.cli.printing import Refused, Write
from dlq.models import ReplayPlan
from dlq.plans import create, people, read
from dlq.plans import selection as choice
from dlq.plans.create import PlanRequest
from dlq.plans.selection import Selection, SelectionInvalid
from dlq.replaying import Who

_State = ReplayPlan.State
_POLL_SECONDS: Final = 0.5
_ENDED: Final = (_State.FINISHED, _State.ABORTED, _State.STOPPED)
_FIELDS: Final = {
    "expected_count": "--expect", "rate_per_second": "--rate", "stop_on_failure_ratio": "--stop",
    "concurrency": "--at-once", "reason": "--reason",
}  # fmt: skip
_VERBS: Final[dict[str, Callable[..., ReplayPlan]]] = {
    "pause": people.pause, "resume": people.resume, "abort": people.abort,
}  # fmt: skip


def make(options: dict[str, Any], write: Write, *, who: Who) -> int:
    """Make a plan, and with `--wait` follow it to its end; returns the exit code. Raises: Refused."""
    ids = choosing.ids(options["ids"])
    if ids and choosing.given(options):
        raise Refused("name jobs or give a filter, not both", code=2)
    state = choice.WAITING if options.get("waiting") else choice.DEAD
    selection = Selection(ids=tuple(ids)) if ids else choosing.selection(options, state=state)
    request = PlanRequest(
        action=options["verb"],
        selection=selection,
        types=[selection.type] if selection.type else choosing.types(),
        who=who,
        expected_count=options["expect"],
        rate_per_second=options.get("rate") or create.RATE,
        concurrency=options.get("at_once") or create.CONCURRENCY,
        stop_on_failure_ratio=create.STOP_RATIO if options.get("stop") is None else options["stop"],
        newest_first=bool(options.get("newest_first")),
        dry_run=options["dry_run"],
        forced=bool(options.get("anyway")),
    )
    try:
        plan, _ = create.create(request)
    except SelectionInvalid as invalid:
        raise Refused(f"{_FIELDS.get(invalid.field, f'--{invalid.field}')} {invalid}", code=2) from None
    except (create.CountChanged, create.NothingSelected, create.TooMany) as refused:
        raise Refused(f"No plan was made: {refused}") from None
    if not options["json"]:
        write(f"Plan {plan.id}: {plan.action} {plan.total:,}" + (" (dry run)" if plan.dry_run else ""))
    if options["wait"]:
        plan = follow(plan.id, write if not options["json"] else lambda words: None, seconds=options["timeout"])
    if options["json"]:
        printing.document(as_json(plan), write)
    return _code(plan)


def show(options: dict[str, Any], write: Write, *, who: Who) -> int:
    """Print a plan, or all of them; pause, resume or abort it first where that is asked. Raises: Refused."""
    if options["id"] is None:
        return _list(options, write)
    try:
        plan_id = UUID(options["id"])
    except ValueError:
        raise Refused(f"{options['id']!r} is not the id of a plan", code=2) from None
    verb = next((name for name in _VERBS if options[name]), None)
    if verb is not None:
        _steer(verb, plan_id, who=who)
    plan = read.plan(plan_id)
    if plan is None:
        raise Refused(f"there is no plan {plan_id}")
    if options["wait"]:
        plan = follow(plan_id, write if not options["json"] else lambda words: None, seconds=options["timeout"])
    if options["json"]:
        printing.document(as_json(plan), write)
    else:
        _print(plan, write)
    return _code(plan) if options["wait"] else 0


def follow(plan_id: UUID, write: Write, *, seconds: float) -> ReplayPlan:
    """Print how far a plan is whenever that changes, until it ends or stops. Raises: Refused after so many seconds."""
    pause, said, waited = threading.Event(), "", 0.0
    while True:
        plan = read.plan(plan_id)
        if plan is None:
            raise Refused(f"there is no plan {plan_id}")
        words = f"{plan.state}: {read.words(plan)}" + (f" ({plan.held})" if plan.held else "")
        if words != said:
            write(words)
            said = words
        if plan.state in _ENDED:
            return plan
        if waited >= seconds:
            raise Refused(f"after {seconds:g} s it is not at its end; it goes on: dlq plan {plan_id}")
        pause.wait(_POLL_SECONDS)
        waited += _POLL_SECONDS


def as_json(plan: ReplayPlan) -> dict[str, Any]:
    """Return a plan as `--json` shows it."""
    names = (
        "id", "action", "state", "state_reason", "held", "dry_run", "forced", "selection", "as_of", "reason",
        "created_by", "created_at", "finished_at", "rate_per_second", "concurrency", "stop_on_failure_ratio", "order",
        "total", "left_out", "done", "skipped", "failed", "why", "open", "failing", "awaiting", "confirmed",
        "dead_again", "expired", "cancelled", "lost",
    )  # fmt: skip
    return {name: getattr(plan, name) for name in names} | {"left": read.left(plan), "words": read.words(plan)}


def _steer(verb: str, plan_id: UUID, *, who: Who) -> None:
    if not who.reason.strip():
        raise Refused(f"--{verb} needs --reason", code=2)
    try:
        _VERBS[verb](plan_id, who=who)
    except people.PlanNotFound:
        raise Refused(f"there is no plan {plan_id}") from None
    except people.NotPossible as refused:
        raise Refused(str(refused)) from None


def _list(options: dict[str, Any], write: Write) -> int:
    plans = read.plans(limit=options["limit"])
    if options["json"]:
        printing.document([as_json(plan) for plan in plans], write)
        return 0
    head = ("id", "made", "by", "action", "state", "total", "so far", "reason")
    rows = [
        [plan.id, plan.created_at, plan.created_by, plan.action, plan.state, plan.total, read.words(plan), plan.reason]
        for plan in plans
    ]
    printing.table(head, rows, write)
    return 0


def _print(plan: ReplayPlan, write: Write) -> None:
    facts = as_json(plan)
    shown = ("id", "action", "state", "state_reason", "held", "selection", "as_of", "reason", "created_by",
             "rate_per_second", "stop_on_failure_ratio", "total", "left_out", "why", "words")  # fmt: skip
    printing.facts({name: facts[name] for name in shown}, write)
    items = read.items(plan.id, which="unwell", limit=20)
    if items:
        write("")
        rows = [[i.number, i.job_id, i.state, i.code, i.detail, i.child, i.outcome] for i in items]
        printing.table(("item", "job", "state", "code", "because", "replayed as", "outcome"), rows, write)


def _code(plan: ReplayPlan) -> int:
    """Return 1 for a plan that stopped, was aborted, or whose jobs died again."""
    return int(plan.state in (_State.STOPPED, _State.ABORTED) or bool(plan.dead_again or plan.failed))
