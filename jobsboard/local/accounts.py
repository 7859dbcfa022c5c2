"""Under which account PostgreSQL runs, since it refuses uid 0, and what that account may read.

Not here: a change to the user's directories. What the account cannot read is copied (`postgres.py`), never opened up.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobsboard.local.errors import LocalStackError

CANDIDATES = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """An account that exists on this machine."""

    name: str
    uid: int
    gid: int


@functools.cache
def for_postgres() -> Account | None:
    """Choose the account that PostgreSQL runs under; None means our own.

    Raises: LocalStackError when root can become none of the candidates.
    """
    if os.geteuid() != 0:
        return None
    for name in CANDIDATES:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            account = Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
            # In some containers an account exists that cannot be switched to.
            if as_account(account, lambda: True):
                return account
    raise LocalStackError(f"PostgreSQL refuses to run as root, and none of the accounts {CANDIDATES} can be used")


def may_enter(account: Account, directory: Path) -> bool:
    """Tell whether the account can reach something below the directory by its name."""
    return as_account(account, lambda: os.access(directory, os.X_OK))


def may_read_tree(account: Account, *roots: Path) -> bool:
    """Tell whether the account can read every file below the roots and run those that are programs."""
    return as_account(account, lambda: all(_readable(root) for root in roots))


def as_account(account: Account, question: Callable[[], bool]) -> bool:
    """Ask a question under another account, in a child that ends with the answer."""
    child = os.fork()
    if child == 0:
        answer = False
        try:
            os.setgroups([])
            os.setgid(account.gid)
            os.setuid(account.uid)
            answer = question()
        finally:
            # Not sys.exit: the parent's atexit handlers and buffers are none of the child's business.
            os._exit(0 if answer else 1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _readable(root: Path) -> bool:
    unreadable: list[OSError] = []
    for folder, _, names in os.walk(root, onerror=unreadable.append):
        for name in names:
            path = os.path.join(folder, name)
            wanted = os.R_OK | os.X_OK if os.path.basename(folder) == "bin" else os.R_OK
            if not os.access(path, wanted):
                return False
    return not unreadable
