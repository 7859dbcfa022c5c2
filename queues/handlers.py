"""What a handler is given, may return and may raise, and which handler belongs to which job type.

Running handlers is `queues.runtime`'s; the HTTP one is `queues.http_target`.
"""

import datetime as dt
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final
from uuid import UUID

import msgspec

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
    """The outside world refused the work for good: dead, `rejected`."""


class NoHandler(LookupError):
    """No handler is registered for the job's type in this worker."""


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
    probe: bool = False
    trace_text: str | None = None
    _cancelled: Callable[[], bool] = field(default=lambda: False, repr=False)

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
        """Somebody asked to stop this job; a handler that can stop cleanly should."""
        return self._cancelled()


Handler = Callable[[JobContext], Confirmed | AwaitingConfirmation | None]
_registry: Final[dict[str, Handler]] = {}


def handler(name: str) -> Callable[[Handler], Handler]:
    """Register a function as the handler of a job type. Raises: ValueError when the type has one already."""

    def register(function: Handler) -> Handler:
        if _registry.get(name, function) is not function:
            raise ValueError(f"job type {name!r} has a handler already: {_registry[name].__qualname__}")
        _registry[name] = function
        return function

    return register


def find(name: str) -> Handler:
    """Return the handler of a job type. Raises: NoHandler."""
    try:
        return _registry[name]
    except KeyError:
        raise NoHandler(f"no handler is registered for {name!r}; is its module named in JOBSBOARD_HANDLERS?") from None


def load(modules: Iterable[str]) -> None:
    """Import the modules that register handlers."""
    for module in modules:
        importlib.import_module(module)
