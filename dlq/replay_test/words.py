"""Words of a report about an error: where it was raised, and its message without a value of the payload."""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import dlq
import queues
from queues.fingerprint import normalize
from queues.redaction import redact_text

HIDDEN: Final = "#"
MESSAGE_CHARACTERS: Final = 200
_LIBRARIES: Final = ("site-packages", "/lib/python", "<frozen")
_OURS: Final = tuple(f"{Path(package.__path__[0]).resolve()}/" for package in (queues, dlq))
_LEAVES: Final = 2_000
_WORD: Final = re.compile(r"\w{3,}")
# An amount or an id, in whatever form the code prints it.
_NUMBER: Final = re.compile(r"\d[\d.,:_-]{2,}\d")


def scrub(text: str, payload: Any) -> str:
    """Return the first line of a message without secrets, long numbers, and anything that the payload holds."""
    line = redact_text(text.strip().splitlines()[0][:2_000]) if text.strip() else ""
    hide = sorted(_values(payload), key=len, reverse=True)
    if hide:
        # A short value only where it stands alone: an "a" in the payload is not to hide every a.
        parts = [re.escape(one) if len(one) > 3 else rf"(?<!\w){re.escape(one)}(?!\w)" for one in hide]
        line = re.sub("|".join(parts), HIDDEN, line, flags=re.IGNORECASE)
    return _NUMBER.sub(HIDDEN, line)[:MESSAGE_CHARACTERS]


def _values(payload: Any) -> set[str]:
    found: set[str] = set()
    for leaf in _leaves(payload):
        if isinstance(leaf, str):
            found.add(leaf[:200])
            found.update(_WORD.findall(leaf[:2_000]))
        elif not isinstance(leaf, bool) and leaf is not None:
            found.add(str(leaf))
        if len(found) > _LEAVES:
            break
    return found - {""}


def _leaves(value: Any) -> Iterator[Any]:
    level = [value]
    while level:
        node = level.pop()
        if isinstance(node, dict):
            level.extend(node.values())
        elif isinstance(node, list):
            level.extend(node)
        else:
            yield node


def signature(error_class: str, message: str) -> str:
    """Return what two failures of one kind have in common, wherever their code stands."""
    return hashlib.sha256(f"{error_class}\0{normalize(message)}".encode("utf-8", "replace")).hexdigest()[:16]


def frame(error: BaseException) -> str:
    """Return `module:function:line` of the innermost frame that is neither a library's nor ours, or empty."""
    for one, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = one.f_code.co_filename
        if not file.startswith(_OURS) and not any(place in file for place in _LIBRARIES):
            return f"{one.f_globals.get('__name__', '')}:{one.f_code.co_name}:{line}"
    return ""
