"""What a handler is given, may return and may raise, and which handler belongs to which job type.

Running handlers is `queues.runtime`'s; the HTTP one is `queues.http_target`.
"""

import datetime as dt
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

import msgspec
from django.db import DEFAULT_DB_ALIAS

LATEST_SECONDS: Final = 366 * 86400.0
"""How far ahead a handler may put its job off; max age ends it earlier anyway."""


@dataclass(frozen=True)
class Confirmed:
    """The outcome, with the reference that proves it; `result` is kept and given to duplicates."""

    ref: str | None
    result: Any = None


@dataclass(frozen=True)
class AwaitingConfirmation:
    """The work was handed over; somebody else will confirm it."""

    ref: str | None = None


class PermanentError(Exception):
    """No further attempt can help: the job becomes a dead letter at once."""


class RetryLater(Exception):
    """Try again after this many seconds, whatever the backoff says. It costs an attempt."""

    def __init__(self, seconds: float, message: str = "") -> None:
        super().__init__(message or f"try again in {seconds:g} s")
        # A number beyond this, or none at all, would be no time that PostgreSQL can store.
        self.seconds = min(max(0.0, float(seconds)), LATEST_SECONDS)


class Rejected(Exception):
    """The outside world refused the work for good: dead, `rejected`. A handler raises it; a check may return it too."""


class SoftTimeLimitExceeded(Exception):
    """The run passed its contract's soft limit. A handler may clean up; the run has failed unless it returns."""


class RunSuperseded(Exception):
    """This run is no longer the job's: its lease was lost, or it was stopped. What it still does cannot count."""


class NoHandler(LookupError):
    """No handler is registered for the job's type in this worker."""


class NoCheck(LookupError):
    """The contract wants a check, and this worker knows none."""


class StepInvalid(ValueError):
    """A step's name or result cannot be stored: 1 to 100 characters, JSON of at most 64 KiB."""


class Steps(Protocol):
    """Where a run keeps what it has done; `queues.runtime` brings the one that a worker uses."""

    def once(self, name: str, function: Callable[[], Any]) -> Any: ...
    def progress(self, share: float, text: str) -> None: ...


class NoSteps:
    """For contexts without a row: each step is done, nothing is kept."""

    def once(self, name: str, function: Callable[[], Any]) -> Any:
        """Run the function."""
        return function()

    def progress(self, share: float, text: str) -> None:
        """Forget it."""


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """One run of a job, as its handler sees it. Times are aware and in UTC."""

    id: UUID
    type: str
    run: int
    """The fence of this run: every claim raises it."""
    attempt: int
    payload_text: str
    idempotency_key: str
    """What to send to the provider: the same in every attempt and replay."""
    group: str | None
    accepted_epoch: float
    deadline_epoch: float
    maybe_duplicate: bool
    """An earlier run may have had its effect already."""
    failures_text: str = "[]"
    reference: str | None = None
    """What an earlier run got from outside, while its proof was awaited."""
    probe: bool = False
    trace_text: str | None = None
    _cancelled: Callable[[], bool] = field(default=lambda: False, repr=False)
    _steps: Steps = field(default_factory=NoSteps, repr=False)

    @cached_property
    def payload(self) -> Any:
        """The payload as Python values."""
        return msgspec.json.decode(self.payload_text)

    @cached_property
    def accepted_at(self) -> dt.datetime:
        """When the job was accepted."""
        return dt.datetime.fromtimestamp(self.accepted_epoch, tz=dt.UTC)

    @cached_property
    def deadline(self) -> dt.datetime:
        """When the job is too old to matter."""
        return dt.datetime.fromtimestamp(self.deadline_epoch, tz=dt.UTC)

    @cached_property
    def previous_attempts(self) -> Sequence[Mapping[str, Any]]:
        """Runs that failed or were lost. Shape: attempt, started_at, finished_at, worker, error_class, message."""
        attempts: list[dict[str, Any]] = msgspec.json.decode(self.failures_text)
        return attempts

    @cached_property
    def trace(self) -> Mapping[str, str] | None:
        """The producer's trace context, if it sent one."""
        return None if self.trace_text is None else msgspec.json.decode(self.trace_text)

    @property
    def cancelled(self) -> bool:
        """Somebody asked to stop this job, or its lease is lost; a handler that can stop cleanly should."""
        return self._cancelled()

    def once(self, name: str, function: Callable[[], Any]) -> Any:
        """Do a step and store its result before the next begins; a later run gets the result and does not redo it.

        The result is JSON; what comes back is what JSON makes of it. A process that dies inside the step leaves
        nothing stored: the step is done again, so give its effect the idempotency key.
        Raises: StepInvalid, RunSuperseded.
        """
        return self._steps.once(name, function)

    def progress(self, share: float, text: str = "") -> None:
        """Show how far the run is: a share from 0 to 1 and a few words. Stored at most once a second.

        Raises: ValueError when the share is no number from 0 to 1.
        """
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"progress is from 0 to 1, not {share!r}")
        self._steps.progress(share, text)


