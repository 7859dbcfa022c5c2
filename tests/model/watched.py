"""Taking steps on the model and holding each against what must be true. Which steps, is in `machine`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Final, TypeVar

from hypothesis import currently_in_test_context, note
from hypothesis.stateful import RuleBasedStateMachine

from queues.states import OPEN, JobState
from tests.model import ledger
from tests.model.ledger import Ledger
from tests.model.proofs import Check
from tests.model.rows import Row, World
from tests.model.rules import Run
from tests.model.steps import (
    Accept,
    Cancel,
    Claim,
    ClaimChecks,
    Crash,
    Finish,
    Heartbeat,
    Prove,
    Provider,
    Step,
)

S = JobState
T = TypeVar("T")
OPEN_MOST: Final = 4


class Watched(RuleBasedStateMachine):
    """The model of the jobs, and the memory of everybody who acts on them."""

    seen: ClassVar[Counter[str]]
    """What happened in all examples: a search that never saw a case has not tried it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.ledger = Ledger()
        self.runs: list[Run] = []
        self.checks: list[Check] = []
        self.failed = False

    # How a step is taken.

    def perform(self, step: Step) -> object:
        """Take a step: on the model alone."""
        before = dict(self.world.jobs)
        answer = step.apply(self.world)
        self.learn(step, answer, before, at=self.world.now)
        return answer

    @staticmethod
    def tell(text: str) -> None:
        """Say what happened, when Hypothesis prints an example."""
        if currently_in_test_context():
            note(text)

    def learn(self, step: Step, answer: object, before: dict[int, Row], *, at: int) -> None:
        """Hold a committed step against what actors were told before, and note what they were told now."""
        self.tell(f"at {at}: {step} -> {answer}")
        try:
            self._learn(step, answer, before, now=at)
            ledger.watch(before, self.world)
        except BaseException:
            self.failed = True
            raise

    def _learn(self, step: Step, answer: Any, before: dict[int, Row], *, now: int) -> None:
        self._count(step, answer)
        if isinstance(step, Claim):
            for number, fence, _, _ in answer:
                lease = self.world.jobs[number].contract.lease
                self.ledger.began((number, fence), now=now, lease=lease, before=before, world=self.world)
                self.runs.append((number, fence))
        elif isinstance(step, Heartbeat):
            for run in answer:
                self.ledger.renewed(run, now=now, lease=self.world.jobs[run[0]].contract.lease)
            ledger.unfenced({run for run in step.runs if run[0] not in {n for n, _ in answer}}, before, self.world)
        elif isinstance(step, Finish):
            ledger.unfenced([step.run], before, self.world)
            self.ledger.ended([step.run])
        elif isinstance(step, Crash):
            self.ledger.ended(step.runs)
        elif isinstance(step, Cancel) and answer[0] == "cancel" and answer[1] is S.CANCELLED:
            self.ledger.stopped.add(step.job)
        elif isinstance(step, ClaimChecks):
            self.checks += answer

    def _count(self, step: Step, answer: Any) -> None:
        name = type(step).__name__
        if isinstance(answer, dict):
            self.seen.update(f"{name} {state}" for state in answer.values())
        elif isinstance(step, Accept) and isinstance(answer[0], tuple):
            self.seen.update(f"{name} {one[0]}" for one in answer)
        elif isinstance(step, Prove | Provider) and len(answer) > 1:
            self.seen[f"{name} {answer[1]}{' of another' if answer[0] != step.job else ''}"] += 1
        elif isinstance(answer, tuple):
            self.seen[f"{name} {answer[0] if answer and isinstance(answer[0], str) else len(answer) > 0}"] += 1
        else:
            self.seen[f"{name} {answer}"] += 1

    # What there is to act on.

    def jobs(self, *states: JobState) -> list[int]:
        """Return the jobs in these states, newest first."""
        return [n for n, row in sorted(self.world.jobs.items(), reverse=True) if not states or row.state in states]

    def live(self) -> list[Run]:
        """Return the runs that hold their jobs."""
        return [(n, self.world.jobs[n].fence) for n in self.jobs(S.PROCESSING)]

    def superseded(self) -> list[Run]:
        """Return the runs that lost their job to another one that still runs."""
        return [(n, f) for n, f in self.runs[::-1] if n in self.jobs(S.PROCESSING) and f < self.world.jobs[n].fence]

    def has_room(self) -> bool:
        """Whether there may be more jobs: with many open ones little happens to each."""
        return len(self.jobs(*OPEN)) < OPEN_MOST

    @staticmethod
    def pick(things: Sequence[T], at: int) -> T:
        """Return one of them."""
        return things[at % len(things)]
