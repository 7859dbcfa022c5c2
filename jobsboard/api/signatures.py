"""Signed callbacks of providers: Standard Webhooks over the exact bytes, and the secrets that a job type takes.

Own code beside the library that signs for us: that one takes one secret, any number of signatures, times that are no
integers, and raises whatever comes up on a header that is none. Source: standardwebhooks.com, symmetric `v1`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest

from jobsboard.api.problems import Problem
from queues import http_target, secrets_box
from queues.contracts import Contract

TOLERANCE_SECONDS: Final = 300
SIGNATURES_MAX: Final = 10

# No dot: `id.timestamp.body` must be read in one way only.
_ID: Final = re.compile(r"[\x21-\x2d\x2f-\x7e]{1,255}")
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")
# Signs nothing. Without a secret the same work is done, so that the time does not tell which types have one.
_NO_KEY: Final = secrets.token_bytes(32)

_log = logging.getLogger(__name__)


def signed_headers(request: HttpRequest) -> tuple[str, str, list[bytes]]:
    """Return id, timestamp and signatures, as far as they can be judged without knowing the type.

    Raises: Problem 400 for an id that is none, 401.
    """
    headers = request.headers
    webhook_id = headers.get("webhook-id", "")
    given = headers.get("webhook-signature", "").encode(errors="replace").split()
    if not webhook_id or not given or len(given) > SIGNATURES_MAX:
        raise refused()
    if not _ID.fullmatch(webhook_id):
        raise Problem("webhook_id_invalid", "webhook-id has 1 to 255 visible ASCII characters and no dot.")
    timestamp = headers.get("webhook-timestamp", "")
    if not _TIMESTAMP.fullmatch(timestamp) or abs(_now() - int(timestamp)) > TOLERANCE_SECONDS:
        detail = f"webhook-timestamp is in whole seconds, at most {TOLERANCE_SECONDS} from now."
        raise Problem("timestamp_out_of_tolerance", detail, headers=_CHALLENGE)
    return webhook_id, timestamp, given


def is_signed(body: bytes, *, webhook_id: str, timestamp: str, given: Sequence[bytes], keys: Sequence[bytes]) -> bool:
    """Tell whether one of the keys made one of the signatures. All are compared, whichever fits."""
    content = f"{webhook_id}.{timestamp}.".encode() + body
    fits = False
    for key in keys or (_NO_KEY,):
        expected = b"v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256))
        for signature in given:
            fits |= hmac.compare_digest(expected, signature)
    return fits and bool(keys)


def refused() -> Problem:
    """Return the one answer to an unknown type, one without a secret, and a signature that is missing or wrong."""
    return Problem("signature_invalid", "The callback is not signed with a secret of this type.", headers=_CHALLENGE)


_CHALLENGE: Final = {"WWW-Authenticate": "Standard-Webhooks"}


def keys_of(contract: Contract) -> list[bytes]:
    """Return the keys that a type takes: of its variable, which may hold several, its stored secret and, for a while
    after a change, the one before.

    What cannot be read is logged and left out: the callback is then refused, and the provider sends it again.
    """
    keys = []
    for source, text in _texts(contract):
        try:
            keys.append(http_target.signing_key(text))
        except http_target.SecretMissing as error:
            _log.error("%s of job type %s cannot be used: %s", source, contract.name, error)
    return keys


def _texts(contract: Contract) -> Iterator[tuple[str, str]]:
    name = contract.callback_secret_env
    if name:
        for text in re.split(r"[\s,]+", os.environ.get(name, "")):
            if text:
                yield name, text
    sealed = [("callback_secret", contract.callback_secret)]
    until = contract.callback_secret_old_until
    if until is not None and until > datetime.fromtimestamp(_now(), tz=UTC):
        sealed.append(("callback_secret_old", contract.callback_secret_old))
    for source, box in sealed:
        if box is not None:
            try:
                yield source, secrets_box.open(box)
            except (secrets_box.CannotOpen, ImproperlyConfigured) as error:
                _log.error("%s of job type %s cannot be opened: %s", source, contract.name, error)


def _now() -> int:
    # How old a signature may be is a bound, not a decision about a job: the process's clock will do.
    return int(time.time())
