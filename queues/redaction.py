"""The one redaction for every reader: page, API, export, log, webhook, trace, audit.

Not here: who may see a payload at all (`jobsboard.roles`), and the erasure of stored payloads.
Three things hide a value: the name of its key, a JSON pointer of its contract, and what it looks like.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

REDACTED: Final = "[redacted]"

_MAX_DEPTH: Final = 100
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_WORD: Final = re.compile(
    r"(?:authorization|bearer|card|cookie|credential|creditcard|cvc|cvv|iban|jwt|otp|pan|passcode|passphrase|passwd"
    r"|password|pwd|secret|ssn|token)s?"
)
# Names that people write in one word or whose words are harmless alone.
_SECRET_PHRASES: Final = re.compile(
    r"apikey|privatekey|accesskey|secretkey|signingkey|encryptionkey|password|passwd|passphrase|authorization"
    r"|(?:access|auth|refresh|id|csrf|session|api|bearer)token|clientsecret|creditcard|cardnumber|sessionid"
    r"|socialsecurity|accountnumber|setcookie"
)
# Beside these words a bare number is a measure (`max_tokens`), not a secret.
_MEASURE: Final = re.compile(r"count|total|max|min|limit|used|ttl|expires|expiry|seconds|length")

_SHAPES: Final = re.compile(
    # A PEM block, also one that was cut off.
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:(?!-----END).)*(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"
    r"|(?<![\w-])eyJ[\w-]{6,}\.[\w-]{6,}(?:\.[\w-]*){0,3}"
    r"|(?<![A-Za-z0-9])(?:[sr]k_(?:live|test)_\w{8,}|whsec_[\w+/=-]{8,}|jb_live_[\w-]{8,}"
    r"|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeoprs]-[\w-]{8,}|sk-[\w-]{20,}"
    r"|A(?:KIA|SIA)[A-Z0-9]{16}(?![A-Z0-9])|AIza[\w-]{35})"
    r"|(?<=://)[^\s/?#\"'<>]+(?=@)"
    r"|(?i:(?<=bearer )|(?<=basic ))(?=[\w.~+/=-]*[0-9=])[\w.~+/=-]{8,}",
    re.DOTALL,
)
# Issuer ranges with their lengths, alone or in the groups that cards are printed in. UUIDs have longer groups,
# Unix times begin with 1, so neither fits.
_CARD: Final = re.compile(
    r"(?<![0-9A-Za-z.])(?:"
    r"(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6(?:011|4[4-9]\d|5\d{2}|2\d{2})|35[2-8]\d)([ -]?)\d{4}\1\d{4}\1\d{4}"
    r"|3[47]\d{2}([ -]?)\d{6}\2\d{5}"
    r"|3(?:0[0-5]|[68]\d)\d([ -]?)\d{6}\3\d{4}"
    r"|(?:4\d{18}|62\d{15,17})"
    r")(?![0-9A-Za-z])(?!\.\d)"
)
_ASSIGNMENT: Final = re.compile(r"(?<![\w.-])([A-Za-z_][\w.-]{1,63})(\\{0,4}[\"']?\s{0,3}(?::|=>?)\s{0,3})")
# A string that is never closed is hidden to its end; so hostile text costs one pass.
_ASSIGNED: Final = re.compile(
    r"\\{1,4}\"(?:(?!\\{1,4}\").)*(?:\\{1,4}\"|\Z)"
    r"|[bru]{0,2}\"(?:[^\"\\]|\\.)*(?:\"|\Z)|[bru]{0,2}'(?:[^'\\]|\\.)*(?:'|\Z)"
    r"|(?:(?i:bearer|basic|digest|token)\s+)?[^\s,;&)}\]\"'<>]+",
    re.DOTALL,
)
_REST_OF_LINE: Final = re.compile(r"[^\r\n\"']+")

_Tree = dict[str, Any]


def redact(value: Any, *, pointers: Iterable[str] = ()) -> Any:
    """Return a copy of a JSON value in which every secret is the text `[redacted]`.

    Shape: pointers are RFC 6901; a part `*` stands for every item of a list or every key of an object.
    """
    tree = _pointer_tree(tuple(pointers))
    return REDACTED if _END in tree else _redact(value, [tree], depth=0)


def redact_text(text: str) -> str:
    """Return a message, traceback or log line without what looks like a secret; its other words stay."""
    return _redact_cards(_SHAPES.sub(REDACTED, _redact_assignments(text)))


def shape(value: Any) -> Any:
    """Return keys and types only, for those who may not see values; a list shows its distinct shapes."""
    return _shape(value, depth=0)


def is_secret_name(name: str) -> bool:
    """Tell whether a key, header or variable of this name holds a secret."""
    return _is_secret(name[:200])


_END: Final = "\x00end"


@functools.lru_cache(maxsize=512)
def _pointer_tree(pointers: tuple[str, ...]) -> _Tree:
    tree: _Tree = {}
    for pointer in pointers:
        node = tree
        for part in pointer.split("/")[1:]:
            node = node.setdefault(part.replace("~1", "/").replace("~0", "~"), {})
        node[_END] = True
    return tree


def _below(nodes: list[_Tree], part: str) -> list[_Tree]:
    return [node[name] for node in nodes for name in (part, "*") if name in node]


def _redact(value: Any, nodes: list[_Tree], *, depth: int) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return REDACTED if depth >= _MAX_DEPTH else _redact_object(value, nodes, depth=depth)
    if isinstance(value, list | tuple):
        if depth >= _MAX_DEPTH:
            return REDACTED
        return [_redact_child(child, _below(nodes, str(index)), depth=depth) for index, child in enumerate(value)]
    if isinstance(value, int) and not isinstance(value, bool) and _is_card_number(value):
        return REDACTED
    return value


def _redact_object(value: dict[Any, Any], nodes: list[_Tree], *, depth: int) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    repeats: Counter[str] = Counter()
    for key, child in value.items():
        name = str(key)
        label = plain = redact_text(name)
        # Two secrets used as keys must not become one entry; counted, since a search for a free name is quadratic.
        while label in shown:
            repeats[plain] += 1
            label = f"{plain} ({repeats[plain] + 1})"
        hidden = child is not None and not isinstance(child, bool) and _hides(name, child)
        shown[label] = REDACTED if hidden else _redact_child(child, _below(nodes, name), depth=depth)
    return shown


def _redact_child(child: Any, nodes: list[_Tree], *, depth: int) -> Any:
    if any(_END in node for node in nodes):
        return REDACTED
    return _redact(child, nodes, depth=depth + 1)


def _hides(name: str, child: Any) -> bool:
    if not is_secret_name(name):
        return False
    return not (isinstance(child, int | float) and any(map(_MEASURE.fullmatch, _words(name[:200]))))


@functools.lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    words = _words(name)
    if any(map(_SECRET_WORD.fullmatch, words)):
        return True
    return _SECRET_PHRASES.search("".join(words)) is not None


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _redact_assignments(text: str) -> str:
    pieces: list[str] = []
    done = 0
    for match in _ASSIGNMENT.finditer(text):
        if match.start() < done or not is_secret_name(match[1]):
            continue
        # A header's value has spaces; other values end at one.
        header = match[1].lower().endswith(("authorization", "cookie")) and '"' not in match[2] and "'" not in match[2]
        value = (_REST_OF_LINE if header else _ASSIGNED).match(text, match.end()) or _ASSIGNED.match(text, match.end())
        if value is None:
            continue
        pieces += [text[done : match.end()], REDACTED]
        done = value.end()
    return "".join([*pieces, text[done:]]) if pieces else text


def _redact_cards(text: str) -> str:
    return _CARD.sub(lambda match: REDACTED if _luhn(match[0]) else match[0], text)


def _is_card_number(number: int) -> bool:
    if not 10**13 <= number < 10**19:
        return False
    text = str(number)
    return _CARD.fullmatch(text) is not None and _luhn(text)


def _luhn(text: str) -> bool:
    """Source: ISO/IEC 7812-1."""
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    return sum(digits[::2] + [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]) % 10 == 0


def _shape(value: Any, *, depth: int) -> Any:
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        return {redact_text(str(key)): _shape(child, depth=depth + 1) for key, child in value.items()}
    if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        distinct: list[Any] = []
        for child in value[:1000]:
            found = _shape(child, depth=depth + 1)
            if found not in distinct:
                distinct.append(found)
            if len(distinct) == 10:
                break
        return distinct
    return _TYPES.get(type(value), "value")


_TYPES: Final[dict[type, str]] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    dict: "object",
    list: "array",
}
