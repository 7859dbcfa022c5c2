"""What causes rest on, read in one bounded statement each: a type's situation, its open jobs, what is ahead of a job.

Open jobs are read from their rows, by partial indexes and never more than LOOK_AT_MOST of a kind, so they are true also
while nobody folds. Recent runs come from rollups of minutes.
"""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from django.db import connection

from queues import breakers
from queues.breakers import Standing
from queues.models import Job

LOOK_AT_MOST: Final = 1000
"""Jobs of one kind that are counted; more are told as so many or more."""
RECENT_MINUTES: Final = 10
ERRORS_OF: Final = 100
"""Of how many retrying jobs the newest error is read."""

# The minutes of a dependency's types are few: at most ten rows a type.
_SITUATION: Final = """
SELECT jobs_now(), (SELECT folded_at FROM queues_boardversion WHERE id = 1), c.dependency, t.retry_budget, c.success,
  c.enabled, c.disabled_by, c.disabled_reason, c.disabled_until, c.paused, c.paused_by, c.paused_reason, c.paused_until,
  c.limited, c.deferred, c.deferred_by, c.deferred_reason, c.deferred_until,
  (SELECT jsonb_object_agg(a.action, a.at) FROM (
    SELECT action, extract(epoch FROM max(at)) AS at FROM (SELECT at, action FROM queues_auditentry
      WHERE object_type = 'job_type' AND object_id = c.name ORDER BY id DESC LIMIT 20) AS newest
    WHERE (c.paused OR c.deferred) AND action IN ('contract.paused', 'contract.deferred') GROUP BY action) AS a),
  (SELECT jsonb_agg(jsonb_build_array(r.type, extract(epoch FROM r.at), r.runs, r.retries, r.failed, r.lost))
    FROM (SELECT type, at, sum(runs) AS runs, sum(retries) AS retries, sum(failed) AS failed, sum(lost) AS lost
      FROM queues_outcomerollup WHERE grain = 'minute' AND at > jobs_now() - make_interval(mins => %(minutes)s)
        AND at <= jobs_now() AND type IN (SELECT c.name UNION SELECT name FROM queues_jobtype
          WHERE dependency = c.dependency AND c.dependency <> '')
      GROUP BY type, at) AS r)
FROM queues_jobtype c JOIN queues_tier t ON t.number = c.tier_id WHERE c.name = %(type)s
"""

# job_open by ready_at for those that wait; running ones are as few as bodies, and job_lease has them.
_OPEN: Final = """
WITH open AS MATERIALIZED (
  SELECT j.* FROM unnest(%(tiers)s::smallint[]) AS w (tier) CROSS JOIN LATERAL (
    SELECT state, due_at, ready_at, ready_at + make_interval(secs => window_seconds) < jobs_now() AS late, confirm_by,
      finished_at, failures FROM queues_job
    WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation') AND tier = w.tier AND type = %(type)s
      AND ready_at <= jobs_now() AND NOT probe
    ORDER BY ready_at LIMIT %(most)s) AS j
  UNION ALL
  (SELECT state, due_at, ready_at, ready_at + make_interval(secs => window_seconds) < jobs_now(), confirm_by,
    finished_at, failures FROM queues_job
  WHERE state = 'processing' AND type = %(type)s AND tier = ANY(%(tiers)s::smallint[]) AND NOT probe
  LIMIT %(most)s)
), ahead AS (
  SELECT j.ready_at FROM unnest(%(tiers)s::smallint[]) AS w (tier) CROSS JOIN LATERAL (
    SELECT ready_at FROM queues_job WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation') AND tier = w.tier
      AND type = %(type)s AND ready_at > jobs_now() + interval '1 second' AND NOT probe
    ORDER BY ready_at LIMIT %(most)s) AS j
)
SELECT
  (SELECT jsonb_agg(jsonb_build_array(state, n, late, due, oldest, next, by)) FROM (
    SELECT state, count(*) AS n, count(*) FILTER (WHERE late) AS late, count(*) FILTER (WHERE due_at <= jobs_now())
      AS due, extract(epoch FROM min(ready_at)) AS oldest, extract(epoch FROM min(due_at)) AS next,
      extract(epoch FROM min(confirm_by)) AS by FROM open GROUP BY state) AS s),
  (SELECT jsonb_agg(jsonb_build_array(name, n, extract(epoch FROM at)) ORDER BY at DESC) FROM (
    SELECT left(failures -> -1 ->> 'error_class', 120) AS name, count(*) AS n, max(finished_at) AS at
    FROM (SELECT failures, finished_at FROM open WHERE state = 'retrying' AND jsonb_array_length(failures) > 0
      ORDER BY finished_at DESC NULLS LAST LIMIT %(errors)s) AS r GROUP BY 1) AS e),
  (SELECT count(*) FROM ahead), (SELECT min(ready_at) FROM ahead)
"""

