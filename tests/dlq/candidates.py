"""Handlers that a replay test tries: old code, new code with a fault, and code that wants to leave its sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
from celery import current_app
from django.contrib.auth.models import Group
from django.db import IntegrityError, close_old_connections, connection, transaction

from queues.accept import enqueue
from queues.handlers import Confirmed, JobContext, PermanentError

PORT = 0
"""Where a listener counts who comes; set before a test forks."""
OUTSIDE = Path("unset")
"""A file that must not come to be."""
INHERITED: list[int] = []
"""A socket and a file that were open before the fork."""


class UnknownCurrency(PermanentError):
    """The payload names no currency that we know."""


def old(job: JobContext) -> Confirmed:
    """The code that made the history: refuses other currencies, answers with a reference."""
    if job.payload["currency"] not in ("EUR", "CHF"):
        raise UnknownCurrency(f"no currency {job.payload['currency']}")
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO planted VALUES (%s)", [job.payload["cents"]])
    return Confirmed(f"tx-{job.id}", result={"cents": job.payload["cents"]})


def regressed(job: JobContext) -> Confirmed:
    """New code that forgot that an amount may be written as text."""
    print(job.payload, flush=True)  # noqa: T201 (what a candidate prints must not come out)
    logging.getLogger(__name__).error("%s", job.payload)
    if isinstance(job.payload["cents"], str):
        raise ValueError(f"bad amount {job.payload['cents']} of {job.payload['email'].upper()}, password=hunter2")
    return old(job)


def widened(job: JobContext) -> Confirmed:
    """New code that takes every currency."""
    return Confirmed(f"tx-{job.id}", result={"cents": 1})


class Provider:
    """A client whose one call leaves the process."""

    def charge(self, cents: Any) -> str:
        """Ask the provider."""
        with socket.create_connection(("127.0.0.1", PORT), timeout=1):
            return "ch_1"


PROVIDER = Provider()


def charge(job: JobContext) -> Confirmed:
    """Work that is one call to the outside."""
    return Confirmed(PROVIDER.charge(job.payload["cents"]))


@contextlib.contextmanager
def stubbed() -> Iterator[None]:
    """Stand in for the provider."""
    with mock.patch.object(Provider, "charge", lambda self, cents: f"ch_{int(cents)}"):
        yield


@contextlib.contextmanager
def broken_stub() -> Iterator[None]:
    """A stub that has a fault of its own."""
    if PORT >= 0:
        raise RuntimeError("no stub today")
    yield


# Ways out. Each is tried by a handler that keeps every error to itself.


def _native_connect() -> None:
    address = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(PORT), socket.inet_aton("127.0.0.1"))
    with socket.socket() as plain:
        ctypes.CDLL(None).connect(plain.fileno(), address, len(address))


def _native_datagram() -> None:
    address = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(PORT), socket.inet_aton("127.0.0.1"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        ctypes.CDLL(None).sendto(plain.fileno(), b"out", 3, 0, address, len(address))


def _datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        plain.sendto(b"out", ("127.0.0.1", PORT))


async def _stream() -> None:
    await asyncio.open_connection("127.0.0.1", PORT)


def _connect_ex() -> None:
    with socket.socket() as plain:
        plain.connect_ex(("127.0.0.1", PORT))


def _on_a_thread() -> None:
    thread = threading.Thread(target=_connect_ex)
    thread.start()
    thread.join()


def _fork() -> None:
    if os.fork() == 0:
        _connect_ex()
        os._exit(0)


def _program() -> list[str]:
    return ["touch", str(OUTSIDE)]


def _native_exec() -> None:
    # Over the heads of Python's own walls; a program that starts would take this process's place.
    ctypes.CDLL(None).execv(b"/usr/bin/touch", (ctypes.c_char_p * 3)(b"touch", bytes(OUTSIDE), None))


OUT: dict[str, tuple[str, Callable[[], object]]] = {
    "connect": ("network", lambda: PROVIDER.charge(1)),
    "connect_ex": ("network", _connect_ex),
    "datagram": ("network", _datagram),
    "asyncio": ("network", lambda: asyncio.run(_stream())),
    "http": ("network", lambda: urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=1)),
    "name": ("network", lambda: socket.getaddrinfo("example.org", 443)),
    "thread": ("network", _on_a_thread),
    "native": ("network", _native_connect),
    "native_datagram": ("network", _native_datagram),
    "fork": ("process", _fork),
    "program": ("process", lambda: subprocess.run(_program(), check=True)),
    "shell": ("process", lambda: os.system(f"touch {OUTSIDE}")),  # noqa: S605
    "native_program": ("process", _native_exec),
    "file": ("files", lambda: OUTSIDE.write_text("out")),
    "folder": ("files", lambda: OUTSIDE.mkdir()),
    "rename": ("files", lambda: Path(tempfile.mkstemp()[1]).rename(OUTSIDE)),
}


def uses_inherited(job: JobContext) -> Confirmed:
    """Write to what was open before the fork, and read its own file."""
    for number in INHERITED:
        os.write(number, b"out")
    with open(__file__, encoding="utf-8") as own:
        assert own.readline()
    return Confirmed("ok")


def leaves(job: JobContext) -> Confirmed:
    """Try one way out and say that all is well."""
    with contextlib.suppress(BaseException):
        OUT[job.payload["way"]][1]()
    return Confirmed("ok")


# Writes.


def _insert() -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO planted VALUES (1)")


def _in_atomic() -> None:
    with transaction.atomic():
        _insert()
        transaction.on_commit(_insert)


def _durable() -> None:
    with transaction.atomic(durable=True):
        _insert()


def _by_hand() -> None:
    transaction.set_autocommit(False)
    _insert()
    transaction.commit()
    _insert()
    transaction.rollback()
    transaction.set_autocommit(True)


def _reconnect() -> None:
    _insert()
    connection.close()
    close_old_connections()
    _insert()


def _said_commit() -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO planted VALUES (1)")
        with contextlib.suppress(Exception):
            cursor.execute("COMMIT")
        cursor.execute("INSERT INTO planted VALUES (2)")
        cursor.execute("COMMIT")


def _said_in_one() -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO planted VALUES (1); COMMIT; INSERT INTO planted VALUES (2); COMMIT")


def _driver_said() -> None:
    for _ in range(2):
        with contextlib.suppress(Exception):
            connection.connection.execute("INSERT INTO planted VALUES (1)")
            connection.connection.execute("COMMIT")


def _driver_commits() -> None:
    connection.connection.execute("INSERT INTO planted VALUES (1)")
    connection.connection.commit()


def _second() -> None:
    url = {name: connection.settings_dict[name] for name in ("HOST", "PORT", "USER", "PASSWORD")}
    with psycopg.connect(
        host=url["HOST"], port=url["PORT"], user=url["USER"], password=url["PASSWORD"],
        dbname=connection.settings_dict["NAME"], autocommit=True,
    ) as other:  # fmt: skip
        other.execute("INSERT INTO planted VALUES (1)")


def _thread_writes() -> None:
    thread = threading.Thread(target=_insert)
    thread.start()
    thread.join()


def _ddl() -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE planted_too (n integer)")


WRITES: dict[str, tuple[str, Callable[[], object]]] = {
    "plain": ("", _insert),
    "atomic": ("", _in_atomic),
    "durable": ("", _durable),
    "by_hand": ("", _by_hand),
    "reconnect": ("", _reconnect),
    "ddl": ("", _ddl),
    "model": ("", lambda: Group.objects.create(name="planted")),
    "enqueue": ("", lambda: enqueue("test.job", {"way": "enqueued"})),
    "celery": ("", lambda: current_app.send_task("queues.run", args=[[]], queue="tier2")),
    "said": ("transaction", _said_commit),
    "said_in_one": ("transaction", _said_in_one),
    "driver_said": ("transaction", _driver_said),
    "driver_commits": ("transaction", _driver_commits),
    "second": ("database", _second),
    "thread": ("database", _thread_writes),
}


def writes(job: JobContext) -> Confirmed:
    """Write in one way; of an error nothing is said."""
    with contextlib.suppress(Exception):
        WRITES[job.payload["way"]][1]()
    return Confirmed("ok")


def writes_openly(job: JobContext) -> Confirmed:
    """Write in one way, and fail with it."""
    WRITES[job.payload["way"]][1]()
    return Confirmed("ok")


# Ends.


def _hang() -> None:
    while True:
        time.sleep(0.05)


ENDS: dict[str, Callable[[], object]] = {
    "well": lambda: None,
    "exit": lambda: os._exit(3),
    "signal": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "leave": lambda: exit(1),
    "hang": _hang,
    "memory": lambda: len(bytearray(1 << 30)),
}


def ends(job: JobContext) -> Confirmed:
    """End in one way."""
    ENDS[job.payload["way"]]()
    return Confirmed("ok")


# What a worker would do with it.


def _goes_on() -> None:
    _insert_one("a")
    with contextlib.suppress(IntegrityError):
        _insert_one("a")
    assert Group.objects.filter(name="a").count() == 1


def _insert_one(name: str) -> None:
    Group.objects.create(name=name)


def _lock_outside() -> None:
    list(Group.objects.select_for_update())


def _lock_inside() -> None:
    with transaction.atomic():
        list(Group.objects.select_for_update())


def _rolls_back() -> None:
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        _insert_one("b")
        with transaction.atomic():
            _insert_one("c")
        raise ZeroDivisionError
    assert not Group.objects.filter(name__in=["b", "c"]).exists()


def _nobody() -> None:
    with connection.cursor() as cursor:
        # A foreign key of Django's is looked at when the transaction commits.
        cursor.execute("INSERT INTO auth_group_permissions (group_id, permission_id) VALUES (-1, -1)")


def _scratch() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").write_text("x")
        (Path(folder) / "a").rename(Path(folder) / "b")


WORKER: dict[str, tuple[str, Callable[[JobContext], object]]] = {
    "goes_on": ("", lambda job: _goes_on()),
    "rolls_back": ("", lambda job: _rolls_back()),
    "lock_inside": ("", lambda job: _lock_inside()),
    "lock_outside": ("TransactionManagementError", lambda job: _lock_outside()),
    "no_parent": ("IntegrityError", lambda job: _nobody()),
    "scratch": ("", lambda job: _scratch()),
    "steps": ("", lambda job: _steps(job)),
    "step_result": ("StepInvalid", lambda job: job.once("a", object)),
    "step_inside": ("StepInvalid", lambda job: transaction.atomic()(job.once)("a", dict)),
    "deadline": ("", lambda job: _times(job)),
}


def _steps(job: JobContext) -> None:
    done: list[int] = []

    def step() -> tuple[int, int]:
        done.append(1)
        return 1, 2

    assert job.once("a", step) == [1, 2]
    assert job.once("a", step) == [1, 2]
    assert done == [1]
    job.progress(0.5, "half")


def _times(job: JobContext) -> None:
    assert job.deadline.timestamp() > time.time() > job.accepted_at.timestamp()
    assert (job.attempt, job.maybe_duplicate, list(job.previous_attempts)) == (1, False, [])


def as_in_a_worker(job: JobContext) -> Confirmed:
    """Do one thing that a worker allows, or refuses."""
    WORKER[job.payload["way"]][1](job)
    return Confirmed("ok")
