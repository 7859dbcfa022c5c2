"""Evidence from outside, as DESIGN.md section 5 decides it: callbacks, tokens, a person's word, checks, the inbox."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from queues.lifecycle import Applied
from queues.states import TERMINAL, JobState, Reason
from tests.model.rows import DAY, KINDS, Callback, Evidence, Note, Rejection, Row, World
from tests.model.rules import CHECKS_LOST_MOST, Answer, last_check, settle, tell_rejection, unconfirmed

S = JobState
CHECK_CLAIM: Final = 75
NOTES_KEPT: Final = 20


@dataclass(frozen=True)
class Word:
    """What somebody says about a job. `run` None: its current run. `by` is set for a person."""

    positive: bool
    kind: str = "callback"
    ref: str | None = None
    run: int | None = None
    retryable: bool = False
    by: str | None = None


@dataclass(frozen=True)
class Check:
    """A claimed check of an awaiting job; `due` names the claim."""

    job: int
    fence: int
    due: int


def testify(world: World, number: int, word: Word) -> Answer:
    """Apply a word to a job; positive evidence counts for the newest of its lineage.

    Shape: (job, applied, state, heard), the last one for what was kept before, word for word.
    """
    first = row = world.jobs.get(number)
    answer: Answer | None = None
    while row is not None and first is not None and row.root == first.root:
        applied, heard = _hear(world, row.number, word)
        row = world.jobs[row.number]
        told = (row.number, applied, row.state, heard)
        if not word.positive or applied is not Applied.LATE or row.replayed_by is None:
            return told
        answer = answer or told
        row, word = world.jobs.get(row.replayed_by), replace(word, run=None)
    return answer or ("not found",)


def _hear(world: World, number: int, word: Word) -> tuple[Applied, bool]:
    row = world.jobs[number]
    run = row.fence if word.run is None else word.run
    applied = _yes(row) if word.positive else _no(row, word)
    known = row.evidence.ref if row.evidence else None
    # A second reference for one action may mean that the action happened twice.
    second = applied is Applied.DUPLICATE and word.positive and word.ref not in (None, known)
    if second or applied in (Applied.LATE, Applied.CONTRADICTION, Applied.SUPERSEDED):
        note = Note("confirmed" if word.positive else "rejected", word.kind, word.ref, run, word.by)
        if note in row.notes:
            return applied, True
        row = world.change(number)
        if len(row.notes) < NOTES_KEPT:
            row.notes = (*row.notes, note)
        if applied in (Applied.LATE, Applied.CONTRADICTION):
            world.counts["late_evidence" if applied is Applied.LATE else "contradictions"] += 1
    elif applied is not Applied.DUPLICATE:
        _count(world, world.change(number), word, run, applied)
    return applied, False


def _count(world: World, row: Row, word: Word, run: int, applied: Applied) -> None:
    if word.positive:
        row.evidence = Evidence(word.kind, word.ref, run, world.now)
        if applied is Applied.CONFIRMED:
            row.confirm_by, row.polled = None, False
            settle(world, row, S.CONFIRMED)
        return
    row.rejection = Rejection(run, word.retryable, world.now)
    if applied is not Applied.KEPT:
        tell_rejection(row)
        if applied is Applied.RETRYING:
            if row.state is S.AWAITING_CONFIRMATION:
                row.due = world.now + row.contract.retry_seconds
            row.state = S.RETRYING
        else:
            settle(world, row, S.DEAD, reason=Reason.REJECTED)
        row.confirm_by, row.polled = None, False


def _yes(row: Row) -> Applied:
    # Positive evidence belongs to the job, whichever run obtained it; one that runs is confirmed when the run ends.
    if row.state is S.CONFIRMED or (row.state is S.PROCESSING and row.evidence is not None):
        return Applied.DUPLICATE
    if row.state is S.PROCESSING:
        return Applied.KEPT
    return Applied.LATE if row.state in TERMINAL else Applied.CONFIRMED


def _no(row: Row, word: Word) -> Applied:
    # A rejection counts only for the run that it names, and that one must be the newest.
    if row.state is S.ACCEPTED or (word.run is not None and word.run != row.fence):
        return Applied.SUPERSEDED
    if word.run is None and word.kind == "callback" and row.begun > 1 and row.fence > 1:
        return Applied.SUPERSEDED
    if row.evidence is not None:
        return Applied.CONTRADICTION
    if row.rejection is not None and row.rejection.fence == row.fence:
        return Applied.DUPLICATE
    if row.state is S.PROCESSING:
        return Applied.KEPT
    if row.state in TERMINAL:
        return Applied.DUPLICATE if row.reason is Reason.REJECTED else Applied.LATE
    return Applied.RETRYING if word.retryable and row.attempt < row.limit else Applied.REJECTED


# The inbox.


def by_provider(world: World, kind: str, webhook: int, job: int | None, word: Word) -> Answer:
    """Take a provider's callback; a repeat of the same id is a duplicate, whatever run is the newest by then."""
    if job is not None and (job not in world.jobs or world.jobs[job].kind != kind):
        return ("not found",)
    name = (kind, webhook)
    known = world.inbox.get(name)
    if known is not None and known.applied:
        return (known.job, Applied.DUPLICATE, None, False)
    if known is None:
        keep = max(DAY, KINDS[kind].confirm_within)
        world.inbox[name] = Callback(
            kind, job, word.ref, word.positive, word.run, word.retryable, world.now, world.now + keep
        )
    return _apply(world, name) or (None, Applied.PENDING, None, False)


