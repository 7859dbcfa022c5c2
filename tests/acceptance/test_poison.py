"""Jobs that kill, starve or confuse the process that runs them, among healthy ones in the same chunks (I-15, I-18)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

import pytest

from queues import broker
from queues.accept import Item, enqueue_many
from queues.states import JobState, Reason
from tests.acceptance.conftest import Stack, limbo
from tests.acceptance.fleet import Fleet
from tests.acceptance.poison_jobs import BLOCKING, DEEDS, HEALTHY, HOPELESS, MIXED
from tests.factories import fold_all, get, make_type, sql, state_counts, true_counts

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

LEASE: Final = 7
ATTEMPTS: Final = 2
POISON_AFTER: Final = 3
SLACK: Final = 120.0
HEALTHY_JOBS: Final = 96

S = JobState
DIED: Final = (S.DEAD, Reason.POISON, 0, POISON_AFTER, {"WorkerLost"})


def failed(error: str) -> tuple[Any, ...]:
    """The end of a job whose attempts all raised this."""
    return S.DEAD, Reason.ATTEMPTS_EXHAUSTED, ATTEMPTS, 0, {error}


CONFIRMED: Final = (S.CONFIRMED, None, 1, 0, set[str]())
ENDS: Final[dict[str, tuple[Any, ...]]] = {
    "kill": DIED,
    "leave": DIED,
    "crash": DIED,
    "leave_politely": failed("SystemExit"),
    "interrupt": failed("KeyboardInterrupt"),
    "hurt": failed("Hurt"),
    "fill_memory": failed("MemoryError"),
    "recurse": failed("RecursionError"),
    "start_threads": failed("RuntimeError"),
    "close_connection": CONFIRMED,
    "break_connection": failed("OperationalError"),
    "closed_by_name": CONFIRMED,
}
"""State, reason, attempts, crashes and error classes."""


@pytest.fixture
def poisoned(stack: Stack) -> Iterator[Fleet]:
    """A type whose jobs are healthy or harmful, and two that block."""
    stack.env["JOBSBOARD_HANDLERS"] = "tests.acceptance.poison_jobs"
    usual: dict[str, Any] = {"success": "reference", "lease_seconds": LEASE, "poison_after": POISON_AFTER,
                             "backoff": "fixed", "backoff_base_seconds": 0.1}  # fmt: skip
    make_type(MIXED, **usual, max_attempts=ATTEMPTS)
    make_type(BLOCKING, **usual, max_attempts=1)
    make_type(HOPELESS, **usual, max_attempts=1, hard_limit_seconds=1)
    fleet = Fleet(stack)
    yield fleet
    fleet.end()


def _end(job_id: UUID) -> tuple[Any, ...]:
    job = get(job_id)
    return job.state, job.reason, job.attempt, job.crashes, {failure["error_class"] for failure in job.failures}


def test_harm_stays_with_who_does_it(poisoned: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-15, scenario 5: whoever kills its process is buried as `poison` after three lone runs, crashes and attempts
    counted apart; who raises whatever it likes spends its attempts; every healthy job beside them is confirmed, none
    buried, and none runs again without being told. I-18: one that holds the interpreter for longer than its lease keeps
    it, for another process renews it; with a hard limit it is killed at that."""
    assert ENDS.keys() == DEEDS.keys()
    stack = poisoned.stack
    blocking = enqueue_many([Item(type=BLOCKING, payload={"seconds": LEASE + 2})])[0].job_id
    limited = enqueue_many([Item(type=HOPELESS, payload={})])[0].job_id
    # Each in one chunk with healthy ones, which nobody has been told of singly.
    monkeypatch.setattr(broker, "is_short", lambda name: False)
    ids: dict[UUID, str] = {}
    for deed in DEEDS:
        words = [HEALTHY] * 4 + [deed] + [HEALTHY] * 4
        receipts = enqueue_many([Item(type=MIXED, payload={"do": word}) for word in words])
        ids |= {receipt.job_id: word for receipt, word in zip(receipts, words, strict=True)}
        assert broker.publish([("tier2", [receipt.job_id for receipt in receipts])])
    assert Counter(ids.values())[HEALTHY] == HEALTHY_JOBS
    with poisoned.together():
        worker, _ = poisoned.worker(concurrency=3), poisoned.scheduler()
    stack.until(lambda: set(stack.states()) <= {"confirmed", "dead"}, seconds=SLACK)

    assert worker.poll() is None
    assert {ids[job]: _end(job) for job in ids if ids[job] != HEALTHY} == ENDS
    healthy = [job for job in ids if ids[job] == HEALTHY]
    assert {(get(job).state, get(job).crashes, get(job).attempt) for job in healthy} == {(S.CONFIRMED, 0, 1)}
    began: Counter[str] = Counter()
    for line in stack.runs("poison."):
        if line["what"] == "start":
            # Also who died after it had begun and before its first line may have acted, as far as anybody knows.
            assert line["maybe_duplicate"] or began[line["id"]] == 0
            began[line["id"]] += 1

    job = get(blocking)
    assert (job.state, job.attempt, job.fence, job.failures) == (S.CONFIRMED, 1, 1, [])
    assert began[str(blocking)] == 1
    [(ran,)] = sql(
        "SELECT extract(epoch FROM finished_at - started_at)::float8 FROM queues_job WHERE id = %s", blocking
    )
    assert ran > LEASE
    assert _end(limited) == (S.DEAD, Reason.TIME_LIMIT, 1, 0, {"HardTimeLimitExceeded"})
    assert limbo() == []
    fold_all()
    stack.until(lambda: state_counts() == true_counts(), seconds=5)
