"""Did it happen twice? The card of a type, the list of its signs, and the signs of one job: what each figure can prove.

Not here: what makes a sign (`queues.lifecycle`), and how they are counted and read (`queues.outcomes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_safe

from jobsboard.board import shell
from jobsboard.board.params import Chosen, Params, chosen_range
from jobsboard.board.refresh import answer, live
from jobsboard.board.svg import share
from jobsboard.roles import require
from queues import outcomes
from queues.models import DedupeKey, Job, JobType
from queues.models.outcome import SuspectedDuplicate
from queues.outcomes import RANGES, Counts, Sign
from queues.redaction import redact_text

PAGE: Final = 50
HEAVY_RETRIES: Final = 0.05
ENOUGH_RUNS: Final = 100
Kind = SuspectedDuplicate.Kind


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the card. `n` is None where nothing ran; `meaning`: what it can prove, and what not."""

    kind: str
    name: str
    n: int | None
    meaning: str
    strong: bool
    url: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """The card: figures beside how many duplicates were suppressed, and how to read that. `doubt` where it is odd."""

    figures: Sequence[Figure]
    total: Counts
    reading: str
    doubt: bool
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One sign in a list: what was seen, in words, with both references where there are two. `job`: None if pruned."""

    sign: Sign
    name: str
    words: str
    known: str
    said: str
    detail: str
    job: Mapping[str, Any] | None
    strong: bool


_NAMES: Final[Mapping[str, tuple[str, str, str, str, bool]]] = {
    # Kind → column of Counts, name of many, of one, what it can and cannot prove, whether it is a strong sign.
    Kind.BLIND_ATTEMPT: (
        "blind_attempts",
        "Attempts that began blind",
        "Blind attempt",
        "May have happened twice: nobody knew how the attempt before had ended, and no check was asked. That one may as"
        " well have done nothing.",
        False,
    ),
    Kind.SECOND_REFERENCE: (
        "second_references",
        "Second references",
        "Second reference",
        "The outside world gave two different references of one kind for one key: a strong sign. Some providers name"
        " one effect twice.",
        True,
    ),
    Kind.CONTRADICTION: (
        "contradictions",
        "Contradictions",
        "Contradiction",
        "Confirmed, then rejected: one of the two words is wrong. It does not say that anything happened twice.",
        True,
    ),
    Kind.CONFIRMED_AFTER_REJECTION: (
        "confirmed_after_rejection",
        "Confirmed after a rejection",
        "Confirmed after a rejection",
        "Refused, and done all the same. What was done again because of the refusal has happened twice; if nothing was,"
        " it happened once.",
        True,
    ),
}


def card(total: Counts, row: JobType, chosen: Chosen) -> Card:
    """Judge what the rollups counted in a range: no statement, or one where a type needs no key."""
    figures = [
        Figure(
            kind=kind,
            name=name,
            n=getattr(total, column) if total.runs or total.suspected else None,
            meaning=meaning,
            strong=strong,
            url=f"{reverse('job-type-twice', args=[row.name])}?{urlencode([*_range(chosen), ('kind', kind)])}",
        )
        for kind, (column, name, _, meaning, strong) in _NAMES.items()
    ]
    reading, doubt = _reading(total, row)
    return Card(figures=figures, total=total, reading=reading, doubt=doubt, verdict=_verdict(total))


def _range(chosen: Chosen) -> list[tuple[str, str]]:
    """Name the range, also the usual one: a list without a range shows everything that is kept."""
    return chosen.given or [("range", chosen.name)]


def _verdict(total: Counts) -> str:
    if not total.runs and not total.suspected:
        return "Nothing ran in this range, so there is nothing to tell by."
    if not total.suspected:
        return "Nothing that can be seen here says so."
    strong, n = total.suspected - total.blind_attempts, total.blind_attempts
    blind = f"{n:,} attempt{'' if n == 1 else 's'} began without knowing how the one before had ended."
    if not strong:
        return f"It may have: {blind}"
    return f"{strong:,} strong sign{'' if strong == 1 else 's'}." + (f" And {blind}" if n else "")


def _reading(total: Counts, row: JobType) -> tuple[str, bool]:
    """Say how to read the suppression rate, and whether it is a reason to doubt."""
    sent, pressure = total.accepted + total.duplicates, total.retry_pressure
    if not sent:
        return "Nothing was sent in this range.", False
    if total.duplicates:
        return "Producers send again, and the key catches it.", False
    if not row.key_required and not row.key_template and not DedupeKey.objects.filter(type=row.name).exists():
        return "No key is required, and none was sent: a producer that sends again makes a second job.", False
    if pressure is not None and pressure >= HEAVY_RETRIES and total.runs >= ENOUGH_RUNS:
        words = f"{share(pressure)} of the runs are retries. Producers that retry would send duplicates, and none were"
        return f"{words} seen: is the key stable?", True
    return "None were sent, as far as the keys can tell.", False


@require("view")
@require_safe
@live
def twice(request: HttpRequest, name: str) -> HttpResponse:
    """List the signs of a type, newest first."""
    board = shell.board_of(request)
    if name not in board.types:
        raise Http404
    params = Params(request)
    kind = params.choice("kind", _NAMES)
    chosen = _chosen(request, params)
    after = _mark(params)
    since = chosen.span.since if chosen else None
    # A range up to now has no end: what was just seen is in it.
    until = chosen.until if chosen else None
    found = outcomes.signs(name=name, kind=kind, since=since, until=until, before=after, limit=PAGE + 1)
    rows = seen(found[:PAGE])
    context = {
        "title": f"{name}: did it happen twice?",
        "crumbs": [("Job types", reverse("job-types")), (name, reverse("job-type", args=[name])), ("Twice?", "")],
        "type": board.types[name],
        "rows": rows,
        "range_words": chosen.words if chosen else "",
        "meaning": _NAMES[kind][3] if kind else "",
        "filtered": kind is not None or chosen is not None,
        "newer": None,
        "older": found[PAGE - 1].id if len(found) > PAGE else None,
        "searched": f"{len(rows)} shown, newest first. A sign outlives its job.",
        "notes": params.notes,
        "keep": chosen.given if chosen and not chosen.name else [],
        "chips": chosen.given if chosen and not chosen.name else [],
        "filters": [
            {
                "name": "kind",
                "label": "Kind",
                "value": kind or "",
                "options": [(value, words[1]) for value, words in _NAMES.items()],
            },
            {
                "name": "range",
                "label": "Last",
                "value": chosen.name if chosen else "",
                "options": [(value, value) for value in RANGES],
            },
        ],
    }
    return answer(request, "board/twice.html", context, poll=15)


def _chosen(request: HttpRequest, params: Params) -> Chosen | None:
    """Return the range that was asked for; without one everything is shown that is kept."""
    board = shell.board_of(request)
    given = any(params.text(name, longest=64) for name in ("range", "from", "to"))
    chosen = chosen_range(params, now=board.now, folded_at=board.folded_at)
    return chosen if given else None


def _mark(params: Params) -> int | None:
    """Return the number of the last sign of the page before, which is no secret and needs no signature."""
    text = params.text("after")
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    params.notes.append("the page mark is not one of this list, so it begins with the newest")
    return None


def seen(signs: Sequence[Sign]) -> list[Seen]:
    """Say what each sign is, redacted; their jobs, as far as they are kept, are read in one statement."""
    ids = {sign.job_id for sign in signs}
    jobs = {
        row["id"]: row for row in Job.objects.filter(id__in=list(ids)).values("id", "state", "dedupe_key")
    } if ids else {}  # fmt: skip
    return [_seen(sign, jobs.get(sign.job_id)) for sign in signs]


def of_job(job: Job) -> list[Seen]:
    """Return the signs of a job and of its nearest kin: what it replays, what replays it, the first of its line."""
    kin: list[UUID] = [one for one in (job.id, job.root, job.replay_of, job.replayed_by) if one is not None]
    known = {"id": job.id, "state": job.state, "dedupe_key": job.dedupe_key}
    return [_seen(sign, known) for sign in outcomes.signs_of(list(dict.fromkeys(kin)))]


def _seen(sign: Sign, job: Mapping[str, Any] | None) -> Seen:
    texts = {name: redact_text(str(value)) for name, value in sign.detail.items() if value is not None}
    known, said, error = texts.get("known", ""), texts.get("said", ""), texts.get("error_class", "")
    words = {
        Kind.BLIND_ATTEMPT: f"Run {sign.fence} began after {error or 'a run of the job that it replays'}: how that had"
        " ended was not known",
        Kind.SECOND_REFERENCE: f"Said of run {sign.fence}",
        Kind.CONTRADICTION: "Rejected, and it is confirmed",
        Kind.CONFIRMED_AFTER_REJECTION: "Confirmed, and it had been rejected",
    }
    _, _, name, _, strong = _NAMES.get(sign.kind, ("", "", sign.kind.replace("_", " "), "", False))
    return Seen(
        sign=sign,
        name=name,
        words=words.get(Kind(sign.kind), "") if sign.kind in _NAMES else "",
        known=known,
        said=said,
        detail=texts.get("detail", ""),
        job=job,
        strong=strong,
    )