def _apply(world: World, name: tuple[str, int]) -> Answer | None:
    callback = world.inbox[name]
    run = callback.run
    found = next(
        (r for r in reversed(world.references) if r.kind == callback.kind and r.ref == callback.ref), None
    )  # fmt: skip
    if callback.job is not None:
        job = callback.job
        run = found.fence if found is not None and found.job == job and run is None else run
    elif found is not None:
        job, run = found.job, found.fence
    else:
        return None
    word = Word(callback.positive, ref=callback.ref, run=run, retryable=callback.retryable)
    answer = testify(world, job, word)
    if answer == ("not found",):
        answer = (job, Applied.LATE, None, False)
    world.inbox[name] = replace(callback, job=job, applied=str(answer[1]))
    return answer


def match_again(world: World) -> None:
    """Look again for the jobs of callbacks that came early."""
    for name, callback in list(world.inbox.items()):
        if callback.applied or callback.ref is None:
            continue
        matching = [r for r in world.references if r.kind == callback.kind and r.ref == callback.ref]
        if matching and (callback.received > world.now - DAY or any(r.at > world.now - DAY for r in matching)):
            _apply(world, name)


def prune_inbox(world: World) -> int:
    """Forget callbacks that were kept long enough."""
    gone = [name for name, callback in world.inbox.items() if callback.keep_until < world.now]
    for name in gone:
        del world.inbox[name]
    return len(gone)


# Checks.


def claim_checks(world: World, jobs: Iterable[int]) -> tuple[Check, ...]:
    """Claim the checks that are due; one that never answers is asked less and less often."""
    claimed = []
    for number in sorted(set(jobs)):
        row = world.jobs.get(number)
        if row is None or row.state is not S.AWAITING_CONFIRMATION or not row.polled or number in world.locked:
            continue
        if row.due is None or row.due > world.now or row.expires <= world.now:
            continue
        if row.checks < row.limit + CHECKS_LOST_MOST:
            row = world.change(number)
            row.due = world.now + min(CHECK_CLAIM * 2 ** min(row.checks, 6), 600)
            row.checks += 1
            claimed.append(Check(number, row.fence, row.due))
    return tuple(claimed)


def finish_check(world: World, check: Check, outcome: str) -> JobState | None:
    """Write what a check found; None when it was decided otherwise meanwhile."""
    row = world.jobs.get(check.job)
    if row is None or row.state is not S.AWAITING_CONFIRMATION or (row.fence, row.due) != (check.fence, check.due):
        return None
    row = world.change(check.job)
    failures = row.check_failures + 1 if outcome == "failed" else 0
    patient = row.confirm_by is not None and row.confirm_by > world.now
    if outcome == "confirmed":
        settle(world, row, S.CONFIRMED, evidence=Evidence("check", f"check{check.fence}", check.fence, world.now))
    elif outcome == "rejected":
        tell_rejection(row)
        settle(world, row, S.DEAD, reason=Reason.REJECTED)
    elif patient or (outcome == "failed" and failures < row.limit):
        # Checks are counted and given up like attempts: past the deadline a failing one is asked again so often.
        due = [world.now + row.contract.check_every, last_check(world, row)]
        if row.confirm_by is not None and patient:
            due.append(row.confirm_by)
        row.due = min(due)
    else:
        row.failures = (*row.failures, ("Unconfirmed", row.attempt))[-20:]
        unconfirmed(world, row)
    row.checks, row.check_failures = 0, failures
    if not row.polled or row.state is not S.AWAITING_CONFIRMATION:
        row.polled, row.confirm_by = False, None
    return row.state
