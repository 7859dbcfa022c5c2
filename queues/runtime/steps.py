"""What a handler keeps while it runs: results of its steps, and how far it is (`JobContext.once`, `progress`)."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import msgspec
from django.db import Error, connection

from queues import lifecycle
from queues.faults import fault
from queues.handlers import RunSuperseded, StepInvalid
from queues.lifecycle import Run
from queues.runtime import leases, story

log = logging.getLogger(__name__)

NAME_CHARACTERS: Final = 100
RESULT_BYTES: Final = 65_536
KEEP_TRIES: Final = 6
PROGRESS_SECONDS: Final = 1.0
TEXT_CHARACTERS: Final = 200


class RunSteps:
    """The steps of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._told_at = float("-inf")

    def once(self, name: str, function: Callable[[], Any]) -> Any:
        """Do a step unless its result is known. Raises: StepInvalid, RunSuperseded."""
        check_name(name)
        if connection.in_atomic_block:
            raise StepInvalid(
                f"step {name!r} stands inside a transaction: its result would be lost with it, and is to be stored"
                " before the next step begins"
            )
        run = self._run
        holds, found, result = lifecycle.find_step(run.id, run.fence, root=run.root, name=name)
        if not holds:
            raise RunSuperseded(f"job {run.id}: run {run.fence} is no longer the job's; step {name!r} was not begun")
        if found:
            return result
        holds, kept = self._keep(name, _done(name, function))
        if not holds:
            raise RunSuperseded(f"job {run.id}: run {run.fence} lost its lease during step {name!r}, which is kept")
        return kept

    def progress(self, share: float, text: str) -> None:
        """Store how far the run is, at most once a second. Never an error: it is for those who watch."""
        # Inside a transaction it would hold the job's row until the end, and with it the lease.
        if leases.now() - self._told_at < PROGRESS_SECONDS or connection.in_atomic_block:
            return
        self._told_at = leases.now()
        words = story.clean(text)[:TEXT_CHARACTERS]
        try:
            lifecycle.set_progress(self._run.id, self._run.fence, share=share, text=words)
        except Error as error:
            connection.close()
            log.warning("job %s: its progress is not stored: %s", self._run.id, error)

    def _keep(self, name: str, text: str) -> tuple[bool, Any]:
        """Store what a step did. It has happened: a database that is away for a moment is waited for."""
        run, pause, tries = self._run, 0.1, 1
        while True:
            try:
                return lifecycle.keep_step(run.id, run.fence, root=run.root, name=name, result=text)
            except Error:
                connection.close()
                if tries == KEEP_TRIES:
                    raise
                threading.Event().wait(pause)
                pause, tries = pause * 2, tries + 1


def _done(name: str, function: Callable[[], Any]) -> str:
    result = function()
    fault("step.done")
    return encoded(name, result)


def check_name(name: str) -> None:
    """Refuse a name that a later run could not find its result by. Raises: StepInvalid."""
    if not 1 <= len(name) <= NAME_CHARACTERS or not name.isprintable():
        raise StepInvalid(f"a step's name has 1 to {NAME_CHARACTERS} printable characters")


def encoded(name: str, value: Any) -> str:
    """Return what a step returned as the JSON that is kept. Raises: StepInvalid."""
    try:
        raw = msgspec.json.encode(value)
        plain = msgspec.json.decode(raw)
        if len(raw) > RESULT_BYTES or story.clean_values(plain) != plain:
            raise ValueError(
                f"{len(raw)} bytes, of {RESULT_BYTES} at most, or characters that PostgreSQL does not take"
            )
    except (TypeError, ValueError, RecursionError) as error:
        raise StepInvalid(f"step {name!r} was done, but its result cannot be kept: {error}") from error
    return raw.decode()
