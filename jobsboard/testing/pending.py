"""Do in this process, and on the test's own connection, what workers and the scheduler do: `run_pending`.

What a run, a check or a sweep decides is the runtime's and the lifecycle's; here is only in which order they come.
"""

import datetime as dt
import itertools
import logging
from collections.abc import Iterable
from functools import partial
from typing import Final
from uuid import UUID

from django.db.models import DateTimeField, F, Func, Min, Q

from jobsboard.testing.clock import Clock, running_ahead
from jobsboard.testing.isolation import no_broker
from jobsboard.testing.session import session
from queues import confirmation, handlers, lifecycle
from queues.lifecycle import Run
from queues.models import Job
from queues.runtime import checks
from queues.runtime.context import context_of
from queues.runtime.execute import execute
from queues.runtime.steps import RunSteps
from queues.states import WAITING

log = logging.getLogger(__name__)

WORKER: Final = "jobsboard.testing"
NO_TIME: Final = dt.timedelta()
_BATCH: Final = 500


def run_pending(
    *,
    type: str | None = None,  # noqa: A002 (the job's type)
    ahead: dt.timedelta = NO_TIME,
    limit: int = 1000,
) -> list[Job]:
    """Run what is due: jobs, checks, deadlines, lost leases and max ages, until nothing is due any more.

    With `ahead` it does what would happen in that time: the clock goes from one due time to the next, for this call
    only. So a retry, or a job with a later `run_at`, is run as well. `type` leaves the jobs of all others alone.
    Returns the jobs that something was done for, each once and as it is now.
    Raises: AssertionError after `limit` runs and checks: something is due over and over.
    """
    pending = _Pending(type, limit)
    with no_broker():
        pending.do_all()
        if ahead > NO_TIME:
            with running_ahead() as clock:
                pending.pass_time(clock, until=clock.now() + ahead)
    return pending.jobs()


def claim(job_id: UUID) -> Run | None:
    """Claim one job as a worker does; None when it is not due, too old, or its type is paused or deferred."""
    checked = handlers.checked_types()
    runs = lifecycle.claim([job_id], worker=WORKER, checked=checked)
    runs = runs or lifecycle.claim_limited([job_id], worker=WORKER, checked=checked)
    return next(iter(runs), None)


def _told_to_stop(run: Run) -> bool:
    pair = (run.id, run.fence)
    return pair not in lifecycle.holding([pair]) or pair in lifecycle.cancelled([pair])


class _Now(Func):
    """The database's clock, as lifecycle's statements see it."""

    function = "jobs_now"
    output_field = DateTimeField()


class _Pending:
    """One call of run_pending: whose jobs, how many runs are left, and what was done."""

    def __init__(self, kind: str | None, limit: int) -> None:
        self._all = Job.objects.all() if kind is None else Job.objects.of_type(kind)
        self._limit = limit
        self._begun = 0
        self._done: dict[UUID, None] = {}

    def jobs(self) -> list[Job]:
        """Return what something was done for, in that order."""
        found = {job.id: job for job in self._all.filter(id__in=list(self._done))}
        return [found[job_id] for job_id in self._done if job_id in found]

    def pass_time(self, clock: Clock, *, until: dt.datetime) -> None:
        """Go from one due time to the next."""
        while True:
            # Before the work, in which time goes on by itself: what falls due meanwhile is the next to be done.
            seen = clock.now()
            self.do_all()
            then = self._next(seen, until)
            if then is None:
                return
            clock.move_to(then)

    def do_all(self) -> None:
        """Do what is due, and what becomes due by that."""
        while any([self._sweep(), self._run_jobs(), self._ask_checks()]):
            pass

    def _next(self, after: dt.datetime, until: dt.datetime) -> dt.datetime | None:
        open_jobs = self._all.open()
        times = open_jobs.aggregate(
            due=Min("due_at", filter=Q(due_at__gt=after, due_at__lte=until)),
            old=Min("expires_at", filter=Q(expires_at__gt=after, expires_at__lte=until)),
        )
        return min((time for time in times.values() if time is not None), default=None)

    def _run_jobs(self) -> bool:
        due = self._all.filter(state__in=WAITING, due_at__lte=_Now()).order_by(F("priority").desc(), "due_at", "id")
        # One by one, as they are published while a queue is short.
        runs = 0
        for job_id in list(due.values_list("id", flat=True)):
            run = claim(job_id)
            if run is not None:
                runs += 1
                self._count(job_id)
                self._run(run)
        return runs > 0

    def _run(self, run: Run) -> None:
        with session():
            context = context_of(run, cancelled=partial(_told_to_stop, run), steps=RunSteps(run))
            ended = execute(run, context, begin=lambda hard_limit: None)
        end = ended.end
        if end.failure:
            log.info("%s %s, run %d: %s", run.type, run.id, run.fence, end.failure.get("traceback") or end.failure)
        if not ended.written and not lifecycle.settle([end]):
            lifecycle.count_superseded([(end.id, end.fence)])
        if end.reference:
            confirmation.apply_pending(job_ids=[end.id])

    def _ask_checks(self) -> bool:
        asked = 0
        names = list(self._all.filter(polled=True).values_list("type", flat=True).distinct())
        due = lifecycle.due_checks([(name, _BATCH) for name in names])
        for job_id, _ in itertools.chain.from_iterable(due.values()):
            for claimed in lifecycle.claim_checks([job_id]):
                asked += 1
                self._count(job_id)
                with session():
                    end = checks.poll(claimed)
                lifecycle.finish_checks([end])
        return asked > 0

    def _sweep(self) -> bool:
        moved: list[UUID] = []
        for due, end in (
            (lifecycle.lost, lifecycle.rescue),
            (lifecycle.stale, lifecycle.expire),
            (lifecycle.overdue, lifecycle.give_up_waiting),
        ):
            ids = self._ours(due(limit=_BATCH))
            moved += end(ids) if ids else ()
        self._done.update(dict.fromkeys(moved))
        return bool(moved) or confirmation.apply_pending() > 0

    def _ours(self, ids: Iterable[UUID]) -> list[UUID]:
        return list(self._all.filter(id__in=list(ids)).values_list("id", flat=True))

    def _count(self, job_id: UUID) -> None:
        self._done[job_id] = None
        self._begun += 1
        if self._begun > self._limit:
            raise AssertionError(
                f"{self._limit} runs and checks, and job {job_id} is due once more. Is it due at once, for ever?"
            )
