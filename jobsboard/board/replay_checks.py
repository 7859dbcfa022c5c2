"""What is known about whether a replay is safe, from this database alone: passed, to note, refused or not known.

Not here: asking the outside world whether the work was done (a later release); until then it is "not known".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from jobsboard.board.svg import duration
from queues.models import Job
from queues.outcomes import TypeNow

Answer = Literal["pass", "note", "fail", "unknown"]
LOOKS: Final = {
    "pass": ("confirmed", "ok"),
    "note": ("retrying", "warn"),
    "fail": ("dead", "bad"),
    "unknown": ("cancelled", "help"),
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question, its answer and the evidence."""

    title: str
    answer: Answer
    evidence: str

    @property
    def css(self) -> str:
        """The look's class."""
        return LOOKS[self.answer][0]

    @property
    def icon(self) -> str:
        """The look's symbol."""
        return LOOKS[self.answer][1]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The worst answer decides; green needs all of them known."""

    title: str
    css: str
    checks: Sequence[Check]

    @property
    def words(self) -> str:
        """Count the answers."""
        named = (("pass", "pass"), ("note", "to note"), ("unknown", "not known"), ("fail", "against it"))
        counts = [(sum(check.answer == key for check in self.checks), word) for key, word in named]
        return ", ".join(f"{n} {word}" for n, word in counts if n)


def judge(job: Job, *, holder: UUID | None, known: TypeNow | None, now: datetime) -> Verdict:
    """Answer every check. `holder` is the job that holds the dedupe key now."""
    checks = [
        _done(job),
        _key(job, known.key_ttl_seconds if known else 0, now=now),
        _superseded(job, holder),
        _contract(job, known),
    ]
    answers = {check.answer for check in checks}
    if "fail" in answers:
        return Verdict(title="Do not replay", css="dead", checks=checks)
    if "unknown" in answers:
        return Verdict(title="Not known to be safe", css="cancelled", checks=checks)
    return Verdict(title="Safe to replay", css="confirmed", checks=checks)


def _done(job: Job) -> Check:
    if job.late_evidence:
        return Check(title="Already done", answer="fail", evidence="It was confirmed late, after this end")
    if not job.begun:
        return Check(title="Not already done", answer="pass", evidence="No attempt ever began")
    return Check(
        title="Not already done",
        answer="unknown",
        evidence="An attempt began, and nobody asked the outside world whether it had an effect",
    )


def _key(job: Job, ttl_seconds: int, *, now: datetime) -> Check:
    title = "Idempotency key still honoured"
    if not job.begun:
        return Check(title=title, answer="pass", evidence="The key was never sent")
    if not ttl_seconds:
        return Check(title=title, answer="unknown", evidence="The contract does not say how long the provider keeps it")
    left = (job.accepted_at + timedelta(seconds=ttl_seconds) - now).total_seconds()
    if left <= 0:
        words = f"The provider forgot it {duration(-left)} ago: the work could be done twice"
        return Check(title=title, answer="fail", evidence=words)
    return Check(title=title, answer="pass", evidence=f"The provider keeps it for another {duration(left)}")


def _superseded(job: Job, holder: UUID | None) -> Check:
    if job.dedupe_key is None:
        return Check(title="Not superseded", answer="note", evidence="Sent without a dedupe key, so nobody can tell")
    if holder is not None and holder != job.id:
        return Check(title="Superseded", answer="fail", evidence=f"The job {holder} holds this key now")
    return Check(title="Not superseded", answer="pass", evidence="No other job holds this key")


def _contract(job: Job, known: TypeNow | None) -> Check:
    if known is None or not known.enabled:
        return Check(title="Type accepts jobs", answer="fail", evidence="The job type is disabled or was deleted")
    if known.version != job.contract_version:
        words = f"Accepted under v{job.contract_version}, runs under v{known.version}"
        return Check(title="Contract changed since acceptance", answer="note", evidence=words)
    return Check(title="Same contract", answer="pass", evidence=f"Still v{known.version}; a replay gets a new max age")
