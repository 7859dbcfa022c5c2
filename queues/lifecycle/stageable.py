"""Which work a claim would take now, for the stage to publish: by type, and in turn by group where groups are limited.

The walk is bounded: so many groups a round, beginning after the last one of the round before. Groups with work are read
from an index of waiting jobs and not kept: a row that accept had to write would make producers of a group wait for
each other's commits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import transaction

from queues.lifecycle.claim_limited import GROUP_TOKENS, RUNNING, TOKENS, group_free
from queues.lifecycle.sql import STATE, execute, uuids

LOOK: Final = 1000
"""How many waiting jobs of an ordered type are looked at for those from before the order."""
LANES: Final = 8
"""How many groups are looked at for the one whose turn is next."""

HINT_SECONDS: Final = 10.0
"""A hint that was not claimed by then is published again."""
LIMITED_HINT_SECONDS: Final = 1.0
"""How long a hint for a job of a limited type counts as under way: a claim may have refused it meanwhile."""


def _unsent(seconds: str) -> str:
    """Return SQL for a waiting job `j` for which accept sent no hint that may be under way."""
    return f"""(j.published_at IS NULL
    OR j.published_at < greatest(j.due_at, jobs_now() - make_interval(secs => {seconds})))"""


_READY: Final = "j.due_at <= jobs_now() AND j.expires_at > jobs_now()"

# Which work a claim would take now, a bounded number from each type, best first. `published_at` is what accept wrote
# when it sent a hint itself; what the stage published it remembers, since writing it here cost a quarter of the drain.
STAGEABLE = f"""
SELECT w.type, j.id, j.alone, j.due FROM unnest(%(tiers)s::smallint[], %(types)s::text[], %(limits)s::integer[],
  %(patience)s::float8[]) AS w (tier, type, n, patience)
CROSS JOIN LATERAL (
  SELECT j.id, j.alone, j.priority, j.due_at, extract(epoch FROM j.due_at)::float8 AS due FROM queues_job j
  WHERE j.state IN ('accepted', 'retrying') AND j.tier = w.tier AND j.type = w.type AND {_READY}
    AND {_unsent("w.patience")}
  ORDER BY j.priority DESC, j.due_at LIMIT w.n
) AS j
ORDER BY w.type, j.priority DESC, j.due_at
"""


# How much each limited type may begin now; null: nothing bounds it.
ROOMS = f"""
SELECT c.name, c.concurrency - {RUNNING}, floor({TOKENS})::integer,
  CASE WHEN c.breaker = 'half_open' THEN coalesce((SELECT greatest(d.trials_left, 0) FROM queues_dependency d
    WHERE d.name = c.dependency AND d.state = 'half_open'), 0) END
FROM queues_jobtype c LEFT JOIN queues_flowstate f ON f.type = c.name AND f."group" = ''
WHERE c.name = ANY(%(types)s::text[])
"""

# One group after another by index, and of each what its limits let begin. Ordered: the head, if it is due.
_WALK = """
WITH RECURSIVE walk (n, "group") AS (
  SELECT 1, jobs_next_group(%(type)s, %(after)s)
  UNION ALL
  SELECT w.n + 1, jobs_next_group(%(type)s, w."group") FROM walk w WHERE w."group" IS NOT NULL AND w.n < %(groups)s
)
SELECT w."group", j.id, j.alone, extract(epoch FROM j.due_at)::float8 FROM (
  SELECT w.n, w."group", c.name, c.ordered_on_failure,
    greatest(0, least({free}, floor({tokens}), %(each)s))::integer AS room
  FROM walk w JOIN queues_jobtype c ON c.name = %(type)s
  LEFT JOIN queues_flowstate f ON f.type = c.name AND f."group" = w."group"
  WHERE w."group" IS NOT NULL
) AS w LEFT JOIN LATERAL (
  SELECT j.* FROM {rows} AS j WHERE w.room > 0 AND {unsent}
) AS j ON true
ORDER BY w.n
"""
_BOUND = {"free": group_free('w."group"'), "tokens": GROUP_TOKENS, "unsent": _unsent(str(LIMITED_HINT_SECONDS))}
IN_GROUPS = _WALK.format(rows="""jobs_due_in_group(w.name, w."group", w.room)""", **_BOUND)
_HEAD = """jobs_head_of_group({type}, {group}, {contract}.ordered_on_failure = 'block')"""
IN_ORDER = _WALK.format(
    rows=f"""(SELECT h.* FROM {_HEAD.format(type="w.name", group='w."group"', contract="w")} AS h WHERE h.due)""",
    **_BOUND,
)
UNGROUPED = f"""
SELECT j.id, j.alone, extract(epoch FROM j.due_at)::float8 FROM jobs_due_without_group(%(type)s, %(each)s) AS j
WHERE {_unsent(str(LIMITED_HINT_SECONDS))}
"""
UNPLACED = f"""
SELECT s.id, s.alone, s.due FROM (
  SELECT j.id, j.alone, j.seq, j."group", extract(epoch FROM j.due_at)::float8 AS due FROM queues_job j
  WHERE j.state IN ('accepted', 'retrying') AND j.tier = %(tier)s AND j.type = %(type)s AND {_READY}
    AND {_unsent(str(LIMITED_HINT_SECONDS))}
  ORDER BY j.priority DESC, j.due_at LIMIT {LOOK}) AS s
