"""Named points at which a test lets the process die, an error come up, or the work stand still.

A point costs one look at an empty dictionary. Nothing outside a test arms one: no setting, no variable, no request.
"""

from collections.abc import Callable
from typing import Final

STATEMENTS: Final = (
    "accept", "cancel", "check_claim", "check_finish", "claim", "claim_limited", "confirm", "expire", "finish", "fold",
    "give_up", "heartbeat", "prune_day", "prune_swap", "replay", "replay_many", "rescue", "step",
)  # fmt: skip
"""Statements of `lifecycle`: `X.before` and `X.after`. Outside a transaction the latter is past the commit, and its
answer is lost; inside one (claim_limited, cancel, replay, confirm) what belongs to it, such as the audit entry, is not
written yet."""

POINTS: Final = frozenset(
    {f"{name}.{moment}" for name in STATEMENTS for moment in ("before", "after")}
    | {
        "overlap.inserted",  # a merging type's job is inserted, those that it replaces still wait, nothing is committed
        "publish.before",  # accepted and committed, its hint not sent
        "publish.inside",  # connected to the broker, hint not sent
        "body.before",  # claimed and begun, the handler not called
        "body.after",  # the handler returned, its end not written
        "http.answered",  # an HTTP target took the job, its answer not read
        "step.done",  # a step of a handler was done, its result not kept
        "cancel.committed",  # with its audit entry; whoever asked has no answer
        "replay.committed",
        "confirm.committed",
        "callback.kept",  # a provider's word is in the inbox, its job not looked for
        "rescue.selected",  # a sweep knows its jobs and has not touched them
        "expire.selected",
        "give_up.selected",
        "stage.selected",  # the stage knows what is due and has sent no hint
        "plan.frozen",  # the items of a new plan are written, the plan is not
        "plan.locked",  # a service has taken a plan, and done nothing
        "plan.stepped",  # items, jobs and plan are written, not committed
        "plan.committed",
        "breaker.judged",  # a breaker has to change, nothing is written
        "breaker.flipped",  # its change is written, its types do not have it so far, nothing is committed
        "breaker.committed",
        "schedules.selected",  # a schedule is due and its row locked, nothing is written
        "schedules.accepted",  # the job of its tick is inserted, the tick is not
        "schedules.written",  # job, tick and next time are written, not committed
        "schedules.committed",
        "alerts.read",  # rules are measured, nothing is written
        "alerts.applied",  # alerts and their deliveries are written, not committed
    }
)

_armed: dict[str, Callable[[], None]] = {}


def fault(point: str) -> None:
    """Let happen what a test armed at this point."""
    if _armed and (strike := _armed.get(point)) is not None:
        strike()


def arm(point: str, strike: Callable[[], None]) -> None:
    """Call `strike` whenever this process comes to a point. Raises: ValueError."""
    if point not in POINTS:
        raise ValueError(f"there is no fault point {point!r}")
    _armed[point] = strike


def disarm() -> None:
    """Let nothing happen any more."""
    _armed.clear()
