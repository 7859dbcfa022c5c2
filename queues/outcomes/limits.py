"""How types with limits or an order stand now: runs that hold a lease, tokens, groups that are full or held up.

Counted by the functions that claims count by, at the moment of the look. Not here: what it means for a job
(`causes.limits`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from django.db import connection

from queues.lifecycle.claim_limited import GROUP_TOKENS, TOKENS, group_free

GROUPS_MOST: Final = 50
"""Groups that one look at a type counts."""
_DEAD_MOST: Final = 1000
"""Dead letters that are looked through for those that hold up a group."""
_BEHIND_MOST: Final = 20
"""Jobs that are counted behind each of them."""

COLUMNS: Final = f"""c.name, jobs_running(c.name), c.concurrency, c.rate_per_second, c.rate_burst, {TOKENS},
  c.group_concurrency, c.group_rate_per_second, c.ordered, c.ordered_on_failure"""
"""What `Limits.of_row` reads, of a type `c` and the FlowState `f` of its group ""."""

_LIMITS: Final = f"""
SELECT {COLUMNS} FROM queues_jobtype c LEFT JOIN queues_flowstate f ON f.type = c.name AND f."group" = ''
WHERE c.limited AND c.name = ANY(%(names)s::text[]) ORDER BY c.name
"""

# Index job_dead, then job_order. A walk of groups would miss the few that stand among thousands that go on.
_HELD: Final = """
WITH dead AS MATERIALIZED (
  SELECT "group", min(seq) AS seq, sum(looked) AS looked FROM (
    SELECT "group", seq, 1 AS looked FROM queues_job WHERE state = 'dead' AND resolution = 'open' AND type = %(type)s
    ORDER BY id LIMIT %(dead)s) AS d
  GROUP BY 1
), held AS MATERIALIZED (
  SELECT h.id, b.n, b.late
  FROM (SELECT * FROM dead WHERE seq IS NOT NULL AND "group" IS NOT NULL ORDER BY seq LIMIT %(groups)s) AS d
  JOIN LATERAL jobs_head_of_group(%(type)s, d."group", true) AS h ON h.seq = d.seq
  JOIN LATERAL (
    SELECT count(*) AS n, count(*) FILTER (WHERE late) AS late FROM (
      SELECT ready_at + make_interval(secs => window_seconds) < jobs_now() AS late FROM queues_job
      WHERE state IN ('accepted', 'retrying') AND type = %(type)s AND "group" = d."group" AND seq > d.seq
        AND seq IS NOT NULL ORDER BY seq LIMIT %(behind)s) AS s
  ) AS b ON b.n > 0
)
SELECT count(*), coalesce(sum(n), 0)::integer, coalesce(sum(late), 0)::integer, min(id::text)::uuid,
  (SELECT coalesce(sum(looked), 0) FROM dead) = %(dead)s OR coalesce(max(n), 0) = %(behind)s
    OR (SELECT count(*) FROM dead WHERE seq IS NOT NULL AND "group" IS NOT NULL) > %(groups)s