WHERE s.seq IS NULL AND s."group" IS NOT NULL LIMIT %(each)s
"""

STILL_WAITING = f"""
SELECT j.id FROM queues_job j WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} IN ('accepted', 'retrying')
"""

# What the end of runs makes room for: the next of the type, or of the same group. Where groups share the type's limit
# it is the group whose turn is next (work without a group has one too, as ""): one with a long backlog would keep the
# place for ever, faster than the stage can give it to another.
_SHARED = "(c.concurrency > 0 OR c.rate_per_second > 0)"
_TURN = f"""
  SELECT r.id FROM (
    WITH RECURSIVE turn (k, lane) AS (
      SELECT 1, coalesce(jobs_next_group(i.type, i."group"), '') WHERE i."group" IS NOT NULL AND {_SHARED}
      UNION ALL
      SELECT t.k + 1, coalesce(jobs_next_group(i.type, t.lane), '') FROM turn t
      WHERE t.k < {LANES} AND t.lane <> i."group"
    ) SELECT lane, min(k) AS k, greatest(0, least(i.n, {group_free("lane")})) AS most FROM turn GROUP BY lane
  ) AS t CROSS JOIN LATERAL (
    SELECT j.id, j.place FROM jobs_due_without_group(i.type, i.n) WITH ORDINALITY AS j (id, alone, due_at, sent, place)
    WHERE t.lane = ''
    UNION ALL
    SELECT j.id, j.place FROM jobs_due_in_group(i.type, t.lane, t.most)
      WITH ORDINALITY AS j (id, alone, due_at, sent, place)
    WHERE t.lane <> '' AND NOT c.ordered
    UNION ALL
    SELECT j.id, 1 FROM {_HEAD.format(type="i.type", group="t.lane", contract="c")} AS j
    WHERE t.lane <> '' AND c.ordered AND j.due
  ) AS r
  ORDER BY r.place, t.k LIMIT i.n"""
NEXT = f"""
SELECT i.type, n.id FROM unnest(%(types)s::text[], %(groups)s::text[], %(limits)s::integer[])
  AS i (type, "group", n)
