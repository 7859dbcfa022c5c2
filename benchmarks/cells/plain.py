"""Plain Celery's side of the effect, with the settings that its documentation names for what must not get lost."""

import os
import uuid
from typing import Any

from celery import Celery, Task

from benchmarks.cells.effect import TYPE, act

QUEUE = "cells"
URL, VISIBILITY = "BROKER_URL", "CELLS_VISIBILITY_SECONDS"
"""What a worker's environment says; the first is also an option of Celery's command line, and would win over ours."""


def make(url: str, *, visibility: int | None) -> Celery:
    """Return an application.

    visibility: seconds after which a message that nobody acknowledged is given out again; None is Celery's default,
    one hour. A short one comes with the restore throttle of 1 that kombu's documentation names for that case: with
    the default, expired messages are looked for only every 100 s.
    """
    options: dict[str, Any] = {}
    if visibility is not None:
        options = {"visibility_timeout": visibility, "unacked_restore_throttle": 1}
    app = Celery("cells", broker=url, set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        # A task that cannot be acknowledged any more is stopped, not left to run beside its second copy.
        worker_cancel_long_running_tasks_on_connection_loss=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=options,
        task_ignore_result=True,
        task_default_queue=QUEUE,
    )
    return app


app = make(os.environ.get(URL, ""), visibility=int(os.environ[VISIBILITY]) if os.environ.get(VISIBILITY) else None)


@app.task(bind=True, name=TYPE)  # type: ignore[untyped-decorator]
def run(task: Task, key: str, seconds: float) -> None:
    """Have the effect. Celery's way to tell of an earlier run is the flag `redelivered`."""
    told = bool((task.request.delivery_info or {}).get("redelivered"))
    act(key=key, seconds=seconds, run=uuid.uuid4().hex, told=told)
