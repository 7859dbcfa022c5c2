"""Handlers that act on the ledger: one that does not know whether it acted, one that can ask, one that is atomic, one
whose outcome is told later, one that looks whether it is cancelled, one that dies until the world is cured."""

import http.client
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

from queues.callback_tokens import callback_token
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext, PermanentError, check, handler

PLAIN, CHECKED, ATOMIC = "chaos.plain", "chaos.checked", "chaos.atomic"
CALLBACK, CANCELLED, DYING = "chaos.callback", "chaos.cancelled", "chaos.dying"
CANCEL_LOOKS, CANCEL_LOOK_SECONDS = 12, 0.05
WORK_SECONDS, WORKING = 2.0, 0.2
"""A share of the bodies works for up to so long before its effect: so that kills and stops find some at work."""


class Stopped(Exception):
    """The body saw that its job is cancelled, and did nothing."""


def _ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    client = http.client.HTTPConnection("127.0.0.1", int(os.environ["CHAOS_LEDGER_PORT"]), timeout=10)
    try:
        client.request(method, path, None if body is None else json.dumps(body))
        return json.loads(client.getresponse().read())
    finally:
        client.close()


def _said(job: JobContext) -> dict[str, Any]:
    return {"key": job.payload["key"], "run": job.run, "job": str(job.id), "maybe_duplicate": job.maybe_duplicate}


def _effect(job: JobContext) -> str:
    return str(_ask("POST", "/effects", _said(job))["ref"])


@contextmanager
def _noted(job: JobContext) -> Iterator[bool]:
    """Note beginning and end of a body; gives whether its key is cured. A killed body has no end.

    The time is CLOCK_MONOTONIC: the wall clock of this process may be hours wrong.
    """
    run = {"key": job.payload["key"], "run": job.run, "job": str(job.id), "type": job.type, "pid": os.getpid()}
    began = _ask("POST", "/runs", {**run, "phase": "start", "mono": time.monotonic()})
    try:
        yield bool(began["cured"])
    finally:
        _ask("POST", "/runs", {**run, "phase": "end", "mono": time.monotonic()})


def _work(job: JobContext) -> None:
    """Take as long as the key and the run say."""
    chance = random.Random(f"{job.payload['key']} {job.run}")
    if chance.random() < WORKING:
        threading.Event().wait(chance.uniform(0.0, WORK_SECONDS))


@handler(PLAIN)
@handler(CHECKED)
def act(job: JobContext) -> Confirmed:
    """Have an effect outside, and bring its reference back."""
    with _noted(job):
        _work(job)
        return Confirmed(ref=_effect(job))


@check(CHECKED)
def acted(job: JobContext) -> Confirmed | None:
    """Ask the ledger whether an earlier run had its effect."""
    ref = _ask("GET", f"/effects/{job.payload['key']}")["ref"]
    return Confirmed(ref=ref) if ref else None


@handler(ATOMIC, atomic=True)
def write(job: JobContext) -> Confirmed:
    """Write a row in the transaction that confirms the job."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO chaos_row (job_id, run) VALUES (%s, %s)", [job.id, job.run])
    return Confirmed(ref=f"{job.payload['key']}/{job.run}")


@handler(CALLBACK)
def hand_over(job: JobContext) -> AwaitingConfirmation:
    """Hand the work to somebody who calls back with this run's token."""
    with _noted(job):
        said = {**_said(job), "token": callback_token(job.id, job.run)}
        return AwaitingConfirmation(ref=_ask("POST", "/handovers", said)["ref"])


@handler(CANCELLED)
def may_be_cancelled(job: JobContext) -> Confirmed:
    """Look for a cancel for a while, then act."""
    with _noted(job):
        for _ in range(CANCEL_LOOKS):
            if job.cancelled:
                raise Stopped("cancelled before it acted")
            threading.Event().wait(CANCEL_LOOK_SECONDS)
        return Confirmed(ref=_effect(job))


@handler(DYING)
def die(job: JobContext) -> Confirmed:
    """Die without any effect, until the key is cured."""
    with _noted(job) as cured:
        if not cured:
            raise PermanentError("the world is not cured yet")
        return Confirmed(ref=_effect(job))
