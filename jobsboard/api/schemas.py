"""What the API takes and answers, for the OpenAPI document only: `envelope` reads requests, `job_json` writes jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

_State = Literal[
    "accepted", "processing", "awaiting_confirmation", "retrying", "confirmed", "dead", "expired", "cancelled"
]
KEY: Final = r"^[\x21-\x7e]{1,255}$"
"""A dedupe key, and a group."""
# Some character that is no space; no U+0000, which PostgreSQL cannot keep.
_WORDS: Final = r"^[^\x00]*[^\s\x00][^\x00]*$"
_TEXT: Final = r"^[^\x00]*$"
_LINE: Final = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
_Kind = Literal["deploy", "incident", "support"]


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="For programs; never changes.")
    pointer: str = Field(description="JSON pointer, or name of the query parameter, of what is wrong; may be empty.")
    request_id: str


class OneJob(BaseModel):
    """A job to accept."""

    model_config = ConfigDict(extra="forbid")

    type: str
    payload: Any = Field(description="Any JSON; stored as sent. UTF-8, no repeated keys, 64 levels at most.")
    dedupe_key: str | None = Field(default=None, pattern=KEY)
    group: str | None = Field(default=None, pattern=KEY)
    priority: int | None = Field(default=None, ge=-100, le=100, description="Higher first.")
    run_at: datetime | None = Field(default=None, description="Excludes delay_seconds. The past means now.")
    delay_seconds: float | None = Field(default=None, ge=0, le=366 * 86400)
    max_age_seconds: float | None = Field(default=None, gt=0, le=365 * 86400)


class Batch(BaseModel):
    """Jobs to accept, each answered on its own."""

    model_config = ConfigDict(extra="forbid")

    jobs: list[OneJob] = Field(min_length=1, max_length=1000)


class Confirmation(BaseModel):
    """What became of the work, as the outside world says it."""

    model_config = ConfigDict(extra="forbid")

    outcome: Literal["confirmed", "rejected"]
    ref: str | None = Field(default=None, max_length=1000, pattern=_TEXT, description="The reference that proves it.")
    detail: str | None = Field(
        default=None, pattern=_TEXT, description="For people; what is beyond 2000 characters is cut off."
    )
    retryable: bool = Field(default=False, description="Of a rejection: another attempt may help.")
    run: int | None = Field(default=None, ge=1, le=2**31 - 1, description="Which run it is about; null: the current.")


class ProviderCallback(Confirmation):
    """A provider's callback. It names the job by job_id, or by the reference that the provider gave before."""

    job_id: str | None = Field(default=None, description="Before ref, where both are sent.")


class Reason(BaseModel):
    """Why a person or a producer does this; kept in the audit log."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=1000, pattern=_WORDS)


class Evidence(BaseModel):
    """What proves the outcome."""

    kind: str | None
    ref: str | None
    at: datetime | None
    late: bool


class LateEvidence(BaseModel):
    """What came after the end, or about an older run: kept, and without effect."""

    outcome: Literal["confirmed", "rejected"] | None
    kind: str | None
    ref: str | None
    detail: str | None
    at: datetime | None
    run: int | None


class Progress(BaseModel):
    """How far the last run said that it was."""

    share: float | None
    text: str
    at: datetime | None


class Attempt(BaseModel):
    """One run of the job."""

    number: int | None
    started_at: datetime | None
    finished_at: datetime | None
    outcome: str
    worker: str | None
    error_class: str | None
    message: str | None
    traceback: str | None = Field(description="Null in lists.")


class Links(BaseModel):
    """Where to look."""

    self: str
    board: str


class Job(BaseModel):
    """A job; payload, result and messages are redacted."""

    id: UUID
    type: str
    tier: int
    contract_version: int
    state: _State
    reason: str | None
    probe: bool
    group: str | None
    priority: int
    dedupe_key: str | None
    idempotency_key: str
    payload: Any
    attempt: int
    max_attempts: int
    run: int
    accepted_at: datetime
    ready_at: datetime
    due_at: datetime | None
    expires_at: datetime
    confirm_by: datetime | None = Field(description="When an outcome that is still not proven is given up.")
    started_at: datetime | None
    finished_at: datetime | None
    settled_at: datetime | None
    window_seconds: int
    in_window: bool | None
    lag_seconds: float | None
    progress: Progress | None
    reference: str | None = Field(description="What a run got from outside, while its proof is awaited.")
    evidence: Evidence | None
    late_evidence: list[LateEvidence]
    result: Any
    maybe_duplicate: bool
    cancel_requested: bool
    attempts: list[Attempt]
    replay_of: UUID | None
    replayed_by: UUID | None
    root: UUID
    links: Links


class Counted(BaseModel):
    """What a confirmation did. A callback is answered with this alone."""

    applied: bool = Field(description="It counts, now or when the run that goes on has ended.")
    result: Literal[
        "confirmed",
        "kept",
        "rejected",
        "retrying",
        "duplicate",
        "late",
        "contradiction",
        "superseded",
        "pending",
    ]
    duplicate: bool
    late: bool
    job_id: UUID | None = Field(description="The job it counted for: of a lineage, the newest.")
    state: _State | None


class ConfirmedJob(Job):
    """The job after a confirmation."""

    confirmation: Counted


class BatchResult(BaseModel):
    """The answer to one item: `job` with 201 or 200, else `error`."""

    status: int
    job: Job | None = None
    error: Problem | None = None


class BatchResults(BaseModel):
    """The answers in request order."""

    results: list[BatchResult]


class Searched(BaseModel):
    """How far a filter without an index looked; `rows` is null where an index answered exactly."""

    rows: int | None
    complete: bool


class JobPage(BaseModel):
    """Jobs, newest first."""

    items: list[Job]
    next: str | None = Field(description="Cursor of the next page; a page may be empty and still have a next one.")
    searched: Searched


class Flow(BaseModel):
    """What limits a type, and how much of it is taken now. Null: no such limit."""

    running: int = Field(description="Runs that hold a lease.")
    limit: int | None = Field(description="How many may: the field `concurrency`.")
    rate_per_second: float | None
    burst: int | None = Field(description="How many tokens the bucket of the rate holds.")
    tokens: float | None = Field(description="How many it has; a run that begins takes one.")
    group_concurrency: int | None
    group_rate_per_second: float | None
    ordered: bool
    ordered_on_failure: Literal["block", "step_aside"] | None


class JobType(BaseModel):
    """A reliability contract: each field of docs/contracts.md, and what follows from them."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    promise: str
    tier: int
    tier_name: str
    target_ratio: float | None = Field(description="The type's own share; null: its tier's.")
    target_ratio_in_effect: float
    enabled: bool
    paused: bool
    deferred: bool
    target_secret_set: bool
    callback_secret_set: bool
    breaker: Literal["closed", "half_open", "open"] | None = Field(
        description="The circuit breaker of what it depends on; null where it names no dependency."
    )
    flow: Flow | None = Field(description="How its limits stand now; null for a type without any.")
    not_enforced: dict[str, str] = Field(description="Fields that decide nothing in this release, and what is missing.")


