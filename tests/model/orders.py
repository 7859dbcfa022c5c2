"""One run, and what is said about it, in every order: for the permutation tests of both layers (I-26)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from queues.lifecycle import Verdict
from queues.states import JobState
from tests.model.machine import Lifecycle
from tests.model.proofs import Word
from tests.model.rows import Row
from tests.model.rules import Request
from tests.model.steps import Accept, Claim, Finish, MatchAgain, Prove, Provider, Step, Sweep

KIND: Final = "model.callback"
FINISH: Final = "finish"
OVERDUE: Final = "overdue"
YES: Final = Word(True, ref="r1")
TOLD: Final = ("yes", "yes", "token", FINISH, OVERDUE)
"""Only good news: the provider's callback and its repeat, a token's word, the end of the run, a lost lease."""
TORN: Final = ("yes", "yes", "no", "no", FINISH)
"""A yes and a no about one run, each twice."""


def orders(events: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield every order once."""
    yield from sorted(set(itertools.permutations(events)))


def once(events: tuple[str, ...]) -> tuple[str, ...]:
    """Return the events without repeats."""
    return tuple(dict.fromkeys(events))


def play(machine: Lifecycle, events: tuple[str, ...]) -> Row:
    """Run a job once, let the events come in their order, let the scheduler look again; return the job."""
    machine.perform(Accept((Request(KIND, "a", 1),), strict=True))
    [job] = machine.jobs(JobState.ACCEPTED)
    machine.perform(Claim((job,)))
    for event in events:
        _happen(machine, job, event)
    machine.perform(MatchAgain())
    return machine.world.jobs[job]


def _happen(machine: Lifecycle, job: int, event: str) -> None:
    said: dict[str, Step] = {
        "yes": Provider(KIND, 1, None, YES),
        "token": Prove(job, Word(True, ref="r1", run=1)),
        "no": Prove(job, Word(False, run=1)),
        FINISH: Finish((job, 1), Verdict.AWAITING, ref="r1"),
    }
    if event == OVERDUE:
        machine.world.now += 31
        for service in ("rescue", "overdue"):
            machine.perform(Sweep(service))
    else:
        machine.perform(said[event])
    if event == FINISH:
        # As a worker does: it writes, and then looks for what crossed.
        machine.perform(MatchAgain())
