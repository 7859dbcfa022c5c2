"""Tell a story in a process of its own that a fault strikes at a named point.

A fork server that has Django loaded, and no connection, forks each of them: a process that is killed is a real one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Final, Literal

import django
from django.apps import apps
from django.conf import settings
from django.db import OperationalError, connections

if not apps.ready:
    django.setup()

from queues import broker, faults
from tests.faults.stories import STORIES

Action = Literal["kill", "error", "delay"]
PATIENCE: Final = 30.0
_context: Final = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def _tell(
    story: str, arguments: tuple[Any, ...], point: str, action: Action, pipe: Connection, env: Mapping[str, str],
    database: str, networks: list[str],
) -> None:  # fmt: skip
    os.environ.update(env)
    settings.OUTBOUND_ALLOWED_CIDRS = networks
    connections["default"].settings_dict["NAME"] = database
    # On a busy machine the first call of a new process may take longer than a producer would wait.
    for bound in ("CALL_SECONDS", "SOCKET_SECONDS"):
        setattr(broker, bound, PATIENCE)

    def strike() -> None:
        faults.disarm()
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        pipe.send(("at", point))
        if action == "error":
            raise OperationalError(f"a fault at {point}: the server closed the connection unexpectedly")
        if not pipe.poll(PATIENCE):
            raise SystemExit("nobody let the story go on")
        pipe.recv()

    faults.arm(point, strike)
    try:
        said = ("ok", STORIES[story](*arguments))
    except Exception as error:
        said = ("error", f"{type(error).__name__}: {error}")
    pipe.send(said)
    pipe.close()
    # Daemon threads of the story hold connections; nothing is to be tidied up.
    os._exit(0)


class Told:
    """How it went. `struck`: it came to the point; `answer`: what it returned; `error`: what it raised."""

    def __init__(self) -> None:
        self.struck = False
        self.answer: Any = None
        self.error: str | None = None
        self.exit_code: int | None = None


def tell(
    story: str, *arguments: Any, point: str, action: Action, env: Mapping[str, str], meanwhile: Callable[[], None]
) -> Told:
    """Tell a story until its fault strikes; with `delay` the world goes on by `meanwhile`, and then the story does."""
    ours, theirs = _context.Pipe()
    database = connections["default"].settings_dict["NAME"]
    networks = list(settings.OUTBOUND_ALLOWED_CIDRS)
    child = _context.Process(
        target=_tell, args=(story, arguments, point, action, theirs, env, database, networks), daemon=True
    )
    child.start()
    theirs.close()
    told = Told()
    try:
        # What was killed says nothing: the end of the pipe does.
        with contextlib.suppress(EOFError):
            while ours.poll(PATIENCE):
                kind, value = ours.recv()
                if kind == "at":
                    told.struck = True
                    if action == "delay":
                        meanwhile()
                        # Whoever does not wait for a thread that was held up is gone by now.
                        with contextlib.suppress(BrokenPipeError):
                            ours.send("go on")
                elif kind == "ok":
                    told.answer = value
                else:
                    told.error = value
        child.join(PATIENCE)
        told.exit_code = child.exitcode
        told.struck |= told.exit_code == -signal.SIGKILL
    finally:
        if child.is_alive():
            child.kill()
            child.join()
        ours.close()
    assert told.exit_code in (0, -signal.SIGKILL), f"{story} at {point}: exit code {told.exit_code}"
    return told
