"""The logs that the demo's providers keep of themselves: one JSON object a line, whoever writes.

Not here: what is in them (`mail_server`, `crm`, `handlers`, `traffic`) and what they prove (`reconcile`).
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Journal:
    """An append-only file that threads and processes may share: each line is one write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: str, **fields: Any) -> None:
        """Add a line with the time. It is in the file when this returns, so what is answered afterwards was logged."""
        line = {"at": round(time.time(), 3), "event": event, **fields}
        os.write(self._file, (json.dumps(line) + "\n").encode())

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def note(path: Path, event: str, **fields: Any) -> None:
    """Add one line and keep nothing open: for handlers, whose processes come and go."""
    journal = Journal(path)
    try:
        journal.write(event, **fields)
    finally:
        journal.close()


def read(path: Path) -> Iterator[Line]:
    """Yield the lines; a file that is not there has none, and a last line that is still being written is left out."""
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        return
    with file:
        for text in file:
            if text.endswith("\n"):
                line: Line = json.loads(text)
                yield line
