"""The life of a job as DESIGN.md sections 5 and 6 tell it, in plain Python: what each step does to the rows.

Written from the design, not from the SQL. Each function takes the world and returns the answer that the real one
gives, with numbers in the place of ids. Evidence from outside is in `proofs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from queues.lifecycle import Verdict
from queues.states import OPEN, REPLAYABLE, TERMINAL, WAITING, JobState, Reason, Resolution
from tests.model.rows import KINDS, Evidence, Key, Reference, Row, World

S = JobState
WINDOW: Final = 60
"""The promise of every kind: seconds from ready to confirmed."""
CHECKS_LOST_MOST: Final = 3
Run = tuple[int, int]
"""A run by its job's number and its fence."""
Answer = tuple[object, ...]


@dataclass(frozen=True)
class Request:
    """What a producer hands in."""

    kind: str
    key: str | None
    payload: int
    delay: int = 0
    max_age: int | None = None


# Accepting.


def accept(world: World, request: Request) -> Answer:
    """Promise 2: a key is accepted once in its window; the same key with another payload is refused."""
    if request.kind in world.disabled:
        return ("disabled",)
    name = None if request.key is None else (request.kind, request.key)
    if name is not None and name in world.keys:
        held = world.keys[name]
        holder = world.jobs.get(held.job)
        if holder is not None and not _let_go(world, held, holder):
            if held.payload != request.payload:
                return ("conflict", held.job)
            world.counts["duplicates"] += 1
            return ("duplicate", held.job, holder.state, holder.evidence.ref if holder.evidence else None)
    kind, number = KINDS[request.kind], next(world.numbers)
    ready = world.now + request.delay
    expires = ready + (kind.max_age if request.max_age is None else request.max_age)
    world.put(
        Row(
            number=number, kind=kind.name, key=request.key, payload=request.payload, secret=request.key, root=number,
            accepted=world.now, ready=ready, due=ready, expires=expires, limit=kind.max_attempts,
        )
    )  # fmt: skip
    if name is not None:
        until = ready + kind.dedupe_window if kind.dedupe_window else None
        world.set_key(name, Key(number, request.payload, until))
    world.counts.update(("accepted", "ready"))
    return ("new", number)


def _let_go(world: World, held: Key, holder: Row) -> bool:
    # Only after its window, and after its newest job settled.
    return held.expires is not None and held.expires <= world.now and holder.state in TERMINAL


# Running.


def claim(world: World, jobs: Sequence[int], *, worker: str) -> tuple[tuple[int, int, int, int], ...]:
    """Start a run of each job that may run now. Shape: (number, fence, attempt, begun)."""
    begun = []
    for number in sorted(set(jobs)):
        row = world.jobs.get(number)
        if row is None or number in world.locked or row.state not in WAITING or row.kind in world.paused:
            continue
        if row.due is None or row.due > world.now or row.expires <= world.now or (row.alone and len(jobs) > 1):
            continue
        row = world.change(number)
        row.state, row.worker, row.alone = S.PROCESSING, worker, len(jobs) == 1
        row.fence, row.attempt, row.begun = row.fence + 1, row.attempt + 1, row.begun + 1
        row.started, row.finished, row.due = world.now, None, world.now + row.contract.lease
        world.counts["runs"] += 1
        begun.append((number, row.fence, row.attempt, row.begun))
    return tuple(begun)


def holds(world: World, run: Run) -> bool:
    """Say whether a run is the one that holds its job."""
    row = world.jobs.get(run[0])
    return row is not None and row.state is S.PROCESSING and row.fence == run[1]


def heartbeat(world: World, runs: Iterable[Run]) -> dict[Run, bool]:
    """Extend the leases of the runs that hold their jobs. Shape: run → whether it was asked to stop."""
    answer = {}
    for run in runs:
        if holds(world, run) and run[0] not in world.locked:
            row = world.change(run[0])
            row.due = world.now + row.contract.lease
            answer[run] = row.cancel_requested
    return answer


