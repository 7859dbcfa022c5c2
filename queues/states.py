"""The state machine of a job, as data: states, legal transitions and reasons (DESIGN.md section 5).

Nothing here touches a database. `lifecycle` makes the transitions; migrations turn this table into the
trigger that refuses every other one.
"""

from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    """Where a job is between its acceptance and its outcome."""

    ACCEPTED = "accepted"
    """Stored; waits for its time, its tier, its limits or a worker. Claim, expire, confirm and cancel move it."""
    PROCESSING = "processing"
    """A run holds the lease. Finish, fail, rescue, release and stop move it."""
    AWAITING_CONFIRMATION = "awaiting_confirmation"
    """The handler returned; the outcome is not proven yet. Confirm, reject, deadline and cancel move it."""
    RETRYING = "retrying"
    """Failed or lost; the next attempt is at `due_at`. Claim, expire, confirm, cancel and bury move it."""
    CONFIRMED = "confirmed"
    """Terminal: evidence is recorded."""
    DEAD = "dead"
    """Terminal: a dead letter with its failure context. A replay is a new job that points to it."""
    EXPIRED = "expired"
    """Terminal: too old to matter. Replay allowed."""
    CANCELLED = "cancelled"
    """Terminal: stopped by a person or by the producer. Replay allowed."""


_S = JobState

TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    _S.ACCEPTED: frozenset({_S.PROCESSING, _S.EXPIRED, _S.DEAD, _S.CONFIRMED, _S.CANCELLED}),
    _S.PROCESSING: frozenset(
        {_S.CONFIRMED, _S.AWAITING_CONFIRMATION, _S.RETRYING, _S.DEAD, _S.ACCEPTED, _S.CANCELLED, _S.EXPIRED}
    ),
    _S.AWAITING_CONFIRMATION: frozenset({_S.CONFIRMED, _S.RETRYING, _S.DEAD, _S.CANCELLED}),
    _S.RETRYING: frozenset({_S.PROCESSING, _S.EXPIRED, _S.CONFIRMED, _S.CANCELLED, _S.DEAD}),
    _S.CONFIRMED: frozenset(),
    _S.DEAD: frozenset(),
    _S.EXPIRED: frozenset(),
    _S.CANCELLED: frozenset(),
}

WAITING: Final = (_S.ACCEPTED, _S.RETRYING)
"""States that a claim may take."""
OPEN: Final = (_S.ACCEPTED, _S.PROCESSING, _S.AWAITING_CONFIRMATION, _S.RETRYING)
WAITING_PROBES: Final = "probe"
"""What the counts by state have beside states: probes that wait for a claim. They are in no other count."""
TERMINAL: Final = (_S.CONFIRMED, _S.DEAD, _S.EXPIRED, _S.CANCELLED)
REPLAYABLE: Final = (_S.DEAD, _S.EXPIRED, _S.CANCELLED)


class Reason(StrEnum):
    """Why a job is dead, expired or cancelled; error class and fingerprint say the rest."""

    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    PERMANENT_ERROR = "permanent_error"
    PAYLOAD_INVALID = "payload_invalid"
    REJECTED = "rejected"
    UNCONFIRMED = "unconfirmed"
    NO_EVIDENCE = "no_evidence"
    STALE = "stale"
    POISON = "poison"
    TIME_LIMIT = "time_limit"
    NO_HANDLER = "no_handler"
    OPERATOR = "operator"
    PRODUCER = "producer"
    SUPERSEDED = "superseded"


DEAD_REASONS: Final = (
    Reason.ATTEMPTS_EXHAUSTED,
    Reason.PERMANENT_ERROR,
    Reason.PAYLOAD_INVALID,
    Reason.REJECTED,
    Reason.UNCONFIRMED,
    Reason.NO_EVIDENCE,
    Reason.STALE,
    Reason.POISON,
    Reason.TIME_LIMIT,
    Reason.NO_HANDLER,
)
EXPIRED_REASONS: Final = (Reason.STALE,)
CANCELLED_REASONS: Final = (Reason.OPERATOR, Reason.PRODUCER, Reason.SUPERSEDED)
REASON_CODES: Final[dict[Reason, int]] = {reason: code for code, reason in enumerate(Reason)}
"""Small numbers for rollups; append only, since stored rollups use them."""


class Resolution(StrEnum):
    """What a person made of a dead, expired or cancelled job."""

    OPEN = "open"
    REPLAYED = "replayed"
    CANCELLED = "cancelled"
    IGNORED = "ignored"


RESOLUTION_COLUMNS: Final = (
    "resolution",
    "resolved_at",
    "resolved_by",
    "replayed_by",
    "late_evidence",
    "payload",
    "erased_at",
)
"""The only columns of a terminal row that may still change."""
