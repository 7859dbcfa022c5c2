"""Run the jobs of one hint: claim them, run their bodies one by one, write each end soon after it ended.

Members of a chunk do not share a fate: an end waits at most FINISH_SECONDS for its neighbours, and a member that has
not begun after BEGIN_SECONDS is released unspent, even while a body blocks. What a handler does is `execute`'s.
"""

import itertools
import logging
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from typing import Final
from uuid import UUID

from django.db import DataError, Error, IntegrityError, connection

from queues import broker, confirmation, contracts, handlers, lifecycle
from queues.lifecycle import CheckEnd, End, Run, Verdict
from queues.runtime import calls, checks, leases
from queues.runtime.context import context_of
from queues.runtime.execute import execute, released
from queues.runtime.leases import LeaseTable, Slot
from queues.runtime.steps import RunSteps

log = logging.getLogger(__name__)

FINISH_SECONDS: Final = 0.05
BEGIN_SECONDS: Final = 0.25
FOLLOW_SECONDS: Final = 0.25
"""For so long a slot goes on with what its own ends make room for; then that goes back to the queue, behind others."""
SPARE: Final = 7
_POLL_SECONDS: Final = 0.02
LOCK_NOT_AVAILABLE: Final = "55P03"
GIVE_BACK_SECONDS: Final = 5.0
NO_LEASE_SECONDS: Final = 1e9
CHECK_HARD_SECONDS: Final = 2 * checks.CHECK_SECONDS


_Freed = Counter[tuple[str, str | None]]
"""How many runs ended of a limited type and group."""


class Chunk:
    """The runs of one claim and how far they got. The runner's thread and the finisher both take from it."""

    def __init__(self, runs: Sequence[Run], slot: Slot, *, claimed_at: float) -> None:
        self.slot = slot
        self.claimed_at = claimed_at
        self.lease_ends = claimed_at + min(run.lease_seconds for run in runs)
        self._lock = threading.Lock()
        self._waiting = deque(runs)
        self._limited = {run.id: (run.type, run.group) for run in runs if run.limited}
        self._ended: list[End] = []
        self._oldest_end = 0.0
        self._alone = len(runs) == 1
        # Not the time before the claim: a claim that is slow under load would release its whole chunk, over and over.
        self._may_begin_until = leases.now() + BEGIN_SECONDS

    def begin(self, *, draining: bool) -> Run | None:
        """Take the next member to run; None when there is none, or too late, or the worker drains."""
        with self._lock:
            if not self._waiting or draining or self._too_late():
                return None
            return self._waiting.popleft()

    def end(self, end: End) -> None:
        """Keep the end of a body until it is written."""
        with self._lock:
            if not self._ended:
                self._oldest_end = leases.now()
            self._ended.append(end)

    def take_due(self, *, draining: bool) -> list[End]:
        """Take the ends that waited long enough and the members that may not begin any more."""
        with self._lock:
            due: list[End] = []
            if self._ended and leases.now() - self._oldest_end >= FINISH_SECONDS:
                due, self._ended = self._ended, []
            if self._waiting and (draining or self._too_late()):
                due += [released(run) for run in self._waiting]
                self._waiting.clear()
            return due

    def take_all(self) -> list[End]:
        """Take everything that is left: ends, and members that never began."""
        with self._lock:
            rest = self._ended + [released(run) for run in self._waiting]
            self._ended = []
            self._waiting.clear()
            return rest

    def freed(self, ends: Sequence[End]) -> _Freed:
        """Count the ends by the limited type and group in which they made room; a released run wants it back itself."""
        done = [self._limited.get(end.id) for end in ends if end.verdict is not Verdict.RELEASED]
        return Counter(where for where in done if where is not None)

    def _too_late(self) -> bool:
        # A single job has no neighbour that could be kept waiting by it.
        return not self._alone and leases.now() > self._may_begin_until


