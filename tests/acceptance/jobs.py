"""Handlers for real workers. Each run writes a line, since its process may not live to tell."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import threading
import time
from email.message import EmailMessage
from functools import partial
from pathlib import Path

from django.db import connection

from queues.handlers import AwaitingConfirmation, Confirmed, JobContext, check, handler

QUICK, SLOW, POISON = "accept.quick", "accept.slow", "accept.poison"
ATOMIC, STEPS = "accept.atomic", "accept.steps"
MAIL, MAIL_CHECKED = "accept.mail", "accept.mail_checked"
CALLBACK, CHECKED = "accept.callback", "accept.checked"
FOLDER = Path(os.environ.get("ACCEPTANCE_FOLDER", "."))


class NoAnswer(Exception):
    """The mail server did not say whether it took the mail."""


def _note(job: JobContext) -> None:
    line = {
        "id": str(job.id), "type": job.type, "run": job.run, "attempt": job.attempt, "pid": os.getpid(),
        "maybe_duplicate": job.maybe_duplicate, "previous": [p["error_class"] for p in job.previous_attempts],
    }  # fmt: skip
    with open(FOLDER / "runs.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@handler(QUICK)
def quick(job: JobContext) -> Confirmed:
    """Say that it ran."""
    _note(job)
    return Confirmed(f"ref-{job.id}")


@handler(SLOW)
def slow(job: JobContext) -> Confirmed:
    """Run until the test lets it go."""
    _note(job)
    give_up = time.monotonic() + 90
    while not (FOLDER / "go").exists() and time.monotonic() < give_up:
        threading.Event().wait(0.02)
    return Confirmed(f"ref-{job.id}")


@handler(POISON)
def poison(job: JobContext) -> Confirmed:
    """Kill the process that runs it."""
    _note(job)
    os.kill(os.getpid(), signal.SIGKILL)
    return Confirmed("never")


@handler(ATOMIC, atomic=True)
def atomic(job: JobContext) -> Confirmed:
    """Write a row of its own; the first run dies after it, as far as its payload says so."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO accept_effect (job_id) VALUES (%s)", [job.id])
    if job.payload["n"] % 10 == 0 and job.run == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return Confirmed(f"ref-{job.id}")


@handler(STEPS)
def steps(job: JobContext) -> Confirmed:
    """Three steps with an effect each; each run but the last dies after one more step."""
    for number in range(3):
        job.once(f"step {number}", partial(_effect, job, f"step {number}"))
        if job.run == number + 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return Confirmed("all")


def _effect(job: JobContext, what: str) -> str:
    with open(FOLDER / "effects.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"id": str(job.id), "what": what}) + "\n")
    return what


@handler(MAIL)
@handler(MAIL_CHECKED)
def mail(job: JobContext) -> Confirmed:
    """Send a mail; its answer may get lost."""
    _note(job)
    message = EmailMessage()
    message["From"], message["To"] = "a@example.org", "b@example.org"
    message["Message-ID"] = f"<{job.idempotency_key}@example.org>"
    message["X-Maybe-Duplicate"] = "yes" if job.maybe_duplicate else "no"
    message.set_content("hello")
    try:
        with smtplib.SMTP("127.0.0.1", int((FOLDER / "smtp.port").read_text()), timeout=5) as server:
            server.send_message(message)
    except (OSError, smtplib.SMTPException) as error:
        raise NoAnswer(str(error)) from error
    return Confirmed(f"mail-{job.idempotency_key}")


@check(MAIL_CHECKED)
def was_it_sent(job: JobContext) -> Confirmed | None:
    """Look into the mail server's own log."""
    sent = (FOLDER / "mail.log").read_text().splitlines()
    return Confirmed("in the log") if any(job.idempotency_key in line for line in sent) else None


@handler(CALLBACK)
def hand_over(job: JobContext) -> AwaitingConfirmation:
    """Leave the proof to a callback."""
    _note(job)
    return AwaitingConfirmation(f"ext-{job.payload['n']}")


@handler(CHECKED)
def begin(job: JobContext) -> Confirmed:
    """Leave the proof to the check."""
    _note(job)
    return Confirmed("begun")


@check(CHECKED)
def has_it_happened(job: JobContext) -> Confirmed | None:
    """It has, once the test says so."""
    return Confirmed("seen") if (FOLDER / "go").exists() else None
