"""The HTTP handler and the HTTP check: one signed request to the team's own service, and its answer decides.

Not here: the connection and what it may reach (`outbound`); retries and states (`lifecycle`).

Signing follows Standard Webhooks. A secret written as `whsec_<base64>` is used as that library says. Any other
text is taken as it stands, as bytes: a receiver's library then needs `whsec_` + base64 of that text.
A check has no body: what is signed in its place is path and query of the request, as they stand in the request line.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import email.utils
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import urldefrag, urlencode, urlsplit

from django.conf import settings
from standardwebhooks import Webhook

from queues import outbound, secrets_box
from queues.callback_tokens import callback_token
from queues.faults import fault
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext, PermanentError, Rejected, RetryLater
from queues.redaction import redact_text

LONGEST_WAIT: Final = 3600.0
"""A Retry-After beyond an hour counts as an hour."""
CHECK_SECONDS: Final = 5.0
"""From the name to the last byte of a check: it is asked often, and jobs wait for it."""
_SNIPPET: Final = 1024
_LONGEST_REF: Final = 1000
_LONGEST_DETAIL: Final = 2000
_PERMANENT: Final = frozenset({400, 410, 422})
_WHSEC: Final = "whsec_"
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")


class Target(Protocol):
    """The part of a contract that says where work goes."""

    @property
    def target_url(self) -> str: ...
    @property
    def target_secret_env(self) -> str: ...
    @property
    def target_secret(self) -> bytes | None: ...


class CheckTarget(Protocol):
    """The part of a contract that says whom to ask."""

    @property
    def check_url(self) -> str: ...
    @property
    def target_secret_env(self) -> str: ...
    @property
    def target_secret(self) -> bytes | None: ...


class TargetFailed(Exception):
    """The service answered that it could not do the work now; a retry may help."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class CheckFailed(Exception):
    """The check could not answer; nothing is known of the outcome."""


class SecretMissing(Exception):
    """Requests cannot be signed. Retried: a mistake in the configuration must not bury thousands of jobs."""


def deliver(job: JobContext, contract: Target, *, seconds: float | None = None) -> Confirmed | AwaitingConfirmation:
    """Send the job to its target and read the answer, within so many seconds where they are said.

    Raises: PermanentError (400, 410, 422), RetryLater (429, 503 with Retry-After), and TargetFailed, SecretMissing,
        TargetRefused, TargetUnreachable, TargetTimeout, all of which are retried.
    """
    body = job.payload_text.encode()
    headers = _headers(job, signing_key(_secret(contract)), body=job.payload_text)
    # An address that is refused is retried too: a mistake in the allowed ranges, or a resolver that answers with a
    # private address for a moment, must not bury thousands of jobs at once.
    bound = {} if seconds is None else {"seconds": seconds}
    answer = outbound.post(contract.target_url, body=body, headers=headers, **bound)
    fault("http.answered")
    return _outcome(answer, host=urlsplit(contract.target_url).hostname or "")


def ask(job: JobContext, contract: CheckTarget) -> Confirmed | Rejected | None:
    """Ask the contract's check_url whether the outcome is true already; None says that it is not so far.

    Raises: CheckFailed for every answer but 200 with an outcome that it knows, and for none within CHECK_SECONDS.
    """
    url = _check_address(job, contract.check_url)
    host = urlsplit(url).hostname or ""
    try:
        headers = _check_headers(job, signing_key(_secret(contract)), target=outbound.request_target(url))
        answer = outbound.get(url, headers=headers, seconds=CHECK_SECONDS)
    except (outbound.OutboundError, SecretMissing) as error:
        raise CheckFailed(str(error)) from error
    if answer.status != 200:
        snippet = _snippet(answer.body)
        raise CheckFailed(f"{host} answered {answer.status}" + (f": {snippet}" if snippet else ""))
    return _verdict(_json_object(answer.body), host=host, known=job.reference)


def _check_address(job: JobContext, url: str) -> str:
    """Add what names the job to whatever query the address has."""
    named = {"job_id": str(job.id), "type": job.type, "idempotency_key": job.idempotency_key}
    if job.reference:
        named["ref"] = job.reference
    plain = urldefrag(url).url
    return f"{plain}{'&' if '?' in plain else '?'}{urlencode(named)}"


def _verdict(said: Mapping[str, Any], *, host: str, known: str | None) -> Confirmed | Rejected | None:
    outcome = said.get("outcome")
    if outcome == "unknown":
        return None
    if outcome == "confirmed":
        return Confirmed(_reference(said.get("ref")) or known or "confirmed by check")
    if outcome == "rejected":
        detail = said.get("detail")
        text = printable(detail) if isinstance(detail, str) else ""
        return Rejected(redact_text(text)[:_LONGEST_DETAIL] or f"{host} says that the work was rejected")
    raise CheckFailed(f'{host} answered 200 without {{"outcome": "confirmed", "rejected" or "unknown"}}')


