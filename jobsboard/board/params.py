"""What a page reads from its query string: known values, or a sentence that says what was cleared.

A page never fails on a value that it does not know. Characters that no value can have are refused (400).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.core import signing
from django.core.exceptions import BadRequest
from django.http import HttpRequest

from queues.outcomes import DEFAULT_RANGE, RANGES, Span

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


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The time range of a page. `name` is one of RANGES, or empty for a range of its own with `since` and `until`."""

    span: Span
    name: str
    since: datetime | None = None
    until: datetime | None = None
    """None is now, as long as the page is open."""

    @property
    def words(self) -> str:
        """What follows "in the": last 6h, or range 20 Nov 10:00 to 12:00 UTC."""
        if self.since is None:
            return f"last {self.name}"
        begin, end = self.span.since, self.span.until
        if self.until is None:
            return f"range {begin:%-d %b %H:%M} UTC to now"
        form = "%H:%M" if begin.date() == end.date() else "%-d %b %H:%M"
        return f"range {begin:%-d %b %H:%M} to {end.strftime(form)} UTC"

    @property
    def given(self) -> list[tuple[str, str]]:
        """What says so in a query string; nothing for the default."""
        if self.since is None:
            return [] if self.name == DEFAULT_RANGE else [("range", self.name)]
        ends = (("from", self.since), ("to", self.until))
        return [(name, at.strftime("%Y-%m-%dT%H:%MZ")) for name, at in ends if at is not None]

    def context(self) -> dict[str, Any]:
        """Return what the templates of ranges use."""
        return {
            "ranges": list(RANGES),
            "range_default": DEFAULT_RANGE,
            "range": self.name,
            "range_short": self.name or "Trend",
            "range_words": self.words,
            "range_query": urlencode(self.given, safe=":"),
            "range_from": f"{self.span.since:%Y-%m-%dT%H:%M}",
            "range_to": f"{self.span.until:%Y-%m-%dT%H:%M}",
        }


def chosen_range(params: Params, *, now: datetime, folded_at: datetime | None = None) -> Chosen:
    """Read `range`, or `from` and `to`, which replace it. What makes no range is cleared and said.

    `folded_at` is up to when rollups are complete (`Board.folded_at`).
    """
    name = params.choice("range", RANGES) or DEFAULT_RANGE
    since, until = params.moment("from"), params.moment("to")
    fallback = Chosen(span=Span.of(name, now=now, folded_at=folded_at), name=name)
    if since is None and until is None:
        return fallback
    if since is None:
        params.notes.append("to needs from as well, cleared")
        return fallback
    if until is not None and until > now:
        params.notes.append("to is in the future, so the range ends now")
        until = None
    since, until = since.replace(second=0, microsecond=0), until and until.replace(second=0, microsecond=0)
    if since >= now:
        params.notes.append("from is in the future, cleared")
    elif (until or now) - since < timedelta(minutes=1):
        params.notes.append("to is not after from, both cleared")
    else:
        span = Span.between(since, until or now, now=now, folded_at=folded_at)
        if span.since != since:
            params.notes.append("of so long ago only whole hours or days are kept, so the range is wider")
        return Chosen(span=span, name="", since=since, until=until)
    return fallback


def seal(at: UUID | None, *, scope: str) -> str | None:
    """Return the page mark for an id."""
    return None if at is None else signing.dumps([str(at), scope], salt=_SALT)


def scope_of(values: Mapping[str, object]) -> str:
    """Name a list with its filters: a mark of another one would skip rows."""
    return "&".join(f"{name}={value}" for name, value in sorted(values.items()) if value)


def _quoted(value: str) -> str:
    return f"“{value[:60]}…”" if len(value) > 60 else f"“{value}”"
