"""Counts since the beginning, for metrics: they only rise, and every process reads the same."""

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from django.db import connection

from queues.outcomes.flow import COLUMNS, HAPPENED, Counts, may_have_passed, passed
from queues.outcomes.times import Times, times_of

Pair = tuple[int, str]

GRACE_SECONDS: Final = 60
"""A window counts so long after it passed: a cancel in its last moment, whose counts are folded late, must not make a
counter fall."""

# Everything that became ready, less the cohorts that cannot be judged yet: whole hours, and minutes of the hours in
# which windows pass now.
_TOTALS: Final = f"""
WITH clock AS (
  SELECT jobs_now() AS now, folded_at, least(jobs_now(), folded_at) - interval '{GRACE_SECONDS} seconds' AS judged
  FROM queues_boardversion WHERE id = 1
), every AS (SELECT * FROM queues_outcomerollup WHERE grain = 'total'),
hour AS (
  SELECT {COLUMNS}, ready FROM queues_outcomerollup CROSS JOIN clock WHERE grain = 'hour' AND ready > 0
    AND at > judged - interval '1 hour' - make_interval(secs => (SELECT max(window_seconds) FROM every))
    AND NOT ({{hour_passed}})
), unjudged AS (
  SELECT type, tier, ready - excluded AS due, in_window AS kept FROM hour CROSS JOIN clock WHERE NOT ({{may}})
  UNION ALL
  SELECT m.type, m.tier, m.due, m.kept FROM hour h CROSS JOIN clock CROSS JOIN LATERAL (
    SELECT type, tier, ready - excluded AS due, in_window AS kept FROM queues_outcomerollup
    WHERE grain = 'minute' AND at >= h.at AND at < h.at + interval '1 hour' AND type = h.type AND tier = h.tier
      AND NOT ({{minute_passed}}) OFFSET 0) AS m
  WHERE {{may_h}}
), less AS (SELECT type, tier, sum(due)::bigint AS due, sum(kept)::bigint AS kept FROM unjudged GROUP BY type, tier)
SELECT (SELECT now FROM clock), (SELECT folded_at FROM clock), jsonb_agg(jsonb_build_array(e.tier, e.type,
  jsonb_build_array({", ".join(f"e.{name}" for name in HAPPENED)}), e.ready,
  greatest(e.ready - e.excluded - coalesce(l.due, 0), 0), greatest(e.in_window - coalesce(l.kept, 0), 0)))
FROM every e LEFT JOIN less l ON l.type = e.type AND l.tier = e.tier
""".format(
    hour_passed=passed("1 hour", judged="judged"),
    minute_passed=passed("1 minute", judged="clock.judged"),
    may=may_have_passed(judged="judged"),
    may_h=may_have_passed(row="h.", judged="judged"),
)  # noqa: S608 (no value is formatted in)

_HISTOGRAMS: Final = """
SELECT tier, type, measure, counts FROM queues_outcomebuckets WHERE grain = 'total' AND type > ''
"""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What was counted since the beginning, by (tier, type). `due` and `kept` are of windows that have passed.

    `folded_at`: what happened before is in; None before the first fold.
    """

    now: dt.datetime
    folded_at: dt.datetime
    counts: Mapping[Pair, Counts]
    times: Times


def totals() -> Totals:
    """Read them, in two statements."""
    with connection.cursor() as cursor:
        cursor.execute(_TOTALS)
        now, folded_at, rows = cursor.fetchone()
        cursor.execute(_HISTOGRAMS)
        times = times_of(cursor.fetchall())
    counts = {
        (tier, name): Counts(**dict(zip(HAPPENED, happened, strict=True)), ready=ready, due=due, kept=kept)
        for tier, name, happened, ready, due, kept in (json.loads(rows) if rows else [])
    }
    return Totals(now=now, folded_at=folded_at, counts=counts, times=times)