JOIN queues_jobtype c ON c.name = i.type AND NOT c.paused AND NOT c.deferred AND c.breaker <> 'open'
CROSS JOIN LATERAL (
  SELECT j.id FROM jobs_due_of_type(i.type, c.tier_id, i.n) AS j WHERE i."group" IS NULL
  UNION ALL
  SELECT j.id FROM jobs_due_in_group(i.type, i."group", i.n) AS j
  WHERE NOT c.ordered AND NOT {_SHARED} AND i."group" <> ''
  UNION ALL
  SELECT j.id FROM {_HEAD.format(type="i.type", group='i."group"', contract="c")} AS j
  WHERE c.ordered AND NOT {_SHARED} AND i."group" <> '' AND j.due
  UNION ALL
  ({_TURN})
) AS n
"""


@dataclass(frozen=True, slots=True)
class Due:
    """One job that a hint should wake. Units: `due_at` in seconds since 1970; another one means a new wait."""

    id: UUID
    alone: bool
    due_at: float


@dataclass(frozen=True, slots=True)
class Room:
    """How many runs of a limited type may begin now, by its concurrency, its rate, its half open breaker; None: any."""

    free: int | None
    tokens: int | None
    trials: int | None

    @property
    def least(self) -> int | None:
        """The tightest of them; never below 0."""
        bounds = [bound for bound in (self.free, self.tokens, self.trials) if bound is not None]
        return max(0, min(bounds)) if bounds else None


class Ask(NamedTuple):
    """Which jobs the stage asks for: of a tier and type, so many; a hint that accept sent is given so many seconds."""

    tier: int
    type: str
    most: int
    patience: float = HINT_SECONDS


def stageable(walk: Sequence[Ask]) -> dict[str, list[Due]]:
    """Return due work by type, best first."""
    found: dict[str, list[Due]] = {}
    params = {"tiers": [w.tier for w in walk], "types": [w.type for w in walk], "limits": [w.most for w in walk],
              "patience": [w.patience for w in walk]}  # fmt: skip
    # After a burst the statistics still say that nothing waits; to sort "one" row then looks as cheap as the staging
    # index's own order, and every round reads the whole backlog (measured: 40 ms at 50,000, against 1 ms).
    with transaction.atomic():
        execute("SET LOCAL enable_sort = off", {})
        rows = execute(STAGEABLE, params)
    for name, job_id, alone, due_at in rows:
        found.setdefault(name, []).append(Due(job_id, alone, due_at))
    return found


def rooms(types: Sequence[str]) -> dict[str, Room]:
    """Return what bounds each of these types now."""
    return {row[0]: Room(*row[1:]) for row in execute(ROOMS, {"types": types})}


def stageable_in_groups(
    kind: str, *, ordered: bool, after: str, groups: int, each: int
) -> tuple[dict[str, list[Due]], str | None]:
    """Return due work of one type by group, at most `each` of a group, and the last group that was looked at.

    Begins after the group `after` ("": at the first). The last group is None when there are no more.
    """
    params: dict[str, Any] = {"type": kind, "after": after, "groups": groups, "each": each}
    with transaction.atomic():
        execute("SET LOCAL enable_sort = off", {})
        rows = execute(IN_ORDER if ordered else IN_GROUPS, params)
    found: dict[str, list[Due]] = {}
    for group, job_id, alone, due_at in rows:
        found.setdefault(group, []).extend([] if job_id is None else [Due(job_id, alone, due_at)])
    return {group: due for group, due in found.items() if due}, max(found) if len(found) == groups else None


def stageable_without_group(kind: str, *, each: int) -> list[Due]:
    """Return due work of a type with limited groups, of jobs that have none."""
    return [Due(*row) for row in execute(UNGROUPED, {"type": kind, "each": each})]


def stageable_without_place(kind: str, *, tier: int, each: int) -> list[Due]:
    """Return due work of an ordered type, of jobs from before the order."""
    with transaction.atomic():
        execute("SET LOCAL enable_sort = off", {})
        return [Due(*row) for row in execute(UNPLACED, {"type": kind, "tier": tier, "each": each})]


def next_due(ended: Sequence[tuple[str, str | None, int]]) -> list[tuple[str, UUID]]:
    """Return (type, id) of what may begin now that runs have ended.

    Shape: (type, group, how many); group None: of a type without limited groups, "": of work without a group.
    """
    params = {"types": [e[0] for e in ended], "groups": [e[1] for e in ended], "limits": [e[2] for e in ended]}
    with transaction.atomic():
        execute("SET LOCAL enable_sort = off", {})
        return [(name, job_id) for name, job_id in execute(NEXT, params)]


def still_waiting(ids: Sequence[UUID]) -> set[UUID]:
    """Return those jobs that no claim has taken."""
    return {row[0] for row in execute(STILL_WAITING, {"ids": uuids(ids)})}
