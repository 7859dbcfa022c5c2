"""What a run of the candidate says about it, beside what is recorded of the same job. Pure: no database, no process.

A run that tried to leave the sandbox is never judged: its end may be our doing. Nor is one that fails as an attempt of
the same job failed before it ended well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol
from uuid import UUID

from dlq.replay_test import words
from dlq.replay_test.child import Seen
from dlq.replay_test.sampling import Recorded
from queues.redaction import shape
from queues.states import JobState, Reason


class Judgement(StrEnum):
    """What one job says."""

    SAME = "same"
    REGRESSION = "regression"
    """The handler did its part then, and does not now."""
    IMPROVEMENT = "improvement"
    """The handler failed then, and ends well now."""
    CHANGED = "changed"
    """It failed then and fails now, but not in the same way."""
    NOT_JUDGED = "not_judged"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One job. `why` is the same text for findings of one kind; `then` is what the record says."""

    job_id: UUID
    judgement: Judgement
    then: str
    why: str = ""
    error_class: str = ""
    message: str = ""
    frame: str = ""
    notes: tuple[str, ...] = ()


class Promise(Protocol):
    """The part of a contract that says what a handler has to return."""

    @property
    def success(self) -> str: ...
    @property
    def on_unconfirmed(self) -> str: ...


_RETURNED: Final = frozenset({Reason.UNCONFIRMED.value, Reason.NO_EVIDENCE.value})
"""Dead, though the handler had returned."""
_REFUSED: Final = frozenset({Reason.PERMANENT_ERROR.value, Reason.PAYLOAD_INVALID.value})
_LOST: Final = {"crashed": Reason.POISON.value, "over_time": Reason.TIME_LIMIT.value}


def judge(job: Recorded, seen: Seen, promise: Promise) -> Finding:
    """Judge one run."""
    cause = _not_judged(job, seen)
    if cause:
        return _finding(job, seen, Judgement.NOT_JUDGED, cause)
    failed = _failed(seen, promise)
    if returned_then(job):
        return _regressed(job, seen, failed) if failed else _still_well(job, seen)
    if not failed:
        return _finding(job, seen, Judgement.IMPROVEMENT, "failed then, ends well now")
    if _as_then(job, seen):
        return _finding(job, seen, Judgement.SAME)
    return _finding(job, seen, Judgement.CHANGED, f"failed then; now it {failed}")


def refused_at_the_door(job: Recorded, message: str, *, version: int) -> Finding:
    """Judge a payload that today's contract would not let in."""
    if job.reason == Reason.PAYLOAD_INVALID:
        judgement = Judgement.SAME
    else:
        judgement = Judgement.REGRESSION if returned_then(job) else Judgement.CHANGED
    return Finding(
        job_id=job.id,
        judgement=judgement,
        then=_then(job),
        why=f"version {version} of the contract refuses the payload",
        error_class="PayloadInvalid",
        message=message,
    )


def returned_then(job: Recorded) -> bool:
    """Say whether the handler did its part then, whatever became of the job after it."""
    if job.state == JobState.CONFIRMED or job.reason in _RETURNED:
        return True
    # A rejection that came from outside has no traceback: no code of ours raised it.
    last = job.failures[-1] if job.failures else {}
    return job.reason == Reason.REJECTED and not last.get("traceback")


def _not_judged(job: Recorded, seen: Seen) -> str:
    if seen.ended == "stub_failed":
        return f"the stub failed: {seen.error_class}"
    if not seen.touched:
        return ""
    tried = f"needs the outside (refused: {', '.join(seen.touched)})"
    return f"{tried}; then it was refused before" if job.reason in _REFUSED and "network" in seen.touched else tried


def _failed(seen: Seen, promise: Promise) -> str:
    """Return how the run failed in words, or nothing."""
    if seen.ended == "raised":
        return "raises"
    if seen.ended == "crashed":
        return "kills its process"
    if seen.ended == "over_time":
        return "does not end in time"
    proven = seen.returned == "Confirmed" and seen.has_reference
    if promise.success == "reference" and not proven and promise.on_unconfirmed != "check_again":
        return "returns no evidence, and the contract wants a reference"
    return ""


def _regressed(job: Recorded, seen: Seen, failed: str) -> Finding:
    if job.reason in _RETURNED and seen.ended == "returned":
        return _finding(job, seen, Judgement.SAME)
    if job.failures and _as_then(job, seen):
        return _finding(job, seen, Judgement.NOT_JUDGED, "fails as an earlier attempt of the same job did")
    return _finding(job, seen, Judgement.REGRESSION, f"now it {failed}")


def _still_well(job: Recorded, seen: Seen) -> Finding:
    if _reference_then(job) and not seen.has_reference:
        return _finding(job, seen, Judgement.REGRESSION, "now it returns no reference, and it did then")
    if job.reason == Reason.NO_EVIDENCE:
        return _finding(job, seen, Judgement.IMPROVEMENT, "returned no evidence then, returns it now")
    return _finding(job, seen, Judgement.SAME, notes=tuple(_notes(job, seen)))


def _notes(job: Recorded, seen: Seen) -> list[str]:
    kind = (job.evidence or {}).get("kind")
    notes = []
    if kind == "reference" and seen.returned != "Confirmed":
        notes.append(f"other evidence: a reference then, {seen.returned} now")
    elif kind == "return" and seen.has_reference and not _reference_then(job):
        notes.append("other evidence: none then, a reference now")
    elif kind == "return" and _reference_then(job) and seen.returned == "AwaitingConfirmation":
        notes.append("other evidence: Confirmed then, AwaitingConfirmation now")
    if job.state == JobState.CONFIRMED and kind in ("reference", "return"):
        then = None if job.result is None else shape(job.result)
        if then != seen.result_shape:
            notes.append("its result has another shape")
    return notes


def _reference_then(job: Recorded) -> bool:
    evidence = job.evidence or {}
    return bool(job.reference or (evidence.get("kind") in ("reference", "return") and evidence.get("ref")))


def _as_then(job: Recorded, seen: Seen) -> bool:
    if seen.ended in _LOST and job.reason == _LOST[seen.ended]:
        return True
    if job.fingerprint is not None and job.fingerprint in seen.fingerprints:
        return True
    known = {words.signature(str(f.get("error_class")), str(f.get("message"))) for f in job.failures}
    return bool(seen.signature) and seen.signature in known


def _then(job: Recorded) -> str:
    return f"{job.state} ({job.reason})" if job.reason else job.state


def _finding(job: Recorded, seen: Seen, judgement: Judgement, why: str = "", notes: tuple[str, ...] = ()) -> Finding:
    return Finding(
        job_id=job.id,
        judgement=judgement,
        then=_then(job),
        why=why,
        error_class=seen.error_class,
        message=seen.message,
        frame=seen.frame,
        notes=notes,
    )
