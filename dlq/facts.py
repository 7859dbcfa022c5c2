"""What the checks before a replay look at, read for many jobs at once: a fixed number of statements, however many.

Not here: what the facts mean (`dlq.preflight`), asking the outside world (`queues.outside`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from dlq import sql
from queues import breakers, contracts, outside
from queues.breakers import Standing
from queues.contracts import Contract, UnknownContract
from queues.models import Job
from queues.outside import Answer

RECENT_MINUTES: Final = 10
RUNS_LEAST: Final = 5
"""The newest minutes with at least so many runs say how a dependency is; older ones are history."""

_HOLDERS: Final = """
SELECT k.type, k.key, k.job_id FROM unnest(%(types)s::text[], %(keys)s::text[]) AS a (type, key)
JOIN queues_dedupekey k ON k.type = a.type AND k.key = a.key
"""
# Apart from the above, with the ids written in it: planned for the partitions that they are in, not for all.
_STATES: Final = "SELECT id, state FROM queues_job WHERE id = ANY(%(ids)s::uuid[])"

# The minutes of a dependency's types are few: at most ten rows a type.
_RUNS: Final = """
SELECT type, at, sum(runs), sum(failed), sum(lost) FROM queues_outcomerollup
WHERE grain = 'minute' AND at > jobs_now() - make_interval(mins => %(minutes)s) AND at <= jobs_now()
  AND type = ANY(%(types)s::text[])
GROUP BY type, at HAVING sum(runs) + sum(failed) + sum(lost) > 0
"""
_PROBES: Final = """
SELECT type, last_ok_at, failing_since FROM queues_probe
WHERE type = ANY(%(types)s::text[])
  AND (failing_since IS NOT NULL OR last_ok_at > jobs_now() - make_interval(mins => %(minutes)s))
"""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The job that holds a dedupe key; `state` None: its row is gone."""

    id: UUID
    state: str | None


@dataclass(frozen=True, kw_only=True)
class Dependency:
    """How the newest runs went of all types that name a dependency (or of the type itself, where none is named).

    `since` and `until`: from the oldest minute that was looked at to the end of the newest. `probe_ok` and
    `probe_failing`: the newest success, the first failure in a row, of a probe of any of these types. `breaker`: how
    the dependency's stands; None where none is named, or the service has not made it yet.
    """

    name: str
    types: Sequence[str]
    runs: int = 0
    failed: int = 0
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    probe_ok: dt.datetime | None = None
    probe_failing: dt.datetime | None = None
    breaker: Standing | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the checks of one job look at. `now`: the database's time of reading."""

    job: Job
    now: dt.datetime
    holder: Holder | None
    contract: Contract | None
    """Today's; None when the type was deleted."""
    then: Contract | None
    """The one that it was accepted under."""
    dependency: Dependency
    answer: Answer | None
    """What the outside world said when it was asked last."""
    other_key: bool = False
    """It is about an edit that gives the job another dedupe key; `holder` holds that one."""


def gather(jobs: Sequence[Job], *, fresh: bool = False, now: dt.datetime | None = None) -> dict[UUID, Facts]:
    """Read the facts of jobs. `fresh`: contracts are read now, not taken from a cache of two seconds.

    `now`: the database's time, where it was read a moment ago.
    """
    if fresh:
        contracts.forget()
    current = contracts.all_current()
    held = holders(jobs)
    answers = outside.answers([job.id for job in jobs])
    dependencies = health({job.type for job in jobs})
    now = now or _now()
    return {
        job.id: Facts(
            job=job,
            now=now,
            holder=held.get((job.type, job.dedupe_key or "")),
            contract=current.get(job.type),
            then=_then(job),
            dependency=dependencies[job.type],
            answer=answers.get(job.id),
        )
        for job in jobs
    }


def health(types: Iterable[str]) -> dict[str, Dependency]:
    """Return how what each type depends on is doing."""
    current = contracts.all_current()
    wanted = sorted(set(types))
    named = {name: current[name].dependency if name in current else "" for name in wanted}
    sharing = {
        name: sorted(other for other, one in current.items() if named[name] and one.dependency == named[name]) or [name]
        for name in wanted
    }
    asked = {"types": sorted({other for others in sharing.values() for other in others}), "minutes": RECENT_MINUTES}
    runs = sql.rows(_RUNS, asked)
    probes = sql.rows(_PROBES, asked)
    standing = {one.name: one for one in breakers.standings()} if any(named.values()) else {}
    return {name: _dependency(named[name], sharing[name], runs, probes, standing.get(named[name])) for name in wanted}


def _dependency(
    name: str,
    types: Sequence[str],
    runs: Sequence[tuple[Any, ...]],
    probes: Sequence[tuple[Any, ...]],
    breaker: Standing | None,
) -> Dependency:
    minutes: dict[dt.datetime, list[int]] = {}
    for of_type, at, begun, failed, lost in runs:
        if of_type in types:
            sums = minutes.setdefault(at, [0, 0])
            minutes[at] = [sums[0] + max(begun, failed + lost), sums[1] + failed]
    whole = bad = 0
    since = None
    for at in sorted(minutes, reverse=True):
        whole, bad, since = whole + minutes[at][0], bad + minutes[at][1], at
        if whole >= RUNS_LEAST:
            break
    seen = [(ok, failing) for of_type, ok, failing in probes if of_type in types]
    return Dependency(
        name=name,
        types=types,
        runs=int(whole),
        failed=int(bad),
        since=since,
        until=max(minutes) + dt.timedelta(minutes=1) if minutes else None,
        probe_ok=max((ok for ok, failing in seen if ok and not failing), default=None),
        probe_failing=min((failing for _, failing in seen if failing), default=None),
        breaker=breaker,
    )


def holders(jobs: Sequence[Job]) -> Mapping[tuple[str, str], Holder]:
    """Return who holds the dedupe keys of jobs now, by type and key."""
    pairs = sorted({(job.type, job.dedupe_key) for job in jobs if job.dedupe_key is not None})
    if not pairs:
        return {}
    rows = sql.rows(_HOLDERS, {"types": [pair[0] for pair in pairs], "keys": [pair[1] for pair in pairs]})
    # Mostly a job holds its own key.
    states = {job.id: job.state for job in jobs}
    others = [row[2] for row in rows if row[2] not in states]
    if others:
        states |= dict(sql.rows(_STATES, {"ids": others}))
    return {(name, key): Holder(id=job_id, state=states.get(job_id)) for name, key, job_id in rows}


def _then(job: Job) -> Contract | None:
    try:
        return contracts.of_version(job.type, job.contract_version)
    except UnknownContract:
        return None


def _now() -> dt.datetime:
    at: dt.datetime = sql.rows("SELECT jobs_now()", {})[0][0]
    return at
