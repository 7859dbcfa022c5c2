"""What two statements that meet on one job may lead to, as data: DESIGN.md section 5, read case by case.

A cell is `verb=told` or `verb=told:state`: what the caller is told, and the state of the job after it (the same word
where it is left out). A verb without a cell changes nothing: it is told what NOTHING says, and the situation's `never`
or another cell says why. Making the rows and the statements is `test_race_matrix`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

TEN: Final = (
    "finish", "fail", "expire", "cancel", "confirm", "replay", "heartbeat", "prune", "rescue", "release",
)  # fmt: skip
"""The statements whose pairs are all looked at, in both orders."""

NOTHING: Final = {
    "finish": "superseded",
    "fail": "superseded",
    "release": "superseded",
    "heartbeat": "lost",
    "claim": "nothing",
    "rescue": "nothing",
    "expire": "nothing",
    "deadline": "nothing",
    "cancel": "refused",
    "replay": "not_replayable",
    "close": "refused",
    "prune": "stays",
    "confirm": "",
    "reject": "",
}
"""What the caller of each statement is told when it changed nothing; a word from outside is always an event."""
VERBS: Final = tuple(NOTHING)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one caller is told, and the state of the job after it; `gone` when there is no row any more."""

    told: str
    state: str


def _cells(text: str) -> dict[str, Cell]:
    """Read `verb=told:state verb=told`; a hyphen stands for a blank."""
    found = {}
    for word in text.split():
        verb, _, said = word.partition("=")
        told, _, state = said.partition(":")
        found[verb] = Cell(told=told.replace("-", " "), state=state or told)
    return found


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A job, and what meets on it.

    `alone`: what each verb does when nobody else is there; those that do something are the first ones. `waits`: who
    names this very row and waits for its lock; the others never wait. `then`: first → what a second one does after it.
    `never`: verbs that do nothing here, whoever was first, and why.
    """

    state: str
    alone: Mapping[str, Cell]
    waits: frozenset[str]
    then: Mapping[str, Mapping[str, Cell]]
    never: Mapping[str, str]

    def after(self, first: str, second: str) -> Cell:
        """Return what a verb leads to once the first one has committed."""
        left = self.alone[first].state
        return self.then[first].get(second) or Cell(told=NOTHING[second], state=left)

    def by_itself(self, verb: str) -> Cell:
        """Return what a verb leads to when the first one was rolled back, or never came."""
        return self.alone.get(verb) or Cell(told=NOTHING[verb], state=self.state)


def _situation(state: str, *, alone: str, waits: str, then: Mapping[str, str], never: Mapping[str, str]) -> Situation:
    return Situation(
        state=state,
        alone=_cells(alone),
        waits=frozenset(waits.split()),
        then={first: _cells(text) for first, text in then.items()},
        never={verb: why for verbs, why in never.items() for verb in verbs.split()},
    )


_ENDED = "this run has ended, its fence moves nothing any more"
_KEPT = "nothing that is open, unresolved or young is removed"
_NOT_DUE = "only what waits can be too old"
_NO_PROOF = "no proof is awaited"
_NO_LETTER = "it is no dead letter"
_NO_RUN = "no run can be lost that is not there, or whose lease is new"

# What follows a cancel, a confirmation and an expiry of a job that had no run in hand: the same in every such state.
_CANCELLED = "cancel=cancelled-already:cancelled confirm=late:cancelled reject=late:cancelled replay=child:cancelled"
_CONFIRMED = "confirm=duplicate:confirmed reject=contradiction:confirmed"
_EXPIRED = "confirm=late:expired reject=late:expired replay=child:expired"

SITUATIONS: Final[Mapping[str, Situation]] = {
    # Attempt 1, alone in its chunk, whose lease has run out and that nobody has rescued so far: everything that can
    # happen to a run can happen at once.
    "running": _situation(
        "processing",
        alone="finish=confirmed fail=retrying release=accepted heartbeat=held:processing rescue=retrying"
        " cancel=requested:processing confirm=kept:processing reject=kept:processing",
        waits="finish fail release cancel confirm reject",
        then={
            "finish": _CONFIRMED,
            # Positive evidence of any run confirms the job where it is; a rejection is about the run that just failed.
            "fail": "cancel=cancelled confirm=confirmed reject=rejected:dead claim=run:processing",
            "release": "cancel=cancelled confirm=confirmed reject=superseded:accepted claim=run:processing",
            "rescue": "cancel=cancelled confirm=confirmed reject=rejected:dead claim=run:processing",
            "heartbeat": "finish=confirmed fail=retrying release=accepted heartbeat=held:processing"
            " cancel=requested:processing confirm=kept:processing reject=kept:processing",
            # A run that returns its evidence is confirmed all the same; any other end of it is the cancellation.
            "cancel": "finish=confirmed fail=cancelled release=cancelled rescue=cancelled"
            " heartbeat=held,-stop:processing cancel=requested-already:processing confirm=kept:processing"
            " reject=kept:processing",
            # Evidence of a run that goes on counts when it ends, however it ends.
            "confirm": "finish=confirmed fail=confirmed release=confirmed rescue=confirmed heartbeat=held:processing"
            " cancel=requested:processing confirm=duplicate:processing reject=contradiction:processing",
            "reject": "finish=confirmed fail=dead release=accepted rescue=dead heartbeat=held:processing"
            " cancel=requested:processing confirm=kept:processing reject=duplicate:processing",
        },
        never={"expire": "a run that is live at its max age may end", "deadline": _NO_PROOF, "close": _NO_LETTER,
               "replay": "only dead, expired and cancelled jobs are replayed", "prune": _KEPT},
    ),
    # The handler returned; the deadline of the proof and the max age of the job have both passed.
    "awaiting": _situation(
        "awaiting_confirmation",
        alone="cancel=cancelled confirm=confirmed reject=rejected:dead expire=dead deadline=dead",
        waits="finish fail release cancel confirm reject",
        then={
            "cancel": _CANCELLED,
            "confirm": _CONFIRMED,
            "reject": "confirm=late:dead reject=duplicate:dead replay=child:dead close=closed:dead",
            "expire": "confirm=late:dead reject=late:dead replay=child:dead close=closed:dead",
            "deadline": "confirm=late:dead reject=late:dead replay=child:dead close=closed:dead",
        },
        never={"finish fail release heartbeat": _ENDED, "rescue": _NO_RUN, "prune": _KEPT,
               "claim": "what awaits its proof is not run"},
    ),
    # Run 1 failed, the next attempt is due.
    "retrying": _situation(
        "retrying",
        alone="claim=run:processing cancel=cancelled confirm=confirmed reject=rejected:dead",
        waits="finish fail release cancel confirm reject",
        then={
            # What comes under fence 1 finds fence 2.
            "claim": "cancel=requested:processing confirm=kept:processing reject=superseded:processing",
            "cancel": _CANCELLED,
            "confirm": _CONFIRMED,
        },
        never={"finish fail release heartbeat": _ENDED, "rescue": _NO_RUN, "prune": _KEPT, "close": _NO_LETTER,
               "expire": "it is not past its max age", "deadline": _NO_PROOF},
    ),
    # Run 1 was released unbegun, so the next one has the same attempt number and another fence (I-09).
    "released": _situation(
        "accepted",
        alone="claim=run:processing cancel=cancelled confirm=confirmed reject=superseded:accepted",
        waits="finish fail release cancel confirm reject",
        then={
            "claim": "cancel=requested:processing confirm=kept:processing reject=superseded:processing",
            "cancel": _CANCELLED,
            "confirm": _CONFIRMED,
        },
        never={"finish fail release heartbeat": _ENDED, "rescue": _NO_RUN, "prune": _KEPT, "close": _NO_LETTER,
               "expire": "it is not past its max age", "deadline": _NO_PROOF},
    ),
    "stale-retrying": _situation(
        "retrying",
        alone="expire=expired cancel=cancelled confirm=confirmed reject=rejected:dead",
        waits="finish fail release cancel confirm reject",
        then={"expire": _EXPIRED, "cancel": _CANCELLED, "confirm": _CONFIRMED},
        never={"finish fail release heartbeat": _ENDED, "rescue": _NO_RUN, "prune": _KEPT, "close": _NO_LETTER,
               "claim": "what is past its max age is not run", "deadline": _NO_PROOF},
    ),
    "stale-accepted": _situation(
        "accepted",
        alone="expire=expired cancel=cancelled confirm=confirmed reject=superseded:accepted",
        waits="finish fail release cancel confirm reject",
        then={"expire": _EXPIRED, "cancel": _CANCELLED, "confirm": _CONFIRMED},
        never={"finish fail release heartbeat": _ENDED, "rescue": _NO_RUN, "prune": _KEPT, "close": _NO_LETTER,
               "claim": "what is past its max age is not run", "deadline": _NO_PROOF},
    ),
    # An open dead letter, whose key it holds.
    "dead": _situation(
        "dead",
        alone="replay=child:dead confirm=late:dead reject=late:dead close=closed:dead",
        waits="finish fail release confirm reject replay close",
        then={
            # Positive evidence goes on to the newest of the lineage, which is not run any more then.
            "replay": "confirm=confirmed-child:dead reject=late:dead replay=already_replayed:dead",
            "confirm": "confirm=late:dead reject=late:dead replay=child:dead close=closed:dead",
            "close": "confirm=late:dead reject=late:dead replay=resolved:dead close=closed-already:dead",
        },
        never={"finish fail release heartbeat": _ENDED, "rescue": _NO_RUN, "prune": _KEPT, "expire": _NOT_DUE,
               "claim": "a terminal row is never run again", "deadline": _NO_PROOF,
               "cancel": "a dead letter is closed; the job stays dead"},
    ),
    # The same without a key, so that only the row itself says that it was replayed.
    "keyless-dead": _situation(
        "dead",
        alone="replay=child:dead confirm=late:dead reject=late:dead close=closed:dead",
        waits="finish fail release confirm reject replay close",
        then={"replay": "confirm=confirmed-child:dead reject=late:dead replay=already_replayed:dead"},
        never={"finish fail release heartbeat": _ENDED, "rescue": _NO_RUN, "prune": _KEPT, "expire": _NOT_DUE,
               "claim": "a terminal row is never run again", "deadline": _NO_PROOF,
               "cancel": "a dead letter is closed; the job stays dead"},
    ),
    # An expired job past its retention, which could still be replayed.
    "prunable": _situation(
        "expired",
        alone="replay=child:expired confirm=late:expired reject=late:expired prune=removed:gone",
        waits="finish fail release confirm reject replay",
        then={
            "replay": "confirm=confirmed-child:expired reject=late:expired replay=already_replayed:expired",
            "confirm": "confirm=late:expired reject=late:expired replay=child:expired prune=removed:gone",
            "prune": "cancel=no-job:gone confirm=no-job:gone reject=no-job:gone replay=no-job:gone close=no-job:gone"
            " prune=no-job:gone",
        },
        never={"finish fail release heartbeat": _ENDED, "rescue": _NO_RUN, "expire": _NOT_DUE, "deadline": _NO_PROOF,
               "claim": "a terminal row is never run again"},
    ),
}  # fmt: skip

COSTS: Final[Mapping[tuple[str, str], Mapping[str, int]]] = {
    ("claim", "run"): {"fence": 1, "attempt": 1, "begun": 1, ".runs": 1},
    **{("release", to): {"attempt": -1, "begun": -1} for to in ("accepted", "cancelled", "confirmed")},
    **{("fail", to): {"failures": 1, ".failed": 1, ".run": 1} for to in ("retrying", "cancelled", "confirmed", "dead")},
    **{("rescue", to): {"attempt": -1, "crashes": 1, "failures": 1, ".lost": 1}
       for to in ("retrying", "cancelled", "confirmed", "dead")},
    ("finish", "confirmed"): {".run": 1},
    ("deadline", "dead"): {"failures": 1},
    ("reject", "rejected"): {"failures": 1},
    ("confirm", "late"): {".late_evidence": 1},
    ("reject", "late"): {".late_evidence": 1},
    ("confirm", "confirmed child"): {".late_evidence": 1, ".lag": 1, ".confirmed": 1, ".open.accepted": -1},
    ("reject", "contradiction"): {".contradictions": 1},
    ("replay", "child"): {".replayed": 1, ".open.accepted": 1},
}  # fmt: skip
"""What each deed costs: columns of the row, and with a dot what is counted."""
ON_RECORD: Final = {
    ("cancel", "cancelled"): "job.cancelled",
    ("cancel", "requested"): "job.cancel_requested",
    ("replay", "child"): "job.replayed",
    ("close", "closed"): "dead_letter.cancelled",
}
"""What each person's deed leaves in the audit log."""
