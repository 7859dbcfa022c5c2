"""How services run: each in a thread of its own, so that a slow one delays no other. What they do is in their files.

Any number of schedulers may run side by side: every service acts through guarded statements.
"""

import logging
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from django.db import Error, connection

from queues import workers

log = logging.getLogger(__name__)

_STOP_SECONDS: Final = 5.0
_BACKOFF_CAP: Final = 10.0
REPORT_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Service:
    """One loop of the scheduler. `run_once` returns True when there is more to do at once."""

    name: str
    every_seconds: float
    run_once: Callable[[], bool]


_registry: Final[list[Service]] = []


def register(service: Service) -> None:
    """Add a service; apps do so in `ready()`."""
    if all(known.name != service.name for known in _registry):
        _registry.append(service)


def registered() -> Sequence[Service]:
    """Return the services of all apps."""
    return tuple(_registry)


def run_forever(services: Sequence[Service], *, stop: threading.Event) -> None:
    """Run services until `stop` is set, then let each finish what it does."""
    threads = [
        threading.Thread(target=_loop, args=(service, stop), name=service.name, daemon=True) for service in services
    ]
    for thread in threads:
        thread.start()
    process = workers.own_id()
    while True:
        try:
            workers.report(process, kind="scheduler", hostname=workers.hostname(), pid=os.getpid())
        except Error as error:
            log.warning("scheduler: database does not answer: %s", error)
            connection.close()
        if stop.wait(REPORT_SECONDS):
            break
    for thread in threads:
        thread.join(_STOP_SECONDS)
    try:
        workers.sign_off(process)
    except Error as error:
        log.warning("scheduler: could not sign off: %s", error)


def _loop(service: Service, stop: threading.Event) -> None:
    pause = service.every_seconds * random.random()
    failures = 0
    while not stop.wait(pause):
        try:
            more = service.run_once()
            failures = 0
            pause = 0.01 if more else service.every_seconds
        except Exception as error:  # a service never dies of one bad round: log, step back, go on
            failures += 1
            pause = min(service.every_seconds * 2**failures, _BACKOFF_CAP) * (0.5 + random.random() / 2)
            log.warning(
                "service %s failed, next try in %.1f s: %s: %s", service.name, pause, type(error).__name__, error
            )
            connection.close()
    connection.close()
