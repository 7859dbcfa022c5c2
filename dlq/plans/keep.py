"""Forget the items of plans that ended long ago, and what else only plans that go on need; the plan itself stays."""

from __future__ import annotations

from typing import Final

from django.db import connection

KEEP_DAYS: Final = 90
MOST: Final = 5_000

_FORGET: Final = """
DELETE FROM dlq_planitem WHERE ctid = ANY(ARRAY(
  SELECT i.ctid FROM dlq_replayplan p JOIN dlq_planitem i ON i.plan_id = p.id
  WHERE p.finished_at < jobs_now() - make_interval(days => %(days)s) LIMIT %(limit)s FOR UPDATE OF i SKIP LOCKED))
"""
# Where a scheduler of the release before ended the plan.
_OVER: Final = """
DELETE FROM dlq_planfailure a USING dlq_replayplan p WHERE p.id = a.plan_id AND p.state IN ('finished', 'aborted')
"""


def forget_items() -> bool:
    """Delete a batch; returns whether there may be more."""
    with connection.cursor() as cursor:
        cursor.execute(_OVER)
        cursor.execute(_FORGET, {"days": KEEP_DAYS, "limit": MOST})
        return bool(cursor.rowcount == MOST)