class Runner:
    """What one process needs to run chunks: its name, its part of the lease map, the finisher thread."""

    def __init__(self, table: LeaseTable, *, node: str, worker_pid: int = 0) -> None:
        self.table = table
        # With a pool of processes this is a child: pages look for the worker that reports itself under that name.
        self.incarnation = f"{node}/{worker_pid or os.getpid()}.{os.getpid()}.{int(time.monotonic() * 1000) % 10**7}"
        self._slots = threading.local()
        self._chunks: set[Chunk] = set()
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._claims = itertools.count(1)
        threading.Thread(target=self._finisher, name="finisher", daemon=True).start()

    def run(self, ids: Sequence[UUID]) -> int:
        """Claim and run what is due of these ids, and what their ends make room for; returns how many bodies ran."""
        if self.table.draining:
            return 0
        follow_until = leases.now() + FOLLOW_SECONDS
        since = leases.now()
        # Ends of the last chunk may still be on their way; what cannot be held is not claimed.
        runs = self._claim(ids[: self._slot().room])
        done = 0
        while runs:
            ran, freed = self._run(runs, since=since)
            done += ran
            due, room = _next_due(freed)
            if self.table.draining or leases.now() >= follow_until:
                _publish(due[:room])
                break
            since = leases.now()
            room = min(room, self._slot().room)
            runs = self._claim([job_id for _, job_id in due], most=room) if due and room else []
        return done

    def _run(self, runs: Sequence[Run], *, since: float) -> tuple[int, _Freed]:
        """Run what was claimed; returns how many bodies ran, and where the ends that were written last made room."""
        slot, done = self._slot(), 0
        for run in runs:
            slot.hold(run.id, run.fence, run.lease_seconds, since=since)
        chunk = Chunk(runs, slot, claimed_at=since)
        self._watch(chunk)
        held = partial(calls.is_held, runs[0].type, calls.known_contracts())
        last: list[End] = []
        try:
            while (run_now := chunk.begin(draining=self.table.draining or held())) is not None:
                stopped = partial(slot.told_to_stop, run_now.id, run_now.fence)
                context = context_of(run_now, cancelled=stopped, steps=RunSteps(run_now))
                ended = execute(run_now, context, begin=partial(_begin, slot, run_now))
                if ended.written:
                    slot.drop(run_now.id, run_now.fence)
                    _look_for_callbacks([ended.end])
                    last.append(ended.end)
                else:
                    # First: from here on no limit may kill the process for this body.
                    slot.ended(run_now.id, run_now.fence)
                    chunk.end(ended.end)
                done += 1
        finally:
            with self._lock:
                self._chunks.discard(chunk)
            rest = chunk.take_all()
            self._write(rest, chunk)
        return done, chunk.freed([*last, *rest])

    def check(self, ids: Sequence[UUID]) -> int:
        """Ask the checks that are due of these ids; returns how many were asked."""
        if self.table.draining:
            return 0
        slot = self._slot()
        due = lifecycle.claim_checks(ids)
        ends: list[CheckEnd] = []
        since = leases.now()
        for one in due:
            # There is no lease to renew: it is held only so that the heartbeat process stops a check that hangs.
            slot.hold(one.id, one.fence, NO_LEASE_SECONDS, since=leases.now())
            slot.begin(one.id, one.fence, hard_limit=CHECK_HARD_SECONDS)
            try:
                ends.append(checks.poll(one))
            finally:
                slot.drop(one.id, one.fence)
            # An answer must not wait for slow neighbours: its job may be confirmed.
            if leases.now() - since > FINISH_SECONDS:
                lifecycle.finish_checks(ends)
                ends, since = [], leases.now()
        if ends:
            lifecycle.finish_checks(ends)
        return len(due)

    def _claim(self, ids: Sequence[UUID], *, most: int | None = None) -> list[Run]:
        """Claim under a name that no other claim has, so that one whose answer was lost can be given back.

        `most`: so many of these jobs of a limited type, the first ones that nobody else took meanwhile.
        """
        worker = f"{self.incarnation}.{next(self._claims)}"
        try:
            checked = handlers.checked_types()
            if most is not None:
                return lifecycle.claim_limited(ids, worker=worker, checked=checked, most=most)
            runs = lifecycle.claim(ids, worker=worker, checked=checked)
            # The jobs of a hint are of one type, which has limits or has none.
            if not runs and any(contract.guarded for contract in contracts.all_current().values()):
                runs = lifecycle.claim_limited(ids, worker=worker, checked=checked)
            return runs
        except Error:
            # Without a connection the statement was never sent.
            sent = connection.connection is not None
            connection.close()
            if sent:
                _give_back(ids, worker=worker)
            raise

    def _slot(self) -> Slot:
        slot: Slot | None = getattr(self._slots, "slot", None)
        if slot is None:
            slot = self._slots.slot = self.table.take_slot()
        return slot

    def _watch(self, chunk: Chunk) -> None:
        with self._lock:
            self._chunks.add(chunk)
        self._work.set()

    def _finisher(self) -> None:
        """Write what bodies must not hold up. It has a database connection of its own."""
        while True:
            self._work.wait()
            with self._lock:
                chunks = list(self._chunks)
                if not chunks:
                    self._work.clear()
                    continue
            for chunk in chunks:
                due = chunk.take_due(draining=self.table.draining)
                if due:
                    try:
                        self._write(due, chunk)
                        due_now, room = _next_due(chunk.freed(due))
                        _publish(due_now[:room])
                    except Exception:  # the thread must live; what it could not write is rescued by its lease
                        log.exception("finisher: ends could not be written")
            threading.Event().wait(_POLL_SECONDS)

    def _write(self, ends: list[End], chunk: Chunk) -> None:
        if not ends:
            return
        try:
            written = write_ends(ends, give_up_at=chunk.lease_ends + _held_longer(chunk))
        finally:
            # Written or given up: a lease that went on being renewed for nobody would be limbo.
            for end in ends:
                chunk.slot.drop(end.id, end.fence)
        _look_for_callbacks(ends)
        missing = [end for end in ends if (end.id, end.fence) not in written]
        if missing:
            log.warning("%d ends were superseded, first job %s fence %d", len(missing), missing[0].id, missing[0].fence)
            _count_superseded([(end.id, end.fence) for end in missing])
            _keep_references(missing)


