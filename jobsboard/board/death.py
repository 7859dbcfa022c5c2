"""What stood around a death: its failure, the one before and after of the same, what it depends on, its lineage.

Then and now side by side. Not here: whether a replay is safe (`replay_checks`), the job itself (`job_view`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.urls import reverse

from dlq import groups, preflight, sql
from dlq.facts import Dependency, Facts
from dlq.groups import GroupRow
from queues import contract_versions
from queues.models import ContractRevision, Job
from queues.redaction import redact_text
from queues.states import JobState

LINEAGE_MOST: Final = 20
_TRACE: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_CHANGES_SHOWN: Final = 12

# One statement: the neighbours from index job_dead_failure, the hour from a row a type.
_AROUND: Final = """
SELECT
  (SELECT id FROM queues_job WHERE state = 'dead' AND resolution = 'open' AND NOT probe AND type = %(type)s
    AND reason = %(reason)s AND fingerprint {same} AND id > %(id)s ORDER BY id LIMIT 1),
  (SELECT id FROM queues_job WHERE state = 'dead' AND resolution = 'open' AND NOT probe AND type = %(type)s
    AND reason = %(reason)s AND fingerprint {same} AND id < %(id)s ORDER BY id DESC LIMIT 1),
  coalesce(sum(greatest(r.runs, r.failed + r.lost)), 0), coalesce(sum(r.failed), 0)
FROM queues_outcomerollup r
WHERE r.grain = 'hour' AND r.at = date_trunc('hour', %(died)s::timestamptz) AND r.type = ANY(%(types)s::text[])
"""
# A lineage is a chain: each job is replayed once. Read by primary key, up and down from this one.
_LINEAGE: Final = """
WITH RECURSIVE up (id, n) AS (
  SELECT %(parent)s::uuid, 1
  UNION ALL
  SELECT j.replay_of, n + 1 FROM up
  JOIN LATERAL (SELECT replay_of FROM queues_job WHERE id = up.id LIMIT 1) AS j ON true
  WHERE j.replay_of IS NOT NULL AND n < %(most)s
), down (id, n) AS (
  SELECT %(child)s::uuid, 1
  UNION ALL
  SELECT j.replayed_by, n + 1 FROM down
  JOIN LATERAL (SELECT replayed_by FROM queues_job WHERE id = down.id LIMIT 1) AS j ON true
  WHERE j.replayed_by IS NOT NULL AND n < %(most)s
)
SELECT j.id, j.state, j.accepted_at, j.settled_at, j.root = %(root)s
FROM (SELECT id FROM up WHERE id IS NOT NULL UNION SELECT id FROM down WHERE id IS NOT NULL) AS l
CROSS JOIN LATERAL (SELECT * FROM queues_job WHERE id = l.id LIMIT 1) AS j
ORDER BY j.id LIMIT %(most)s
"""


@dataclass(frozen=True, kw_only=True)
class Kin:
    """One job that this one replays, or that replays it. `same_key`: both are one business action."""

    id: UUID
    state: str
    at: datetime
    settled_at: datetime | None
    same_key: bool


@dataclass(frozen=True, kw_only=True)
class Depended:
    """How what a job depends on was in the hour of its end, and how it is now."""

    name: str
    then_words: str
    then_bad: bool
    now_words: str
    now_css: str


@dataclass(frozen=True, kw_only=True)
class Around:
    """What stood around one job. `newer` and `older` died of the same failure."""

    group: GroupRow | None
    group_url: str
    newer: UUID | None
    older: UUID | None
    depended: Depended | None
    changed: Sequence[tuple[str, str, str]]
    changed_more: int
    changed_known: bool
    lineage: Sequence[Kin]


def around(job: Job, facts: Facts) -> Around:
    """Read it: at most four statements."""
    found = groups.group_of(job)
    newer, older, runs, failed = _neighbours(job, facts.dependency)
    changed = _changed(job, facts)
    return Around(
        group=found,
        group_url=reverse("failure-group", args=[found.id]) if found else "",
        newer=newer,
        older=older,
        depended=_depended(job, facts, runs=runs, failed=failed),
        changed=(changed or [])[:_CHANGES_SHOWN],
        changed_more=max(len(changed or []) - _CHANGES_SHOWN, 0),
        changed_known=changed is not None,
        lineage=lineage(job),
    )


def lineage(job: Job) -> list[Kin]:
    """Return the jobs that this one replays and those that replay it, oldest first, at most LINEAGE_MOST."""
    if job.replay_of is None and job.replayed_by is None:
        return []
    params = {"parent": job.replay_of, "child": job.replayed_by, "root": job.root, "most": LINEAGE_MOST}
    return [
        Kin(id=job_id, state=state, at=at, settled_at=settled, same_key=same)
        for job_id, state, at, settled, same in sql.rows(_LINEAGE, params)
    ]


def trace(job: Job) -> str:
    """Return the trace id that the producer sent along, or nothing."""
    sent = job.trace.get("traceparent") if isinstance(job.trace, dict) else None
    found = _TRACE.fullmatch(sent) if isinstance(sent, str) else None
    return found[1] if found else ""


def _neighbours(job: Job, dependency: Dependency) -> tuple[UUID | None, UUID | None, int, int]:
    params = {
        "id": job.id,
        "type": job.type,
        # Of a job that is no dead letter nobody died of the same.
        "reason": job.reason if job.state == JobState.DEAD else None,
        "fingerprint": job.fingerprint,
        "died": job.settled_at,
        "types": list(dependency.types),
    }
    # A death without an error has no fingerprint.
    statement = _AROUND.format(same="IS NULL" if job.fingerprint is None else "= %(fingerprint)s")
    newer, older, runs, failed = sql.rows(statement, params)[0]
    return newer, older, int(runs), int(failed)


def _changed(job: Job, facts: Facts) -> list[tuple[str, str, str]] | None:
    """Return what the contract says otherwise today, in words; None when one of the versions is not kept."""
    if facts.contract is None or facts.contract.version == job.contract_version:
        return []
    try:
        diff = contract_versions.compare(job.type, job.contract_version, facts.contract.version)
    except ContractRevision.DoesNotExist:
        return None
    return [(name, _said(then), _said(now)) for name, (then, now) in diff.items()]


def _said(value: Any) -> str:
    if value is None or value == "":
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return redact_text(", ".join(map(str, value))) or "not set"
    return f"{len(value)} entries" if isinstance(value, Mapping) else redact_text(str(value))


def _depended(job: Job, facts: Facts, *, runs: int, failed: int) -> Depended | None:
    if job.settled_at is None:
        return None
    now = preflight.dependency(facts.dependency, now=facts.now)
    hour = job.settled_at.replace(minute=0, second=0, microsecond=0)
    of = f"{hour:%-d %b %H:%M} to {hour + timedelta(hours=1):%H:%M} UTC"
    counted = f"{failed:,} of {runs:,} run{'' if runs == 1 else 's'} failed, {of}" if runs else f"Nothing ran, {of}"
    return Depended(
        name=facts.dependency.name,
        then_words=counted,
        then_bad=bool(runs) and failed / runs >= preflight.FAILING_SHARE,
        now_words=f"{now.title}. {now.evidence}",
        now_css={"fail": "bad", "note": "warn"}.get(now.result, ""),
    )
