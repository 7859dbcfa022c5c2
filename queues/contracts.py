"""Contracts as processes read them: frozen, cached for at most two seconds, old versions for ever.

Rules and new versions are in `contract_rules` and `contract_versions`; nothing here writes.
"""

import datetime as dt
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from queues.models import ContractRevision, JobType

CACHE_SECONDS: Final = 2.0
MISS_SECONDS: Final = 0.2

CURRENT_FIELDS: Final = frozenset(
    {
        "enabled", "paused", "deferred", "deferrable", "tier", "pool", "handler", "target_url", "target_secret_env",
        "target_secret", "callback_secret_env", "callback_secret", "callback_secret_old", "callback_secret_old_until",
        "check_url", "lease_seconds", "soft_limit_seconds", "hard_limit_seconds", "redact", "dependency",
        "concurrency", "group_concurrency", "rate_per_second", "rate_burst", "group_rate_per_second", "ordered",
        "ordered_on_failure", "overlap", "overlap_seconds", "breaker", "probe_every_seconds", "probe_payload",
    }
)  # fmt: skip
"""Read from the newest contract even by a job of an older version (DESIGN.md section 6)."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What is promised for the jobs of one type, in one version; fields and units are those of JobType."""

    name: str
    version: int
    enabled: bool
    paused: bool
    deferred: bool
    deferrable: bool
    tier: int
    pool: str
    handler: str
    target_url: str
    target_secret_env: str
    target_secret: bytes | None
    callback_secret_env: str
    callback_secret: bytes | None
    callback_secret_old: bytes | None
    callback_secret_old_until: dt.datetime | None
    success: str
    check_url: str
    check_every_seconds: int
    confirm_within_seconds: int
    on_unconfirmed: str
    window_seconds: int
    max_age_seconds: int
    on_stale: str
    key_required: bool
    key_template: str
    dedupe_window_seconds: int
    provider_key_ttl_seconds: int
    max_attempts: int
    backoff: str
    backoff_base_seconds: float
    backoff_cap_seconds: float
    jitter: str
    never_retry: tuple[str, ...]
    on_worker_lost: str
    poison_after: int
    lease_seconds: int
    soft_limit_seconds: int
    hard_limit_seconds: int
    concurrency: int
    group_concurrency: int
    rate_per_second: float
    rate_burst: int
    group_rate_per_second: float
    ordered: bool
    ordered_on_failure: str
    overlap: str
    overlap_seconds: int
    breaker: str
    priority_default: int
    dependency: str
    max_payload_bytes: int
    redact: tuple[str, ...]
    schema: Mapping[str, Any]
    probe_every_seconds: int
    probe_payload: Mapping[str, Any]

    @property
    def queue(self) -> str:
        """Name of the Celery queue: the tier's own, or one pool inside it."""
        return f"tier{self.tier}.{self.pool}" if self.pool else f"tier{self.tier}"

    @property
    def on_hold(self) -> bool:
        """Whether a switch keeps its jobs from being claimed; they are accepted all the same."""
        return self.paused or self.deferred

    @property
    def in_groups(self) -> bool:
        """Whether its groups have limits or an order of their own."""
        return self.ordered or self.group_concurrency > 0 or self.group_rate_per_second > 0

    @property
    def limited(self) -> bool:
        """Whether anything but its breaker holds its work back; the database has the same in a column."""
        return self.in_groups or self.concurrency > 0 or self.rate_per_second > 0

    @property
    def guarded(self) -> bool:
        """Whether a claim of its jobs has to look at more than the jobs."""
        return self.limited or self.breaker != "closed"


class UnknownContract(LookupError):
    """There is no job type of this name."""


_COLUMNS: Final = [field.name for field in fields(Contract) if field.name != "tier"]
_lock = threading.Lock()
_current: dict[str, Contract] = {}
_read_at = float("-inf")
_revisions: dict[tuple[str, int], Mapping[str, Any]] = {}


def _build(values: Mapping[str, Any]) -> Contract:
    known = {name: values[name] for name in (*_COLUMNS, "tier")}
    known["never_retry"] = tuple(known["never_retry"])
    known["redact"] = tuple(known["redact"])
    for name in ("target_secret", "callback_secret", "callback_secret_old"):
        if known[name] is not None:
            known[name] = bytes(known[name])
    return Contract(**known)


def all_current() -> Mapping[str, Contract]:
    """Return every contract by name, in its newest version, at most CACHE_SECONDS old."""
    global _current, _read_at
    if time.monotonic() - _read_at > CACHE_SECONDS:
        with _lock:
            if time.monotonic() - _read_at > CACHE_SECONDS:
                rows = JobType.objects.values(*_COLUMNS, "tier_id")
                _current = {row["name"]: _build({**row, "tier": row["tier_id"]}) for row in rows}
                _read_at = time.monotonic()
    return _current


def forget() -> None:
    """Drop the cache, so that the next reader sees what this process has just written."""
    global _read_at
    _read_at = float("-inf")
    _revisions.clear()


def current(name: str) -> Contract:
    """Return the newest contract of a type. Raises: UnknownContract."""
    contract = all_current().get(name)
    if contract is None and time.monotonic() - _read_at > MISS_SECONDS:
        # Perhaps it was made a moment ago; a flood of unknown names still reads at most five times a second.
        forget()
        contract = all_current().get(name)
    if contract is None:
        raise UnknownContract(name)
    return contract


def of_version(name: str, version: int) -> Contract:
    """Return the contract that a job was accepted under, with the always-current fields of the newest one.

    Raises: UnknownContract.
    """
    newest = current(name)
    if newest.version == version:
        return newest
    key = (name, version)
    if key not in _revisions:
        row = (
            ContractRevision.objects.filter(job_type_id=name, version=version).values_list("fields", flat=True).first()
        )
        # A version without a snapshot can only be a row written by hand; its newest promise is the honest answer.
        _revisions[key] = row or {}
    kept = {k: v for k, v in _revisions[key].items() if k in _COLUMNS and k not in CURRENT_FIELDS}
    redact = tuple(dict.fromkeys((*newest.redact, *_revisions[key].get("redact", ()))))
    return _build({**newest.__dict__, **kept, "version": version, "redact": redact})
