"""What is known about whether a replay is safe, from this database alone: passed, to note, refused or not known.

Not here: asking the outside world whether the work was done (a later release); until then it is "not known".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, Protocol
from uuid import UUID

from queues.models import DedupeKey, Job
from queues.states import Resolution

Result = Literal["pass", "note", "fail", "unknown"]
Verdict = Literal["safe", "unknown", "unsafe"]


class TypeFacts(Protocol):
    """The part of the newest contract that the checks ask about."""

    @property
    def version(self) -> int: ...
    @property
    def enabled(self) -> bool: ...
    @property
    def key_ttl_seconds(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question, its answer and the evidence. `name` is for programs and never changes."""

    name: str
    title: str
    result: Result
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """The worst answer decides; safe needs all of them known."""

    checks: Sequence[Check]
    at: datetime

    @property
    def verdict(self) -> Verdict:
        """Sum the answers up: what is not known is never safe."""
        results = {check.result for check in self.checks}
        if "fail" in results:
            return "unsafe"
        return "unknown" if "unknown" in results else "safe"


def holder_of(job: Job) -> UUID | None:
    """Return the job that holds the dedupe key now."""
    if job.dedupe_key is None:
        return None
    return DedupeKey.objects.filter(type=job.type, key=job.dedupe_key).values_list("job_id", flat=True).first()


def judge(job: Job, *, holder: UUID | None, known: TypeFacts | None, now: datetime) -> Preflight:
    """Answer every check. `holder` is the job that holds the dedupe key, `known` the newest contract, if any."""
    checks = [
        _open(job),
        _done(job),
        _key(job, known.key_ttl_seconds if known else 0, now=now),
        _superseded(job, holder),
        _contract(job, known),
    ]
    return Preflight(checks=checks, at=now)


def late_evidence(job: Job, outcome: str) -> list[Mapping[str, Any]]:
    """Return what came of this outcome after the job had ended, oldest first."""
    return [one for one in job.late_evidence or [] if isinstance(one, dict) and one.get("outcome") == outcome]


def _open(job: Job) -> Check:
    name, title = "open", "Already resolved"
    if job.replayed_by is not None:
        return Check(name=name, title=title, result="fail", evidence=f"It was replayed as {job.replayed_by}")
    if job.resolution != Resolution.OPEN:
        return Check(name=name, title=title, result="fail", evidence=f"It was {job.resolution} by {job.resolved_by}")
    if job.erased_at is not None:
        return Check(name=name, title="Payload kept", result="fail", evidence="Its payload was erased")
    return Check(name=name, title="Not yet resolved", result="pass", evidence="Nobody replayed or cancelled it")


def _done(job: Job) -> Check:
    name, unknown = "already_done", "Not already done"
    if late_evidence(job, "confirmed"):
        return Check(name=name, title="Already done", result="fail", evidence="It was confirmed late, after this end")
    if not job.begun:
        return Check(name=name, title=unknown, result="pass", evidence="No attempt ever began")
    words = "An attempt began, and nobody asked the outside world whether it had an effect"
    if late_evidence(job, "rejected"):
        words = "The outside world rejected it late; whether another attempt had an effect, nobody asked"
    elif job.reference:
        words = "An attempt handed it over and got a reference; nobody confirmed or rejected that"
    return Check(name=name, title=unknown, result="unknown", evidence=words)


def _key(job: Job, ttl_seconds: int, *, now: datetime) -> Check:
    name, title = "idempotency_key", "Idempotency key still honoured"
    if not job.begun:
        return Check(name=name, title=title, result="pass", evidence="The key was never sent")
    if not ttl_seconds:
        words = "The contract does not say how long the provider keeps it"
        return Check(name=name, title=title, result="unknown", evidence=words)
    left = job.accepted_at + timedelta(seconds=ttl_seconds) - now
    if left <= timedelta(0):
        words = f"The provider forgot it {_span(-left)} ago: the work could be done twice"
        return Check(name=name, title=title, result="fail", evidence=words)
    return Check(name=name, title=title, result="pass", evidence=f"The provider keeps it for another {_span(left)}")


def _superseded(job: Job, holder: UUID | None) -> Check:
    name, title = "superseded", "Not superseded"
    if job.dedupe_key is None:
        words = "Sent without a dedupe key, so nobody can tell"
        return Check(name=name, title=title, result="note", evidence=words)
    if holder is not None and holder != job.id:
        return Check(name=name, title="Superseded", result="fail", evidence=f"The job {holder} holds this key now")
    return Check(name=name, title=title, result="pass", evidence="No other job holds this key")


def _contract(job: Job, known: TypeFacts | None) -> Check:
    name = "contract"
    if known is None or not known.enabled:
        words = "The job type is disabled or was deleted"
        return Check(name=name, title="Type accepts jobs", result="fail", evidence=words)
    if known.version != job.contract_version:
        words = f"Accepted under v{job.contract_version}, runs under v{known.version}"
        return Check(name=name, title="Contract changed since acceptance", result="note", evidence=words)
    words = f"Still v{known.version}; a replay gets a new max age"
    return Check(name=name, title="Same contract", result="pass", evidence=words)


_UNITS: Final = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def _span(length: timedelta) -> str:
    """Say a length of time in its largest unit, cut off: 3 days, 59 minutes."""
    seconds = length.total_seconds()
    size, word = next((unit for unit in _UNITS if seconds >= unit[0]), (1, "second"))
    n = int(seconds // size)
    return f"{n} {word}{'' if n == 1 else 's'}"
