"""How a Celery worker becomes ours: lease map and heartbeat process before the pool forks, a runner in each body's
process, draining on SIGTERM. Connected to Celery's signals by `QueuesConfig.ready`."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from celery import signals
from django.conf import settings
from django.db import close_old_connections, connections

from queues import broker, handlers
from queues.runtime.chunk import Runner, node_name
from queues.runtime.leases import LeaseTable

log = logging.getLogger(__name__)


class _Worker:
    """State of this process, inherited by forked bodies as far as it is shared."""

    table: LeaseTable | None = None
    runner: Runner | None = None
    heart: "subprocess.Popen[bytes] | None" = None
    main_pid = 0
    """The worker itself, whose signals Celery handles; 0 outside a worker."""
    lock = threading.Lock()


def runner() -> Runner:
    """Return this process's runner; outside a worker (tests, `run_pending`) one with a map of its own."""
    with _Worker.lock:
        if _Worker.runner is None:
            if _Worker.table is None:
                _Worker.table = LeaseTable()
            _Worker.runner = Runner(_Worker.table, node=node_name(), worker_pid=_Worker.main_pid)
        return _Worker.runner


def connect() -> None:
    """Connect the receivers; called once, when the application is ready."""
    signals.celeryd_after_setup.connect(_start_heart, weak=False)
    signals.worker_process_init.connect(_after_fork, weak=False)
    signals.worker_shutting_down.connect(_drain, weak=False)
    signals.task_prerun.connect(_close_broken_connections, weak=False)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let the first SIGTERM to a pool process pass by the bodies that it runs meanwhile; a second one ends it.

    systemd sends it to every process of a service, and the pool would raise SystemExit inside the body: the attempt
    would be spent and its work done again elsewhere. To drain is the worker's own business, it got the signal as well.
    """
    if os.getpid() == _Worker.main_pid or not _Worker.main_pid or not _on_main_thread():
        yield
        return
    # Asked first: the signal may come as soon as the handler is there.
    before, process = signal.getsignal(signal.SIGTERM), os.getpid()

    def pass_by(*_: Any) -> None:
        _restore(before)
        # What the body itself has forked has this handler, too, and has no worker that drains it.
        if os.getpid() != process:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_by)
    try:
        yield
    finally:
        _restore(before)


def _restore(before: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _start_heart(sender: Any, instance: Any, **_: Any) -> None:
    handlers.load(settings.JOBSBOARD_HANDLERS)
    _Worker.main_pid = os.getpid()
    _Worker.table = LeaseTable()
    queues = sorted(instance.app.amqp.queues.consume_from)
    # A queue of this worker's own: what comes through it shows that this very worker hears the broker.
    own = f"canary.{sender}"
    instance.app.amqp.queues.select_add(own)
    arguments = {
        "fd": _Worker.table.fd,
        "parent": os.getpid(),
        "node": node_name(),
        "queues": queues,
        "slots": int(instance.concurrency or os.cpu_count() or 1),
        "own_queue": own,
        "deaf_after": settings.WORKER_DEAF_SECONDS,
    }
    _launch(arguments)
    threading.Thread(target=_keep_heart, args=(arguments,), name="heart-watch", daemon=True).start()


def _launch(arguments: dict[str, Any]) -> None:
    _Worker.heart = subprocess.Popen(  # noqa: S603 (our own command)
        [sys.executable, "-m", "django", "heartbeat", json.dumps(arguments)],
        pass_fds=[arguments["fd"]],
        start_new_session=True,
    )


def _keep_heart(arguments: dict[str, Any]) -> None:
    """Start the heartbeat process again if it ends before us: without it every long run would lose its lease."""
    while True:
        heart = _Worker.heart
        if heart is not None:
            heart.wait()
            log.error("the heartbeat process ended with code %s, starting it again", heart.returncode)
            threading.Event().wait(0.5)
            _launch(arguments)


def _after_fork(**_: Any) -> None:
    # A forked body must not use its parent's sockets, nor its parent's finisher thread, which did not come along.
    for connection in connections.all(initialized_only=True):
        connection.connection = None
    _Worker.lock = threading.Lock()
    _Worker.runner = None
    broker.after_fork()


def _drain(**_: Any) -> None:
    if _Worker.table is not None:
        _Worker.table.drain()


def _close_broken_connections(**_: Any) -> None:
    # With connections reused, this is what notices a restarted PostgreSQL (FACTS.md section 3).
    close_old_connections()