def _begin(slot: Slot, run: Run, hard_limit: float) -> None:
    slot.begin(run.id, run.fence, hard_limit=hard_limit)


def _look_for_callbacks(ends: Sequence[End]) -> None:
    """Look for callbacks that came before the reference they name was written; the scheduler looks again."""
    referred = [end.id for end in ends if end.reference]
    if not referred:
        return
    try:
        confirmation.apply_pending(job_ids=referred)
    except Error as error:
        connection.close()
        log.warning("callbacks that wait for %d jobs are left to the scheduler: %s", len(referred), error)


def _next_due(freed: _Freed) -> tuple[list[tuple[str, UUID]], int]:
    """Return (type, id) of jobs that may begin where runs made room, best first, and for how many there is room.

    A few more than that, since others look at the same ones. The stage alone would let a limit idle between its rounds.
    """
    wanted: Counter[tuple[str, str | None]] = Counter()
    for (name, group), n in freed.items():
        contract = contracts.all_current().get(name)
        if contract is None:
            continue
        if contract.in_groups and (group is not None or contract.concurrency > 0 or contract.rate_per_second > 0):
            wanted[name, group or ""] += n
        elif contract.concurrency > 0:
            wanted[name, None] += n
    if not wanted:
        return [], 0
    try:
        return lifecycle.next_due([(name, group, n + SPARE) for (name, group), n in wanted.items()]), wanted.total()
    except Error as error:
        connection.close()
        log.warning("what may begin now is left to the scheduler: %s", error)
        return [], 0


def _publish(due: Sequence[tuple[str, UUID]]) -> None:
    current = contracts.all_current()
    broker.publish([(current[name].queue, [job_id]) for name, job_id in due if name in current])


def _count_superseded(runs: Sequence[tuple[UUID, int]]) -> None:
    try:
        lifecycle.count_superseded(runs)
    except Error as error:
        connection.close()
        log.warning("%d superseded ends are not counted: %s", len(runs), error)


def _keep_references(ends: Sequence[End]) -> None:
    """Let the references count that superseded runs brought: they may save the next run, or show that there were two.

    An atomic handler's is never among them: what it did was rolled back, and its end is a failure.
    """
    for end in ends:
        found = end.evidence or {}
        if end.verdict is not Verdict.CONFIRMED or found.get("kind") != "reference" or not found.get("ref"):
            continue
        try:
            outcome = confirmation.by_superseded_run(end.id, run=end.fence, ref=found["ref"])
            log.warning("job %s: the reference of its superseded run %d is %s", end.id, end.fence, outcome.applied)
        except confirmation.JobNotFound:
            log.warning("job %s: pruned before its superseded run %d ended", end.id, end.fence)
        except Error as error:
            connection.close()
            log.warning("job %s: the reference of its superseded run %d is lost: %s", end.id, end.fence, error)
            # Of a database that is away each further one would cost the same wait.
            if not (_is_locked(error) or isinstance(error, (DataError, IntegrityError))):
                return


