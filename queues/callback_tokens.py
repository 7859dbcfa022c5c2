"""Callback tokens: the job, its run, and a proof that we gave them out. Nothing is stored.

What a callback does to the job is the API's and `lifecycle`'s.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.conf import settings
from django.utils.encoding import force_bytes

_PURPOSE: Final = b"jobsboard.callback.v1"
_NAMED: Final = struct.Struct(">16sI")
_PROOF_BYTES: Final = 32


@dataclass(frozen=True)
class CallbackToken:
    """The run that a callback speaks about."""

    job_id: UUID
    fence: int


def callback_token(job_id: UUID, fence: int) -> str:
    """Make the token of one run.

    Shape: 70 characters of base64url, without padding.
    """
    named = _NAMED.pack(job_id.bytes, fence)
    return _text(named + _proof(named, key=next(_keys())))


def verify(token: str) -> CallbackToken | None:
    """Return what a token names, or None if it is not one of ours."""
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii") + b"==")
    except (UnicodeEncodeError, binascii.Error):
        return None
    # One run has one token: a decoder would forgive other spellings of the same bytes.
    if len(raw) != _NAMED.size + _PROOF_BYTES or _text(raw) != token:
        return None
    named, proof = raw[: _NAMED.size], raw[_NAMED.size :]
    if not any(hmac.compare_digest(_proof(named, key=key), proof) for key in _keys()):
        return None
    job_id, fence = _NAMED.unpack(named)
    return CallbackToken(job_id=UUID(bytes=job_id), fence=fence)


def _keys() -> Iterator[bytes]:
    for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        yield hmac.digest(force_bytes(secret), _PURPOSE, hashlib.sha256)


def _proof(named: bytes, *, key: bytes) -> bytes:
    return hmac.digest(key, named, hashlib.sha256)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
