"""A payload as lines of coloured words, redacted before anything is rendered; tracebacks with library frames folded.

Not here: what is secret (queues.redaction), who may see it (jobsboard.roles).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from queues.redaction import REDACTED, redact, shape

LINES_MAX: Final = 400
_INDENT: Final = "  "
_LIBRARY: Final = re.compile(r"site-packages|/lib/python|/queues/runtime/|/queues/handlers|<frozen")
_FRAME: Final = re.compile(r'\s*File "([^"]*)", line \d+')

Token = tuple[str, str]
"""CSS class (empty for none) and text."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A payload for one reader. `text` is what a copy button gives; both are redacted."""

    lines: Sequence[Sequence[Token]]
    text: str
    hidden: int
    cut: bool
    bytes: int


def shown(text: str | None, *, values: bool, pointers: Sequence[str] = ()) -> Shown | None:
    """Prepare a payload: redacted values, or keys and types only. None when it was erased or cannot be read."""
    if text is None:
        return None
    try:
        value = json.loads(text)
        safe = redact(value, pointers=pointers) if values else shape(value)
        lines = list(_lines(safe, values=values))
        plain = json.dumps(safe, ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return None
    return Shown(
        lines=lines[:LINES_MAX],
        text=plain if len(plain) <= 20_000 else "",
        hidden=plain.count(REDACTED) if values else 0,
        cut=len(lines) > LINES_MAX,
        bytes=len(text.encode()),
    )


def _lines(
    value: Any, *, values: bool, depth: int = 0, lead: tuple[Token, ...] = (), tail: str = ""
) -> Iterator[list[Token]]:
    margin = _INDENT * depth
    if isinstance(value, dict | list) and value:
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        yield [("", margin), *lead, ("", opening)]
        items: list[tuple[tuple[Token, ...], Any]] = (
            [((("jk", json.dumps(key, ensure_ascii=False)), ("", ": ")), child) for key, child in value.items()]
            if isinstance(value, dict)
            else [((), child) for child in value]
        )
        for index, (name, child) in enumerate(items):
            comma = "," if index < len(items) - 1 else ""
            yield from _lines(child, values=values, depth=depth + 1, lead=name, tail=comma)
        yield [("", margin + closing + tail)]
    else:
        yield [("", margin), *lead, _scalar(value, values=values), ("", tail)]


def _scalar(value: Any, *, values: bool) -> Token:
    if values and value == REDACTED:
        return ("jr", "redacted")
    if not values and isinstance(value, str):
        return ("jr", value)
    return ("js" if isinstance(value, str) else "jn", json.dumps(value, ensure_ascii=False))


@dataclass(frozen=True, kw_only=True)
class Block:
    """Lines of a traceback that are shown together: (number, css, text). `folded` counts library frames."""

    lines: Sequence[tuple[int, str, str]]
    folded: int = 0


def traceback_blocks(text: str) -> list[Block]:
    """Split a traceback: frames of libraries are folded, those of the application marked, the error is last."""
    lines = text.rstrip().splitlines()
    kinds = _kinds(lines)
    blocks: list[Block] = []
    run: list[tuple[int, str, str]] = []
    for index, (line, kind) in enumerate(zip(lines, kinds, strict=True)):
        run.append((index + 1, kind, line))
        if index + 1 == len(lines) or (kinds[index + 1] == "lib") != (kind == "lib"):
            frames = sum(1 for _, css, one in run if css == "lib" and _FRAME.match(one))
            blocks.append(Block(lines=run, folded=frames))
            run = []
    return blocks


def _kinds(lines: Sequence[str]) -> list[str]:
    kinds, inside = [], ""
    for line in lines:
        frame = _FRAME.match(line)
        if frame:
            inside = "lib" if _LIBRARY.search(frame[1]) else "app"
            kinds.append("lib" if inside == "lib" else "")
        elif not line.startswith("  "):
            inside = ""
            kinds.append("" if line.startswith(("Traceback", "During", "The above")) or not line else "err")
        else:
            kinds.append({"lib": "lib", "app": "hl"}.get(inside, ""))
    return kinds
