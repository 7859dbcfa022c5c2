"""Time limits with real workers, in each pool: what becomes of the job, of its neighbours and of the process."""

from __future__ import annotations

import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

import pytest

from queues import lifecycle
from queues.models import WorkerProcess
from queues.runtime.heartbeat import REPLACE_GRACE
from queues.states import JobState, Reason
from tests.acceptance.conftest import Stack, limbo
from tests.acceptance.limit_jobs import BESIDE, DEAF, SOFT, STOPPABLE, STUCK
from tests.factories import accept, fold_all, get, make_type, sql, state_counts, true_counts

pytestmark = pytest.mark.acceptance

SLACK: Final = 60.0
"""Workers that are replaced have to start, on a machine that does other things, too."""
ACT: Final = 2.0
"""From a limit to its effect: half a second, and what a busy machine adds."""
START: Final = 10.0
"""The same in a worker that was just replaced: its heartbeat process, which looks at limits, starts beside it."""


class Supervisor:
    """Starts a worker, and the next one whenever it ends, as systemd does with Restart=always."""

    def __init__(self, stack: Stack, pool: str, *, concurrency: int = 4) -> None:
        self.stack, self.pool = stack, pool
        self.command = [
            "-m", "celery", "-A", "jobsboard", "worker", "-P", pool, "-c", str(concurrency), "-Q", "tier2",
            "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO",
        ]  # fmt: skip
        self.ends: list[int] = []
        self._over = threading.Event()
        self.process = self._start()
        stack.until(lambda: WorkerProcess.objects.filter(pid=self.process.pid).exists(), seconds=60)
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        return self.stack._start("worker", *self.command, "-n", f"w{len(self.stack._started)}@%h")

    def _keep(self) -> None:
        while not self._over.is_set():
            try:
                self.ends.append(self.process.wait(0.1))
            except subprocess.TimeoutExpired:
                continue
            if not self._over.is_set():
                self.process = self._start()

    def stop(self) -> None:
        """Let the next end be the last."""
        self._over.set()
        self._thread.join()
        if self.process.poll() is None:
            self.stack._hearts |= set(self.stack.hearts(self.process))


@pytest.fixture
def limits(stack: Stack) -> Iterator[Stack]:
    """Types with limits; two attempts, the second soon."""
    stack.env["JOBSBOARD_HANDLERS"] = "tests.acceptance.jobs,tests.acceptance.limit_jobs"
    usual: dict[str, Any] = {
        "success": "reference", "max_attempts": 2, "backoff": "fixed", "backoff_base_seconds": 0.1, "lease_seconds": 15,
    }  # fmt: skip
    make_type(SOFT, **usual, soft_limit_seconds=1, hard_limit_seconds=30)
    make_type(DEAF, **usual, soft_limit_seconds=1, hard_limit_seconds=2)
    make_type(STUCK, **{**usual, "max_attempts": 1}, hard_limit_seconds=2)
    make_type(BESIDE, **usual, soft_limit_seconds=30, hard_limit_seconds=60)
    make_type(STOPPABLE, **usual)
    yield stack


@pytest.fixture
def supervised(limits: Stack, request: pytest.FixtureRequest) -> Iterator[Supervisor]:
    """A scheduler, and a worker of this pool under a supervisor."""
    limits.scheduler()
    made = Supervisor(limits, request.param)
    yield made
    made.stop()


def _story(job_id: UUID) -> tuple[str, str | None, int, int, tuple[str, ...]]:
    job = get(job_id)
    return job.state, job.reason, job.attempt, job.crashes, tuple(f["error_class"] for f in job.failures)


def _seconds(job_id: UUID) -> list[float]:
    """Return how long each failed run was in hand."""
    rows = sql(
        "SELECT extract(epoch FROM (f ->> 'finished_at')::timestamptz - (f ->> 'started_at')::timestamptz)::float8"
        " FROM queues_job, jsonb_array_elements(failures) AS f WHERE id = %s",
        job_id,
    )
    return [float(seconds) for (seconds,) in rows]