def _secret(contract: Target | CheckTarget) -> str:
    name = contract.target_secret_env
    if name:
        value = os.environ.get(name, "").strip()
        if not value:
            raise SecretMissing(f"The environment variable {name} (target_secret_env) is not set for this worker.")
        return value
    if contract.target_secret is None:
        raise SecretMissing("No secret is set to sign requests with: set target_secret_env or the secret in the admin.")
    try:
        return secrets_box.open(contract.target_secret)
    except secrets_box.CannotOpen as error:
        raise SecretMissing(str(error)) from error


def signing_key(secret: str) -> bytes:
    """Return the key of a secret. Raises: SecretMissing when a `whsec_` one is not base64 or is empty."""
    if not secret.startswith(_WHSEC):
        key = secret.encode()
    else:
        text = secret.removeprefix(_WHSEC)
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise SecretMissing("The secret begins with whsec_, but the rest is not base64.") from None
    if not key:
        raise SecretMissing("The secret is empty.")
    return key


def _headers(job: JobContext, key: bytes, *, body: str) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        **_signed(job, key, content=body),
        "Jobsboard-Callback-Url": f"{settings.PUBLIC_URL}/api/v1/callbacks/jobs/{callback_token(job.id, job.run)}",
    }


def _check_headers(job: JobContext, key: bytes, *, target: str) -> dict[str, str]:
    # A cache between would go on saying "unknown" after the outcome came true.
    return {"Accept": "application/json", "Cache-Control": "no-store", **_signed(job, key, content=target)}


def _signed(job: JobContext, key: bytes, *, content: str) -> dict[str, str]:
    # The library replaces the zone without converting: only UTC gives the right signature.
    now = dt.datetime.now(tz=dt.UTC)
    job_id = str(job.id)
    headers = {
        "webhook-id": job_id,
        "webhook-timestamp": str(math.floor(now.timestamp())),
        "webhook-signature": Webhook(key).sign(job_id, now, content),
        "Idempotency-Key": job.idempotency_key,
        "Jobsboard-Job-Id": job_id,
        "Jobsboard-Job-Type": job.type,
        "Jobsboard-Attempt": str(job.attempt),
    }
    if job.probe:
        # Left out otherwise: many receivers only look whether a header is there.
        headers["Jobsboard-Probe"] = "true"
    trace = (job.trace or {}).get("traceparent", "")
    if isinstance(trace, str) and _TRACEPARENT.match(trace):
        headers["traceparent"] = trace
    return headers


def _outcome(answer: outbound.Answer, *, host: str) -> Confirmed | AwaitingConfirmation:
    if not 200 <= answer.status < 300:
        _refused(answer, host=host)
    said = _json_object(answer.body)
    ref = _reference(said.pop("ref", None))
    if answer.status == 202:
        return AwaitingConfirmation(ref or None)
    return Confirmed(ref, result=said or None)


def _refused(answer: outbound.Answer, *, host: str) -> NoReturn:
    message = f"{host} answered {answer.status}"
    snippet = _snippet(answer.body)
    if snippet:
        message += f": {snippet}"
    if answer.status in (429, 503):
        wait = retry_after(answer.headers.get("retry-after", ""))
        if wait is not None:
            raise RetryLater(wait, message)
    if answer.status in _PERMANENT:
        raise PermanentError(message)
    raise TargetFailed(message, status=answer.status)


def _snippet(body: bytes) -> str:
    """Return the start of an answer for people, with control characters written out."""
    return printable(body[:_SNIPPET].decode("utf-8", "replace").strip())


def printable(text: str) -> str:
    """Write control characters out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def retry_after(value: str) -> float | None:
    """Read Retry-After, in seconds or as a date.

    Units: seconds, from 0 to LONGEST_WAIT; None when it says nothing.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        # More digits than these are beyond the limit, and Python refuses to read very many.
        return LONGEST_WAIT if len(value) > 9 else min(float(value), LONGEST_WAIT)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    wait = (at if at.tzinfo else at.replace(tzinfo=dt.UTC)) - dt.datetime.now(tz=dt.UTC)
    return min(max(wait.total_seconds(), 0.0), LONGEST_WAIT)


def _json_object(body: bytes) -> dict[str, Any]:
    """Read a body that should be an object; anything else says nothing."""
    if not body:
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return dict(value) if isinstance(value, Mapping) else {}


def _reference(value: Any) -> str:
    """Return the reference that proves the outcome, or nothing: 0 and false prove none."""
    if isinstance(value, int) and not isinstance(value, bool) and value:
        value = str(value)
    if not isinstance(value, str):
        return ""
    text = value.strip()
    return text if len(text) <= _LONGEST_REF else ""
