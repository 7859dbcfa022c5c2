"""What producers hand in, what they get back, and why a job was not accepted. Accepting is `queues.accept`'s."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from queues.states import JobState


class EnqueueError(Exception):
    """A job that was not accepted. `pointer` names the part of the request that is wrong."""

    code = "not_accepted"

    def __init__(self, detail: str, *, pointer: str = "", code: str | None = None, position: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.pointer = pointer
        self.code = code or type(self).code
        self.position = position


class UnknownJobType(EnqueueError):
    """There is no contract of this name."""

    code = "unknown_job_type"


class TypeDisabled(EnqueueError):
    """The job type is switched off."""

    code = "type_disabled"


class PayloadInvalid(EnqueueError):
    """The payload is not JSON as we take it, too large, or breaks the contract's schema."""

    code = "contract_violation"

    def __init__(self, detail: str, *, violations: Sequence[dict[str, str]] = (), **kwargs: Any) -> None:
        super().__init__(detail, **kwargs)
        self.violations = list(violations)


class KeyInvalid(EnqueueError):
    """The dedupe key is missing or is not 1 to 255 visible ASCII characters."""

    code = "dedupe_key_invalid"


class DedupeConflict(EnqueueError):
    """The key is held by a job with another payload or group."""

    code = "dedupe_conflict"

    def __init__(self, detail: str, *, job_id: UUID | None = None, **kwargs: Any) -> None:
        super().__init__(detail, **kwargs)
        self.job_id = job_id


class Overloaded(EnqueueError):
    """The tier takes no more work now."""

    code = "overloaded"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One job to enqueue. A payload given as text or bytes is JSON and is stored as it is."""

    type: str
    payload: Any
    dedupe_key: str | None = None
    group: str | None = None
    priority: int | None = None
    run_at: dt.datetime | None = None
    delay_seconds: float | None = None
    max_age: float | None = None


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The accepted job; `duplicate` when its key had been accepted before, with what has become of it."""

    job_id: UUID
    state: JobState
    duplicate: bool = False
    evidence: dict[str, Any] | None = None
    result: Any = None
