"""Strict JSON: what is refused, the canonical form of the rest, and the hash that tells repeats from conflicts.

Not here: schemas and sizes (`queues.contracts`), what a reader may see of a payload (`queues.redaction`).
The fast path is the C decoder with three hooks; only a text that it refuses is read again, slowly, to say where.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 64
"""Levels of lists and objects: `[` alone is one."""

_BOM: Final = b"\xef\xbb\xbf"
# Suspects only: an escaped backslash before a `u` looks the same, so the slow walk decides.
_SUSPECT_ESCAPE: Final = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_CONSTANT: Final = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')
_BAD_CHARACTER: Final = re.compile("[\x00\ud800-\udfff]")


class JsonRefused(ValueError):
    """A JSON text that is not taken: `code` for programs, `detail` for people, `pointer` to the place."""

    def __init__(self, code: str, detail: str, pointer: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.pointer = pointer


@dataclass(frozen=True)
class ParsedJson:
    """A text that was taken, as it was sent, and its value."""

    text: str
    value: Any


class _Suspect(Exception):
    """The fast path saw something; the slow one says what and where."""


class _Pairs(list[tuple[str, Any]]):
    """An object whose repeated keys are still visible."""


class _Int(str):
    """An integer as written."""


class _Float(str):
    """A number with a fraction or an exponent, as written."""


def parse(text: bytes | str) -> ParsedJson:
    """Read a JSON text and refuse what two readers could understand differently.

    Raises: JsonRefused with code invalid_encoding, invalid_json, invalid_unicode, number_out_of_range, too_deep
        or duplicate_key.
    """
    words = _decode_text(text)
    try:
        value = _FAST.decode(words)
    except json.JSONDecodeError as error:
        raise JsonRefused("invalid_json", f"{error.msg}: line {error.lineno} column {error.colno}.") from None
    except RecursionError:
        raise _too_deep("") from None
    except (_Suspect, ValueError):
        # A plain ValueError is an integer beyond the digits that Python converts.
        _explain(words)
    if _SUSPECT_ESCAPE.search(words) or _deeper_than(value, MAX_DEPTH):
        _check(_read_slowly(words))
    return ParsedJson(text=words, value=value)


def canonical(value: Any) -> bytes:
    """Write a value in its one canonical form: sorted keys, no spaces, UTF-8; `1` and `1.0` differ.

    Raises: JsonRefused for NaN, infinities and lone surrogates, which `parse` never returns.
    """
    try:
        return _CANONICAL.encode(value).encode()
    except UnicodeEncodeError:
        raise JsonRefused("invalid_unicode", "A string holds half of a surrogate pair.") from None
    except ValueError:
        raise JsonRefused("number_out_of_range", "NaN, infinities and circular values are not JSON.") from None


def request_hash(payload: Any, group: str | None) -> bytes:
    """Return the SHA-256 that makes two requests the same request."""
    return hashlib.sha256(canonical([payload, group])).digest()


def json_pointer(path: Sequence[str | int]) -> str:
    """Write a path as an RFC 6901 pointer."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _decode_text(text: bytes | str) -> str:
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise JsonRefused("invalid_unicode", "The text holds half of a surrogate pair.") from None
        return text
    # UTF-16 and UTF-32 show a NUL among the first four bytes, whatever their byte order (RFC 4627, section 3).
    if text.startswith(_BOM) or b"\x00" in text[:4]:
        raise JsonRefused("invalid_encoding", "The text must be UTF-8 without a byte order mark.")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise JsonRefused("invalid_encoding", f"Byte {error.start} is not UTF-8.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Suspect
    return found


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _Suspect
    return number


def _no_constant(text: str) -> NoReturn:
    raise _Suspect


_FAST: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)
_SLOW: Final = json.JSONDecoder(
    object_pairs_hook=_Pairs, parse_float=_Float, parse_int=_Int, parse_constant=_no_constant
)
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _explain(words: str) -> NoReturn:
    _check(_read_slowly(words))
    raise JsonRefused("invalid_json", "The text is not JSON.")


def _read_slowly(words: str) -> Any:
    try:
        return _SLOW.decode(words)
    except _Suspect:
        raise _not_a_constant(words) from None
    except json.JSONDecodeError as error:
        raise JsonRefused("invalid_json", f"{error.msg}: line {error.lineno} column {error.colno}.") from None
    except RecursionError:
        raise _too_deep("") from None


def _check(root: Any) -> None:
    for path, node in _walk(root):
        if isinstance(node, _Pairs | list):
            if len(path) >= MAX_DEPTH:
                raise _too_deep(json_pointer(path))
            if isinstance(node, _Pairs):
                _check_keys(node, path)
        elif isinstance(node, _Int | _Float):
            _check_number(node, path)
        elif isinstance(node, str) and _BAD_CHARACTER.search(node):
            raise _bad_character(path)


def _walk(root: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield every node in document order, without recursion."""
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), root)]
    while stack:
        path, node = stack.pop()
        yield path, node
        if isinstance(node, _Pairs):
            stack.extend(((*path, key), child) for key, child in reversed(node))
        elif isinstance(node, list):
            stack.extend(((*path, index), node[index]) for index in range(len(node) - 1, -1, -1))


def _check_keys(pairs: _Pairs, path: tuple[str | int, ...]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if _BAD_CHARACTER.search(key):
            raise _bad_character(path)
        if key in seen:
            raise JsonRefused("duplicate_key", "A key appears more than once.", json_pointer((*path, key)))
        seen.add(key)


def _check_number(number: _Int | _Float, path: tuple[str | int, ...]) -> None:
    try:
        ok = isinstance(number, _Int) and int(number) is not None or not math.isinf(float(number))
    except ValueError:
        ok = False
    if not ok:
        raise JsonRefused(
            "number_out_of_range", "A number is too large for a double or has too many digits.", json_pointer(path)
        )


def _too_deep(pointer: str) -> JsonRefused:
    return JsonRefused("too_deep", f"Lists and objects may be nested {MAX_DEPTH} deep.", pointer)


def _bad_character(path: Sequence[str | int]) -> JsonRefused:
    return JsonRefused(
        "invalid_unicode", "A string holds half of a surrogate pair or the character U+0000.", json_pointer(path)
    )


def _not_a_constant(words: str) -> JsonRefused:
    for match in _CONSTANT.finditer(words):
        if match[1]:
            line, column = words.count("\n", 0, match.start()) + 1, match.start() - words.rfind("\n", 0, match.start())
            return JsonRefused("invalid_json", f"{match[1]} is not JSON: line {line} column {column}.")
    return JsonRefused("invalid_json", "NaN and infinities are not JSON.")
