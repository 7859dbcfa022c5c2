"""What the model knows: contracts, jobs, keys and callbacks as plain rows. What may happen to them is in `rules`.

Units: times are whole seconds on the model's own clock. A job is named by a number, not by its UUID.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from queues.states import OPEN, JobState, Reason, Resolution

DAY: Final = 86_400


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The parts of a reliability contract that decide about a job (DESIGN.md section 6)."""

    name: str
    success: str = "return"
    max_attempts: int = 3
    retry_seconds: int = 5
    max_age: int = 300
    on_stale: str = "expire"
    dedupe_window: int = 0
    on_worker_lost: str = "retry"
    poison_after: int = 2
    lease: int = 15
    on_unconfirmed: str = "dead"
    confirm_within: int = 30
    check_every: int = 10
    keep_confirmed_days: int = 1
    keep_other_days: int = 2

    @property
    def polled(self) -> bool:
        """Whether a check is asked for what awaits its proof."""
        return self.success == "check" or self.on_unconfirmed == "check_again"


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind(name="model.return"),
        Kind(
            name="model.callback", success="callback", on_unconfirmed="retry", dedupe_window=60, max_attempts=2,
            on_stale="dead",
        ),
        Kind(name="model.check", success="check", on_unconfirmed="check_again", on_worker_lost="dead", max_attempts=1),
        Kind(
            name="model.poll", success="check", on_unconfirmed="retry", dedupe_window=400, max_attempts=2,
            confirm_within=10,
        ),
    )
}  # fmt: skip
"""Every branch that a contract can choose is chosen by one of them."""


@dataclass(frozen=True)
class Evidence:
    """Why a job is confirmed."""

    kind: str
    ref: str | None
    run: int
    at: int


@dataclass(frozen=True)
class Rejection:
    """The outside world's no to one run."""

    fence: int
    retryable: bool
    at: int


@dataclass(frozen=True)
class Note:
    """What came and could not count."""

    outcome: str
    kind: str
    ref: str | None
    run: int
    by: str | None


@dataclass(slots=True)
class Row:
    """A job. Never changed in place but by `World.change`, so that an older look at it stays as it was."""

    number: int
    kind: str
    key: str | None
    payload: int
    secret: str | None
    """The key that the idempotency key was made of; None: the first job's id."""
    root: int
    accepted: int
    ready: int
    due: int | None
    expires: int
    limit: int
    state: JobState = JobState.ACCEPTED
    attempt: int = 0
    fence: int = 0
    crashes: int = 0
    begun: int = 0
    alone: bool = False
    cancel_requested: bool = False
    worker: str | None = None
    started: int | None = None
    finished: int | None = None
    settled: int | None = None
    confirm_by: int | None = None
    reason: Reason | None = None
    resolution: Resolution | None = None
    replay_of: int | None = None
    replayed_by: int | None = None
    polled: bool = False
    checks: int = 0
    check_failures: int = 0
    reference: str | None = None
    evidence: Evidence | None = None
    rejection: Rejection | None = None
    notes: tuple[Note, ...] = ()
    failures: tuple[tuple[str, int], ...] = ()
    """(error class, attempt), the newest 20."""

    @property
    def open(self) -> bool:
        """Whether it still has an outcome to come."""
        return self.state in OPEN

    @property
    def contract(self) -> Kind:
        """What was promised for it."""
        return KINDS[self.kind]


@dataclass(frozen=True)
class Key:
    """Who holds a dedupe key. `payload` is that of the first request; `expires` None: as long as the row is kept."""

    job: int
    payload: int
    expires: int | None


@dataclass(frozen=True)
class Reference:
    """A reference that a run got from outside."""

    kind: str
    ref: str
    job: int
    fence: int
    at: int


@dataclass(frozen=True)
class Callback:
    """A provider's callback as it came."""

    kind: str
    job: int | None
    ref: str | None
    positive: bool
    run: int | None
    retryable: bool
    received: int
    keep_until: int
    applied: str = ""


@dataclass
class World:
    """Everything that is committed; or, as a fork, what one transaction sees."""

    now: int = 0
    jobs: dict[int, Row] = field(default_factory=dict)
    keys: dict[tuple[str, str], Key] = field(default_factory=dict)
    references: tuple[Reference, ...] = ()
    inbox: dict[tuple[str, int], Callback] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()
    disabled: frozenset[str] = frozenset()
    counts: Counter[str] = field(default_factory=Counter)
    """Events, as the rollups have to add them up."""
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    locked: frozenset[int] = frozenset()
    """Jobs that another transaction holds: claims, heartbeats and sweeps pass by."""
    locked_keys: frozenset[tuple[str, str]] = frozenset()
    touched: set[int] = field(default_factory=set)
    touched_keys: set[tuple[str, str]] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    """Jobs whose references were dropped."""

    def fork(self) -> World:
        """Return a copy that shares the rows."""
        made = copy.copy(self)
        made.jobs, made.keys, made.inbox, made.counts = (
            dict(self.jobs), dict(self.keys), dict(self.inbox), Counter(self.counts),
        )  # fmt: skip
        made.touched, made.touched_keys, made.removed = set(), set(), set()
        return made

    def join(self, fork: World, since: World) -> None:
        """Take over what a fork changed since it was made from `since`; nobody else could change those rows."""
        for number in fork.touched:
            if number in fork.jobs:
                self.jobs[number] = fork.jobs[number]
            else:
                self.jobs.pop(number, None)
        for name in fork.touched_keys:
            if name in fork.keys:
                self.keys[name] = fork.keys[name]
            else:
                self.keys.pop(name, None)
        added = [ref for ref in fork.references if ref not in since.references]
        self.references = tuple(ref for ref in self.references if ref.job not in fork.removed) + tuple(added)
        self.counts.update(fork.counts - since.counts)

    def change(self, number: int) -> Row:
        """Return a new version of a row, in the place of the old one."""
        self.touched.add(number)
        self.jobs[number] = made = copy.copy(self.jobs[number])
        return made

    def put(self, row: Row) -> None:
        """Add a row."""
        self.touched.add(row.number)
        self.jobs[row.number] = row

    def set_key(self, name: tuple[str, str], key: Key | None) -> None:
        """Write or remove the holder of a key."""
        self.touched_keys.add(name)
        if key is None:
            self.keys.pop(name, None)
        else:
            self.keys[name] = key

    def newest(self, number: int) -> Row | None:
        """Return the newest job of the lineage that this one is in; None when it was pruned."""
        row = self.jobs.get(number)
        while row is not None and row.replayed_by is not None:
            row = self.jobs.get(row.replayed_by)
        return row
