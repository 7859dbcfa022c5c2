"""What people and producers do to jobs: the lifecycle's statement and its audit entry, in one transaction."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal
from uuid import UUID

from django.db import transaction

from queues import audit, broker, contracts, lifecycle
from queues.faults import fault
from queues.lifecycle import Edit
from queues.models import Job
from queues.states import REPLAYABLE, JobState, Reason, Resolution

REASON_CHARACTERS: Final = 1000


class JobNotFound(LookupError):
    """There is no job of this id."""


class NotCancellable(Exception):
    """The job has another outcome already."""

    def __init__(self, state: JobState) -> None:
        super().__init__(f"the job is {state.value} and can no longer be cancelled")
        self.state = state


class NotRetrying(Exception):
    """The job does not wait for another attempt."""

    def __init__(self, state: JobState) -> None:
        super().__init__(f"the job is {state.value}; only one that waits for its next attempt can be retried now")
        self.state = state


class NotReplayable(Exception):
    """The job cannot be replayed (now). `code` for programs, `detail` for people."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class CancelResult:
    """What a cancel did. `effect` is possible when a run may have begun."""

    state: JobState
    requested: bool
    effect: Literal["none", "possible"]
    changed: bool


def cancel_job(job_id: UUID, *, actor: str, reason: str, source: str, request_id: str = "") -> CancelResult:
    """Cancel a waiting job, or ask a running one to stop. A repeated cancel answers the same again.

    Raises: JobNotFound, NotCancellable.
    """
    why = Reason.PRODUCER if source == "api" else Reason.OPERATOR
    with transaction.atomic():
        changed = lifecycle.cancel([job_id], reason=why)
        if changed:
            transaction.on_commit(partial(fault, "cancel.committed"))
            one = changed[0]
            _audit("job.cancelled" if one.state == JobState.CANCELLED else "job.cancel_requested", job_id, actor=actor,
                   reason=reason, source=source, request_id=request_id,
                   before={"state": one.was.value, "cancel_requested": False},
                   after={"state": one.state.value, "cancel_requested": True})  # fmt: skip
            lifecycle.touch_board()
            return CancelResult(
                state=one.state,
                requested=one.state == JobState.PROCESSING,
                effect="possible" if one.may_have_acted else "none",
                changed=True,
            )
    job = _get(job_id)
    state = JobState(job.state)
    if state == JobState.CANCELLED or (state == JobState.PROCESSING and job.cancel_requested):
        return CancelResult(
            state=state,
            requested=state == JobState.PROCESSING,
            effect="possible" if job.begun else "none",
            changed=False,
        )
    raise NotCancellable(state)


def retry_now(job_id: UUID, *, actor: str, reason: str, source: str, request_id: str = "") -> JobState:
    """Make the next attempt of a retrying job due at once; one that is due already stays as it is.

    Raises: JobNotFound, NotRetrying.
    """
    with transaction.atomic():
        if lifecycle.retry_now([job_id]):
            _audit("job.retried_now", job_id, actor=actor, reason=reason, source=source, request_id=request_id,
                   before={"due": "later"}, after={"due": "now"})  # fmt: skip
            lifecycle.touch_board()
            transaction.on_commit(lambda: _hint(job_id), robust=True)
            return JobState.RETRYING
    state = JobState(_get(job_id).state)
    if state == JobState.RETRYING:
        return state
    raise NotRetrying(state)


def _hint(job_id: UUID) -> None:
    """Wake a worker now; without this the stage does, a moment later."""
    name = Job.objects.values_list("type", flat=True).get(id=job_id)
    broker.publish([(contracts.current(name).queue, [job_id])])