def _held_longer(chunk: Chunk) -> float:
    """How much longer than the first lease a chunk is still ours: the heartbeat renewed it while bodies ran."""
    return max(0.0, leases.now() - chunk.claimed_at)


def _give_back(ids: Sequence[UUID], *, worker: str) -> None:
    """Release what a claim took whose commit arrived and whose answer did not (I-03); else it would cost a crash."""
    try:
        taken = lifecycle.claimed_by(ids, worker=worker)
        ends = [End(id=job_id, fence=fence, verdict=Verdict.RELEASED) for job_id, fence in taken]
        if ends:
            write_ends(ends, give_up_at=leases.now() + GIVE_BACK_SECONDS)
    except Error as error:
        connection.close()
        log.warning("a claim without an answer is left to its lease: %s", error)


def write_ends(ends: Sequence[End], *, give_up_at: float) -> set[tuple[UUID, int]]:
    """Settle a batch, trying again while the leases may still hold. Shape: the (id, fence) pairs that were written.

    A commit whose answer got lost is written a second time; the fence makes that harmless.
    """
    pause = 0.05
    while True:
        try:
            return set(lifecycle.settle(ends))
        except (DataError, IntegrityError) as error:
            # One bad value must not hold its neighbours: write them alone, and the bad one without its data.
            connection.close()
            if len(ends) == 1:
                log.error("job %s: its end has data that PostgreSQL refuses: %s", ends[0].id, error)
                return _write_without_data(ends[0], error)
            return set().union(*(write_ends([end], give_up_at=give_up_at) for end in ends))
        except Error as error:
            connection.close()
            if len(ends) > 1 and _is_locked(error):
                return _write_around_locks(ends, give_up_at=give_up_at)
            if leases.now() + pause >= give_up_at:
                log.error("%d ends are given up, their leases run out: %s", len(ends), error)
                return set()
            threading.Event().wait(pause)
            pause = min(pause * 2, 1.0)


def _is_locked(error: Error) -> bool:
    return getattr(error.__cause__, "sqlstate", None) == LOCK_NOT_AVAILABLE


def _write_around_locks(ends: Sequence[End], *, give_up_at: float) -> set[tuple[UUID, int]]:
    """Write each end alone and once, and wait only then for rows that somebody else has locked."""
    written: set[tuple[UUID, int]] = set()
    locked: list[End] = []
    for end in ends:
        try:
            written |= lifecycle.settle([end]).keys()
        except Error:
            connection.close()
            locked.append(end)
    for end in locked:
        written |= write_ends([end], give_up_at=give_up_at)
    return written


def _write_without_data(end: End, error: Exception) -> set[tuple[UUID, int]]:
    try:
        return set(lifecycle.settle([_without_data(end, error)]))
    except (DataError, IntegrityError):
        # Its lease runs out and it is rescued; its neighbours are written all the same.
        connection.close()
        log.exception("job %s: its end cannot be stored even without its data", end.id)
        return set()


def _without_data(end: End, error: Exception) -> End:
    """Return the end without what its handler wrote freely; evidence was cleaned when it was taken, and is kept."""
    note = {"error_class": "DataError", "message": f"the end of this run could not be stored: {error}"[:500]}
    return End(
        id=end.id, fence=end.fence, verdict=end.verdict, reason=end.reason, retry_in=end.retry_in, seconds=end.seconds,
        on_stale=end.on_stale, failure=note if end.failure else None, fingerprint=end.fingerprint,
        evidence=end.evidence, reference=end.reference, confirm_in=end.confirm_in, act_in=end.act_in,
        polled=end.polled, unknown=end.unknown, called=end.called,
    )  # fmt: skip


def node_name() -> str:
    """Return the host's name, as it stands in `worker`."""
    return socket.gethostname()[:100]
