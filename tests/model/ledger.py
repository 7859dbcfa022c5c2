"""What must hold after every step, said without the rules: from what actors were told, and from two looks at the rows.

The rules of the model could be wrong in the same way as the code; this file knows none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from queues.states import OPEN, RESOLUTION_COLUMNS, TERMINAL, TRANSITIONS, WAITING, JobState
from tests.model.rows import Row, World
from tests.model.rules import Run

S = JobState
LIMBO_SECONDS = 30
_MAY_CHANGE = {*RESOLUTION_COLUMNS, "notes"}
"""Of a terminal row; `notes` is the model's word for late evidence."""
_FIXED = ("kind", "key", "payload", "secret", "root", "accepted", "ready", "expires", "limit", "replay_of")


@dataclass
class Hand:
    """A run as its worker knows it: until when its lease holds, and whether it has ended or died."""

    lease_until: int
    over: bool = False


@dataclass
class Ledger:
    """What actors were told."""

    runs: dict[Run, Hand] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    """Jobs of which somebody was told that they are cancelled."""
    confirmed: set[int] = field(default_factory=set)

    def began(self, run: Run, *, now: int, lease: int, before: Mapping[int, Row], world: World) -> None:
        """A worker was given a run (I-08, I-12, I-31, promise 3)."""
        number, fence = run
        for (other, older), hand in self.runs.items():
            if other == number:
                assert older < fence, f"I-09: job {number} had run {older} before run {fence}"
                assert hand.over or hand.lease_until < now, f"I-08: run {older} of job {number} still holds its lease"
        assert number in before, f"job {number} ran before it was accepted"
        assert before[number].state in WAITING, f"I-08: job {number} was claimed while {before[number].state}"
        assert number not in self.stopped, f"I-31: job {number} began after somebody was told that it is cancelled"
        self._not_done(before[number], world)
        self.runs[run] = Hand(now + lease)

    @staticmethod
    def _not_done(row: Row, world: World) -> None:
        # The rows that are there know since when a key is done and how long its window is.
        for other in world.jobs.values():
            if row.key is None or (other.kind, other.key) != (row.kind, row.key) or other.state is not S.CONFIRMED:
                continue
            until = other.ready + row.contract.dedupe_window
            held = world.keys.get((other.kind, str(other.key)))
            in_window = held is not None and held.job == other.number if not row.contract.dedupe_window else (
                other.replay_of is None and until > world.now
            )  # fmt: skip
            assert not in_window, f"I-12: job {row.number} runs though job {other.number} has confirmed its key"

    def renewed(self, run: Run, *, now: int, lease: int) -> None:
        """A heartbeat was answered."""
        self.runs[run].lease_until = now + lease

    def ended(self, runs: Iterable[Run]) -> None:
        """These runs ended, or their process is dead."""
        for run in runs:
            if run in self.runs:
                self.runs[run].over = True


def watch(before: Mapping[int, Row], world: World) -> None:
    """Compare two looks at the rows: before a step and after it."""
    for number, now in world.jobs.items():
        was = before.get(number)
        if was is now:
            continue
        if was is None:
            assert now.state is S.ACCEPTED, "I-11: a job starts as accepted"
            continue
        assert now.state is was.state or now.state in TRANSITIONS[was.state], f"I-11: {was.state} to {now.state}"
        assert now.fence >= was.fence, f"I-09: the fence of job {number} fell"
        assert now.fence <= was.fence + 1
        changed = {f.name for f in fields(Row) if getattr(was, f.name) != getattr(now, f.name)}
        assert not changed & set(_FIXED), f"job {number}: {changed} may never change"
        if was.state in TERMINAL:
            assert changed <= _MAY_CHANGE, f"I-10: job {number} is {was.state} and changed in {changed - _MAY_CHANGE}"
            assert was.replayed_by in (None, now.replayed_by), f"I-30: job {number} was replayed twice"
        if was.evidence is not None:
            assert now.evidence == was.evidence, f"I-26: the evidence of job {number} changed"
            assert now.state in (S.PROCESSING, S.CONFIRMED), f"I-26: job {number} is {now.state} with evidence"
        assert set(was.notes) <= set(now.notes), f"I-29: job {number} forgot late evidence"
    for number, was in before.items():
        if number not in world.jobs:
            assert was.state in TERMINAL, f"I-41: job {number} was removed while {was.state}"
            assert not (was.state is S.DEAD and was.resolution == "open"), f"I-41: dead letter {number} was removed"


def unfenced(runs: Iterable[Run], before: Mapping[int, Row], world: World) -> None:
    """I-09: a run that does not hold its job changed nothing."""
    for number, fence in runs:
        was = before.get(number)
        if was is None or was.state is not S.PROCESSING or was.fence != fence:
            assert world.jobs.get(number) is was, f"I-09: the stale run {fence} changed job {number}"


def consistent(world: World) -> None:
    """Look at the rows as they are now."""
    keys: Counter[tuple[str, str]] = Counter()
    lineages: Counter[int] = Counter()
    children: Counter[int] = Counter()
    for number, row in world.jobs.items():
        assert row.open == (row.due is not None) == (row.settled is None), f"I-13: job {number} says not when it acts"
        assert 0 <= row.attempt <= row.limit, f"attempt {row.attempt} of {row.limit}"
        assert 0 <= row.attempt <= row.begun or row.state in TERMINAL, f"attempt {row.attempt}, begun {row.begun}"
        assert row.crashes < row.contract.poison_after or not row.open, (
            f"I-15: job {number} crashed {row.crashes} times"
        )
        if row.cancel_requested:
            assert row.state in (S.PROCESSING, S.CANCELLED, S.CONFIRMED), f"I-31: {row.state} though it was cancelled"
        assert (row.state is S.CONFIRMED) <= (row.evidence is not None), f"I-28: job {number} has no evidence"
        if row.open:
            assert row.replayed_by is None, f"only the newest of a lineage is open, not job {number}"
            lineages[row.root] += 1
            if row.key is not None:
                keys[row.kind, row.key] += 1
                assert world.keys[row.kind, row.key].job == number, f"I-41: job {number} is open and lost its key"
        if row.replay_of is not None:
            children[row.replay_of] += 1
    assert all(n == 1 for n in keys.values()), f"I-05: two open jobs of one key: {keys}"
    assert all(n == 1 for n in lineages.values()), f"two open jobs of one lineage: {lineages}"
    assert all(n == 1 for n in children.values()), f"I-30: two replays of one job: {children}"


def no_limbo(world: World) -> None:
    """I-13, after the sweeps: nothing is overdue. A check that nobody asks waits for a worker, until max age."""
    for number, row in world.jobs.items():
        if row.state is S.PROCESSING or (row.state is S.AWAITING_CONFIRMATION and not row.polled):
            assert row.due is not None, f"I-13: job {number} says not when it acts"
            assert row.due + LIMBO_SECONDS > world.now, f"I-13: job {number} is {row.state} and overdue"
        elif row.state in OPEN:
            assert row.expires + LIMBO_SECONDS > world.now, f"I-13: job {number} is {row.state} past its max age"
