"""Where the processes of one web server share what they count and what they read.

prometheus_client keeps a file for each process, and decides to do so when it is imported: `prepare` comes before that.
The directory belongs to one master process (its children are those that gunicorn forked), so that a restart begins
with an empty one and two servers of one machine never sum each other up. Nothing here imports prometheus_client.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Names a directory to make ours in; prometheus_client then reads ours from it."""
_HELD: Final = "held"
"""Every living process of the server has a shared lock on this file."""
_LOOK_AGAIN_SECONDS: Final = 0.02

_log = logging.getLogger(__name__)
_ours: Path | None = None
_holding: list[int] = []


class Busy(Exception):
    """Another process or thread has held a lock for too long."""


def prepare() -> Path | None:
    """Make or join the directory of this process's parent, and point prometheus_client at it.

    None, with a line in the log, where it cannot be made: web then serves without request metrics.
    """
    global _ours
    try:
        found = _private(_base() / _name(os.getppid()))
        descriptor = os.open(found / _HELD, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        _log.warning("no request metrics: their directory cannot be made: %s", error.strerror)
        os.environ.pop(VARIABLE, None)
        return None
    _holding.append(descriptor)
    _forget_dead_servers(found.parent, but=found)
    os.environ[VARIABLE] = str(found)
    _ours = found
    return found


def current() -> Path | None:
    """Return the directory, or None where this process shares nothing."""
    return _ours


@contextlib.contextmanager
def locked(folder: Path, name: str, *, seconds: float) -> Iterator[None]:
    """Keep all other threads and processes of this server out. Raises: Busy after so many seconds."""
    descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + seconds
        while not _locks(descriptor):
            if time.monotonic() > deadline:
                raise Busy(name)
            threading.Event().wait(_LOOK_AGAIN_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _base() -> Path:
    """Return where the directories of servers are. A named one may be anybody's, as a mounted volume is root's."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else _private(Path(tempfile.gettempdir()) / f"jobsboard-web-{os.geteuid()}")


def _private(path: Path) -> Path:
    """Make a directory ours alone: in a shared parent somebody else may have made it first. Raises: OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to somebody else", str(path))
    return path


def _name(pid: int) -> str:
    """Name a process so that no later one with its number is taken for it."""
    return f"{pid}-{_started(pid) or 0}"


def _started(pid: int) -> int | None:
    """Return when a process started, in ticks since the boot; None when it does not live or nobody can say."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _forget_dead_servers(base: Path, *, but: Path) -> None:
    """Remove what servers left behind that were killed: no process holds it, and its master is gone."""
    for other in base.iterdir():
        pid = other.name.partition("-")[0]
        if other == but or not pid.isdecimal() or other.name == _name(int(pid)):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(other / _HELD, os.O_RDWR)
            try:
                if _locks(descriptor):
                    shutil.rmtree(other, ignore_errors=True)
            finally:
                os.close(descriptor)
