"""The card that says whether a replay is safe, and what somebody may do about it.

Not here: the checks themselves (`dlq.preflight`), what is done (`replaying`, `editing`, `acting`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

from dlq import facts as reading
from dlq import preflight, replaying
from dlq.facts import Facts
from dlq.preflight import Preflight
from jobsboard.roles import can
from queues.models import Job
from queues.states import REPLAYABLE, JobState, Resolution

LOOKS: Final[Mapping[preflight.Result, tuple[str, str]]] = {
    "pass": ("confirmed", "ok"),
    "note": ("retrying", "warn"),
    "fail": ("dead", "bad"),
    "unknown": ("cancelled", "help"),
}
WORDS: Final[Mapping[preflight.Result, str]] = {
    "pass": "pass",
    "note": "to note",
    "unknown": "not known",
    "fail": "against it",
}
_VERDICTS: Final[Mapping[preflight.Verdict, tuple[str, str]]] = {
    "safe": ("Safe to replay", "confirmed"),
    "unknown": ("Not known to be safe", "cancelled"),
    "unsafe": ("Do not replay", "dead"),
}
NOT_ALLOWED: Final = "Something speaks against it. An admin may replay it all the same."


@dataclass(frozen=True, kw_only=True)
class Line:
    """One question, its answer and the evidence."""

    title: str
    result: preflight.Result
    evidence: str
    at: datetime

    @property
    def css(self) -> str:
        """The look's class."""
        return LOOKS[self.result][0]

    @property
    def icon(self) -> str:
        """The look's symbol."""
        return LOOKS[self.result][1]


@dataclass(frozen=True, kw_only=True)
class Card:
    """The worst answer decides; green needs all of them known.

    `replay` is what the button does: now, anyway (somebody may override it), not_allowed (another may) or never.
    `instead`: the job that took this one's place. `askable`: only the outside world knows whether the work was done.
    """

    title: str
    css: str
    lines: Sequence[Line]
    at: datetime
    replay: str
    edit: bool
    close: bool
    instead: UUID | None
    askable: bool
    fingerprint: str

    @property
    def words(self) -> str:
        """Count the answers."""
        counts = [(sum(line.result == key for line in self.lines), word) for key, word in WORDS.items()]
        return ", ".join(f"{n} {word}" for n, word in counts if n)


def possible(job: Job) -> bool:
    """Whether the page of a job has the card: it has ended without its outcome, and nobody has resolved that."""
    return job.state in REPLAYABLE and job.resolution == Resolution.OPEN and not job.probe and job.erased_at is None


def facts_of(job: Job, *, now: datetime | None = None) -> Facts:
    """Read what the checks look at. Nobody is asked. `now`: the database's time, where it is known."""
    return reading.gather([job], now=now)[job.id]


def card(job: Job, facts: Facts, user: AbstractBaseUser | AnonymousUser, *, found: Preflight | None = None) -> Card:
    """Return the card for one reader. `found`: the verdict, where it was got otherwise."""
    found = found or preflight.judge(facts)
    title, css = _VERDICTS[found.verdict]
    return Card(
        title=title,
        css=css,
        lines=lines(found),
        at=found.at,
        replay=pressable(found, user),
        edit=can(user, "see_payload") and facts.contract is not None and facts.contract.enabled,
        close=job.state == JobState.DEAD and job.resolution == Resolution.OPEN,
        instead=taken_by(job, facts),
        askable=preflight.needs_answer(job),
        fingerprint=found.fingerprint,
    )


def asked(job: Job, user: AbstractBaseUser | AnonymousUser) -> Card:
    """Ask a worker, wait at most two seconds for what it says, and return the card. Not inside a transaction."""
    found = replaying.look(job)
    return card(job, facts_of(job), user, found=found)


def pressable(found: Preflight, user: AbstractBaseUser | AnonymousUser) -> str:
    """Return what the replay button does for this reader."""
    if found.final:
        return "never"
    if found.verdict != "unsafe":
        return "now"
    return "anyway" if can(user, "replay_anyway") else "not_allowed"


def taken_by(job: Job, facts: Facts) -> UUID | None:
    """Return the job that took this one's place: its replay, or who holds its dedupe key now."""
    if job.replayed_by is not None:
        return job.replayed_by
    holder = facts.holder
    return holder.id if holder is not None and holder.id != job.id and holder.state is not None else None


def lines(found: Preflight) -> list[Line]:
    """Return the checks as rows."""
    return [Line(title=one.title, result=one.result, evidence=one.evidence, at=one.at) for one in found.checks]
