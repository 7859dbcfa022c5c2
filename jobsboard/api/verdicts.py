"""Whether a replay is safe, as JSON, and the replay of one job with its refusals as problems.

Not here: what is checked (`dlq.preflight`), in which order it is done (`dlq.replaying`).
"""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID

from dlq import facts, replaying
from dlq.preflight import Change, Check, Preflight
from dlq.replaying import Unsafe, VerdictChanged, Who
from jobsboard.api import problems, times
from jobsboard.api.problems import Problem
from queues import actions
from queues.edited_replay import Edited
from queues.models import Job

FINGERPRINT: Final = r"^[0-9][a-z]{1,32}$"
"""The fingerprint of a preflight, handed back as `verdict`."""
_FINGERPRINT: Final = re.compile(FINGERPRINT)


def as_json(found: Preflight) -> dict[str, Any]:
    """Return a verdict with its checks."""
    return {
        "verdict": found.verdict,
        "fingerprint": found.fingerprint,
        "final": found.final,
        "checks": [_check(one) for one in found.checks],
    }


def replay(job: Job, *, who: Who, verdict: str | None, edited: Edited | None) -> UUID:
    """Replay one job; returns the new one. Who hands back an unsafe verdict, just as it is now, means it.

    Not inside a transaction. Raises: Problem 409, 404, 422.
    """
    if verdict is not None and not _FINGERPRINT.fullmatch(verdict):
        detail = "verdict is the fingerprint that a preflight, or a refusal, answered."
        raise Problem("invalid_request", detail, pointer="/verdict")
    try:
        return replaying.replay(job.id, who=who, verdict=verdict, anyway=verdict is not None, edited=edited)
    except VerdictChanged as changed:
        raise Problem(
            "verdict_changed", _changed_words(changed), **as_json(changed.found), changes=_changes(changed)
        ) from None
    except Unsafe as unsafe:
        detail = f"{unsafe}. To replay it all the same, send this fingerprint as verdict."
        raise Problem("unsafe_replay", detail, **as_json(unsafe.found)) from None
    except actions.NotReplayable as refused:
        raise _refused(job, refused) from None
    except actions.JobNotFound:
        raise problems.unknown_job() from None


def _check(one: Check) -> dict[str, Any]:
    return {
        "name": one.name,
        "title": one.title,
        "result": one.result,
        "evidence": one.evidence,
        "at": times.write(one.at),
        "final": one.final,
    }


def _changes(error: VerdictChanged) -> list[dict[str, str]]:
    return [
        {"name": one.name, "title": one.title, "was": one.was, "now": one.now, "evidence": one.evidence}
        for one in error.changes
    ]


def _changed_words(error: VerdictChanged) -> str:
    def said(one: Change) -> str:
        return f"{one.title}: was {one.was}, now {one.now}"

    return f"{'; '.join(said(one) for one in error.changes)}."


def _refused(job: Job, refused: actions.NotReplayable) -> Problem:
    """Say why not, and which job took its place."""
    members: dict[str, Any] = {}
    if refused.code == "already_replayed":
        child = Job.objects.filter(id=job.id).values_list("replayed_by", flat=True).first()
        members["replayed_by"] = None if child is None else str(child)
    elif refused.code == "key_moved_on":
        holder = facts.holders([job]).get((job.type, job.dedupe_key or ""))
        members["held_by"] = None if holder is None or holder.id == job.id else str(holder.id)
    return Problem(refused.code, f"{refused.detail}.", status=409, **members)
