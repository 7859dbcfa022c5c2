"""Handlers of the demo: mails by SMTP, with the mail server's queue id as evidence."""

import re
import smtplib
from email.message import EmailMessage
from typing import Any, Final

from jobsboard.demo import place
from queues.handlers import Confirmed, JobContext, PermanentError, handler

TIMEOUT_SECONDS: Final = 10.0
_QUEUED_AS: Final = re.compile(rb"queued as ([0-9A-Za-z]+)")


class MailDeferred(Exception):
    """The mail server refused for now (4xx)."""


@handler("onboarding.welcome_email")
def welcome_email(job: JobContext) -> Confirmed:
    """Greet a new customer."""
    return _send(job, subject="Welcome", body=f"Hello, customer {job.payload['user_id']}. Good to have you here.")


@handler("billing.receipt")
def receipt(job: JobContext) -> Confirmed:
    """Send the receipt for a payment."""
    euros = job.payload["amount_cents"] / 100
    return _send(job, subject=f"Receipt {job.payload['invoice_id']}", body=f"We received {euros:.2f} EUR. Thank you.")


@handler("digest.weekly")
def digest(job: JobContext) -> Confirmed:
    """Send the summary of a week."""
    return _send(job, subject=f"Your week {job.payload['week']}", body="All is well.")


def _send(job: JobContext, *, subject: str, body: str) -> Confirmed:
    """Hand one message to the mail server and return its queue id.

    Raises: MailDeferred (4xx, time-outs), PermanentError (5xx).
    """
    message = EmailMessage()
    message["From"] = "hello@jobsboard.example"
    message["To"] = job.payload["email"]
    message["Subject"] = subject
    # Stable over attempts and replays, so that a receiving system can drop a second copy.
    message["Message-ID"] = f"<{job.idempotency_key}@jobsboard.example>"
    message["X-Maybe-Duplicate"] = "yes" if job.maybe_duplicate else "no"
    message.set_content(body)
    try:
        with smtplib.SMTP("127.0.0.1", place.mail_port(), timeout=TIMEOUT_SECONDS) as server:
            server.ehlo_or_helo_if_needed()
            _expect(server.mail("hello@jobsboard.example"))
            _expect(server.rcpt(job.payload["email"]))
            said = _expect(server.data(message.as_bytes()))
    except (OSError, smtplib.SMTPServerDisconnected) as error:
        raise MailDeferred(f"the mail server did not answer: {type(error).__name__}") from error
    found = _QUEUED_AS.search(said)
    return Confirmed(ref=found[1].decode() if found else None)


def _expect(answer: tuple[int, Any]) -> bytes:
    code, text = answer
    said = text if isinstance(text, bytes) else str(text).encode()
    if 200 <= code < 300:
        return said
    words = f"SMTP {code} {said.decode('utf-8', 'replace')}"
    raise PermanentError(words) if code >= 500 else MailDeferred(words)
