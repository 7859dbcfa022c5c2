"""The cards "Why it is late" of a type and "Why it is not running" of a job: explanations, each with one next step.

Not here: the judgements (`queues.outcomes.causes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from django.http import HttpRequest
from django.urls import reverse

from jobsboard.board import shell
from jobsboard.board.changes import url_of_dependency
from jobsboard.roles import can
from queues import broker
from queues.contracts import Contract
from queues.models import Job
from queues.outcomes import Counts, Span, Stage, causes
from queues.outcomes.causes import Cause, Next, Verdict, Why
from queues.outcomes.limits import Limits
from queues.states import OPEN, JobState

_LOOK: Final[Mapping[Verdict, tuple[str, str, str]]] = {
    Verdict.CAUSE: ("dead", "bad", "Cause"),
    Verdict.UNKNOWN: ("cancelled", "help", "Not known"),
    Verdict.NOT_A_CAUSE: ("confirmed", "confirmed", "Not the cause"),
}
_LATER: Final = ("retrying", "warn", "Cause")
"""How causes look that come after the first."""
_OF_JOB: Final[Mapping[str, tuple[str, str]]] = {
    "running": ("processing", "processing"),
    "awaiting_confirmation": ("awaiting", "awaiting"),
    "scheduled": ("accepted", "clock"),
    "retrying": ("retrying", "retrying"),
    "backlog": ("accepted", "accepted"),
    "concurrency": ("accepted", "clock"),
    "group_concurrency": ("accepted", "clock"),
    "rate": ("accepted", "clock"),
    "group_rate": ("accepted", "clock"),
    "order": ("accepted", "clock"),
}
"""How causes look that are a part of every job's life: no alarm."""
_LABELS: Final[Mapping[str, str]] = {
    "jobs": "See jobs",
    "job": "Open job",
    "dead_letter": "Open dead letter",
    "dead_letters": "Dead letters",
    "dependency": "Open breaker",
    "job_type": "Open type",
    "contract": "Compare",
    "resume": "Resume",
    "undefer": "Stop deferring",
    "overview": "See workers",
}


class VersionLike(Protocol):
    """A version of a contract as the type's page has it: rows of (field, before, after)."""

    @property
    def number(self) -> int: ...
    @property
    def at(self) -> datetime: ...
    @property
    def actor(self) -> str: ...
    @property
    def rows(self) -> Sequence[tuple[str, str, str]]: ...


@dataclass(frozen=True, kw_only=True)
class Line:
    """One cause on a page."""

    cause: Cause
    css: str
    icon: str
    verdict: str
    url: str = ""
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """An explanation on a page: causes and what is not known as rows, what was ruled out as a list of sentences."""

    title: str
    intro: str
    why: Why
    lines: Sequence[Line]
    ruled_out: Sequence[Cause]


def of_type(
    request: HttpRequest,
    name: str,
    span: Span,
    *,
    series: Sequence[Counts],
    versions: Iterable[VersionLike] = (),
    stages: Sequence[Stage] | None = None,
    limits: Limits | None = None,
) -> Card | None:
    """Explain a type on its page: three statements, and what `causes.explain_type` reads that the page has not read."""
    changes = [causes.change_of(version=one.number, at=one.at, actor=one.actor, rows=one.rows) for one in versions]
    why = causes.explain_type(
        name,
        board=shell.board_of(request),
        span=span,
        broker=broker.ping(),
        series=series,
        changes=changes,
        stages=stages,
        limits=limits,
    )
    if why is None:
        return None
    late = why.state in ("late", "overdue")
    title = "Why it is late" if late else "What stops its jobs" if why.first else "Nothing is late"
    return _card(title, why, request, intro=why.sentence)


def of_job(request: HttpRequest, job: Job, contract: Contract | None) -> Card | None:
    """Explain an open job on its page: at most three statements, four with limits. None for one that has settled."""
    if job.state not in OPEN:
        return None
    why = causes.explain_job(
        job,
        board=shell.board_of(request),
        broker=broker.ping(),
        success=contract.success if contract else None,
        retries_unconfirmed=contract is not None and contract.on_unconfirmed == "retry",
    )
    begun = job.state in (JobState.PROCESSING, JobState.AWAITING_CONFIRMATION)
    # The first row says it already.
    intro = "" if why.first else why.sentence
    title = "Why it is not confirmed" if begun else "Why it is not running"
    return _card(title, why, request, intro=intro, calm=True)


def _card(title: str, why: Why, request: HttpRequest, *, intro: str, calm: bool = False) -> Card:
    lines: list[Line] = []
    ruled_out = []
    for cause in why.causes:
        if cause.verdict == Verdict.NOT_A_CAUSE:
            ruled_out.append(cause)
            continue
        css, icon, verdict = _LATER if lines and cause.verdict == Verdict.CAUSE else _LOOK[cause.verdict]
        # Behind a dead letter it waits for a person.
        if calm and cause.verdict == Verdict.CAUSE and not cause.evidence.get("blocked"):
            css, icon = _OF_JOB.get(cause.code, (css, icon))
        url, label = _link(cause.next, request)
        lines.append(Line(cause=cause, css=css, icon=icon, verdict=verdict, url=url, label=label))
    return Card(title=title, intro=intro, why=why, lines=lines, ruled_out=ruled_out)


def _link(to: Next | None, request: HttpRequest) -> tuple[str, str]:
    """Return the address and the words of a next step; none for one that this person may not take."""
    if to is None or (to.kind in ("resume", "undefer") and not can(request.user, "act")):
        return "", ""
    name = to.params.get("type", "")
    urls: dict[str, Any] = {
        "jobs": lambda: f"{reverse('jobs')}?{urlencode(sorted(to.params.items()))}",
        "job": lambda: reverse("job", args=[to.params["id"]]),
        "dead_letter": lambda: reverse("dead-letter", args=[to.params["id"]]),
        "dead_letters": lambda: f"{reverse('dead-letters')}?{urlencode(sorted(to.params.items()))}",
        "dependency": lambda: url_of_dependency(to.params["dependency"]),
        "job_type": lambda: reverse("job-type", args=[name]),
        "contract": lambda: (
            f"{reverse('job-type', args=[name])}?{urlencode({'version': to.params['version']})}#versions"
        ),
        "resume": lambda: reverse("job-type-turn", args=[name, "resume"]),
        "undefer": lambda: reverse("job-type-turn", args=[name, "undefer"]),
        "overview": lambda: reverse("overview"),
    }
    return urls[to.kind](), _LABELS[to.kind]
