"""The one Celery task: a hint that jobs may be ready. The row decides; whatever the message says, it can wake at most
a job that is due."""

import logging
from collections.abc import Sequence
from uuid import UUID

from celery import Task, shared_task

from queues import broker, worker_process
from queues.broker import TASK

log = logging.getLogger(__name__)


@shared_task(name=TASK, ignore_result=True, bind=True)
def run(task: Task, ids: Sequence[str]) -> None:
    """Run what is due of these jobs."""
    try:
        parsed = [UUID(job_id) for job_id in ids]
    except (ValueError, TypeError, AttributeError):
        log.warning("a hint without job ids was dropped")
        return
    runner = worker_process.runner()
    if runner.table.draining:
        # This worker stops; the hint goes back for another one, or for this one's successor.
        broker.publish([((task.request.delivery_info or {}).get("routing_key") or "tier2", parsed)])
        return
    runner.run(parsed)
