"""The Celery tasks: hints that jobs, or their checks, may be due. The row decides; whatever a message says, it can wake
at most a job that is due."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from celery import Task, shared_task
from django.db import InterfaceError, OperationalError, connection

from queues import broker, worker_process
from queues.broker import CANARY_TASK, CHECK_TASK, OUTSIDE_TASK, TASK
from queues.runtime import outside

log = logging.getLogger(__name__)

DATABASE_PAUSE: Final = 1.0


@shared_task(name=TASK, ignore_result=True, bind=True)
def run(task: Task, ids: Sequence[str]) -> None:
    """Run what is due of these jobs."""
    parsed = _parsed(ids)
    runner = worker_process.runner()
    if runner.table.draining:
        # This worker stops; the hint goes back for another one, or for this one's successor.
        broker.publish([((task.request.delivery_info or {}).get("routing_key") or "tier2", parsed)])
        return
    if parsed:
        _bounded(runner.run, parsed)


@shared_task(name=CHECK_TASK, ignore_result=True)
def check(ids: Sequence[str]) -> None:
    """Ask the checks that are due of these jobs. A worker that stops leaves them to the next hint."""
    parsed = _parsed(ids)
    if parsed:
        _bounded(worker_process.runner().check, parsed)


@shared_task(name=OUTSIDE_TASK, ignore_result=True)
def ask_outside(ids: Sequence[str]) -> None:
    """Answer whether the work of jobs that have ended was done after all: somebody wants to replay them."""
    parsed = _parsed(ids)
    if parsed:
        _bounded(outside.answer_all, parsed)


@shared_task(name=CANARY_TASK, ignore_result=True)
def canary(ids: Sequence[str]) -> None:
    """Show that this worker takes messages; sent by the heartbeat process beside it."""
    worker_process.runner().table.hear()


def _bounded(act: Callable[[Sequence[UUID]], int], ids: Sequence[UUID]) -> None:
    """Follow a hint. While the database is away the next one waits: taken at once, all would be burnt in a moment."""
    try:
        with worker_process.undisturbed():
            act(ids)
    except (OperationalError, InterfaceError) as error:
        connection.close()
        log.warning("the database does not answer, %d jobs are left to the next hint: %s", len(ids), error)
        threading.Event().wait(DATABASE_PAUSE)


def _parsed(ids: Sequence[str]) -> list[UUID]:
    try:
        return [UUID(job_id) for job_id in ids]
    except (ValueError, TypeError, AttributeError):
        log.warning("a hint without job ids was dropped")
        return []