def finish(
    world: World, run: Run, verdict: Verdict, *, reason: Reason | None = None, ref: str | None = None
) -> JobState | None:
    """End a run. Fencing: a run that does not hold its job changes nothing, though its reference is known."""
    known = world.jobs.get(run[0])
    if known is not None and ref is not None and run[1] <= known.fence:
        world.references += (Reference(known.kind, ref, known.number, run[1], world.now),)
    if not holds(world, run):
        return None
    row = world.change(run[0])
    if verdict is Verdict.FAILED:
        world.counts["failed"] += 1
    refused = row.rejection is not None and row.rejection.fence == row.fence
    state = _after_run(world, row, verdict, reason=reason)
    told = None if verdict is not Verdict.FAILED else "Boom"
    if refused and state in (S.DEAD, S.RETRYING):
        told = "Rejected"
        reason = Reason.REJECTED
    if told is not None:
        _tell(row, told)
    given_back = verdict in (Verdict.RELEASED, Verdict.PUT_OFF)
    row.attempt, row.begun = row.attempt - given_back, row.begun - given_back
    row.check_failures = row.check_failures + 1 if verdict is Verdict.PUT_OFF else 0
    row.alone = row.alone and given_back
    row.finished, row.checks = world.now, 0
    row.reference = ref or row.reference
    _go_on(world, row, state, run=run, reason=reason)
    return state


def _go_on(world: World, row: Row, state: JobState, *, run: Run, reason: Reason | None) -> None:
    if state is S.AWAITING_CONFIRMATION:
        _await(world, row)
    elif state in WAITING:
        # What is given back keeps its place.
        row.state, row.due = state, world.now + row.contract.retry_seconds if state is S.RETRYING else row.ready
    elif state is S.CONFIRMED:
        settle(world, row, state, evidence=Evidence("reference", f"run{run[1]}", run[1], world.now))
    elif state is S.CANCELLED:
        settle(world, row, state)
    else:
        late = Reason.STALE if row.expires <= world.now else Reason.ATTEMPTS_EXHAUSTED
        settle(world, row, state, reason=reason or late)


def _after_run(world: World, row: Row, verdict: Verdict, *, reason: Reason | None) -> JobState:
    # Evidence of any run wins; then a cancel; a released run never began, so nobody can have rejected its work.
    if verdict is Verdict.CONFIRMED or row.evidence is not None:
        return S.CONFIRMED
    if row.cancel_requested:
        return S.CANCELLED
    if verdict is Verdict.RELEASED:
        return S.ACCEPTED
    spent = row.attempt >= row.limit
    if row.rejection is not None and row.rejection.fence == row.fence:
        return S.RETRYING if row.rejection.retryable and not spent else S.DEAD
    if verdict is Verdict.PUT_OFF:
        return S.RETRYING
    if verdict is Verdict.AWAITING:
        return S.AWAITING_CONFIRMATION
    if reason is not None:
        return S.DEAD
    if row.expires <= world.now:
        return S.DEAD if row.contract.on_stale == "dead" else S.EXPIRED
    return S.DEAD if spent else S.RETRYING


def _await(world: World, row: Row) -> None:
    kind = row.contract
    row.state, row.polled = S.AWAITING_CONFIRMATION, kind.polled
    # Checked again until max age, or awaited until its deadline; never longer than max age.
    row.confirm_by = row.expires
    if kind.on_unconfirmed != "check_again":
        row.confirm_by = min(row.expires, world.now + kind.confirm_within)
    row.due = min(row.confirm_by, world.now + (kind.check_every if kind.polled else kind.confirm_within))
    if kind.polled:
        row.due = min(row.due, last_check(world, row))


def last_check(world: World, row: Row) -> int:
    """Return when a polled job is asked at the latest: past its max age nobody asks any more."""
    return max(world.now + 1, row.expires - 10)


