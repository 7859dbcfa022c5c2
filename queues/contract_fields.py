"""What kind each field of a contract is: kept by version, always current, a switch, or not enforced yet.

Rules about values are in `queues.contract_rules`; the fields themselves in `queues.models.contract`.
"""

from __future__ import annotations

from typing import Any, Final

from django.db.models import Field

from queues.models import JobType

SWITCHES: Final = frozenset(
    {
        "enabled",
        "disabled_reason",
        "disabled_by",
        "disabled_until",
        "paused",
        "paused_reason",
        "paused_by",
        "paused_until",
        "deferred",
        "deferred_reason",
        "deferred_by",
        "deferred_until",
    }
)
"""Never versioned, untouched by `contracts sync`, audited one by one."""

SWITCH_MARKS: Final = frozenset(
    {"disabled_by", "disabled_until", "paused_by", "paused_until", "deferred_by", "deferred_until"}
)
"""Who and until when: written with the switch itself, never taken from a contract or a file."""

TARGET_SECRET: Final = "target_secret"  # noqa: S105 (the name of a field)
CALLBACK_SECRET: Final = "callback_secret"  # noqa: S105 (the name of a field)
SECRETS: Final = (TARGET_SECRET, CALLBACK_SECRET)
"""Set as text, stored sealed, in no version and in no file."""

VERSIONED: Final = frozenset(
    {
        "success",
        "check_every_seconds",
        "confirm_within_seconds",
        "on_unconfirmed",
        "window_seconds",
        "target_ratio",
        "max_age_seconds",
        "on_stale",
        "key_required",
        "key_template",
        "dedupe_window_seconds",
        "provider_key_ttl_seconds",
        "max_attempts",
        "backoff",
        "backoff_base_seconds",
        "backoff_cap_seconds",
        "jitter",
        "never_retry",
        "on_worker_lost",
        "poison_after",
        "schema",
    }
)
"""A job keeps these as they were when it was accepted."""

CURRENT: Final = frozenset(
    {
        "description",
        "owner",
        "runbook_url",
        # The job's row keeps the tier that it was accepted with; only new jobs take the new one.
        "tier",
        "pool",
        "handler",
        "target_url",
        "target_secret_env",
        "callback_secret_env",
        "check_url",
        "lease_seconds",
        "soft_limit_seconds",
        "hard_limit_seconds",
        "concurrency",
        "group_concurrency",
        "rate_per_second",
        "rate_burst",
        "group_rate_per_second",
        "ordered",
        "ordered_on_failure",
        "overlap",
        "overlap_seconds",
        "priority_default",
        "deferrable",
        "dependency",
        "batch_size",
        "canary_ratio",
        "keep_confirmed_days",
        "keep_other_days",
        "max_payload_bytes",
        "redact",
        "probe_every_seconds",
        "probe_payload",
    }
)
"""A change of these reaches jobs that wait already; they are in every revision all the same."""

NOT_ENFORCED: Final[dict[str, str]] = {
    "batch_size": "handlers get one job at a time",
    "canary_ratio": "no version is tried on a share of jobs first",
}
"""Fields whose engine is not built, each with what is missing; `tests/queues/test_contract_rules.py` lists them."""

FIELDS: Final[dict[str, Field[Any, Any]]] = {
    field.name: field for field in JobType._meta.concrete_fields if field.name in VERSIONED | CURRENT | SWITCHES
}
"""The model's fields by name, in the order of the model."""


def default_of(name: str) -> Any:
    """Return a field's default; a new list or object each time."""
    return FIELDS[name].get_default()


def defaults() -> dict[str, Any]:
    """Return the whole contract of a type of which nothing was said."""
    return {name: default_of(name) for name in FIELDS if name not in SWITCHES}
