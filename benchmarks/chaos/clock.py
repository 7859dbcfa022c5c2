"""Gives each process a wall clock of its own, which may jump while the process runs.

Not here: how a process is made to read it (`shifted/sitecustomize.py`).
"""

import os
import struct
from pathlib import Path
from typing import Final

HOURS: Final = (-2, 2)
"""How far clocks are put wrong."""
_SHIFTED: Final = Path(__file__).with_name("shifted")
_SECONDS: Final = struct.Struct("<d")


class Clocks:
    """The shifts of all processes, each in a file that its process has mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}

    def env(self, name: str) -> dict[str, str]:
        """Return what makes a process, and its children, live by the clock of this name."""
        if name not in self.seconds:
            self.set(name, 0.0)
        path = os.pathsep.join(filter(None, (str(_SHIFTED), os.environ.get("PYTHONPATH"))))
        return {"PYTHONPATH": path, "CHAOS_CLOCK": str(self._path(name))}

    def set(self, name: str, seconds: float) -> None:
        """Put a clock wrong, or right again with 0, from now on."""
        self.seconds[name] = seconds
        path = self._path(name)
        if not path.exists():
            path.write_bytes(bytes(_SECONDS.size))
        # In place: whoever has mapped the file must see it.
        with open(path, "r+b", buffering=0) as file:
            file.write(_SECONDS.pack(seconds))

    def _path(self, name: str) -> Path:
        return self.folder / f"clock-{name}"