def settle(
    world: World, row: Row, state: JobState, *, reason: Reason | None = None, evidence: Evidence | None = None
) -> None:
    """Give a job its outcome. Evidence that it has already stays."""
    row.state, row.due, row.settled = state, None, world.now
    row.evidence = (row.evidence or evidence) if state is S.CONFIRMED else None
    if state is S.CANCELLED:
        reason = reason or row.reason
    row.reason = reason
    row.resolution = Resolution.OPEN if state in REPLAYABLE else None
    world.counts[state.value] += 1
    if row.replay_of is None and state in (S.CONFIRMED, S.CANCELLED) and world.now <= row.ready + WINDOW:
        world.counts["in_window" if state is S.CONFIRMED else "excluded"] += 1


def _tell(row: Row, story: str) -> None:
    row.failures = (*row.failures, (story, row.attempt))[-20:]


def tell_rejection(row: Row) -> None:
    """Add a rejection to the failures."""
    _tell(row, "Rejected")


# Sweeps, and a process that is known to be dead.


def rescue(world: World, *, dead: Sequence[Run] | None = None, blame: bool = True) -> dict[int, JobState]:
    """Give up lost runs: those whose lease ran out, or the named ones. A lost run costs a crash, not an attempt."""
    named = {number for number, _ in dead} if dead is not None else set(world.jobs)
    answer = {}
    for number in sorted(named & set(world.jobs)):
        row = world.jobs[number]
        if row.state is not S.PROCESSING or number in world.locked or row.due is None:
            continue
        if row.due >= world.now and (number, row.fence) not in (dead or ()):
            continue
        answer[number] = _lose(world, world.change(number), blame=blame)
    return answer


def _lose(world: World, row: Row, *, blame: bool) -> JobState:
    refused = row.rejection is not None and row.rejection.fence == row.fence and not row.rejection.retryable
    # Only runs that were alone count towards poison: its neighbours may have killed the others.
    crash = int(row.alone and blame)
    _tell(row, "Rejected" if refused else "WorkerLost")
    poison = row.contract.on_worker_lost == "dead" or (blame and row.crashes + crash >= row.contract.poison_after)
    row.attempt, row.crashes, row.finished = row.attempt - 1, row.crashes + crash, world.now
    row.alone = False
    world.counts["lost"] += 1
    if row.evidence is not None:
        settle(world, row, S.CONFIRMED)
    elif row.cancel_requested:
        settle(world, row, S.CANCELLED)
    elif refused or poison:
        settle(world, row, S.DEAD, reason=Reason.REJECTED if refused else Reason.POISON)
    else:
        # Due again at once, and alone, so that the culprit is found.
        row.state, row.due, row.alone = S.RETRYING, row.ready, True
    return row.state


def expire(world: World) -> dict[int, JobState]:
    """Promise 6: past its max age a job that nobody runs is expired or dead, as its contract says."""
    answer = {}
    for number, row in sorted(world.jobs.items()):
        if row.state in OPEN and row.state is not S.PROCESSING and row.expires <= world.now:
            if number in world.locked:
                continue
            row = world.change(number)
            if row.state is S.AWAITING_CONFIRMATION:
                settle(world, row, S.DEAD, reason=Reason.UNCONFIRMED)
            else:
                settle(world, row, S.DEAD if row.contract.on_stale == "dead" else S.EXPIRED, reason=Reason.STALE)
            answer[number] = row.state
    return answer


def give_up_waiting(world: World) -> dict[int, JobState]:
    """End waits past their deadline. A polled job has its last check, unless that one never answers."""
    answer = {}
    for number, row in sorted(world.jobs.items()):
        if row.state is not S.AWAITING_CONFIRMATION or row.due is None or row.due > world.now or number in world.locked:
            continue
        deadline = row.expires if row.confirm_by is None else row.confirm_by
        if row.checks < row.limit + CHECKS_LOST_MOST if row.polled else deadline > world.now:
            continue
        row = world.change(number)
        _tell(row, "Unconfirmed")
        unconfirmed(world, row)
        answer[number] = row.state
    return answer


