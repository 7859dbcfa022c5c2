"""How the page of a job shows whether its replay is safe. Not here: the checks themselves (`dlq.preflight`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from dlq import preflight
from queues.models import Job
from queues.outcomes import TypeNow

LOOKS: Final = {
    "pass": ("confirmed", "ok"),
    "note": ("retrying", "warn"),
    "fail": ("dead", "bad"),
    "unknown": ("cancelled", "help"),
}
_VERDICTS: Final[Mapping[preflight.Verdict, tuple[str, str]]] = {
    "safe": ("Safe to replay", "confirmed"),
    "unknown": ("Not known to be safe", "cancelled"),
    "unsafe": ("Do not replay", "dead"),
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question, its answer and the evidence."""

    title: str
    answer: preflight.Result
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
    found = preflight.judge(job, holder=holder, known=known, now=now)
    title, css = _VERDICTS[found.verdict]
    checks = [Check(title=one.title, answer=one.result, evidence=one.evidence) for one in found.checks]
    return Verdict(title=title, css=css, checks=checks)
