"""The walls of a sandbox in Python: an audit hook that sees what leaves the process, and what forking brought along.

An audit hook cannot be taken off again, nor got around by code in Python; so it is set in a forked child only. What C
code does by itself is `kernel`'s.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

from kombu import Producer

from dlq.replay_test.touches import Kind, Touches
from queues import broker

_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NETWORK: Final = frozenset(
    {
        "socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
        "socket.getnameinfo", "syslog.openlog", "syslog.syslog",
    }
)  # fmt: skip
_PROCESS: Final = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"}
)
_PATHS: Final = {
    "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1,
    "os.rename": 2, "os.link": 2, "os.symlink": 2, "sqlite3.connect": 1,
}  # fmt: skip
"""Event → how many paths its arguments begin with."""


def hush() -> None:
    """Send what the candidate prints or logs nowhere: it may hold payloads."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)


def drop_inherited(keep: int) -> None:
    """Put /dev/null in the place of sockets, pipes and files that can be written to and came along with the fork.

    Not closed: an object that still holds the number would close, or write into, what gets that number next.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/dev/fd"):
        number = int(name)
        if number <= 2 or number in (keep, nowhere):
            continue
        try:
            kind, flags = os.fstat(number).st_mode, fcntl.fcntl(number, fcntl.F_GETFL)
        except OSError:
            continue
        plain_write = not stat.S_ISDIR(kind) and flags & os.O_ACCMODE != os.O_RDONLY
        if stat.S_ISSOCK(kind) or (plain_write and (stat.S_ISREG(kind) or stat.S_ISFIFO(kind))):
            os.dup2(nowhere, number)


def no_broker(sent: Callable[[], object]) -> None:
    """Let messages to workers go nowhere; `sent` is told of each that another producer than ours meant to send."""

    def publish(*_: Any, **__: Any) -> None:
        sent()

    # A queue that is not short is what accept leaves to the scheduler.
    mock.patch.object(broker, "is_short", lambda name: False).start()
    mock.patch.object(broker, "publish", lambda hints, *, task=broker.TASK: True).start()
    mock.patch.object(Producer, "publish", publish).start()


def arm(touches: Touches, folder: str) -> None:
    """Refuse, from now on, to talk to others, to start programs and to change files outside of a folder."""
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    sys.dont_write_bytecode = True
    sys.addaudithook(_Hook(touches, folder))


class _Hook:
    def __init__(self, touches: Touches, folder: str) -> None:
        self._touches = touches
        self._folder = os.path.realpath(folder) + os.sep

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        kind = self._refused(event, arguments)
        if kind is not None:
            raise self._touches.refuse(kind, event)

    def _refused(self, event: str, arguments: tuple[Any, ...]) -> Kind | None:
        if event == "open":
            path, _, flags = arguments
            return "files" if isinstance(flags, int) and flags & _WRITES and not self._may_write(path) else None
        if event in _NETWORK or (event == "socket.sendmsg" and arguments[1] is not None):
            return "network"
        if event in _PROCESS:
            return "process"
        paths = arguments[: _PATHS.get(event, 0)]
        return None if all(map(self._may_write, paths)) else "files"

    def _may_write(self, path: Any) -> bool:
        """Say whether a change of a path stays inside; a number is a file that is open already."""
        if isinstance(path, int):
            return True
        plain = os.fsdecode(path) if isinstance(path, (str, bytes)) else str(Path(path))
        return plain in (os.devnull, ":memory:") or os.path.realpath(plain).startswith(self._folder)