# Index job_staging: what a claim would take before this job, as its two ranges. Jobs of one batch are due at the same
# time and taken in the order in which they were stored.
_AHEAD: Final = """
SELECT
  (SELECT count(*) FROM (SELECT 1 FROM queues_job WHERE state IN ('accepted', 'retrying') AND tier = %(tier)s
    AND type = %(type)s AND priority > %(priority)s AND due_at <= jobs_now()
    ORDER BY priority DESC, due_at LIMIT %(most)s) AS higher),
  (SELECT CASE count(*) WHEN %(most)s THEN %(most)s
      ELSE count(*) FILTER (WHERE due_at < %(due_at)s OR id < %(id)s) END
    FROM (SELECT id, due_at FROM queues_job WHERE state IN ('accepted', 'retrying') AND tier = %(tier)s
      AND type = %(type)s AND priority = %(priority)s AND due_at <= %(due_at)s
      ORDER BY priority DESC, due_at LIMIT %(most)s) AS earlier)
"""


@dataclass(frozen=True, kw_only=True)
class Recent:
    """Runs of the last ten minutes. `failing_since`: every minute with runs since then had many that failed.

    `well_since`: none has since then, after one that had, and there were runs enough to tell. `started`: the newest
    minute in which a run began.
    """

    types: Sequence[str] = ()
    runs: int = 0
    retries: int = 0
    failed: int = 0
    lost: int = 0
    failing_since: dt.datetime | None = None
    well_since: dt.datetime | None = None
    started: dt.datetime | None = None

    @property
    def failed_share(self) -> float | None:
        """Runs that failed; None without runs. One that was lost says nothing about a provider."""
        whole = max(self.runs, self.failed + self.lost)
        return self.failed / whole if whole else None

    @property
    def retry_pressure(self) -> float | None:
        """Runs that were not the first of their job."""
        return min(self.retries / self.runs, 1.0) if self.runs else None


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A switch that holds jobs back: who, why and until when; `since` where the audit log knows it."""

    by: str = ""
    reason: str = ""
    until: dt.datetime | None = None
    since: dt.datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A type now: its switches, and its recent runs and those of all types with the same dependency.

    `breaker`: how the one of its dependency stands; None without a dependency.
    """

    now: dt.datetime
    as_of: dt.datetime
    dependency: str = ""
    retry_budget: float = 0.2
    success: str = "return"
    limited: bool = False
    paused: Hold | None = None
    deferred: Hold | None = None
    disabled: Hold | None = None
    breaker: Standing | None = None
    own: Recent = field(default_factory=Recent)
    shared: Recent = field(default_factory=Recent)

    @property
    def on_hold(self) -> bool:
        """Whether a switch keeps its jobs from being started."""
        return self.paused is not None or self.deferred is not None


@dataclass(frozen=True, kw_only=True)
class InState:
    """Jobs of one type in one state that are ready: how many, past their window, due; and the first times."""

    n: int = 0
    late: int = 0
    due: int = 0
    oldest: dt.datetime | None = None
    next: dt.datetime | None = None
    confirm_by: dt.datetime | None = None


@dataclass(frozen=True, kw_only=True)
class OpenJobs:
    """The open jobs of a type, counted up to LOOK_AT_MOST of a kind, those that are ready for longest.

    `errors`: error class → how many of the retrying jobs failed with it last; the newest first.
    """

    states: Mapping[str, InState] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    scheduled: int = 0
    next_ready: dt.datetime | None = None

    def of(self, state: str) -> InState:
        """Return what is known of a state."""
        return self.states.get(state, InState())

    @property
    def late(self) -> int:
        """Open jobs past their window."""
        return sum(one.late for one in self.states.values())

    @property
    def ready(self) -> int:
        """Open jobs whose clock has started."""
        return sum(one.n for one in self.states.values())


def situation(name: str) -> Situation | None:
    """Read how a type stands; None when there is no such type. One statement, two with a dependency."""
    found = _row(_SITUATION, {"type": name, "minutes": RECENT_MINUTES})
    if found is None:
        return None
    (
        now,
        as_of,
        dependency,
        budget,
        success,
        enabled,
        off_by,
        off_why,
        off_until,
        paused,
        by,
        why,
        until,
        limited,
        deferred,
        later_by,
        later_why,
        later_until,
        since,
        runs,
    ) = found
    rows, turned = _json(runs), _json(since) or {}
    paused_at, deferred_at = (_time(turned.get(f"contract.{word}")) for word in ("paused", "deferred"))
    return Situation(
        now=now,
        as_of=as_of,
        dependency=dependency,
        retry_budget=budget,
        success=success,
        limited=limited,
        paused=Hold(by=by, reason=why, until=until, since=paused_at) if paused else None,
        deferred=Hold(by=later_by, reason=later_why, until=later_until, since=deferred_at) if deferred else None,
        disabled=None if enabled else Hold(by=off_by, reason=off_why, until=off_until),
        breaker=breakers.standing(dependency) if dependency else None,
        own=recent_of([row for row in rows if row[0] == name]),
        shared=recent_of(rows),
    )


