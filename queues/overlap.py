"""Merging: where a contract says so, a new job takes the place of those of its group that wait.

Accepts of one type and group take turns here, so that of jobs that are enqueued at the same moment one is left. What is
left out ends cancelled, with the reason superseded: no job vanishes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final, NamedTuple
from uuid import UUID

from django.db import transaction

from queues import contracts, lifecycle
from queues.contract_flow import DEBOUNCE_MOST
from queues.contracts import Contract
from queues.lifecycle import Lane, LaneNote, NewJob
from queues.states import JobState, Reason

_WAITING: Final = (JobState.ACCEPTED, JobState.RETRYING)

KEEP_AFTER: Final = dt.timedelta(seconds=5)
"""Once something of a group has been due for so long, who waits keeps its place, and newer ones merge behind it."""

Place = tuple[str, str]
"""A type and a group, "" for jobs without one."""


class Merge(NamedTuple):
    """One group in which new jobs take the place of others.

    `ready_at`: the earliest that they are ready. `since`: of those whose place they take, as in `Lane`; None: there are
    none. `kept`: who keeps its place.
    """

    contract: Contract
    lane: Lane
    ready_at: dt.datetime
    since: dt.datetime | None
    kept: UUID | None


def begin(jobs: Sequence[NewJob]) -> tuple[list[NewJob], dict[Place, Merge]]:
    """Wait for the turn of each group that merges, and say when its new jobs are ready. In a transaction.

    The turn lasts until the transaction ends. Raises: OperationalError with 55P03 when somebody else's took too long.
    """
    places = {_place(job): contract for job in jobs if (contract := contracts.current(job.type)).overlap != "none"}
    merges = {place: _merge(places[place], lane) for place, lane in lifecycle.take_lanes(sorted(places)).items()}
    return [_put_off(job, merges) for job in jobs], merges


def end(merges: Mapping[Place, Merge], accepted: Sequence[tuple[NewJob, UUID]]) -> set[UUID]:
    """Let the newest of the accepted jobs take the place of all that wait; returns those of them that lost theirs."""
    newest = {_place(job): (job, job_id) for job, job_id in accepted if _place(job) in merges}
    lost = {job_id for job, job_id in accepted if (new := newest.get(_place(job))) and new[1] != job_id}
    gone = lost | {one for place in newest for one in merges[place].lane.waiting if one != merges[place].kept}
    ended = lifecycle.cancel(sorted(gone), reason=Reason.SUPERSEDED, states=_WAITING) if gone else []
    if newest:
        lifecycle.note_lanes([_note(merges[place], job, job_id) for place, (job, job_id) in newest.items()])
    replaced = [merges[place].lane for place in newest if merges[place].contract.overlap == "replace"]
    # With those that a claim took after they were seen to wait.
    taken = gone - {one.id for one in ended}
    running = [one for lane in replaced for one in chain(lane.running, (one for one in lane.waiting if one in taken))]
    if running:
        # Not before: until the caller commits, their rows would be locked, and their ends would have to wait.
        transaction.on_commit(_stopping(running), robust=True)
    return lost


def _stopping(ids: Sequence[UUID]) -> Callable[[], object]:
    def stop() -> None:
        # Who failed, was lost or released meanwhile waits again.
        lifecycle.cancel(ids, reason=Reason.SUPERSEDED, states=(*_WAITING, JobState.PROCESSING))

    return stop


def _place(job: NewJob) -> Place:
    return job.type, job.group or ""


def _merge(contract: Contract, lane: Lane) -> Merge:
    seconds = dt.timedelta(seconds=contract.overlap_seconds)
    longest = DEBOUNCE_MOST * seconds if contract.overlap == "debounce" else dt.timedelta(0)
    kept, since = lane.kept, lane.since if lane.fresh and lane.newest != lane.kept else None
    # Newer ones come faster than workers: without this none would ever run.
    if kept is None and since is not None and _is_due(lane) and lane.now - since >= longest + KEEP_AFTER:
        kept, since = lane.newest, None
    ready_at = lane.now
    if contract.overlap == "debounce":
        ready_at = max(lane.now, min(lane.now + seconds, (since or lane.now) + longest))
    elif contract.overlap == "throttle":
        # Never later than a turn from now: the contract may have named a longer one before.
        ready_at = max(lane.now, min(lane.now + seconds, _turn(lane, since, seconds)))
    return Merge(contract, lane, ready_at, since, kept)


def _turn(lane: Lane, since: dt.datetime | None, seconds: dt.timedelta) -> dt.datetime:
    """Return when the next of a throttled group may be ready."""
    if lane.ready_at is None or lane.since is None:
        return lane.now
    # Who waits for its turn gives it away, and who is gone before it was ready has not used it.
    unused = since is not None or lane.ready_at > lane.now
    return lane.since if unused else lane.ready_at + seconds


def _is_due(lane: Lane) -> bool:
    return lane.ready_at is not None and lane.ready_at <= lane.now


def _put_off(job: NewJob, merges: Mapping[Place, Merge]) -> NewJob:
    merge = merges.get(_place(job))
    if merge is None or merge.ready_at <= merge.lane.now:
        return job
    return replace(job, run_at=_ready_of(job, merge), delay_seconds=None)


def _ready_of(job: NewJob, merge: Merge) -> dt.datetime:
    """Return when a job is ready: as its producer asked, and not before its turn."""
    asked = job.run_at
    if job.delay_seconds is not None:
        asked = merge.lane.now + dt.timedelta(seconds=job.delay_seconds)
    return merge.ready_at if asked is None else max(asked, merge.ready_at)


def _note(merge: Merge, job: NewJob, job_id: UUID) -> LaneNote:
    ready_at = _ready_of(job, merge)
    begins = {
        "debounce": ready_at - dt.timedelta(seconds=merge.contract.overlap_seconds),
        "throttle": merge.ready_at,
    }.get(merge.contract.overlap, ready_at)
    since = min(begins, merge.since or begins)
    return LaneNote(
        type=job.type, group=job.group or "", newest=job_id, ready_at=ready_at, since=since, kept=merge.kept
    )