Handler = Callable[[JobContext], Confirmed | AwaitingConfirmation | None]
Check = Callable[[JobContext], Confirmed | Rejected | None]
_H = TypeVar("_H", bound=Handler)
_C = TypeVar("_C", bound=Check)


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A handler and how it is run."""

    function: Handler
    atomic: bool


_handlers: Final[dict[str, Registered]] = {}
_checks: Final[dict[str, Check]] = {}


def handler(name: str, *, atomic: bool = False, using: str = DEFAULT_DB_ALIAS) -> Callable[[_H], _H]:
    """Register a function as the handler of a job type.

    With `atomic` its own database writes and the confirmation commit together. `using` is the alias that it writes to;
    only the jobs' own can commit with them.
    Raises: ValueError when the type has a handler already, or for an atomic one on another alias.
    """
    if atomic and using != DEFAULT_DB_ALIAS:
        raise ValueError(
            f"the handler of {name!r} cannot be atomic on {using!r}: the jobs are in {DEFAULT_DB_ALIAS!r}, and only"
            " writes to the same database commit with them"
        )

    def register(function: _H) -> _H:
        known = _handlers.get(name)
        if known is not None and known.function is not function:
            raise ValueError(f"job type {name!r} has a handler already: {known.function.__qualname__}")
        _handlers[name] = Registered(function=function, atomic=atomic)
        return function

    return register


def check(name: str) -> Callable[[_C], _C]:
    """Register a function that asks the world whether a job's outcome is true already.

    It returns Confirmed, Rejected (as a value or raised) or None: not so far. Any other exception means that it could
    not find out. It is asked before every run after one that may have begun, and while a contract awaits its proof.
    Raises: ValueError when the type has a check already.
    """

    def register(function: _C) -> _C:
        known = _checks.setdefault(name, function)
        if known is not function:
            raise ValueError(f"job type {name!r} has a check already: {known.__qualname__}")
        return function

    return register


def find(name: str) -> Registered:
    """Return the handler of a job type. Raises: NoHandler."""
    try:
        return _handlers[name]
    except KeyError:
        raise NoHandler(f"no handler is registered for {name!r}; is its module named in JOBSBOARD_HANDLERS?") from None


def types_of(function: Handler) -> list[str]:
    """Return the job types whose handler a function is."""
    return [name for name, known in _handlers.items() if known.function is function]


def find_check(name: str) -> Check | None:
    """Return the check of a job type, if it has one."""
    return _checks.get(name)


def checked_types() -> list[str]:
    """Return the job types that have a check of their own."""
    return list(_checks)


def load(modules: Iterable[str]) -> None:
    """Import the modules that register handlers."""
    for module in modules:
        importlib.import_module(module)
