"""Secrets at rest: sealed with the first of ENCRYPTION_KEYS, opened with any of them (Fernet).

Not here: which secrets there are, and who may set them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

_MAKE = 'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'


class CannotOpen(Exception):
    """The secret was sealed with a key that is not in ENCRYPTION_KEYS any more."""


def seal(text: str) -> bytes:
    """Encrypt a secret for storage. Raises: ImproperlyConfigured without a usable ENCRYPTION_KEYS."""
    return _box(tuple(settings.ENCRYPTION_KEYS)).encrypt(text.encode())


def open(sealed: bytes | memoryview) -> str:  # noqa: A001 (the pair of seal; used as secrets_box.open)
    """Decrypt a stored secret. Raises: CannotOpen, ImproperlyConfigured."""
    try:
        return _box(tuple(settings.ENCRYPTION_KEYS)).decrypt(bytes(sealed)).decode()
    except InvalidToken:
        raise CannotOpen("A stored secret was sealed with a key that is not in ENCRYPTION_KEYS.") from None


def reseal(sealed: bytes | memoryview) -> bytes:
    """Encrypt a stored secret anew with the first key, for a rotation. Raises: CannotOpen, ImproperlyConfigured."""
    return seal(open(sealed))


@dataclass(frozen=True, kw_only=True)
class Resealed:
    """What a rotation did. Shape: counts: kind of secret → how many; closed: names of what could not be opened."""

    counts: Mapping[str, int]
    closed: Sequence[str]


class Reseal(Protocol):
    """Encrypts all secrets of an app anew with the first key, each audited. Raises: ImproperlyConfigured."""

    def __call__(self, *, actor: str, reason: str) -> Resealed: ...


@dataclass(frozen=True, kw_only=True)
class Keeper:
    """An app above this one that stores sealed secrets. `sealed` returns those that must still open."""

    name: str
    reseal: Reseal
    sealed: Callable[[], Sequence[bytes]]


_keepers: Final[dict[str, Keeper]] = {}


def register(keeper: Keeper) -> None:
    """Add an app's secrets to those that rotate; apps do so in `ready()`."""
    _keepers[keeper.name] = keeper


def keepers() -> Sequence[Keeper]:
    """Return the apps that store sealed secrets, other than contracts."""
    return tuple(_keepers.values())


def check_keys() -> None:
    """Look whether ENCRYPTION_KEYS can be used; without any, no secret can be stored, which is allowed.

    Raises: ImproperlyConfigured.
    """
    if settings.ENCRYPTION_KEYS:
        _box(tuple(settings.ENCRYPTION_KEYS))


@functools.lru_cache(maxsize=4)
def _box(keys: tuple[str, ...]) -> MultiFernet:
    if not keys:
        raise ImproperlyConfigured(f"ENCRYPTION_KEYS is not set, so no secret can be stored. Make a key: {_MAKE}")
    try:
        return MultiFernet([Fernet(key) for key in keys])
    except ValueError:
        raise ImproperlyConfigured(f"ENCRYPTION_KEYS has an item that is not a key. Make one: {_MAKE}") from None
