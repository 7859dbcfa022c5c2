"""New versions of contracts: save, restore, compare; switches and deletion. Each writes its audit entry with it.

What a contract may say is decided by `contract_rules`; reading contracts at run time is `contracts`'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from django.db import IntegrityError, models, transaction
from django.db.models.functions import Now

from queues import audit, contract_rules, contracts, secrets_box
from queues.contract_fields import CURRENT, FIELDS, SWITCHES, VERSIONED, default_of, defaults
from queues.contract_rules import Findings
from queues.models import BoardVersion, ContractRevision, Job, JobType, StateCount, Tier

Diff = dict[str, list[Any]]

SECRET: Final = "target_secret"  # noqa: S105 (the name of a field)
TIER_FIELDS: Final = ("name", "target_ratio", "retry_budget", "backlog_limit")


class ContractInvalid(ValueError):
    """The contract breaks a rule; nothing was saved."""

    def __init__(self, findings: Findings) -> None:
        super().__init__("; ".join(f"{name}: {texts[0]}" for name, texts in findings.errors.items()))
        self.findings = findings


class ContractChanged(Exception):
    """Somebody saved another version in between; nothing was saved."""


class JobsExist(Exception):
    """A job type that has jobs is not deleted; disable it. `counts` are by state, as far as they are known."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = counts
        known = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in counts.items())
        super().__init__(f"This job type has jobs ({known or 'settled ones'}). Disable it instead.")


class Saved(NamedTuple):
    """The row, the version that was made (None when nothing changed), and what changed as {field: [old, new]}."""

    job_type: JobType
    version: int | None
    diff: Diff


def fields_of(job_type: JobType) -> dict[str, Any]:
    """Return a contract as plain values: what a version keeps. Secrets and switches are not in it."""
    return {name: getattr(job_type, _column(name)) for name in FIELDS if name not in SWITCHES}


def save(
    name: str,
    fields: Mapping[str, Any],
    *,
    actor: str,
    reason: str,
    source: str = "admin",
    request_id: str = "",
    expected_version: int | None = None,
) -> Saved:
    """Save a contract as a new version, or do nothing where nothing changed. Fields left out stay as they are.

    `target_secret` is text to be sealed, or None to remove it. Switches count for a new type only.
    Raises: ContractInvalid, ContractChanged, ValidationError (the name), ImproperlyConfigured (a secret without
        ENCRYPTION_KEYS).
    """
    JobType._meta.get_field("name").clean(name, None)
    with transaction.atomic():
        row = JobType.objects.select_for_update().filter(pk=name).first()
        if row is None and expected_version is None:
            row_or_saved = _create(name, fields, actor=actor, reason=reason, source=source, request_id=request_id)
            if isinstance(row_or_saved, Saved):
                return row_or_saved
            row = row_or_saved
        if row is None or (expected_version is not None and row.version != expected_version):
            raise ContractChanged(f"{name} was changed by somebody else meanwhile.")
        return _change(row, fields, actor=actor, reason=reason, source=source, request_id=request_id)


def _create(
    name: str, fields: Mapping[str, Any], *, actor: str, reason: str, source: str, request_id: str
) -> Saved | JobType:
    """Insert a type; where another transaction was first, return its row, locked."""
    values = {**defaults(), **_plain(fields)}
    _refuse_if_invalid({**values, SECRET: bool(fields.get(SECRET))}, previous=None)
    switches = {key: fields[key] for key in ("enabled", "paused", "paused_reason") if key in fields}
    columns = {_column(key): value for key, value in values.items()}
    row = JobType(name=name, **columns, **switches, target_secret=_sealed(fields.get(SECRET)))
    row.clean_fields(exclude=["tier"])
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        return JobType.objects.select_for_update().get(pk=name)
    diff: Diff = {key: [None, value] for key, value in values.items() if not _same(value, default_of(key))}
    if fields.get(SECRET):
        diff[SECRET] = ["not set", "set"]
    _revise(row, diff, actor=actor, reason=reason)
    audit.record(
        "contract.created",
        actor=actor,
        object_type="job_type",
        object_id=name,
        after={"version": row.version, **_side(diff, 1), **switches},
        reason=reason,
        source=source,
        request_id=request_id,
    )
    return Saved(row, row.version, diff)


def _change(row: JobType, fields: Mapping[str, Any], *, actor: str, reason: str, source: str, request_id: str) -> Saved:
    before = fields_of(row)
    after = {**before, **_plain(fields)}
    secret = fields.get(SECRET, row.target_secret)
    _refuse_if_invalid({**after, SECRET: bool(secret)}, previous=before)
    diff = differences(before, after)
    if SECRET in fields and (fields[SECRET] or row.target_secret):
        diff[SECRET] = ["set" if row.target_secret else "not set", "changed" if fields[SECRET] else "removed"]
        row.target_secret = _sealed(fields[SECRET])
    if not diff:
        return Saved(row, None, diff)
    for key in diff.keys() - {SECRET}:
        setattr(row, _column(key), after[key])
    row.version += 1
    row.clean_fields(exclude=["tier"])
    row.save(update_fields=[*diff, "version"])
    _revise(row, diff, actor=actor, reason=reason)
    audit.record(
        "contract.changed",
        actor=actor,
        object_type="job_type",
        object_id=row.name,
        before={"version": row.version - 1, **_side(diff, 0)},
        after={"version": row.version, **_side(diff, 1)},
        reason=reason,
        source=source,
        request_id=request_id,
    )
    return Saved(row, row.version, diff)


