"""Dedupe keys made from a payload: the template's syntax, the fields that it may use, and the key it gives.

When a key is made, and what happens to a job without one, is `accept`'s.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

MAX_KEY: Final = 255
_PART: Final = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_-]*\Z")
_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F)))
# "%" is left out, so that a value that already holds "%20" cannot meet the encoding of a value with a space.
_KEPT: Final = _VISIBLE.replace("%", "")

_TIME: Final = frozenset({"timestamp", "ts", "now", "time", "datetime", "epoch", "millis", "clock"})
_RANDOM: Final = frozenset({"nonce", "random", "rand", "salt", "request", "req", "trace", "span", "correlation"})
_COUNT: Final = frozenset({"attempt", "attempts", "retry", "retries", "try", "tries", "redelivery"})
# `order_uuid` names a thing and stays the same; a bare `uuid` is what code draws for each call.
_RANDOM_ALONE: Final = frozenset({"uuid", "uuid4", "guid", "ulid"})
_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


class KeyTemplateError(ValueError):
    """The payload cannot give a key; `pointer` is the JSON pointer of the field at fault."""

    def __init__(self, message: str, *, pointer: str = "") -> None:
        super().__init__(message)
        self.pointer = pointer


@dataclass(frozen=True)
class Piece:
    """Literal text and the payload field after it; `path` is empty at the end of a template."""

    text: str
    path: tuple[str, ...]


def parse(template: str) -> tuple[Piece, ...]:
    """Split a template such as `invoice-{invoice_id}` or `{customer.id}`.

    Raises: KeyTemplateError with a sentence for the person who wrote it.
    """
    pieces = []
    try:
        for text, name, spec, conversion in string.Formatter().parse(template):
            pieces.append(Piece(text, () if name is None else _path(name, spec or "", conversion)))
    except KeyTemplateError:
        raise
    except ValueError as error:
        raise KeyTemplateError(f"The template cannot be read: {error}. Example: invoice-{{invoice_id}}") from None
    if not any(piece.path for piece in pieces):
        raise KeyTemplateError(
            "The template uses no payload field, so all jobs would share one key. Example: invoice-{invoice_id}"
        )
    if any(char not in _VISIBLE for piece in pieces for char in piece.text):
        raise KeyTemplateError("Text in a template is visible ASCII without spaces. Example: invoice-{invoice_id}")
    return tuple(pieces)


def _path(name: str, spec: str, conversion: str | None) -> tuple[str, ...]:
    if spec or conversion:
        raise KeyTemplateError(f"{{{name}}} has a format or a conversion; a template takes plain fields only.")
    parts = tuple(name.split("."))
    if not all(_PART.match(part) for part in parts):
        raise KeyTemplateError(
            f"{{{name}}} is not a payload field. Use names joined by dots, without indexes: {{customer.id}}"
        )
    return parts


def volatile(path: tuple[str, ...]) -> str | None:
    """Say why this field differs each time a producer tries again, or None if its name does not tell."""
    last = path[-1]
    words = [word.lower() for word in _WORDS.findall(last)]
    named = "{" + ".".join(path) + "}"
    if _TIME.intersection(words) or (len(words) > 1 and words[-1] == "at"):
        kind = "a time"
    elif _RANDOM.intersection(words) or last.lower() in _RANDOM_ALONE:
        kind = "a random id of one request"
    elif _COUNT.intersection(words):
        kind = "an attempt"
    else:
        return None
    return (
        f"{named} looks like {kind}: it differs when the producer tries again, so the same business action would be "
        "accepted twice. Use a field that names the action, such as {invoice_id}."
    )


def paths(template: str) -> tuple[tuple[str, ...], ...]:
    """List the payload fields that a template uses."""
    return tuple(piece.path for piece in parse(template) if piece.path)


def key_from_template(template: str, payload: Mapping[str, Any]) -> str:
    """Make the dedupe key of a payload. What is not visible ASCII in a value is percent-encoded as UTF-8.

    Shape: 1 to 255 visible ASCII characters.
    Raises: KeyTemplateError whose `pointer` names the field at fault.
    """
    key = "".join(_pieces(template, payload))
    if not 1 <= len(key) <= MAX_KEY:
        raise KeyTemplateError(f"The key would have {len(key)} characters; 1 to {MAX_KEY} are allowed.")
    return key


def _pieces(template: str, payload: Mapping[str, Any]) -> Iterator[str]:
    for piece in parse(template):
        yield piece.text
        if piece.path:
            yield _encoded(_value(payload, piece.path), piece.path)


def _value(payload: Mapping[str, Any], path: tuple[str, ...]) -> str | int:
    pointer = _pointer(path)
    value: Any = payload
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            raise KeyTemplateError(f"The payload has no {pointer}, which the key is made of.", pointer=pointer)
        value = value[part]
    # bool is an int in Python, and 1.0 prints differently in every language: neither names a thing.
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return value
    raise KeyTemplateError(f"{pointer} must be text or a whole number to be part of a key.", pointer=pointer)


def _encoded(value: str | int, path: tuple[str, ...]) -> str:
    if isinstance(value, int) and abs(value) >= 10**MAX_KEY:
        raise KeyTemplateError(f"{_pointer(path)} is too long for a key.", pointer=_pointer(path))
    try:
        return quote(str(value), safe=_KEPT)
    except UnicodeEncodeError:
        raise KeyTemplateError(
            f"{_pointer(path)} holds half a character (a lone surrogate).", pointer=_pointer(path)
        ) from None


def _pointer(path: tuple[str, ...]) -> str:
    return "/" + "/".join(path)
