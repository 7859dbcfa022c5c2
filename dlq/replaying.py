"""Replay one job if its verdict is still the one that was seen: look, ask, lock, look again, replay, in this order.

Not here: the statement that replays (`queues.lifecycle`), its audit entry (`queues.actions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import transaction

from dlq import facts as reading
from dlq import preflight
from dlq.preflight import Change, Preflight
from queues import actions, outside
from queues.edited_replay import Edited
from queues.models import Job

ASK_AGAIN_SECONDS: Final = 20
"""An older answer is asked for again before the transaction begins, in which it must be under outside.FRESH_SECONDS."""


class VerdictChanged(Exception):
    """What speaks for or against the replay is not what was seen a moment ago. `found` is the verdict now."""

    def __init__(self, found: Preflight, changes: Sequence[Change]) -> None:
        super().__init__("what is known about this job has changed since it was looked at")
        self.found = found
        self.changes = changes


class Unsafe(Exception):
    """Something speaks against the replay, and nobody has said that it is to be done all the same."""

    def __init__(self, found: Preflight) -> None:
        super().__init__(f"{found.worst.title}: {found.worst.evidence}")
        self.found = found


@dataclass(frozen=True, kw_only=True)
class Who:
    """On whose word. Shape: `source` is ui, api or command."""

    actor: str
    reason: str
    source: str
    request_id: str = ""


def look(job: Job, *, ask: bool = True, edited: Edited | None = None) -> Preflight:
    """Return the verdict about a replay of this job, as it is or edited; `ask` waits for a worker at most 2 s."""
    if ask and preflight.needs_answer(job) and not _asked_lately(job):
        outside.ask_and_wait([job.id])
    return _judge(job, edited)


def replay(
    job_id: UUID, *, who: Who, verdict: str | None = None, anyway: bool = False, edited: Edited | None = None
) -> UUID:
    """Replay one job; returns the new one. Not inside a transaction: a worker is asked first.

    `verdict` is the fingerprint of the preflight that was seen; None: nobody looked. `anyway`: also where something
    speaks against it (not where it cannot be done at all).
    Raises: VerdictChanged, Unsafe, actions.NotReplayable, actions.JobNotFound.
    """
    job = Job.objects.filter(id=job_id).first()
    if job is None:
        raise actions.JobNotFound(str(job_id))
    if preflight.needs_answer(job) and not _asked_lately(job):
        outside.ask_and_wait([job.id])
    with transaction.atomic():
        # Locked, so that nothing that the verdict stands on changes in this row before the replay is done.
        locked = Job.objects.select_for_update().filter(id=job_id).first()
        if locked is None:
            raise actions.JobNotFound(str(job_id))
        found = _judge(locked, edited)
        if not found.final:
            if verdict is not None and verdict != found.fingerprint:
                raise VerdictChanged(found, preflight.changes(verdict, found))
            if found.verdict == "unsafe" and not anyway:
                raise Unsafe(found)
        return actions.replay_job(
            job_id,
            actor=who.actor,
            reason=who.reason,
            source=who.source,
            request_id=who.request_id,
            edit=edited.edit if edited else None,
            diff=edited.diff if edited else None,
            verdict=summary(found),
        )


def summary(found: Preflight) -> dict[str, object]:
    """Return what the audit log keeps of a verdict."""
    results = {check.name: check.result for check in found.checks if check.result != "pass"}
    return {"verdict": found.verdict} | ({"checks": results} if results else {})


def _judge(job: Job, edited: Edited | None) -> Preflight:
    facts = reading.gather([job], fresh=True)[job.id]
    return preflight.judge(facts, edit=edited.edit if edited else None)


def _asked_lately(job: Job) -> bool:
    answer = outside.answers([job.id]).get(job.id)
    return answer is not None and not answer.pending and (answer.now - answer.at).total_seconds() < ASK_AGAIN_SECONDS