FROM held
"""

_FULL: Final = f"""
WITH RECURSIVE walk (n, "group") AS (
  SELECT 1, jobs_next_group(%(type)s, '')
  UNION ALL
  SELECT w.n + 1, jobs_next_group(%(type)s, w."group") FROM walk w WHERE w."group" IS NOT NULL AND w.n < %(groups)s
)
SELECT count(*), count(*) FILTER (WHERE {group_free('w."group"')} <= 0), count(*) FILTER (WHERE {GROUP_TOKENS} < 1)
FROM walk w JOIN queues_jobtype c ON c.name = %(type)s
LEFT JOIN queues_flowstate f ON f.type = c.name AND f."group" = w."group"
WHERE w."group" IS NOT NULL
"""


@dataclass(frozen=True, kw_only=True)
class HeldGroups:
    """Groups of an ordered type that a dead letter holds up: how many, the first one's dead letter, jobs behind them.

    `at_least`: there may be more groups or jobs than were counted. `late`: those of the jobs past their window.
    """

    n: int = 0
    jobs: int = 0
    late: int = 0
    first: UUID | None = None
    at_least: bool = False


@dataclass(frozen=True, kw_only=True)
class FullGroups:
    """Of the first groups with waiting jobs: how many were looked at, have all their runs taken, have no token left."""

    looked: int = 0
    busy: int = 0
    spent: int = 0

    @property
    def at_least(self) -> bool:
        """There may be more groups than were looked at."""
        return self.looked >= GROUPS_MOST


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A type with limits or an order, now; of its contract 0 is no limit.

    `running`: runs that hold a lease. `tokens`: how many may begin at once by the rate, None without a rate.
    """

    name: str
    running: int = 0
    concurrency: int = 0
    rate_per_second: float = 0
    rate_burst: int = 0
    tokens: float | None = None
    group_concurrency: int = 0
    group_rate_per_second: float = 0
    ordered: bool = False
    ordered_on_failure: str = "block"
    held: HeldGroups = HeldGroups()
    full: FullGroups = FullGroups()

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> "Limits":
        """Return what COLUMNS have."""
        names = ("name", "running", "concurrency", "rate_per_second", "rate_burst", "tokens", "group_concurrency",
                 "group_rate_per_second", "ordered", "ordered_on_failure")  # fmt: skip
        return cls(**dict(zip(names, row, strict=True)))

    @property
    def at_concurrency(self) -> bool:
        """No further run may begin before one ends."""
        return 0 < self.concurrency <= self.running

    @property
    def burst(self) -> int:
        """How many tokens the bucket holds; 0 without a rate."""
        return bucket_size(self.rate_per_second, burst=self.rate_burst)

    @property
    def group_limited(self) -> bool:
        """Groups have a limit of their own."""
        return self.group_concurrency > 0 or self.group_rate_per_second > 0

    @property
    def in_groups(self) -> bool:
        """Which job is next is decided inside groups."""
        return self.ordered or self.group_limited


def bucket_size(rate: float, *, burst: int = 0) -> int:
    """Return how many tokens the bucket of a rate holds, as claims fill it; 0 without a rate."""
    return max(1, burst or math.ceil(rate)) if rate > 0 else 0


def limits(names: Sequence[str]) -> dict[str, Limits]:
    """Return how those of these types stand that have limits or an order, in one statement; of no types in none."""
    found = [Limits.of_row(row) for row in _rows(_LIMITS, {"names": list(names)})] if names else []
    return {one.name: one for one in found}


def limits_of(name: str) -> Limits | None:
    """Return how a type stands with its groups: at most three statements. None: it has no limits and no order."""
    found = limits([name]).get(name)
    return None if found is None else with_groups(found)


def with_groups(found: Limits) -> Limits:
    """Return the same with its groups, of which at most GROUPS_MOST are looked at."""
    if found.ordered and found.ordered_on_failure == "block":
        params = {"type": found.name, "dead": _DEAD_MOST, "groups": GROUPS_MOST, "behind": _BEHIND_MOST}
        n, jobs, late, first, more = _rows(_HELD, params)[0]
        found = replace(found, held=HeldGroups(n=n, jobs=jobs, late=late, first=first, at_least=more))
    if found.group_limited:
        looked, busy, spent = _rows(_FULL, {"type": found.name, "groups": GROUPS_MOST})[0]
        found = replace(found, full=FullGroups(looked=looked, busy=busy, spent=spent))
    return found


# As in `causes.facts`: bounded parts must come from an index in its order, whatever the statistics say.
_IN_INDEX_ORDER: Final = "SET LOCAL enable_sort = off; {sql}; SET LOCAL enable_sort = on"


def _rows(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(_IN_INDEX_ORDER.format(sql=sql), params)
        cursor.nextset()
        return list(cursor.fetchall())
