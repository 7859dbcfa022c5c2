"""The Celery tasks: hints that jobs, or their checks, may be due. The row decides; whatever a message says, it can wake
at most a job that is due."""

import logging
from collections.abc import Sequence
from uuid import UUID

from celery import Task, shared_task

from queues import broker, worker_process
from queues.broker import CANARY_TASK, CHECK_TASK, TASK

log = logging.getLogger(__name__)


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
        runner.run(parsed)


@shared_task(name=CHECK_TASK, ignore_result=True)
def check(ids: Sequence[str]) -> None:
    """Ask the checks that are due of these jobs. A worker that stops leaves them to the next hint."""
    parsed = _parsed(ids)
    if parsed:
        worker_process.runner().check(parsed)


@shared_task(name=CANARY_TASK, ignore_result=True)
def canary(ids: Sequence[str]) -> None:
    """Show that this worker takes messages; sent by the heartbeat process beside it."""
    worker_process.runner().table.hear()


def _parsed(ids: Sequence[str]) -> list[UUID]:
    try:
        return [UUID(job_id) for job_id in ids]
    except (ValueError, TypeError, AttributeError):
        log.warning("a hint without job ids was dropped")
        return []
