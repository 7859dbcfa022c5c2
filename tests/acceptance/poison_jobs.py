"""Handlers that harm the process that runs them, each in its own way, and a healthy one beside them.

They are one job type, so that the scheduler puts the healthy and the harmful into the same chunks.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

from django.db import connection

from queues.handlers import Confirmed, JobContext, handler
from tests.acceptance.rolling_jobs import note

MIXED: Final = "poison.mixed"
BLOCKING: Final = "poison.blocking"
HOPELESS: Final = "poison.hopeless"
HEALTHY: Final = "healthy"


class Hurt(BaseException):
    """No Exception: what `except Exception` does not catch."""


@contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    """Let this process have so many bytes more than it has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def kill() -> None:
    """What the kernel does when the machine is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    """End the process without any cleaning up."""
    os._exit(0)


def crash() -> None:
    """A bug in C code."""
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    ctypes.string_at(0)


def leave_politely() -> NoReturn:
    """What a script that became a handler does at its end."""
    sys.exit(3)


def interrupt() -> NoReturn:
    """As Ctrl-C."""
    raise KeyboardInterrupt


def hurt() -> NoReturn:
    """Raise what nobody expects."""
    raise Hurt("on purpose")


def fill_memory() -> None:
    """Want more memory than there is."""
    with _memory_limit(64 << 20):
        bytearray(1 << 30)


def recurse() -> None:
    """Call itself for ever."""
    recurse()


def start_threads() -> None:
    """Start threads until there is no room for their stacks."""
    over = threading.Event()
    threads: list[threading.Thread] = []
    try:
        with _memory_limit(256 << 20):
            while len(threads) < 5000:
                threads.append(threading.Thread(target=over.wait))
                threads[-1].start()
    finally:
        over.set()
        for thread in threads[:-1]:
            thread.join()


def close_connection() -> None:
    """Close the connection that the worker uses as well, below Django, and leave it so."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connection.connection.close()


def break_connection() -> None:
    """Have the server end the connection in the middle of a transaction."""
    connection.set_autocommit(False)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def closed_by_name() -> None:
    """Close the connection as Django has it."""
    connection.close()


DEEDS: Final[dict[str, Callable[[], Any]]] = {
    deed.__name__: deed
    for deed in (
        kill, leave, crash, leave_politely, interrupt, hurt, fill_memory, recurse, start_threads,
        close_connection, break_connection, closed_by_name,
    )
}  # fmt: skip


@handler(MIXED)
def mixed(job: JobContext) -> Confirmed:
    """Do what the payload says, or nothing."""
    note(job, "start")
    deed = DEEDS.get(job.payload["do"])
    if deed is not None:
        deed()
    note(job, "end")
    return Confirmed(f"ref-{job.id}")


@handler(BLOCKING)
def blocking(job: JobContext) -> Confirmed:
    """Hold the interpreter in one single call: no other thread of this process runs until it is over."""
    note(job, "start")
    ctypes.PyDLL(None).sleep(job.payload["seconds"])
    note(job, "end")
    return Confirmed(f"ref-{job.id}")


@handler(HOPELESS)
def hopeless(job: JobContext) -> Confirmed:
    """Hold it in a regular expression that would need a few million years."""
    note(job, "start")
    re.match(r"(a+)+$", "a" * 64 + "b")
    note(job, "end")
    return Confirmed(f"ref-{job.id}")
