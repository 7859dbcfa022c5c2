"""The ways in which the local stack refuses, each a message of one line.

Not here: how they are shown; `__main__.py` prints the line and ends with the code.
"""

from __future__ import annotations


class LocalStackError(Exception):
    """The local stack cannot do what was asked."""

    exit_code = 1


class UsageError(LocalStackError):
    """The caller asked for what cannot be had: a port that is taken, a stack that runs already."""

    exit_code = 2


class StopRequested(Exception):  # noqa: N818 - no error: a signal asked for the end
    """SIGTERM, SIGINT or SIGHUP arrived while the stack was being brought up."""


def require(condition: bool, message: str) -> None:
    """Raise: LocalStackError with the message unless the condition holds."""
    if not condition:
        raise LocalStackError(message)
