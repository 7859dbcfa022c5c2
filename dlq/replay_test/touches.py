"""What a payload's run tried and was refused, in memory that the process around it can read when it has died."""

from __future__ import annotations

import mmap
from typing import Final, Literal, get_args

Kind = Literal["network", "process", "files", "database", "transaction", "write"]
"""network: an address was asked for or connected to. process: a program was to be started. files: a file outside the
temporary folder was to be changed. database: a connection of its own. transaction: ended by the code itself. write:
refused since the database was to be read only."""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


class Blocked(PermissionError):
    """The sandbox refused something. A PermissionError, since that is what code around it is ready for."""


class Touches:
    """One byte for each kind, shared by a process and the children that it forks."""

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, mmap.PAGESIZE)

    def add(self, kind: Kind) -> None:
        """Note a try."""
        self._bytes[KINDS.index(kind)] = 1

    def refuse(self, kind: Kind, what: str) -> Blocked:
        """Note a try, and return the error to raise."""
        self.add(kind)
        return Blocked(1, f"the sandbox of replay_test refuses this ({kind}): {what}")

    def clear(self) -> None:
        """Forget all."""
        self._bytes[: len(KINDS)] = bytes(len(KINDS))

    def all(self) -> tuple[Kind, ...]:
        """Return the kinds that were tried."""
        return tuple(kind for kind, tried in zip(KINDS, self._bytes[: len(KINDS)], strict=True) if tried)