def unconfirmed(world: World, row: Row) -> None:
    """No proof came by the deadline: run again or dead, as the contract says."""
    row.checks = row.check_failures = 0
    row.polled, row.confirm_by = False, None
    if row.contract.on_unconfirmed == "retry" and row.attempt < row.limit and row.expires > world.now:
        row.state, row.due = S.RETRYING, world.now
    else:
        settle(world, row, S.DEAD, reason=Reason.UNCONFIRMED)


# People and producers.


def cancel(world: World, number: int) -> Answer:
    """Cancel what waits, ask what runs to stop; the same again is the same answer."""
    row = world.jobs.get(number)
    if row is None:
        return ("not found",)
    if row.state is S.CANCELLED or (row.state is S.PROCESSING and row.cancel_requested):
        return ("cancel", row.state, row.begun > 0, False)
    if row.state in TERMINAL:
        return ("not cancellable", row.state)
    row = world.change(number)
    row.cancel_requested, row.reason = True, Reason.OPERATOR
    if row.state is not S.PROCESSING:
        settle(world, row, S.CANCELLED, reason=Reason.OPERATOR)
    return ("cancel", row.state, row.begun > 0, True)


def retry_now(world: World, number: int) -> Answer:
    """Make the next attempt due at once."""
    row = world.jobs.get(number)
    if row is None:
        return ("not found",)
    if row.state is not S.RETRYING:
        return ("not retrying", row.state)
    if row.due is not None and row.due > world.now:
        world.change(number).due = world.now
        return ("retry now", True)
    return ("retry now", False)


def close(world: World, number: int) -> Answer:
    """Set a dead letter aside."""
    row = world.jobs.get(number)
    if row is None:
        return ("not found",)
    if row.state is S.DEAD and row.resolution is Resolution.OPEN:
        world.change(number).resolution = Resolution.CANCELLED
        return ("closed", True)
    if row.state is S.DEAD and row.resolution is Resolution.CANCELLED:
        return ("closed", False)
    return ("not cancellable", row.state)


def replay(world: World, number: int, *, payload: int | None = None, key: str | None = None) -> Answer:
    """Accept the child of a job that ended badly, once. Under another key it is another action."""
    parent = world.jobs.get(number)
    if parent is None:
        return ("not found",)
    other = key is not None and key != parent.key
    why = _not_replayable(world, parent, other=(parent.kind, str(key)) if other else None)
    if why is not None:
        return ("not replayable", why)
    kind, child = parent.contract, next(world.numbers)
    made = Row(
        number=child, kind=kind.name, key=key if other else parent.key,
        payload=parent.payload if payload is None else payload, secret=key if other else parent.secret,
        root=child if other else parent.root, accepted=world.now, ready=world.now, due=world.now,
        expires=world.now + kind.max_age, limit=kind.max_attempts, replay_of=number,
        begun=0 if other else parent.begun, reference=None if other else parent.reference,
    )  # fmt: skip
    if other:
        until = world.now + kind.dedupe_window if kind.dedupe_window else None
        world.set_key((kind.name, str(key)), Key(child, made.payload, until))
    elif parent.key is not None:
        # It keeps its first payload, so that the producer's own retries still recognise the action.
        held = world.keys[kind.name, parent.key]
        world.set_key((kind.name, parent.key), Key(child, held.payload, held.expires))
    marked = world.change(number)
    marked.replayed_by, marked.resolution = child, Resolution.REPLAYED
    world.put(made)
    world.counts["replayed"] += 1
    return ("replayed", child)


def _not_replayable(world: World, parent: Row, *, other: tuple[str, str] | None) -> str | None:
    if parent.state not in REPLAYABLE:
        return "not_replayable"
    if parent.replayed_by is not None:
        return "already_replayed"
    if parent.resolution is not Resolution.OPEN:
        return "resolved"
    if other is not None:
        return "dedupe_conflict" if other in world.keys or parent.kind in world.disabled else None
    if parent.kind in world.disabled:
        return "key_moved_on"
    if parent.key is not None:
        held = world.keys.get((parent.kind, parent.key))
        return None if held is not None and held.job == parent.number else "key_moved_on"
    return None
