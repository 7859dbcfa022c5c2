"""What Linux offers for leaving nothing behind, and what /proc tells about processes.

Not here: decisions. On another system these functions do nothing, and a crash may leave processes behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")


def _load_prctl() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.restype = ctypes.c_int
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return prctl


# Loaded at import: between fork and exec nothing may be imported or allocated that a lock could guard.
_prctl = _load_prctl()


def die_with_parent(number: signal.Signals, *, parent: int) -> None:
    """Have the kernel send this process a signal when its parent dies, and die now if that has already happened."""
    if _prctl is None:
        return
    _prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none is out of sight."""
    if _prctl is not None:
        _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pids() -> list[int]:
    """List the processes of this machine."""
    if not _PROC.is_dir():
        return []
    return [int(entry) for entry in os.listdir(_PROC) if entry.isdigit()]


def parent_of(pid: int) -> int | None:
    """Return a process's parent; None when there is no such process, or it has ended and waits to be reaped."""
    try:
        status = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold blanks and parentheses of its own.
    state, parent = status.rpartition(")")[2].split()[:2]
    return None if state in "ZX" else int(parent)


def children_of(pid: int) -> list[int]:
    """List a process's living children."""
    return [one for one in pids() if parent_of(one) == pid]


def ancestors() -> set[int]:
    """Return this process and those above it."""
    found: set[int] = set()
    pid: int | None = os.getpid()
    while pid and pid not in found:
        found.add(pid)
        pid = parent_of(pid)
    return found


def environment_of(pid: int) -> set[bytes]:
    """Return the NAME=value entries that a process was started with, as far as we may read them."""
    with contextlib.suppress(OSError):
        return set((_PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    return set()


def program_of(pid: int) -> Path | None:
    """Return the path of the program that a process runs."""
    return _link(pid, "exe")


def folder_of(pid: int) -> Path | None:
    """Return the working directory of a process."""
    return _link(pid, "cwd")


def _link(pid: int, name: str) -> Path | None:
    with contextlib.suppress(OSError):
        return Path(os.readlink(_PROC / str(pid) / name))
    return None
