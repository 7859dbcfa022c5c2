"""Forget the items of plans that ended long ago; the plan itself stays, with its counts."""

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


def forget_items() -> bool:
    """Delete a batch; returns whether there may be more."""
    with connection.cursor() as cursor:
        cursor.execute(_FORGET, {"days": KEEP_DAYS, "limit": MOST})
        return bool(cursor.rowcount == MOST)