def _revise(row: JobType, diff: Diff, *, actor: str, reason: str) -> None:
    ContractRevision.objects.create(
        job_type=row,
        version=row.version,
        fields=fields_of(row),
        diff=diff,
        actor=actor[:150],
        reason=reason[:1000],
    )
    JobType.objects.filter(pk=row.pk).update(changed_at=Now())
    _seen()


def set_switch(
    name: str,
    *,
    actor: str,
    reason: str,
    enabled: bool | None = None,
    paused: bool | None = None,
    source: str = "admin",
    request_id: str = "",
) -> JobType:
    """Enable, disable, pause or resume a type: at once, for waiting jobs too, without a new version.

    Raises: JobType.DoesNotExist.
    """
    with transaction.atomic():
        row = JobType.objects.select_for_update().get(pk=name)
        for switch, value, word in (
            ("enabled", enabled, "contract.enabled" if enabled else "contract.disabled"),
            ("paused", paused, "contract.paused" if paused else "contract.resumed"),
        ):
            old = getattr(row, switch)
            if value is None or value == old:
                continue
            setattr(row, switch, value)
            if switch == "paused":
                row.paused_reason = reason[:1000] if value else ""
            audit.record(
                word,
                actor=actor,
                object_type="job_type",
                object_id=name,
                before={switch: old},
                after={switch: value},
                reason=reason,
                source=source,
                request_id=request_id,
            )
        row.save(update_fields=["enabled", "paused", "paused_reason"])
        _seen()
    return row


def restore(name: str, version: int, *, actor: str, reason: str, source: str = "admin", request_id: str = "") -> Saved:
    """Save what an old version said as a new one. Secrets and switches stay as they are.

    Raises: ContractRevision.DoesNotExist, ContractInvalid when today's rules refuse it.
    """
    kept = ContractRevision.objects.get(job_type_id=name, version=version).fields
    known = {key: value for key, value in kept.items() if key in VERSIONED | CURRENT}
    return save(name, known, actor=actor, reason=reason, source=source, request_id=request_id)


def compare(name: str, a: int, b: int) -> Diff:
    """Return what differs from version a to version b. Raises: ContractRevision.DoesNotExist."""
    kept = dict(ContractRevision.objects.filter(job_type_id=name, version__in=(a, b)).values_list("version", "fields"))
    if not {a, b} <= kept.keys():
        raise ContractRevision.DoesNotExist(f"{name} has no such version.")
    return differences(kept[a], kept[b])


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Diff:
    """Return {field: [old, new]} in the order of the model."""
    return {
        key: [before.get(key), after.get(key)]
        for key in FIELDS
        if key in VERSIONED | CURRENT and not _same(before.get(key), after.get(key))
    }


def job_counts(name: str) -> dict[str, int] | None:
    """Return how many jobs a type has by state; empty when all are settled, None when it never had one.

    Settled jobs are looked for, not counted: one index probe in each partition.
    """
    counts = {
        row["state"]: row["total"]
        for row in StateCount.objects.filter(type=name).values("state").annotate(total=models.Sum("n"))
        if row["total"] > 0
    }
    if counts or Job.objects.of_type(name).exists():
        return counts
    return None


def delete(name: str, *, actor: str, reason: str, source: str = "admin", request_id: str = "") -> None:
    """Delete a type that never had a job. Raises: JobsExist, JobType.DoesNotExist."""
    with transaction.atomic():
        row = JobType.objects.select_for_update().get(pk=name)
        counts = job_counts(name)
        if counts is not None:
            raise JobsExist(counts)
        audit.record(
            "contract.deleted",
            actor=actor,
            object_type="job_type",
            object_id=name,
            before={"version": row.version, **fields_of(row)},
            reason=reason,
            source=source,
            request_id=request_id,
        )
        row.delete()
        _seen()


def save_tier(
    number: int, fields: Mapping[str, Any], *, actor: str, reason: str, source: str = "admin", request_id: str = ""
) -> Tier:
    """Change a tier, audited. Raises: ValidationError, Tier.DoesNotExist."""
    with transaction.atomic():
        row = Tier.objects.select_for_update().get(pk=number)
        before = {key: getattr(row, key) for key in TIER_FIELDS}
        after = {**before, **{key: fields[key] for key in TIER_FIELDS if key in fields}}
        changed = [key for key in TIER_FIELDS if before[key] != after[key]]
        for key in changed:
            setattr(row, key, after[key])
        row.full_clean()
        if changed:
            row.save(update_fields=changed)
            audit.record(
                "tier.changed",
                actor=actor,
                object_type="tier",
                object_id=number,
                before={key: before[key] for key in changed},
                after={key: after[key] for key in changed},
                reason=reason,
                source=source,
                request_id=request_id,
            )
            _seen()
    return row


def _seen() -> None:
    """Let open pages and this process see the change at once."""
    BoardVersion.objects.update(n=models.F("n") + 1, at=Now())
    transaction.on_commit(contracts.forget)


def _refuse_if_invalid(values: Mapping[str, Any], *, previous: Mapping[str, Any] | None) -> None:
    findings = contract_rules.check(values, previous=previous)
    if not findings.ok:
        raise ContractInvalid(findings)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what a version holds; unknown names are kept too, for the rules to refuse."""
    return {key: value for key, value in fields.items() if key not in SWITCHES and key != SECRET}


def _sealed(secret: str | None) -> bytes | None:
    return secrets_box.seal(secret) if secret else None


def _column(name: str) -> str:
    return "tier_id" if name == "tier" else name


def _side(diff: Diff, index: int) -> dict[str, Any]:
    return {key: pair[index] for key, pair in diff.items()}


def _same(a: Any, b: Any) -> bool:
    # Inside JSON true and 1 differ, though Python calls them equal.
    if isinstance(a, dict | list) or isinstance(b, dict | list):
        return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    return bool(a == b)