def _true(stack: Stack) -> None:
    """Nothing in limbo, the counts are true, and only what ran before is told that it may be a duplicate."""
    assert limbo() == []
    fold_all()
    stack.until(lambda: state_counts() == true_counts(), seconds=5)
    ran: Counter[str] = Counter()
    for run in stack.runs("limit."):
        assert run["maybe_duplicate"] == (ran[run["id"]] > 0)
        ran[run["id"]] += 1


@pytest.mark.parametrize("supervised", ["prefork", "threads"], indirect=True)
def test_limits_stop_a_run_and_spare_its_neighbours(supervised: Supervisor) -> None:
    """I-29, I-31: over the soft limit, and over the hard one because it hears nothing: each fails twice and is dead,
    `time_limit`. Every neighbour is confirmed at its first go. Prefork kills a child; with threads the worker is
    replaced. Before that, a cancel reaches its body in about two seconds, whatever the lease."""
    stack = supervised.stack
    [stoppable] = accept(kind=STOPPABLE)
    stack.until(lambda: stack.runs("limit."), seconds=20)
    lifecycle.cancel([stoppable], reason=Reason.OPERATOR)
    assert stack.until(lambda: stack.states() == {"cancelled": 1}, seconds=20) < 1.75 + ACT

    [deaf], [slow], neighbours = accept(kind=DEAF), accept(kind=SOFT), accept(6, kind=BESIDE)
    stack.until(
        lambda: stack.states() == {"cancelled": 1, "dead": 2, "confirmed": 6}, seconds=SLACK + 3 * REPLACE_GRACE
    )
    assert _story(slow) == (JobState.DEAD, Reason.TIME_LIMIT, 2, 0, ("SoftTimeLimitExceeded",) * 2)
    assert {f["message"] for f in get(slow).failures} == {"the soft limit of 1 s passed"}
    assert all(1 <= seconds < 1 + START for seconds in _seconds(slow))
    assert _story(deaf) == (JobState.DEAD, Reason.TIME_LIMIT, 2, 0, ("HardTimeLimitExceeded",) * 2)
    assert all(2 <= seconds < 2 + START for seconds in _seconds(deaf)), _seconds(deaf)
    runs = [run for run in stack.runs("limit.") if run["id"] != str(stoppable)]
    assert Counter(run["id"] for run in runs) == {str(deaf): 2, str(slow): 2, **{str(job): 1 for job in neighbours}}
    first, second = [run for run in runs if run["id"] == str(deaf)]
    assert first["pid"] != second["pid"]
    _true(stack)
    if supervised.pool == "prefork":
        assert supervised.ends == []
    else:
        stack.until(lambda: supervised.ends == [-9, -9], seconds=SLACK)


@pytest.mark.parametrize("supervised", ["threads"], indirect=True)
def test_neighbours_of_a_body_that_holds_the_interpreter_run_again(supervised: Supervisor) -> None:
    """I-29: in threads they cannot go on beside it; they are lost without blame, and told so in their next run."""
    stack = supervised.stack
    neighbours = accept(2, kind=BESIDE)
    stack.until(lambda: len(stack.runs("limit.")) == 2, seconds=20)
    [stuck] = accept(kind=STUCK)
    stack.until(lambda: stack.states() == {"dead": 1, "confirmed": 2}, seconds=SLACK + 2 * REPLACE_GRACE)
    assert _story(stuck) == (JobState.DEAD, Reason.TIME_LIMIT, 1, 0, ("HardTimeLimitExceeded",))
    assert {_story(job) for job in neighbours} == {(JobState.CONFIRMED, None, 1, 0, ("WorkerLost",))}
    _true(stack)


@pytest.mark.parametrize("supervised", ["solo"], indirect=True)
def test_a_solo_worker_is_replaced_too(supervised: Supervisor) -> None:
    """It has one thread for everything; who looks at the clock is another process."""
    stack = supervised.stack
    [stuck], neighbours = accept(kind=STUCK), accept(2, kind=BESIDE)
    stack.until(lambda: stack.states() == {"dead": 1, "confirmed": 2}, seconds=SLACK)
    assert _story(stuck) == (JobState.DEAD, Reason.TIME_LIMIT, 1, 0, ("HardTimeLimitExceeded",))
    assert Counter(run["id"] for run in stack.runs("limit.")) == {str(job): 1 for job in [stuck, *neighbours]}
    assert supervised.ends == [-9]
    _true(stack)
