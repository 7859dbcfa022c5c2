"""New versions of contracts: save, restore, compare; secrets and deletion. Each writes its audit entry with it.

What a contract may say is decided by `contract_rules`; reading contracts at run time is `contracts`', switching them
off and on `contract_switches`'.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from django.db import IntegrityError, models, transaction
from django.db.models.functions import Now

from queues import audit, contract_rules, secrets_box
from queues.contract_fields import (
    CALLBACK_SECRET,
    CURRENT,
    FIELDS,
    SECRETS,
    SWITCH_MARKS,
    SWITCHES,
    VERSIONED,
    default_of,
    defaults,
)
from queues.contract_rules import Findings
from queues.contract_switches import HOLDS, changed, database_now
from queues.models import ContractRevision, Job, JobType, StateCount, Tier

Diff = dict[str, list[Any]]

OLD_SECRET_FOR: Final = dt.timedelta(hours=24)
"""How long the callback secret before a change is still taken."""
TIER_FIELDS: Final = ("name", "target_ratio", "retry_budget", "backlog_limit", "defer_after_seconds")


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

    `target_secret` and `callback_secret` are text to be sealed, or None to remove it; the callback secret before a
    change is taken for another day. Switches count for a new type only.
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
    stored = {key: bool(fields.get(key)) for key in SECRETS}
    _refuse_if_invalid({**values, **stored, "deferred": fields.get("deferred", False)}, previous=None)
    switches = {key: fields[key] for key in FIELDS if key in fields and key in SWITCHES - SWITCH_MARKS}
    columns = {_column(key): value for key, value in values.items()}
    sealed = {key: _sealed(fields.get(key)) for key in SECRETS}
    row = JobType(name=name, **columns, **sealed, **switches)
    for hold in HOLDS:
        if getattr(row, hold.switch) == hold.value:
            hold.write(row, reason=getattr(row, f"{hold.prefix}_reason") or reason, by=actor, until=None)
    row.clean_fields(exclude=["tier"])
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        return JobType.objects.select_for_update().get(pk=name)
    diff: Diff = {key: [None, value] for key, value in values.items() if not _same(value, default_of(key))}
    diff |= {key: ["not set", "set"] for key in SECRETS if fields.get(key)}
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
    stored = {key: bool(fields.get(key, getattr(row, key))) for key in SECRETS}
    _refuse_if_invalid({**after, **stored}, previous=before)
    diff = differences(before, after)
    for key in diff:
        setattr(row, _column(key), after[key])
    columns = {*diff, "version"}
    for key in SECRETS:
        if key in fields and (fields[key] or getattr(row, key)):
            diff[key] = ["set" if getattr(row, key) else "not set", "changed" if fields[key] else "removed"]
            columns |= _write_secret(row, key, fields[key])
    if not diff:
        return Saved(row, None, diff)
    row.version += 1
    row.clean_fields(exclude=["tier"])
    row.save(update_fields=columns)
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


def _write_secret(row: JobType, name: str, text: str | None) -> set[str]:
    """Put a secret into a row, unsaved; return the columns that changed."""
    old = getattr(row, name)
    setattr(row, name, _sealed(text))
    if name != CALLBACK_SECRET:
        return {name}
    # A provider changes over when its people find the time: until then both are taken. Who removes one wants it gone.
    keep = bool(old and text)
    row.callback_secret_old = old if keep else None
    row.callback_secret_old_until = database_now() + OLD_SECRET_FOR if keep else None
    return {name, "callback_secret_old", "callback_secret_old_until"}


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
    changed()


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
    """Return {field: [old, new]} in the order of the model. A version from before a field was there has its default."""
    return {
        key: [before.get(key, default_of(key)), after.get(key, default_of(key))]
        for key in FIELDS
        if key in VERSIONED | CURRENT and not _same(before.get(key, default_of(key)), after.get(key, default_of(key)))
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
        changed()


def save_tier(
    number: int, fields: Mapping[str, Any], *, actor: str, reason: str, source: str = "admin", request_id: str = ""
) -> Tier:
    """Change a tier, audited. Raises: ValidationError, Tier.DoesNotExist."""
    with transaction.atomic():
        row = Tier.objects.select_for_update().get(pk=number)
        before = {key: getattr(row, key) for key in TIER_FIELDS}
        after = {**before, **{key: fields[key] for key in TIER_FIELDS if key in fields}}
        differing = [key for key in TIER_FIELDS if before[key] != after[key]]
        for key in differing:
            setattr(row, key, after[key])
        row.full_clean()
        if differing:
            row.save(update_fields=differing)
            audit.record(
                "tier.changed",
                actor=actor,
                object_type="tier",
                object_id=number,
                before={key: before[key] for key in differing},
                after={key: after[key] for key in differing},
                reason=reason,
                source=source,
                request_id=request_id,
            )
            changed()
    return row


def _refuse_if_invalid(values: Mapping[str, Any], *, previous: Mapping[str, Any] | None) -> None:
    findings = contract_rules.check(values, previous=previous)
    if not findings.ok:
        raise ContractInvalid(findings)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what a version holds; unknown names are kept too, for the rules to refuse."""
    return {key: value for key, value in fields.items() if key not in SWITCHES and key not in SECRETS}


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
