"""A producer in a process of its own: `python -m tests.scenarios.producer FILE`, until its standard input ends.

Four threads accept jobs, each with a key of its own, and write down what was acknowledged: one line `key id`. What
failed is sent again with the same key.
"""

from __future__ import annotations

import os
import sys
import threading

import django

django.setup()

from django.db import InterfaceError, OperationalError, connection  # noqa: E402

from jobsboard.testing.isolation import no_broker  # noqa: E402
from queues import contracts  # noqa: E402
from queues.accept import enqueue  # noqa: E402
from queues.models import JobType  # noqa: E402

THREADS = 4
TYPE = "crash.job"


def produce(number: int, target: int, stop: threading.Event) -> None:
    """Accept one job after the other."""
    n = 0
    while not stop.is_set():
        key = f"{number}-{n}"
        try:
            receipt = enqueue(TYPE, {"n": n}, dedupe_key=key)
        except (OperationalError, InterfaceError):
            connection.close()
            contracts.forget()
            stop.wait(0.02)
            continue
        os.write(target, f"{key} {receipt.job_id}\n".encode())
        n += 1
    connection.close()


def main(path: str) -> None:
    """Run the threads."""
    JobType.objects.get_or_create(name=TYPE, defaults={"tier_id": 2, "success": "return"})
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    stop = threading.Event()
    with no_broker():
        threads = [threading.Thread(target=produce, args=(number, target, stop)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
