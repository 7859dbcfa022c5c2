"""Dead letters of three failures, made through the public calls so that every count is written."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from django.db import connection

from benchmarks.plan_kill.handlers import BAD, CLOSED, DONE, FLAKY, PLAIN, TYPE, ask
from queues import lifecycle
from queues.accept import Item, enqueue_many
from queues.lifecycle import End, Verdict
from queues.models import Job

BATCH: Final = 500
WORKER: Final = "plan-kill/1.1"
FATES: Final = {0: BAD, 1: DONE, 2: DONE, 3: DONE, 4: DONE, 5: DONE, 6: FLAKY, 7: FLAKY, 8: FLAKY, 9: CLOSED}
"""Of fifty jobs; the others are plain."""
FAILURES: Final = (
    ("permanent_error", "a" * 16, "ProviderDown", "the provider does not answer"),
    ("attempts_exhausted", "b" * 16, "ProviderSlow", "the provider took too long"),
    ("no_evidence", "c" * 16, "Unconfirmed", "the provider gave no reference"),
)
"""Reason, fingerprint, error class, message."""


@dataclass
class Deaths:
    """What died. `as_of`: after the last death, before anybody resolved one."""

    as_of: dt.datetime
    fates: dict[str, str] = field(default_factory=dict)
    """By the id of the job that died."""

    @property
    def closed(self) -> list[str]:
        return [job for job, fate in self.fates.items() if fate == CLOSED]


def die(count: int, *, kind: str = TYPE, effects: bool = True) -> Deaths:
    """Accept so many jobs and let each die after its first run; the provider did the work of some of them."""
    found = Deaths(as_of=dt.datetime.now(dt.UTC))
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        items = [
            Item(type=kind, payload={"key": f"k{n}", "fate": FATES.get(n % 50, PLAIN)}, dedupe_key=f"k{n}")
            for n in numbers
        ]
        ids = [receipt.job_id for receipt in enqueue_many(items)]
        fences = {run.id: run.fence for run in lifecycle.claim(ids, worker=WORKER)}
        lifecycle.settle([_death(n, job, fences[job]) for n, job in zip(numbers, ids, strict=True)])
        found.fates |= {str(job): FATES.get(n % 50, PLAIN) for n, job in zip(numbers, ids, strict=True)}
    if effects:
        _do_before(found)
    _put_back()
    found.as_of = _now()
    return found


def close(found: Deaths) -> None:
    """Resolve some, as somebody may between the look at the dead letters and the click."""
    ids = [UUID(job) for job in found.closed]
    for first in range(0, len(ids), BATCH):
        lifecycle.close_dead_letters(ids[first : first + BATCH], resolution="ignored", by="somebody")


def fold() -> None:
    """Add up all counts that were written."""
    while lifecycle.fold():
        pass


def _death(number: int, job: UUID, fence: int) -> End:
    reason, fingerprint, error, message = FAILURES[number % len(FAILURES)]
    failure = {"error_class": error, "message": message, "traceback": ""}
    return End(
        id=job, fence=fence, verdict=Verdict.FAILED, reason=reason, fingerprint=fingerprint, failure=failure,
        seconds=0.1, unknown=reason == "no_evidence",
    )  # fmt: skip


def _do_before(found: Deaths) -> None:
    """Let the provider do the work of those that are done, as their only run did before it failed."""
    wanted = [UUID(job) for job, fate in found.fates.items() if fate == DONE]
    for first in range(0, len(wanted), BATCH):
        for job in Job.objects.filter(id__in=wanted[first : first + BATCH]):
            said = {"key": job.dedupe_key, "idempotency_key": job.idempotency_key, "job": str(job.id), "run": 1}
            ask("POST", "/effects", {**said, "maybe_duplicate": False})


def _put_back() -> None:
    """Count the deaths an hour ago: a plan begins nothing while what it depends on fails in the newest minutes."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE queues_outcomedelta SET at = at - interval '1 hour' WHERE measure NOT LIKE 'open.%'")


def _now() -> dt.datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT jobs_clock()")
        at: dt.datetime = cursor.fetchone()[0]
        return at
