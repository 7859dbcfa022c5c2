"""The demo's mail provider as its customers see it: send a message, or ask whether it has one."""

import contextlib
import http.client
import json
import re
import smtplib
from email.message import EmailMessage
from typing import Any, Final
from urllib.parse import urlencode

from jobsboard.demo import place
from queues.handlers import PermanentError

TIMEOUT_SECONDS: Final = 10.0
SENDER: Final = "hello@jobsboard.example"
_QUEUED_AS: Final = re.compile(rb"queued as ([0-9A-Za-z]+)")


class MailDeferred(Exception):
    """The mail server refused for now (4xx), or nobody knows what it did."""


def message_id(idempotency_key: str) -> str:
    """Return the Message-ID of a job's mail: stable over attempts and replays, so that a second copy can be told."""
    return f"<{idempotency_key}@jobsboard.example>"


def send(
    *, to: str, subject: str, body: str, idempotency_key: str, maybe_duplicate: bool, probe: bool = False
) -> str | None:
    """Hand one message to the mail server and return its queue id, if it said one. A probe's says that it is one.

    Raises: MailDeferred (4xx, time-outs), PermanentError (5xx).
    """
    message = EmailMessage()
    message["From"] = SENDER
    message["To"] = to
    message["Subject"] = subject
    message["Message-ID"] = message_id(idempotency_key)
    message["X-Maybe-Duplicate"] = "yes" if maybe_duplicate else "no"
    if probe:
        message["X-Jobsboard-Probe"] = "true"
    message.set_content(body)
    try:
        with smtplib.SMTP("127.0.0.1", place.mail_port("smtp"), timeout=TIMEOUT_SECONDS) as server:
            server.ehlo_or_helo_if_needed()
            _expect(server.mail(SENDER))
            _expect(server.rcpt(to))
            said = _expect(server.data(message.as_bytes()))
    except (OSError, smtplib.SMTPServerDisconnected) as error:
        raise MailDeferred(f"the mail server did not answer: {type(error).__name__}") from error
    found = _QUEUED_AS.search(said)
    return found[1].decode() if found else None


def find(idempotency_key: str) -> str | None:
    """Ask the mail server for a job's message; returns its queue id, None when it has none.

    Raises: MailDeferred when it cannot say.
    """
    query = urlencode({"message_id": message_id(idempotency_key)})
    try:
        port = place.mail_port("search")
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)) as connection:
            connection.request("GET", f"/messages?{query}")
            answer = connection.getresponse()
            status, body = answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise MailDeferred(f"the mail server's search did not answer: {type(error).__name__}") from error
    if status != http.client.OK:
        raise MailDeferred(f"the mail server's search answered {status}")
    found: str | None = json.loads(body)["queue_id"]
    return found


def _expect(answer: tuple[int, Any]) -> bytes:
    code, text = answer
    said = text if isinstance(text, bytes) else str(text).encode()
    if 200 <= code < 300:
        return said
    words = f"SMTP {code} {said.decode('utf-8', 'replace')}"
    raise PermanentError(words) if code >= 500 else MailDeferred(words)
