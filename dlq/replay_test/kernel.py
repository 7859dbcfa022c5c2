"""The wall in the kernel: system calls that leave the process are refused, whatever library makes them (Linux).

The walls in Python do not see a database driver or an RPC library that is written in C. A seccomp filter does, and
with a listener the parent of the process is told of each try, also of one that the code keeps to itself.
Source: seccomp_unotify(2), seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import sys
from typing import Final, Literal

_NO_NEW_PRIVILEGES: Final = 38
_DIE_WITH_PARENT: Final = 1
_SET_FILTER, _NEW_LISTENER = 1, 8
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_NOTICE_BYTES: Final = 80

# Words of the filter: load a word of the call's description, compare, answer.
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ASK, _REFUSE = 0x7FFF0000, 0x7FC00000, 0x00050000 | errno.EPERM
_NUMBER, _ARCH, _FIRST, _FIFTH = 0, 4, 16, 48

_Name = Literal["seccomp", "sendto", "sendmsg", "connect", "sendmmsg", "io_uring", "execve", "execveat"]
_CALLS: Final[dict[str, tuple[int, dict[_Name, int]]]] = {
    "x86_64": (
        0xC000003E,
        {
            "seccomp": 317, "sendto": 44, "sendmsg": 46, "connect": 42, "sendmmsg": 307, "io_uring": 425,
            "execve": 59, "execveat": 322,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "seccomp": 277, "sendto": 206, "sendmsg": 211, "connect": 203, "sendmmsg": 269,
            "io_uring": 425, "execve": 221, "execveat": 281,
        },
    ),
}  # fmt: skip
_ALWAYS: Final[tuple[_Name, ...]] = ("connect", "sendmmsg", "io_uring", "execve", "execveat")


def die_with_parent() -> None:
    """Be killed when the process that started this one ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, 9, 0, 0, 0)


def arm(control: socket.socket) -> int | None:
    """Refuse, from now on and for ever, what leaves this process; returns the listener's descriptor.

    `control` stays free to pass descriptors on. None where this kernel, or a container around us, has no such wall.
    """
    known = _CALLS.get(platform.machine()) if sys.platform == "linux" else None
    if known is None:
        return None
    arch, calls = known
    code = _filter(arch, calls, control.fileno())
    program = (ctypes.c_char * len(code)).from_buffer_copy(code)
    # struct sock_fprog: how many words, and where.
    described = struct.pack("@HP", len(code) // 8, ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return None
    listener = int(libc.syscall(calls["seccomp"], _SET_FILTER, _NEW_LISTENER, described))
    return listener if listener >= 0 else None


def _filter(arch: int, calls: dict[_Name, int], control: int) -> bytes:
    """Return the program. Shape: 8 bytes a word; jumps are relative to the next word."""
    words = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _REFUSE), (_LOAD, 0, 0, _NUMBER)]
    # The 32-bit names of the same calls.
    words += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _REFUSE)]
    for name in _ALWAYS:
        words += [(_EQUAL, 0, 1, calls[name]), (_RETURN, 0, 0, _ASK)]
    # Without an address it goes where the socket is connected to already: our own control socket, and the database's.
    words += [
        (_EQUAL, 0, 5, calls["sendto"]),
        (_LOAD, 0, 0, _FIFTH), (_EQUAL, 0, 2, 0), (_LOAD, 0, 0, _FIFTH + 4), (_EQUAL, 5, 0, 0), (_RETURN, 0, 0, _ASK),
    ]  # fmt: skip
    words += [
        (_EQUAL, 0, 3, calls["sendmsg"]), (_LOAD, 0, 0, _FIRST), (_EQUAL, 1, 0, control), (_RETURN, 0, 0, _ASK),
        (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip
    return b"".join(struct.pack("<HBBI", *word) for word in words)


def answer(listener: int) -> Literal["network", "process"] | None:
    """Refuse one call that waits at a listener, and say what it was about; None when its caller is gone."""
    notice = bytearray(_NOTICE_BYTES)
    try:
        fcntl.ioctl(listener, _RECEIVE, notice, True)
    except OSError:
        return None
    ticket, _, _, number = struct.unpack_from("<QIIi", notice)
    try:
        fcntl.ioctl(listener, _SEND, bytearray(struct.pack("<QqiI", ticket, 0, -errno.EPERM, 0)), True)
    except OSError:
        return None
    _, calls = _CALLS[os.uname().machine]
    return "process" if number in (calls["execve"], calls["execveat"]) else "network"
