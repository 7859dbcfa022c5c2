"""One try: open the endpoint's address and secrets, hold the address against the rules, sign, POST, read the answer.

Touches no database, so that it may run in a thread of its own.
Not here: what is tried when and what becomes of it (`delivery`), the connection and what it may reach
(`queues.outbound`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from jobsboard.alerts import addresses, signing
from queues import outbound, secrets_box
from queues.http_target import LONGEST_WAIT, retry_after
from queues.redaction import REDACTED, redact_text

SECONDS: Final = outbound.TOTAL_SECONDS
"""From the name to the last byte."""
EXCERPT_BYTES: Final = 1_024
_ERROR_CHARACTERS: Final = 300
_HEADERS: Final = {"Content-Type": "application/json", "User-Agent": "Jobsboard"}
_LOOKED_AT: Final = 4_096

Verdict = Literal["delivered", "failed", "gone"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a message goes, as it is stored. The old secret signs as long as it is here."""

    url_sealed: bytes
    secret_sealed: bytes | None = None
    secret_old_sealed: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of it. `status` is None without an answer, `wait` what the receiver asks for, at most an hour."""

    verdict: Verdict
    at: datetime
    status: int | None
    took_seconds: float
    error: str = ""
    excerpt: str = ""
    wait: float | None = None


def send(target: Target, *, message_id: str, body: str) -> Tried:
    """Try once. Raises nothing: whatever goes wrong is an answer to whoever looks why nothing arrives."""
    at, began = datetime.now(tz=UTC), time.monotonic()
    hidden: list[str] = []
    try:
        url = secrets_box.open(target.url_sealed)
        keys = [secrets_box.open(one) for one in (target.secret_sealed, target.secret_old_sealed) if one is not None]
        hidden = [*_parts(url), *keys, *(key.removeprefix("whsec_") for key in keys)]
        addresses.check_url(url)
        headers = {**_HEADERS, **signing.headers(message_id, body, keys=keys, at=at)}
        answer = outbound.post(url, body=body.encode(), headers=headers, seconds=SECONDS)
    except (addresses.AddressRefused, outbound.OutboundError, secrets_box.CannotOpen, ImproperlyConfigured) as error:
        return _failed(at, began, str(error))
    except Exception as error:  # a try never ends its thread without a word
        return _failed(at, began, f"{type(error).__name__}")
    return _read(answer, at=at, hidden=hidden)


def _failed(at: datetime, began: float, error: str) -> Tried:
    seconds = round(time.monotonic() - began, 3)
    return Tried(verdict="failed", at=at, status=None, took_seconds=seconds, error=error[:_ERROR_CHARACTERS])


def _read(answer: outbound.Answer, *, at: datetime, hidden: Iterable[str]) -> Tried:
    status = answer.status
    verdict: Verdict = "delivered" if 200 <= status < 300 else "gone" if status == 410 else "failed"
    error = "" if verdict == "delivered" else f"answered {status}"
    if 300 <= status < 400:
        error = f"redirect: answered {status}; redirects are not followed"
    wait = retry_after(answer.headers.get("retry-after", "")) if status in (429, 503) else None
    return Tried(
        verdict=verdict, at=at, status=status, took_seconds=round(answer.seconds, 3), error=error,
        excerpt=excerpt(answer.body, hidden=hidden), wait=None if wait is None else min(wait, LONGEST_WAIT),
    )  # fmt: skip


def excerpt(body: bytes, *, hidden: Iterable[str] = ()) -> str:
    """Return the start of an answer for people: readable, on one line, without secrets, at most EXCERPT_BYTES."""
    text = body[:_LOOKED_AT].decode("utf-8", "replace")
    for secret in hidden:
        # Some receivers answer with what they were asked for.
        text = text.replace(secret, REDACTED)
    text = "".join(char if char.isprintable() else " " for char in redact_text(text))
    return " ".join(text.split()).encode()[:EXCERPT_BYTES].decode("utf-8", "ignore")


def _parts(url: str) -> list[str]:
    """Return an address and those parts of it that may be secrets: its path, and tokens in path and query."""
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    # Long words in small letters are words.
    tokens = [one for one in re.split(r"[/?&=;]", path) if len(one) >= 8 and not re.fullmatch(r"[a-z_-]+", one)]
    return [url, *([path] if len(path) > 3 else []), *tokens]
