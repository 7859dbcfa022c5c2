"""What became of the replays of a plan: looked at until each has ended, whatever the plan's own state."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import msgspec
from django.db import connection

from dlq import sql
from dlq.models import ReplayPlan
from queues.redaction import redact_text
from queues.states import JobState

AWAITING_MOST: Final = 500
AWAITING_EVERY_SECONDS: Final = 5
_OF_STATE: Final = {
    JobState.ACCEPTED.value: "open",
    JobState.PROCESSING.value: "open",
    JobState.RETRYING.value: "open",
    JobState.AWAITING_CONFIRMATION.value: "awaiting",
}
_COLUMN: Final = {
    "open": "open", "awaiting": "awaiting", "confirmed": "confirmed", "dead": "dead_again", "expired": "expired",
    "cancelled": "cancelled", "lost": "lost",
}  # fmt: skip
_WELL: Final = ("awaiting", "confirmed")
_BADLY: Final = ("dead", "expired")

# Those that run are as few as the plan's cap; of those that wait for their proof some at a time.
_FOLLOWED: Final = """
WITH followed AS (
  (SELECT number, child, outcome, failing, at FROM dlq_planitem WHERE plan_id = %(plan)s AND outcome = 'open')
  UNION ALL
  (SELECT number, child, outcome, failing, at FROM dlq_planitem
   WHERE plan_id = %(plan)s AND outcome = 'awaiting' AND looked_at < jobs_now() - make_interval(secs => %(every)s)
   ORDER BY looked_at LIMIT %(most)s)
  UNION ALL
  -- The clock went back since.
  (SELECT number, child, outcome, failing, at FROM dlq_planitem
   WHERE plan_id = %(plan)s AND outcome = 'awaiting' AND looked_at > jobs_now()
   ORDER BY looked_at LIMIT %(most)s)
)
SELECT number, child, outcome, failing, at >= %(judged)s FROM followed
"""
# A statement of its own, with the ids written in it: the planner then looks at the partitions that they are in, and
# does not plan a look into each partition that there is (30 ms with 46 of them).
_CHILDREN: Final = """
SELECT id, state, state IN ('accepted', 'retrying', 'processing') AND jsonb_array_length(failures) > 0
FROM queues_job WHERE id = ANY(%(ids)s::uuid[])
"""
_SEEN: Final = """
UPDATE dlq_planitem i SET outcome = e.outcome, failing = e.failing, looked_at = jobs_clock()
FROM json_to_recordset(%(ends)s::json) AS e (number integer, outcome text, failing boolean)
WHERE i.plan_id = %(plan)s AND i.number = e.number AND i.outcome IN ('open', 'awaiting')
"""
_NEWEST_ERROR: Final = """
SELECT j.failures -> -1 ->> 'error_class', j.failures -> -1 ->> 'message' FROM (
  (SELECT number, child FROM dlq_planitem WHERE plan_id = %(plan)s AND at >= %(judged)s AND outcome = 'dead'
   ORDER BY number DESC LIMIT 1)
  UNION ALL
  (SELECT number, child FROM dlq_planitem WHERE plan_id = %(plan)s AND at >= %(judged)s AND outcome = 'open' AND failing
   ORDER BY number DESC LIMIT 1)
  ORDER BY number DESC LIMIT 1) AS i
JOIN LATERAL (SELECT failures FROM queues_job WHERE id = i.child LIMIT 1) AS j ON true
"""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    number: int
    outcome: str
    failing: bool


def follow(plan: ReplayPlan) -> None:
    """Look at the replays that have not ended, write down what changed, and keep the plan's counts in step."""
    if not plan.open and not plan.awaiting:
        return
    params = {"plan": plan.id, "every": AWAITING_EVERY_SECONDS, "most": AWAITING_MOST, "judged": plan.judged_since}
    changed: list[_Seen] = []
    followed = sql.rows(_FOLLOWED, params)
    children = {child: rest for child, *rest in sql.rows(_CHILDREN, {"ids": [row[1] for row in followed]})}
    for number, child, was, was_failing, judged in followed:
        state, failing = children.get(child, (None, False))
        outcome = "lost" if state is None else _OF_STATE.get(state, state)
        now_failing = bool(failing) and outcome == "open"
        if (outcome, now_failing) != (was, was_failing):
            _count(plan, was, outcome, judged=judged)
            plan.failing += int(now_failing and judged) - int(was_failing and judged)
        if (outcome, now_failing) != (was, was_failing) or was == "awaiting":
            changed.append(_Seen(number=number, outcome=outcome, failing=now_failing))
    if changed:
        with connection.cursor() as cursor:
            cursor.execute(_SEEN, {"plan": plan.id, "ends": msgspec.json.encode(changed).decode()})


def newest_error(plan: ReplayPlan) -> str:
    """Return what the newest failed replay said, redacted."""
    rows = sql.rows(_NEWEST_ERROR, {"plan": plan.id, "judged": plan.judged_since})
    if not rows or not rows[0][0]:
        return ""
    return redact_text(f"{rows[0][0]}: {rows[0][1] or ''}")[:300]


def _count(plan: ReplayPlan, was: str, outcome: str, *, judged: bool) -> None:
    moved = Counter({_COLUMN[outcome]: 1})
    moved[_COLUMN[was]] -= 1
    for name, n in moved.items():
        setattr(plan, name, getattr(plan, name) + n)
    if judged:
        plan.judged_ok += int(outcome in _WELL) - int(was in _WELL)
        plan.judged_bad += int(outcome in _BADLY) - int(was in _BADLY)
