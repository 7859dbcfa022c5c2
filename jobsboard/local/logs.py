"""The log files of the stack's processes, each of a bounded size.

Not here: what is logged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

MOST_BYTES = 20_000_000


def begin(path: Path) -> None:
    """Start an empty log and keep the last run's beside it."""
    with contextlib.suppress(FileNotFoundError):
        path.replace(path.with_name(path.name + ".1"))


def appended(path: Path) -> int:
    """Open a log for a process that starts; the caller closes the descriptor."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def bound(path: Path, *, most_bytes: int = MOST_BYTES) -> bool:
    """Move a log that has grown too large aside and empty it; the writer goes on, since it appends.

    Returns whether it was emptied. Lines written between the copy and the cut are lost: a log, not a ledger.
    """
    try:
        if path.stat().st_size <= most_bytes:
            return False
    except FileNotFoundError:
        return False
    shutil.copyfile(path, path.with_name(path.name + ".1"))
    os.truncate(path, 0)
    return True


def contains(path: Path | None, words: str, *, offset: int) -> bool:
    """Tell whether a log says something from the offset on."""
    if path is None:
        return False
    try:
        with path.open("rb") as handle:
            handle.seek(offset)
            return words.encode() in handle.read()
    except FileNotFoundError:
        return False


def tail(path: Path | None, *, lines: int = 15) -> str:
    """Return the last lines of a log, or nothing."""
    if path is None:
        return ""
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - 16_000))
            found = handle.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(found[-lines:])