def replay_job(
    job_id: UUID,
    *,
    actor: str,
    reason: str,
    source: str,
    request_id: str = "",
    edit: Edit | None = None,
    diff: dict[str, Any] | None = None,
    verdict: dict[str, Any] | None = None,
) -> UUID:
    """Accept a new job in place of a dead, expired or cancelled one: as it was, or with an edit (`edited_replay`).

    Nothing is asked here: `dlq.replaying` looks first whether it is safe. `verdict` is what that found, for the log.

    Raises: JobNotFound, NotReplayable.
    """
    with transaction.atomic():
        child = lifecycle.replay(job_id, by=actor, edit=edit)
        if child is not None:
            transaction.on_commit(partial(fault, "replay.committed"))
            _audit("job.replayed", job_id, actor=actor, reason=reason, source=source, request_id=request_id,
                   before={"resolution": Resolution.OPEN.value},
                   after={"resolution": Resolution.REPLAYED.value, "replayed_by": str(child)}
                   | ({"changed": diff} if edit else {}) | (verdict or {}))  # fmt: skip
            lifecycle.touch_board()
            return child
    raise _why_not_replayed(_get(job_id), other_key=edit is not None and edit.dedupe_key is not None)


def _why_not_replayed(job: Job, *, other_key: bool) -> NotReplayable:
    if job.probe:
        return NotReplayable("not_replayable", "the job is a probe; the next one is sent by itself")
    if job.state not in REPLAYABLE:
        return NotReplayable(
            "not_replayable", f"the job is {job.state}; only dead, expired and cancelled ones are replayed"
        )
    if job.replayed_by is not None:
        return NotReplayable("already_replayed", f"the job was replayed as {job.replayed_by}")
    if job.resolution != Resolution.OPEN:
        return NotReplayable("resolved", f"the job was {job.resolution} by {job.resolved_by}")
    if job.erased_at is not None:
        return NotReplayable("payload_erased", "the payload of this job was erased")
    if other_key:
        return NotReplayable("dedupe_conflict", "its type is disabled, or another job holds the new dedupe key")
    return NotReplayable("key_moved_on", "its type is disabled, or a newer job holds its dedupe key")


def cancel_dead_letter(job_id: UUID, *, actor: str, reason: str, source: str, request_id: str = "") -> bool:
    """Resolve a dead letter without running it again; False when it was cancelled before.

    Raises: JobNotFound, NotCancellable.
    """
    return _close(job_id, Resolution.CANCELLED, "dead_letter.cancelled", actor=actor, reason=reason, source=source,
                  request_id=request_id)  # fmt: skip


def ignore_dead_letter(job_id: UUID, *, actor: str, reason: str, source: str, request_id: str = "") -> bool:
    """Set a dead letter aside: nothing is to be done about it; False when it was ignored before.

    Raises: JobNotFound, NotCancellable.
    """
    return _close(job_id, Resolution.IGNORED, "dead_letter.ignored", actor=actor, reason=reason, source=source,
                  request_id=request_id)  # fmt: skip


def _close(job_id: UUID, resolution: Resolution, action: str, *, actor: str, **why: Any) -> bool:
    with transaction.atomic():
        if lifecycle.close_dead_letters([job_id], resolution=resolution.value, by=actor):
            _audit(action, job_id, actor=actor, before={"resolution": Resolution.OPEN.value},
                   after={"resolution": resolution.value}, **why)  # fmt: skip
            lifecycle.touch_board()
            return True
    job = _get(job_id)
    if job.state == JobState.DEAD and job.resolution == resolution:
        return False
    raise NotCancellable(JobState(job.state))


def _get(job_id: UUID) -> Job:
    job = Job.objects.filter(id=job_id).first()
    if job is None:
        raise JobNotFound(str(job_id))
    return job


def _audit(
    action: str, job_id: UUID, *, actor: str, reason: str, source: str, request_id: str = "", before: Any, after: Any
) -> None:
    audit.record(
        action,
        actor=actor,
        object_type="job",
        object_id=str(job_id),
        before=before,
        after=after,
        reason=reason[:REASON_CHARACTERS],
        source=source,
        request_id=request_id,
    )
