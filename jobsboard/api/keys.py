"""API keys: their format, how one is issued, and who a header speaks for.

Not here: the gate that every API route passes (`jobsboard.api.access`), the admin page and the command.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import string
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from hmac import compare_digest
from typing import Final

from django.db.models import BooleanField, Case, Q, Value, When
from django.db.models.functions import Now

from jobsboard.models import RATE_MAX, RATE_MIN, SCOPES, ApiKey

CACHE_SECONDS: Final = 4.0
"""A revoked key is refused after at most this long (S-14 asks for five seconds)."""
LAST_USED_SECONDS: Final = 60.0

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_FORMAT: Final = re.compile(r"jb_live_([0-9A-Za-z]{8})_([\w-]{43})_([0-9A-Za-z]{6})", re.ASCII)
_HEADER: Final = re.compile(r"bearer +(\S{1,200})", re.IGNORECASE)
_PATTERN: Final = re.compile(r"[a-z0-9*?\[\]!._-]{1,64}")
_CACHED_KEYS: Final = 1024
# Compared when there is no such key, so that a miss costs what a hit costs.
_NO_DIGEST: Final = "0" * 64


@dataclass(frozen=True)
class Rate:
    """How many jobs the key of this row may send: a second, and at once."""

    key_id: int
    per_second: float
    burst: int


@dataclass(frozen=True)
class Key:
    """Who a request speaks for and what it may do."""

    prefix: str
    label: str
    scopes: frozenset[str]
    type_patterns: tuple[str, ...]
    rate: Rate | None = None
    """None: no limit."""

    @property
    def actor(self) -> str:
        """The name in the audit log."""
        return f"key:{self.prefix}"

    def may_use(self, job_type: str) -> bool:
        """Tell whether the key may name this job type."""
        return any(fnmatchcase(job_type, pattern) for pattern in self.type_patterns)

    @property
    def uses_every_type(self) -> bool:
        """Tell whether no job type is closed to the key."""
        return "*" in self.type_patterns


@dataclass(frozen=True)
class _Cached:
    key: Key | None
    digest: str
    read_at: float


class _Cache:
    """Keys and misses of this process by prefix, each for CACHE_SECONDS; the oldest go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Cached] = OrderedDict()
        self._noted: dict[str, float] = {}

    def get(self, prefix: str) -> _Cached:
        entry = self._entries.get(prefix)
        if entry is None or time.monotonic() - entry.read_at > CACHE_SECONDS:
            entry = _read(prefix)
            with self._lock:
                self._entries[prefix] = entry
                self._entries.move_to_end(prefix)
                while len(self._entries) > _CACHED_KEYS:
                    self._noted.pop(self._entries.popitem(last=False)[0], None)
        return entry

    def is_time_to_note(self, prefix: str) -> bool:
        now = time.monotonic()
        with self._lock:
            if now - self._noted.get(prefix, float("-inf")) < LAST_USED_SECONDS:
                return False
            self._noted[prefix] = now
        return True

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._noted.clear()


_cache = _Cache()


def forget_cached() -> None:
    """Make this process read keys again; others do so within CACHE_SECONDS."""
    _cache.clear()


def issue_key(
    *,
    label: str,
    scopes: Sequence[str],
    type_patterns: Sequence[str] = ("*",),
    created_by: str = "",
    rate_per_second: float | None = None,
    rate_burst: int = 0,
) -> tuple[ApiKey, str]:
    """Create a key; the text is returned this once and stored nowhere.

    Raises: ValueError with what is wrong with the arguments.
    """
    check_rights(scopes=scopes, type_patterns=type_patterns)
    for _, mistake in rate_mistakes(rate_per_second, rate_burst):
        raise ValueError(mistake)
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    text = f"jb_live_{prefix}_{secrets.token_urlsafe(32)}"
    text = f"{text}_{_checksum(text)}"
    row = ApiKey.objects.create(
        prefix=prefix,
        digest=_digest(text),
        label=label,
        scopes=sorted(set(scopes)),
        type_patterns=list(dict.fromkeys(type_patterns)),
        created_by=created_by,
        rate_per_second=rate_per_second,
        rate_burst=rate_burst,
    )
    return row, text


def check_rights(*, scopes: Sequence[str], type_patterns: Sequence[str]) -> None:
    """Refuse scopes that do not exist and patterns that could never match. Raises: ValueError."""
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ValueError(f"Scopes are one or more of {', '.join(SCOPES)}.")
    if not type_patterns or not all(_PATTERN.fullmatch(pattern) for pattern in type_patterns):
        raise ValueError("Type patterns are names of job types, with * and ? as wildcards.")


def rate_mistakes(per_second: float | None, burst: int) -> Iterator[tuple[str, str]]:
    """Say what is wrong with a rate. Shape: (field, words)."""
    if per_second and not RATE_MIN <= per_second <= RATE_MAX:
        yield "rate_per_second", f"A rate is from {RATE_MIN} to {RATE_MAX:,} jobs a second; empty or 0: no limit."
    if not 0 <= burst <= RATE_MAX:
        yield "rate_burst", f"A burst is from 0 to {RATE_MAX:,} jobs."
    if burst and not per_second:
        yield "rate_burst", "A burst needs a rate."


def rate_of(row: ApiKey) -> Rate | None:
    """Return how many jobs a key may send; None: no limit."""
    if not row.rate_per_second:
        return None
    burst = max(1, row.rate_burst or math.ceil(row.rate_per_second))
    return Rate(key_id=row.pk, per_second=row.rate_per_second, burst=burst)


def rate_words(rate: Rate | None) -> str:
    """Say how many jobs a key may send."""
    if rate is None:
        return "no limit"
    per_second = f"{rate.per_second:,.3f}".rstrip("0").rstrip(".")
    return f"{per_second} jobs a second, {rate.burst:,} at once"


def authenticate(header: str | None) -> Key | None:
    """Return who the Authorization header speaks for; None for whatever is wrong with it."""
    found = _HEADER.fullmatch(header or "")
    parts = _FORMAT.fullmatch(found[1]) if found else None
    if found is None or parts is None or not compare_digest(_checksum(found[1][:-7]), parts[3]):
        return None
    entry = _cache.get(parts[1])
    if not compare_digest(_digest(found[1]), entry.digest) or entry.key is None:
        return None
    if _cache.is_time_to_note(entry.key.prefix):
        _note_use(entry.key.prefix)
    return entry.key


def _read(prefix: str) -> _Cached:
    read_at = time.monotonic()
    alive = Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=Now()))
    row = (
        ApiKey.objects.filter(prefix=prefix)
        .annotate(alive=Case(When(alive, then=Value(True)), default=Value(False), output_field=BooleanField()))
        .first()
    )
    if row is None:
        return _Cached(key=None, digest=_NO_DIGEST, read_at=read_at)
    key = Key(
        prefix=row.prefix,
        label=row.label,
        scopes=frozenset(row.scopes),
        type_patterns=tuple(row.type_patterns),
        rate=rate_of(row),
    )
    return _Cached(key=key if row.alive else None, digest=row.digest, read_at=read_at)


def _note_use(prefix: str) -> None:
    # Other processes note it too: the condition keeps it at one write a minute.
    stale = Q(last_used_at=None) | Q(last_used_at__lt=Now() - timedelta(seconds=LAST_USED_SECONDS))
    ApiKey.objects.filter(stale, prefix=prefix).update(last_used_at=Now())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(text: str) -> str:
    """Return six characters that tell a mistyped or cut key from a real one. Source: GitHub's token format."""
    number = zlib.crc32(text.encode())
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
