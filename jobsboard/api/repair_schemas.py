"""What the calls on dead letters, groups and plans take and answer, for the OpenAPI document only."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from jobsboard.api.schemas import KEY, Job, Reason, Searched


class Replay(Reason):
    """A replay; `payload` and `dedupe_key` make it an edited one."""

    payload: Any = None
    dedupe_key: str | None = Field(None, pattern=KEY)
    verdict: str | None = Field(
        None,
        pattern=r"^[0-9][a-z]{1,32}$",
        description="The fingerprint that was seen. Of an unsafe verdict: do it all the same.",
    )


class IgnoreGroup(Reason):
    """A failure to set aside."""

    until: datetime | None = Field(default=None, description="In the future, at most 366 days; left out: for good.")


class PlanFilter(BaseModel):
    """Which jobs a plan is about, of the types that the key may use."""

    model_config = ConfigDict(extra="forbid")

    type: str | None = None
    tier: Literal[1, 2, 3] | None = None
    reason: str | None = Field(default=None, description="Of dead letters.")
    fingerprint: str | None = Field(
        default=None, pattern="^[0-9A-Za-z]{0,32}$", description="Empty: dead letters without an error."
    )
    group: str | None = Field(default=None, pattern=KEY)
    state: Literal["dead", "waiting"] = Field(
        default="dead", description="Unresolved dead letters, or jobs that wait (only to be cancelled)."
    )
    since: datetime | None = Field(default=None, description="Of acceptance, included.")
    until: datetime | None = Field(default=None, description="Of acceptance, not included.")


class _Plan(Reason):
    filter: PlanFilter | None = Field(default=None, description="This or ids.")
    ids: list[UUID] | None = Field(
        default=None,
        min_length=1,
        max_length=100_000,
        description="Repeated ones count once; those that the key may not use, or that do not exist, are left out.",
    )
    as_of: datetime | None = Field(default=None, description="When the count was seen; left out: now.")
    expected_count: int | None = Field(
        default=None, ge=0, le=2**31 - 1, description="How many jobs were seen; required with a filter."
    )
    dry_run: bool = Field(default=False, description="Judge each job and change none.")


class Replays(_Plan):
    """Many replays, at a pace."""

    rate_per_second: float = Field(default=50, gt=0, le=500)
    concurrency: int = Field(default=100, ge=1, le=1000, description="Replays that may wait, run or retry at once.")
    stop_on_failure_ratio: float = Field(
        default=0.5, ge=0, le=1, description="0: the first replay that fails again stops the plan; 1: nothing does."
    )
    order: Literal["oldest", "newest"] = Field(default="oldest", description="Which are replayed first.")


class Cancellations(_Plan):
    """Many cancels. Waiting jobs are cancelled, dead letters resolved."""

    action: Literal["cancel", "ignore"] = Field(default="cancel", description="ignore: dead letters only.")


class ReplayedJob(Job):
    """The new job, and what whoever replays should know."""

    notes: list[str]


class DeadLetter(Job):
    """A dead job, and what was made of it."""

    fingerprint: str | None = Field(description="The same for failures that are alike.")
    failure_group: int | None = Field(description="Id of its failure group; null until it is counted.")
    resolution: Literal["open", "replayed", "cancelled", "ignored"]
    resolved_at: datetime | None
    resolved_by: str | None


class DeadLetterPage(BaseModel):
    """Dead letters, newest first."""

    items: list[DeadLetter]
    next: str | None = Field(description="Cursor of the next page; a page may be empty and still have a next one.")
    searched: Searched


class PreflightCheck(BaseModel):
    """One question about a replay."""

    name: str
    title: str
    result: Literal["pass", "note", "fail", "unknown"]
    evidence: str
    at: datetime = Field(description="When the evidence was got.")
    final: bool = Field(description="Nobody can replay the job past this failure.")


class Preflight(BaseModel):
    """Whether a replay is safe, as far as this is known."""

    id: UUID
    verdict: Literal["safe", "unknown", "unsafe"]
    fingerprint: str = Field(description="Handed back as `verdict` of a replay: it is refused once this has changed.")
    final: bool = Field(description="Nobody can replay it.")
    checks: list[PreflightCheck]
    at: datetime


class GroupLinks(BaseModel):
    """Where to look."""

    self: str
    board: str


class Group(BaseModel):
    """Dead letters of one failure: the same type, reason, error class, message and frame."""

    id: int
    type: str
    tier: int
    reason: str
    fingerprint: str
    error_class: str | None
    message: str | None
    frame: str | None
    died: int = Field(description="Dead letters ever.")
    open: int = Field(description="Unresolved ones now.")
    first_at: datetime
    last_at: datetime
    hours: list[int] = Field(description="Deaths of the last 24 hours, oldest first.")
    state: Literal["open", "replaying", "resolved", "ignored"]
    state_at: datetime | None
    state_by: str | None
    state_reason: str | None
    ignored_until: datetime | None
    owner: str | None
    note: str | None
    regressed_at: datetime | None = Field(description="When it came back after it was resolved.")
    regressions: int
    sample: UUID | None = Field(description="The newest dead letter that was looked at.")
    plan: UUID | None = Field(description="The plan that is replaying it.")
    triage: dict[str, Any] | None = Field(
        description="What the checks found in the newest `looked` dead letters, nobody being asked."
    )
    triaged_at: datetime | None
    links: GroupLinks


class GroupPage(BaseModel):
    """Failure groups, tier 1 first, then by their newest death."""

    items: list[Group]
    next: str | None = Field(description="Cursor of the next page.")


class PlanOutcomes(BaseModel):
    """What became of the replays of a plan."""

    open: int = Field(description="They wait, run or retry.")
    failing: int = Field(description="Of these, their last attempt failed.")
    awaiting: int = Field(description="They wait for their proof.")
    confirmed: int
    dead_again: int
    expired: int
    cancelled: int
    lost: int = Field(description="Their rows were gone before anybody saw how they ended.")


class PlanLinks(BaseModel):
    """Where to look."""

    self: str
    items: str
    board: str


class Plan(BaseModel):
    """A bulk replay, cancel or ignore, and how far it is."""

    id: UUID
    action: Literal["replay", "cancel", "ignore"]
    state: Literal["running", "paused", "stopped", "aborted", "following", "finished"]
    state_at: datetime
    state_reason: str | None
    held: str | None = Field(description="Why it waits right now, though it runs.")
    dry_run: bool
    selection: dict[str, Any] = Field(description="The filter as asked; of ids how many.")
    types: list[str]
    as_of: datetime
    reason: str
    created_by: str
    created_at: datetime
    finished_at: datetime | None
    source: str
    rate_per_second: float
    concurrency: int
    stop_on_failure_ratio: float
    order: Literal["oldest", "newest"]
    total: int
    left_out: int = Field(description="Ids that do not exist or that the key may not use.")
    done: int
    skipped: int
    failed: int
    left: int = Field(description="Not acted on so far: total = done + skipped + failed + left.")
    why: dict[str, int] = Field(description="Codes of skipped and failed items; of a dry run also the verdicts.")
    outcomes: PlanOutcomes
    words: str
    eta_seconds: float | None = Field(description="Null while it does not go on.")
    links: PlanLinks


class PlanPage(BaseModel):
    """Plans, newest first."""

    items: list[Plan]
    next: str | None = Field(description="Cursor of the next page.")


class PlanItem(BaseModel):
    """One job of a plan."""

    number: int
    job_id: UUID
    type: str
    state: Literal["waiting", "done", "skipped", "failed"]
    code: str | None
    detail: str | None
    at: datetime | None
    child: UUID | None = Field(description="The new job.")
    outcome: str | None = Field(description="open, awaiting, confirmed, dead, expired, cancelled or lost.")
    failing: bool = Field(description="It is open, and its last attempt failed.")


class PlanItemPage(BaseModel):
    """Items in the plan's order."""

    items: list[PlanItem]
    next: int | None = Field(description="`after` of the next page.")
