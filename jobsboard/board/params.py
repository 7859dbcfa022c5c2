"""What a page reads from its query string: known values, or a sentence that says what was cleared.

A page never fails on a value that it does not know. Characters that no value can have are refused (400).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from django.core import signing
from django.core.exceptions import BadRequest
from django.http import HttpRequest

LONGEST: Final = 1_000
_SALT: Final = "jobsboard.board.cursor"


class Params:
    """The query string of one request. `notes` are sentences about values that were cleared."""

    def __init__(self, request: HttpRequest) -> None:
        self._given: dict[str, str] = {}
        self.notes: list[str] = []
        for name, values in request.GET.lists():
            for value in (name, *values):
                if len(value) > LONGEST or "\x00" in value or "\ufffd" in value:
                    raise BadRequest("a parameter is too long or has a character that no value can have")
            self._given[name] = values[0].strip()
            if len(set(values)) > 1:
                self.notes.append(f"{_quoted(name)} is given more than once, the first one counts")

    def text(self, name: str, *, longest: int = 255) -> str | None:
        """Return a free text, or None."""
        value = self._given.get(name, "")
        if len(value) > longest:
            self.notes.append(f"{name} is longer than {longest} characters, cleared")
            return None
        return value or None

    def choice(self, name: str, known: Collection[str], *, word: str = "") -> str | None:
        """Return one of the known values, or None."""
        value = self._given.get(name, "")
        if not value or value in known:
            return value or None
        self.notes.append(f"{word or name} {_quoted(value)} does not exist, cleared")
        return None

    def moment(self, name: str) -> datetime | None:
        """Return a time (UTC where it names no zone) of the last 400 days, or None."""
        value = self._given.get(name, "")
        if not value:
            return None
        try:
            at = datetime.fromisoformat(value)
            at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        except (ValueError, OverflowError):
            self.notes.append(f"{name} {_quoted(value)} is not a time, cleared")
            return None
        if abs(at - datetime.now(UTC)) > timedelta(days=400):
            self.notes.append(f"{name} {_quoted(value)} is too far away, cleared")
            return None
        return at

    def cursor(self, name: str, *, scope: str) -> UUID | None:
        """Return where a page begins, if this list with these filters gave the mark."""
        value = self._given.get(name, "")
        if not value:
            return None
        try:
            last, of_scope = signing.loads(value, salt=_SALT)
            if of_scope == scope:
                return UUID(last)
        except (signing.BadSignature, ValueError, TypeError, AttributeError):
            pass
        self.notes.append("the page mark is not one of this list, so it begins with the newest")
        return None


def seal(at: UUID | None, *, scope: str) -> str | None:
    """Return the page mark for an id."""
    return None if at is None else signing.dumps([str(at), scope], salt=_SALT)


def scope_of(values: Mapping[str, object]) -> str:
    """Name a list with its filters: a mark of another one would skip rows."""
    return "&".join(f"{name}={value}" for name, value in sorted(values.items()) if value)


def _quoted(value: str) -> str:
    return f"“{value[:60]}…”" if len(value) > 60 else f"“{value}”"
