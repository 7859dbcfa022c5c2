"""What a crashed run left behind: its processes are ended, its abandoned directories removed.

Not here: the orderly end of a run (`supervise.py`). All of this happens under the stack's lock, so that the run is
known to be over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

from jobsboard.local import kernel, layout
from jobsboard.local.errors import LocalStackError
from jobsboard.local.layout import Layout

SERVER_PROGRAMS = ("postgres", "valkey-server")
#: PostgreSQL is asked to stop fast, then at once; SIGKILL only after that.
SERVER_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


def end_processes(stack: Layout) -> int:
    """End the processes of a run of this stack whose supervisor is gone; returns how many there were.

    Raises: LocalStackError when one of them does not end.
    """
    applications, servers = _find(stack)
    _signal(applications, signal.SIGKILL)
    for number, seconds in SERVER_STEPS:
        alive = _alive([*applications, *servers])
        if not alive:
            break
        # A backend takes these signals otherwise than its postmaster does: only the head is told.
        heads = [pid for pid in servers if kernel.parent_of(pid) not in servers]
        _signal(servers if number is signal.SIGKILL else heads, number)
        _wait_for_end(alive, seconds=seconds)
    left = _alive([*applications, *servers])
    if left:
        raise LocalStackError(f"processes of an earlier run of {stack.root} do not end: {left}")
    return len(applications) + len(servers)


def remove_abandoned() -> None:
    """Remove the directories of isolated stacks whose run was killed, and end what still runs in them."""
    base, prefix = layout.private_parent()
    for root in base.glob(prefix + "*"):
        abandoned = Layout(root=root)
        with contextlib.suppress(OSError, LocalStackError):
            if root.is_symlink() or root.stat().st_uid != os.geteuid():
                continue
            held = abandoned.lock()
            if held is None:
                continue
            try:
                end_processes(abandoned)
                layout.remove_tree(root)
            finally:
                os.close(held)


def _find(stack: Layout) -> tuple[list[int], list[int]]:
    """Tell this stack's processes by the marker in their environment; servers overwrite it, but show their folder."""
    applications, servers = [], []
    marker = os.fsencode(f"{layout.MARKER}={stack.root}")
    for pid in set(kernel.pids()) - kernel.ancestors():
        program, folder = kernel.program_of(pid), kernel.folder_of(pid)
        if program is None or folder is None:
            continue
        if program.name.split(" ")[0] in SERVER_PROGRAMS and stack.root in folder.parents:
            servers.append(pid)
        elif marker in kernel.environment_of(pid):
            applications.append(pid)
    return applications, servers


def _alive(pids: Iterable[int]) -> list[int]:
    return [pid for pid in pids if kernel.parent_of(pid) is not None]


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _wait_for_end(pids: list[int], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