class JobTypes(BaseModel):
    """The job types that the key may use, by name."""

    items: list[JobType]


class OneAnnotation(BaseModel):
    """Something that happened outside and may explain lag."""

    model_config = ConfigDict(extra="forbid")

    kind: _Kind
    at: datetime | None = Field(default=None, description="Now if left out; at most a day ahead, 400 days ago.")
    job_type: str | None = Field(default=None, min_length=1, description="Left out: about all types.")
    category: str | None = Field(
        default=None, max_length=64, pattern=_LINE, description="Required for support, and only there: missing mail."
    )
    count: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Of support: how many asked; 1 if left out."
    )
    text: str | None = Field(default=None, max_length=1000, pattern=_TEXT)
    url: str | None = Field(default=None, max_length=2000, pattern="^https?://[^/?#@]+")


class Annotation(BaseModel):
    """An annotation as it is kept."""

    id: int
    kind: _Kind
    at: datetime
    job_type: str | None
    category: str | None
    count: int | None = Field(description="Of support; null for others.")
    text: str
    url: str | None
    created_by: str
    created_at: datetime


class AnnotationPage(BaseModel):
    """Annotations by their time, newest first."""

    items: list[Annotation]
    next: str | None = Field(description="Cursor of the next page.")


class Suspected(BaseModel):
    """A sign that something happened twice. What each kind can prove: docs/twice.md."""

    id: int
    kind: Literal["blind_attempt", "second_reference", "contradiction", "confirmed_after_rejection"]
    type: str
    tier: int
    job_id: UUID = Field(description="The job may be pruned since.")
    run: int = Field(description="The run that it is about.")
    at: datetime
    known: str | None = Field(description="The reference that was known.")
    said: str | None = Field(description="The reference that came beside it.")
    error_class: str | None = Field(description="Of a blind attempt: how the one before had ended.")
    detail: str | None = Field(description="What was said with a rejection.")


class SuspectedPage(BaseModel):
    """Signs, newest first."""

    items: list[Suspected]
    next: str | None = Field(description="Cursor of the next page; a page may be empty and still have a next one.")


class Cancelled(BaseModel):
    """What a cancel did."""

    id: UUID
    status: Literal["cancelled", "cancel_requested"]
    state: _State
    effect: Literal["none", "possible"]


def body(model: type[BaseModel]) -> dict[str, Any]:
    """Return a request body for `openapi_extra`: the body is read by `envelope`, so ninja does not see it."""
    schema = model.model_json_schema(ref_template=f"#/components/schemas/{model.__name__}.{{model}}")
    # One level of nesting only: definitions are put where they are used.
    for name, definition in schema.pop("$defs", {}).items():
        schema = _inline(schema, f"#/components/schemas/{model.__name__}.{name}", definition)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inline(value: Any, ref: str, definition: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return definition if value.get("$ref") == ref else {k: _inline(v, ref, definition) for k, v in value.items()}
    return [_inline(item, ref, definition) for item in value] if isinstance(value, list) else value


def query(**parameters: dict[str, Any]) -> dict[str, Any]:
    """Return query parameters for `openapi_extra`."""
    return {
        "parameters": [
            {"in": "query", "name": name, "required": False, "schema": schema} for name, schema in parameters.items()
        ]
    }


def header(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return one header parameter for `openapi_extra`."""
    return {"parameters": [{"in": "header", "name": name, "required": False, "schema": schema}]}


ERRORS: Final[dict[Any, Any]] = dict.fromkeys((400, 401, 403, 404, 408, 409, 411, 413, 415, 422, 429, 503), Problem)
"""What any call may answer beside its own."""
