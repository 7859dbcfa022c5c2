"""Output for a terminal or a program: tables, verdicts, JSON."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dlq.preflight import Preflight

Write = Callable[[str], object]

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_MARKS: Final = {"pass": "ok", "note": "note", "fail": "FAIL", "unknown": "?"}
_WIDEST: Final = 60


class Refused(Exception):
    """It was not done; said to the person. `code`: 1 refused, 2 asked for in a way that means nothing."""

    def __init__(self, words: str, *, code: int = 1) -> None:
        super().__init__(words)
        self.code = code


def line(value: Any) -> str:
    """Return a value on one line: what is stored may hold anything, a terminal obeys some of it."""
    if value is None:
        return "-"
    if isinstance(value, dt.datetime):
        return f"{value.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}"
    return _CONTROL.sub(" ", f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], write: Write) -> None:
    """Print rows below their head, columns as wide as they need, numbers to the right."""
    cells = [[_cut(line(value)) for value in row] for row in rows]
    numbers = [bool(rows) and all(isinstance(row[i], int) for row in rows) for i in range(len(head))]
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(head)]
    for row in [list(head), *cells]:
        pieces = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ]
        write("  ".join(pieces).rstrip())


def facts(pairs: Mapping[str, Any], write: Write) -> None:
    """Print names and values, those that there are."""
    width = max(len(name) for name in pairs)
    for name, value in pairs.items():
        if value not in (None, "", [], {}):
            write(f"{name.ljust(width)}  {line(value)}")


def verdict(found: Preflight, write: Write) -> None:
    """Print the checks, and what follows from them."""
    width = max(len(check.title) for check in found.checks)
    for check in found.checks:
        words = f"{_MARKS[check.result]:<4}  {check.title.ljust(width)}  {line(check.evidence)}"
        write(f"{words} ({check.at:%H:%M:%S} UTC)")
    write(f"{found.verdict.upper()}: {line(found.worst.title)}  [{found.fingerprint}]")


def verdict_json(found: Preflight) -> dict[str, Any]:
    """Return the verdict as `--json` shows it."""
    return {
        "id": str(found.job_id),
        "verdict": found.verdict,
        "fingerprint": found.fingerprint,
        "final": found.final,
        "checks": [
            {"name": c.name, "title": c.title, "result": c.result, "evidence": c.evidence, "at": plain(c.at),
             "final": c.final}
            for c in found.checks
        ],
    }  # fmt: skip


def document(value: Any, write: Write) -> None:
    """Print JSON."""
    write(json.dumps(value, default=plain, ensure_ascii=False, indent=1))


def plain(value: Any) -> str:
    """Write what JSON has no word for."""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    return str(value)


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