RUNS_LEAST: Final = 5
"""With fewer runs, and none that failed, there is nothing to judge a provider by."""
FAILING_SHARE: Final = 0.2
"""From this share of failed runs on a provider is said to fail."""
HEALTHY_SHARE: Final = 0.05
"""Below this share it is said to be well."""


def recent_of(rows: Sequence[Sequence[Any]]) -> Recent:
    """Sum minutes. Shape: (type, seconds since 1970, runs, retries, failed, lost)."""
    minutes: dict[float, list[int]] = {}
    for _, at, *counts in rows:
        sums = minutes.setdefault(at, [0, 0, 0, 0])
        minutes[at] = [a + b for a, b in zip(sums, counts, strict=True)]
    newest = _newest_stretch([(at, one[0], one[2]) for at, one in sorted(minutes.items()) if one[0] or one[2]])
    runs, retries, failed, lost = (
        (sum(column) for column in zip(*minutes.values(), strict=True)) if minutes else (0,) * 4
    )
    return Recent(
        types=sorted({row[0] for row in rows}), runs=runs, retries=retries, failed=failed, lost=lost,
        failing_since=_time(newest.begun) if newest.fails else None,
        well_since=_time(newest.begun) if newest.is_well else None,
        started=_time(max((at for at, one in minutes.items() if one[0]), default=None)),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """The newest minutes that are alike: in all many runs fail, or in none. `begun` None: before what was read."""

    begun: float | None
    fails: bool
    minutes: int
    runs: int
    failed: int

    @property
    def is_well(self) -> bool:
        # One good minute of a provider that fails now and then is chance.
        return (
            not self.fails and self.minutes >= 2 and self.runs >= RUNS_LEAST and self.failed < HEALTHY_SHARE * self.runs
        )


def _newest_stretch(minutes: Sequence[tuple[float, int, int]]) -> _Stretch:
    """Return the newest stretch. Shape: (minute, runs, failed), oldest first."""
    begun, fails, seen = None, False, [0, 0, 0]
    for at, runs, failed in reversed(minutes):
        many = failed >= FAILING_SHARE * max(runs, failed)
        if seen[0] and many != fails:
            break
        begun, fails = at, many
        seen = [seen[0] + 1, seen[1] + max(runs, failed), seen[2] + failed]
    else:
        begun = None
    return _Stretch(begun=begun, fails=fails, minutes=seen[0], runs=seen[1], failed=seen[2])


def open_jobs(name: str, *, tiers: Sequence[int]) -> OpenJobs:
    """Read the open jobs of a type in the tiers that it has jobs in."""
    params = {"type": name, "tiers": sorted(set(tiers)), "most": LOOK_AT_MOST, "errors": ERRORS_OF}
    states, errors, scheduled, next_ready = in_index_order(_OPEN, params) or (None, None, 0, None)
    return OpenJobs(
        states={
            state: InState(n=n, late=late, due=due, oldest=_time(oldest), next=_time(following), confirm_by=_time(by))
            for state, n, late, due, oldest, following, by in _json(states)
        },
        errors={str(error): n for error, n, _ in _json(errors) if error},
        scheduled=scheduled,
        next_ready=next_ready,
    )


def ahead_of(job: Job) -> int:
    """Count the jobs that a claim would take before this one: due, of its type, counted up to LOOK_AT_MOST."""
    params = {
        "tier": job.tier, "type": job.type, "id": job.id, "priority": job.priority, "due_at": job.due_at,
        "most": LOOK_AT_MOST,
    }  # fmt: skip
    found = in_index_order(_AHEAD, params)
    return min(sum(found), LOOK_AT_MOST) if found else 0


# While the statistics of a new partition say that nothing is in it, any index and a sort look as cheap as the index
# that has the order, and the whole backlog is read (measured: 213 ms at 200,000 jobs, against 24 ms). One round trip;
# without a transaction around it, the three are one by themselves.
_IN_INDEX_ORDER: Final = "SET LOCAL enable_sort = off; {sql}; SET LOCAL enable_sort = on"


def in_index_order(sql: str, params: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Read one row by a statement whose bounded parts must come from an index in its order."""
    with connection.cursor() as cursor:
        cursor.execute(_IN_INDEX_ORDER.format(sql=sql), params)
        cursor.nextset()
        found: tuple[Any, ...] | None = cursor.fetchone()
    return found


def _row(sql: str, params: Mapping[str, Any]) -> tuple[Any, ...] | None:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        found: tuple[Any, ...] | None = cursor.fetchone()
    return found


def _json(value: str | None) -> Any:
    return json.loads(value) if value else []


def _time(seconds: float | None) -> dt.datetime | None:
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)
