"""L2: the same steps on the real code and PostgreSQL. Every row is compared with the model after every step.

Each actor has a connection of its own. A transaction may be left open, so that the others meet its locks: claims,
heartbeats and sweeps must pass by; who has to wait is seen to wait, and acts on what the first one left. The clock is
the model's. In CI the steps are the same each time. `JOBSBOARD_MODEL=deep` searches 200 examples of 40 steps, from
another seed each time; Hypothesis prints how to repeat a failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from queues import broker, contracts
from queues.lifecycle import Verdict
from tests.factories import make_type, sql
from tests.model import look
from tests.model.actors import Actor, install_clock
from tests.model.choices import PAYLOADS, PICKS
from tests.model.database import Names, work_of
from tests.model.machine import Lifecycle
from tests.model.orders import TOLD, TORN, orders, play
from tests.model.profile import profile, search
from tests.model.proofs import Word
from tests.model.rows import KINDS, Row, World
from tests.model.rules import Request
from tests.model.steps import (
    Accept,
    Cancel,
    Claim,
    Close,
    Crash,
    Finish,
    Heartbeat,
    Prove,
    Prune,
    Replay,
    RetryNow,
    Step,
    Sweep,
)

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db")]
SEEN: Final = frozenset(
    """
    Accept conflict|Accept duplicate|Accept new|Accept refused|Cancel cancel|Claim True|Close closed|Crash retrying
    Finish None|Finish awaiting_confirmation|Finish cancelled|Finish confirmed|Finish dead|Finish retrying
    Prove confirmed|Prove late|Prove rejected|Prove superseded|Provider confirmed|Provider duplicate|Provider pending
    Replay replayed|RetryNow retry now|Sweep dead|Sweep expired|Sweep retrying|held Accept|held Claim
    """.strip()
    .replace("\n", "|")
    .replace("    ", "")
    .split("|")
)
"""What the search has to come across, however short it is."""
ACTORS: Final = ("worker", "sweeper", "client", "operator")
OPEN_MOST: Final = 3
MEETINGS: Final[Mapping[str, Callable[[Row], Step]]] = {
    "cancel": lambda row: Cancel(row.number),
    "confirm": lambda row: Prove(row.number, Word(True, ref="r1", run=row.fence)),
    "reject": lambda row: Prove(row.number, Word(False, run=row.fence)),
    "reject, retryable": lambda row: Prove(row.number, Word(False, run=row.fence, retryable=True)),
    "finish": lambda row: Finish((row.number, row.fence), Verdict.CONFIRMED),
    "fail": lambda row: Finish((row.number, row.fence), Verdict.FAILED),
    "await": lambda row: Finish((row.number, row.fence), Verdict.AWAITING, ref="r1"),
    "release": lambda row: Finish((row.number, row.fence), Verdict.RELEASED),
    "heartbeat": lambda row: Heartbeat(((row.number, row.fence),)),
    "claim": lambda row: Claim((row.number,)),
    "crash": lambda row: Crash(((row.number, row.fence),), True),
    "retry now": lambda row: RetryNow(row.number),
    "replay": lambda row: Replay(row.number),
    "close": lambda row: Close(row.number),
    "rescue": lambda row: Sweep("rescue"),
    "expire": lambda row: Sweep("expire"),
    "prune": lambda row: Prune(True),
}
"""What somebody may want of a job that another transaction holds."""


@dataclass(frozen=True)
class Pending:
    """A step whose transaction is open. `commits` says how it will end; `fork` is what only it can see."""

    step: Step
    actor: Actor
    commits: bool
    answer: object
    since: World
    fork: World


class Real(Lifecycle):
    """The machine, with PostgreSQL beside the model."""

    actors: ClassVar[dict[str, list[Actor]]]

    def __init__(self) -> None:
        super().__init__()
        self.names = Names()
        self.pending: list[Pending] = []
        self.holds: list[bool] = []
        self.looks = True
        self.leave()
        look.forget()
        self.audited = sql("SELECT count(*) FROM queues_auditentry")[0][0]
        contracts.forget()

    def perform(self, step: Step) -> object:
        """Take a step on both, alone or while others hold what it needs, and compare."""
        try:
            return self._perform(step)
        except BaseException:
            self.failed = True
            raise

    def _perform(self, step: Step) -> object:
        self.see_locks()
        actor = self._idle(step.actor)
        rival = self._rival(step)
        if rival is not None:
            return self._cross(step, actor, rival)
        if self.holds and step.holdable and len(self.pending) < OPEN_MOST:
            fork = self.world.fork()
            answer = step.apply(fork)
            if fork.touched | fork.touched_keys:
                return self._hold(step, actor, fork, answer)
        before = dict(self.world.jobs)
        answer = step.apply(self.world)
        self.compare(step, answer, actor.run(work_of(step, self.names, held=False), now=self.world.now))
        self.learn(step, answer, before, at=self.world.now)
        return answer

    # Open transactions.

    @rule(fates=st.lists(st.sampled_from([True, True, False]), min_size=1, max_size=OPEN_MOST))
    def begin(self, fates: list[bool]) -> None:
        """The transactions of the next steps are left open; each will commit or be rolled back."""
        self.holds = fates

    @precondition(lambda self: self.world.locked & set(self.world.jobs))
    @rule(at=PICKS, what=st.sampled_from(sorted(MEETINGS)))
    def meet(self, at: int, what: str) -> None:
        """Somebody wants what another one holds."""
        number = self.pick(sorted(self.world.locked & set(self.world.jobs)), at)
        self.holds = []
        self.perform(MEETINGS[what](self.world.jobs[number]))

    @precondition(lambda self: self.world.locked_keys)
    @rule(at=PICKS, payload=PAYLOADS)
    def meet_key(self, at: int, payload: int) -> None:
        """I-06: a producer uses a key that another transaction holds, and may yet lose."""
        kind, key = self.pick(sorted(self.world.locked_keys), at)
        self.holds = []
        self.perform(Accept((Request(kind, key, payload),), strict=True))

    @precondition(lambda self: self.pending)
    @rule(at=st.integers(0, OPEN_MOST))
    def end(self, at: int) -> None:
        """An open transaction ends."""
        self.end_one(self.pick(self.pending, at))

    def _hold(self, step: Step, actor: Actor, fork: World, answer: object) -> object:
        commits = self.holds.pop(0)
        since = self.world.fork()
        # As one statement it writes no audit entry.
        fork.counts["audit"] = since.counts["audit"]
        found = actor.hold(work_of(step, self.names, held=True), now=self.world.now)
        self.tell(f"at {self.world.now}, not committed: {step} -> {answer}")
        self.pending.append(Pending(step, actor, commits, answer, since, fork))
        self.seen[f"held {type(step).__name__}"] += 1
        self.compare(step, answer, found)
        return None if isinstance(answer, tuple | dict) and not answer else answer

    def end_one(self, pending: Pending) -> None:
        """Commit or roll back, and hold what was committed against the model."""
        self.pending.remove(pending)
        self.failed = True
        pending.actor.end(commit=pending.commits)
        self.joined(pending)
        self.agree()
        self.failed = False

    def joined(self, pending: Pending) -> None:
        """Take the end of a transaction over into the model."""
        before = dict(self.world.jobs)
        self.tell(f"{'committed' if pending.commits else 'rolled back'}: {pending.step}")
        if pending.commits:
            self.world.join(pending.fork, pending.since)
            self.learn(pending.step, pending.answer, before, at=pending.since.now)
        self.see_locks()

    def sweep_all(self) -> None:
        """First nobody holds anything: a sweep that passed by is not done."""
        self.holds = []
        while self.pending:
            self.end_one(self.pending[0])
        self.looks = False
        super().sweep_all()
        self.looks = True
        self.agree()

    def see_locks(self) -> None:
        """Let the model know what claims and sweeps have to pass by."""
        self.world.locked = frozenset().union(*(p.fork.touched for p in self.pending))
        self.world.locked_keys = frozenset().union(*(p.fork.touched_keys for p in self.pending))

    def _rival(self, step: Step) -> Pending | None:
        """Return whom a step has to wait for. When there are several all but one end first."""
        while True:
            rows, keys = step.waits_for(self.world)
            rivals = [p for p in self.pending if rows & p.fork.touched or keys & p.fork.touched_keys]
            if isinstance(step, Prune):
                # Another one at work is left alone.
                rivals += [p for p in self.pending if isinstance(p.step, Prune)]
            if len(rivals) < 2 and not (rivals and self._does_not_wait(step)):
                return rivals[0] if rivals else None
            self.end_one(rivals[0])

    @staticmethod
    def _does_not_wait(step: Step) -> bool:
        return isinstance(step, Prune) or not step.holdable

    def _idle(self, name: str) -> Actor:
        """Return an actor without an open transaction."""
        busy = [p.actor for p in self.pending]
        idle = [actor for actor in self.actors[name] if actor not in busy]
        if not idle:
            self.end_one(next(p for p in self.pending if p.actor.name == name))
            return self._idle(name)
        return idle[0]

    def _cross(self, step: Step, actor: Actor, rival: Pending) -> object:
        """Take a step that has to wait for an open transaction: it is seen to wait, and acts on what that one left."""
        task = actor.start(work_of(step, self.names, held=False), now=self.world.now)
        waited = actor.waits(task)
        self.pending.remove(rival)
        rival.actor.end(commit=rival.commits)
        found = task.result(20)
        self.joined(rival)
        assert waited, f"{step} did not wait for {rival.step}"
        self.seen[f"crossed {type(rival.step).__name__} {type(step).__name__}"] += 1
        before = dict(self.world.jobs)
        answer = step.apply(self.world)
        self.compare(step, answer, found)
        self.learn(step, answer, before, at=self.world.now)
        return answer

    # Comparing.

    def compare(self, step: Step, answer: object, found: object) -> None:
        """Hold the answer and every committed row against the model."""
        assert self.names.same(answer, found), f"{step} answered {found}, expected {answer}"
        if self.looks:
            self.agree()

    def agree(self) -> None:
        """Every row, key, reference and callback is as the model says."""
        self.names.kinds.update((number, row.contract) for number, row in self.world.jobs.items())
        differences = look.difference(self.world, self.names)
        assert not differences, "\n".join(differences)

    def leave(self) -> None:
        """Roll back what a failed example left open."""
        for actor in (actor for some in self.actors.values() for actor in some):
            actor.end(commit=False)

    def teardown(self) -> None:
        """Promise 5, and what the statements counted is what happened."""
        try:
            while self.pending and not self.failed:
                self.end_one(self.pending[0])
            super().teardown()
        finally:
            self.leave()
        if not self.failed:
            self.world.counts["audit"] += self.audited
            assert not (told := look.miscounted(self.world)), told


@pytest.fixture
def actors(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Actor]]]:
    """Two of each, the kinds of jobs, a clock of our own and no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    monkeypatch.setattr(broker, "publish", lambda *hints, **options: False)
    for kind in KINDS.values():
        make_type(
            kind.name, success=kind.success, max_attempts=kind.max_attempts, backoff="fixed",
            backoff_base_seconds=float(kind.retry_seconds), max_age_seconds=kind.max_age, on_stale=kind.on_stale,
            dedupe_window_seconds=kind.dedupe_window, on_worker_lost=kind.on_worker_lost,
            poison_after=kind.poison_after, lease_seconds=kind.lease, on_unconfirmed=kind.on_unconfirmed,
            confirm_within_seconds=kind.confirm_within, check_every_seconds=kind.check_every,
            keep_confirmed_days=kind.keep_confirmed_days, keep_other_days=kind.keep_other_days,
        )  # fmt: skip
    made = {name: [Actor(name), Actor(name)] for name in ACTORS}
    install_clock(fake=True)
    try:
        yield made
    finally:
        for some in made.values():
            for actor in some:
                actor.leave()
        install_clock(fake=False)


@pytest.mark.timeout(900)
def test_postgresql_does_what_the_model_says(actors: dict[str, list[Actor]]) -> None:
    """I-02, I-05 to I-13, I-16, I-22, I-26 to I-31, I-35, I-41, I-45, promise 5, under explicit interleavings."""
    seen: Counter[str] = Counter()
    machine = type("Machine", (Real,), {"actors": actors, "seen": seen})
    search(machine, seen, SEEN, settings=profile(examples=60, deep=200, steps=40))
    assert any(name.startswith("crossed") for name in seen)


def test_any_order_of_the_same_news_has_one_result(actors: dict[str, list[Actor]]) -> None:
    """I-26: some of the orders that the model was tried with, on the real code."""
    machine = type("Machine", (Real,), {"actors": actors, "seen": Counter()})
    for events in [*orders(TOLD)][::8] + [*orders(TORN)][::4]:
        played = machine()
        play(played, events)
        played.teardown()
