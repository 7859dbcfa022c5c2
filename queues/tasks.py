"""The one Celery task: a hint that jobs may be ready. The row decides; whatever the message says, it can wake at most
a job that is due."""

import logging
from collections.abc import Sequence
from uuid import UUID

from celery import shared_task

from queues import worker_process
from queues.broker import TASK

log = logging.getLogger(__name__)


@shared_task(name=TASK, ignore_result=True)
def run(ids: Sequence[str]) -> None:
    """Run what is due of these jobs."""
    try:
        parsed = [UUID(job_id) for job_id in ids]
    except (ValueError, TypeError, AttributeError):
        log.warning("a hint without job ids was dropped")
        return
    worker_process.runner().run(parsed)
