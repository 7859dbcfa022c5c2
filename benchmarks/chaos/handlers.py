"""Handlers that act on the ledger: one that does not know whether it acted, one that can ask, one that is atomic."""

import http.client
import json
import os
from typing import Any

from django.db import connection

from queues.handlers import Confirmed, JobContext, check, handler

PLAIN, CHECKED, ATOMIC = "chaos.plain", "chaos.checked", "chaos.atomic"


def _ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    client = http.client.HTTPConnection("127.0.0.1", int(os.environ["CHAOS_LEDGER_PORT"]), timeout=10)
    try:
        client.request(method, path, None if body is None else json.dumps(body))
        return json.loads(client.getresponse().read())["ref"]
    finally:
        client.close()


def _effect(job: JobContext) -> str:
    said = {"key": job.payload["key"], "run": job.run, "job": str(job.id), "maybe_duplicate": job.maybe_duplicate}
    return str(_ask("POST", "/effects", said))


@handler(PLAIN)
@handler(CHECKED)
def act(job: JobContext) -> Confirmed:
    """Have an effect outside, and bring its reference back."""
    return Confirmed(ref=_effect(job))


@check(CHECKED)
def acted(job: JobContext) -> Confirmed | None:
    """Ask the ledger whether an earlier run had its effect."""
    ref = _ask("GET", f"/effects/{job.payload['key']}")
    return Confirmed(ref=ref) if ref else None


@handler(ATOMIC, atomic=True)
def write(job: JobContext) -> Confirmed:
    """Write a row in the transaction that confirms the job."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO chaos_row (job_id, run) VALUES (%s, %s)", [job.id, job.run])
    return Confirmed(ref=f"{job.payload['key']}/{job.run}")
