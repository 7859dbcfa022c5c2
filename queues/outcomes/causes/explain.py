"""Ask for an explanation: read what the caller has not read, and judge it."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from queues.models import ContractRevision, Job
from queues.outcomes.causes import facts as rows
from queues.outcomes.causes.checks import Machine
from queues.outcomes.causes.facts import OpenJobs, Situation
from queues.outcomes.causes.found import Why
from queues.outcomes.causes.limits import place_of
from queues.outcomes.causes.of_job import JobFacts, why_open
from queues.outcomes.causes.of_type import why_late
from queues.outcomes.causes.type_facts import Change, TypeFacts
from queues.outcomes.flow import Counts, add, below_since, flow
from queues.outcomes.limits import Limits, limits_of
from queues.outcomes.now import Board, Processes, processes
from queues.outcomes.ranges import Span
from queues.outcomes.times import STAGES, Stage, times
from queues.states import WAITING, JobState

VERSIONS: Final = 10
PAST: Final = dt.timedelta(minutes=10)
"""A span that ended so long ago is explained by its own numbers, not by how things stand now."""
_STAGE_MEASURES: Final = tuple(measure for measures in STAGES.values() for measure in measures)


def explain_type(
    name: str,
    *,
    board: Board,
    span: Span,
    broker: bool,
    series: Sequence[Counts] | None = None,
    stages: Sequence[Stage] | None = None,
    changes: Sequence[Change] | None = None,
    limits: Limits | None = None,
) -> Why | None:
    """Explain why a type is late in a span: three statements, and one for each of the last three that is not given.

    Of a type that is on time stages and changes are not read. A type with limits takes one to three more for `limits`.

    `series`: its counts by slot of that span. None when there is no such type.
    """
    known = board.types.get(name)
    found = rows.situation(name) if known is not None else None
    if known is None or found is None:
        return None
    series = flow(span, name=name).series() if series is None else series
    since = below_since(series, known.target, span)
    past = span.until < board.now - PAST
    bad = series if since is None else [one for begun, one in zip(span.slots, series, strict=True) if begun >= since]
    facts = TypeFacts(
        on=_machine(found, name=name, board=board, broker=broker, look=not past),
        window_seconds=known.window_seconds,
        target=known.target,
        total=add(series),
        bad=add(bad),
        since=since,
        open=OpenJobs() if past else rows.open_jobs(name, tiers=_tiers(board, name)),
        past=past,
        limits=(limits or limits_of(name)) if found.limited and not past else None,
        others_waiting=_others_waiting(board, name),
        waiting=board.count(*WAITING, name=name),
    )
    if facts.state in ("late", "overdue"):
        if stages is None:
            stages = times(span, name=name, measures=_STAGE_MEASURES).stages(name=name)
        facts = replace(facts, stages=stages, changes=_changes(name) if changes is None else changes)
    return why_late(facts)


def explain_job(
    job: Job, *, board: Board, broker: bool, success: str | None = None, retries_unconfirmed: bool = False
) -> Why:
    """Explain what a job waits for: at most three statements, four with limits, none for one that has settled.

    `success`, `retries_unconfirmed`: as the contract says under which it was accepted.
    """
    asked = job.settled_at is None
    found = rows.situation(job.type) if asked else None
    # A job keeps its type, also when somebody deletes that: then nothing else is known of it.
    found = found or Situation(now=board.now, as_of=board.folded_at)
    due = job.state in WAITING and job.due_at is not None and job.due_at <= found.now and not found.on_hold
    place = place_of(job) if due and found.limited else None
    ahead = place.ahead_in_group if place is not None else None
    return why_open(
        JobFacts(
            on=_machine(found, name=job.type, board=board, broker=broker, look=asked),
            job=job,
            ahead=rows.ahead_of(job) if due and ahead is None else ahead or 0,
            success=success or (found.success if job.state == JobState.AWAITING_CONFIRMATION else None),
            retries_unconfirmed=retries_unconfirmed,
            place=place,
        )
    )


def queue_of(board: Board, name: str) -> str:
    """Return the Celery queue that the hints of a type go to."""
    known = board.types.get(name)
    return "" if known is None else f"tier{known.tier}.{known.pool}" if known.pool else f"tier{known.tier}"


def _machine(found: Situation, *, name: str, board: Board, broker: bool, look: bool = True) -> Machine:
    there = processes() if look else Processes()
    return Machine(name=name, queue=queue_of(board, name), situation=found, broker=broker, processes=there)


def _tiers(board: Board, name: str) -> list[int]:
    """Return the tiers that a type has jobs in: one that moved leaves some behind."""
    return [board.types[name].tier, *(tier for tier, one in board.counts if one == name)]


def _others_waiting(board: Board, name: str) -> int:
    """Count jobs of other types that wait for the same queue, as far as folded."""
    queue = queue_of(board, name)
    others = [other for other in board.types if other != name and queue_of(board, other) == queue]
    return sum(board.count(JobState.ACCEPTED, name=other) for other in others)


def _changes(name: str) -> list[Change]:
    found = ContractRevision.objects.filter(job_type_id=name).order_by("-version")[:VERSIONS]
    return [
        change_of(version=version, at=at, actor=actor, rows=_rows_of(diff))
        for version, at, actor, diff in found.values_list("version", "at", "actor", "diff")
    ]


def change_of(*, version: int, at: dt.datetime, actor: str, rows: Iterable[tuple[str, Any, Any]]) -> Change:
    """Return a version from its changed fields, rows of (field, before, after)."""
    listed = list(rows)
    words = ", ".join(f"{field.replace('_', ' ')} {old} to {new}" for field, old, new in listed[:3])
    return Change(
        version=version, at=at, actor=actor, words=words or "no field changed",
        stricter=any(_is_stricter(*row) for row in listed),
    )  # fmt: skip


def _rows_of(diff: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(field, pair[0], pair[1]) for field, pair in diff.items() if isinstance(pair, list) and len(pair) == 2]


def _is_stricter(field: str, old: Any, new: Any) -> bool:
    try:
        before, after = float(old), float(new)
    except (TypeError, ValueError):
        return False
    return (field == "window_seconds" and after < before) or (field == "target_ratio" and after > before)
