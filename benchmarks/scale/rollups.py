"""Write the counts that the transitions of the drawn jobs would have written, and fold them as the scheduler does.

What a transition counts is taken out of its own statement, so it cannot differ from it. Not here: drawing (`jobs`).
"""

import datetime as dt
import re

from benchmarks.scale.jobs import FINGERPRINT, execute
from queues import lifecycle, outcomes
from queues.lifecycle.accept import ACCEPT
from queues.lifecycle.claim import CLAIM
from queues.lifecycle.resolve import CLOSE
from queues.lifecycle.settle import SETTLE, SETTLED_ROWS
from queues.lifecycle.sql import delta
from queues.lifecycle.sweep import RESCUE

FOLD = 20_000
FORGET = 20_000

DELTAS = """
CREATE TEMP TABLE scale_delta (at timestamptz, type text COLLATE "C", tier smallint, measure text COLLATE "C",
  bucket smallint, n bigint, window_seconds integer)
"""
# What each transition moved, with the columns that it counts from; `happened` is the latest time that it counts in.
_OF_JOB = (
    "j.id, j.name AS type, j.tier, j.ready_at, j.window_seconds, false AS probe, true AS cohort,"
    f" {FINGERPRINT} AS fingerprint"
)
_OF_RUN = "j.ready_at + make_interval(secs => r.started) AS started_at, j.ready_at + make_interval(secs => r.{when})"
ACCEPTED = f"SELECT {_OF_JOB}, j.accepted_at, greatest(j.accepted_at, j.ready_at) AS happened FROM scale_job j"  # noqa: S608 (constants of this module)
CLAIMED = f"""
SELECT {_OF_JOB}, CASE r.k WHEN 1 THEN 'accepted' ELSE 'retrying' END AS was,
  coalesce(j.ready_at + make_interval(secs => p.finished), j.ready_at) AS since,
  j.ready_at + make_interval(secs => r.due) AS due, {_OF_RUN.format(when="started")} AS happened
FROM scale_run r JOIN scale_job j USING (n) LEFT JOIN scale_run p ON p.n = r.n AND p.k = r.k - 1
"""  # noqa: S608 (constants of this module)
_ENDED = f"""
SELECT {_OF_JOB}, r.k AS run, 'processing' AS was, {_OF_RUN.format(when="finished")} AS happened,
  j.ready_at + make_interval(secs => r.started) AS since, j.ready_at + make_interval(secs => r.finished) AS left_at,
  j.ready_at + make_interval(secs => r.finished) AS finished_at, r.seconds, r.blind, 'WorkerLost' AS failure_before,
  CASE WHEN r.last AND NOT j.awaited THEN j.settled_at END AS settled_at,
  CASE WHEN NOT r.last THEN 'retrying' WHEN j.awaited THEN 'awaiting_confirmation' ELSE j.state END AS state,
  CASE WHEN r.last AND NOT j.awaited THEN j.reason END AS reason,
  CASE WHEN NOT r.last OR j.fate = 'dead' AND NOT j.awaited OR j.fate = 'retrying' THEN 'failed'
    WHEN j.awaited THEN 'awaiting' ELSE 'confirmed' END AS verdict,
  false AS given_back, false AS refused, CASE WHEN j.n % 5003 = 0 AND r.last THEN 'ref-0' END AS other_ref,
  'ref-' || j.n AS said
FROM scale_run r JOIN scale_job j USING (n) WHERE NOT (r.last AND j.fate = 'processing')
"""  # noqa: S608 (constants of this module)
SETTLED, LOST = f"{_ENDED} AND NOT r.lost", f"{_ENDED} AND r.lost"
PROVEN = f"""
SELECT {_OF_JOB}, CASE WHEN j.awaited THEN 'awaiting_confirmation' ELSE 'accepted' END AS was,
  CASE WHEN j.awaited THEN j.finished_at ELSE j.ready_at END AS since, j.settled_at AS left_at, j.settled_at, j.state,
  j.reason, j.settled_at AS happened
FROM scale_job j WHERE j.settled AND (j.awaited OR j.begun = 0)
"""  # noqa: S608 (constants of this module)
CLOSED = f"""
SELECT {_OF_JOB}, j.reason, j.settled_at AS resolved_at, j.settled_at AS happened FROM scale_job j WHERE j.closed
"""  # noqa: S608 (constants of this module)
DUPLICATES = """
INSERT INTO scale_delta SELECT date_trunc('minute', accepted_at), name, tier, 'duplicates', -1, count(*), 0
FROM scale_job j WHERE n % 25 = 0 GROUP BY 1, 2, 3
"""
ORDERED = """
INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)
SELECT at, type, tier, measure, bucket, sum(n), max(window_seconds) FROM scale_delta
GROUP BY at, type, tier, measure, bucket HAVING sum(n) <> 0 ORDER BY at
"""


def cte(statement: str, name: str) -> str:
    """Return a part of a statement: `name AS (...)`, up to the bracket that closes it."""
    found = re.search(rf"\b{name} AS \(", statement)
    if found is None:
        raise ValueError(f"{name} is not there")
    begun, depth = found.start(), 0
    for at in range(begun, len(statement)):
        depth += (statement[at] == "(") - (statement[at] == ")")
        if depth == 0 and statement[at] == ")":
            return statement[begun : at + 1]
    raise ValueError(f"{name} does not end")


def _parts(statement: str, *names: str) -> str:
    return ", ".join(cte(statement, name) for name in names)


def transitions() -> list[tuple[str, str]]:
    """Return what was moved and the parts of the statement that count it."""
    ended = f"counted AS ({delta(*SETTLED_ROWS)})"
    return [
        (ACCEPTED, _parts(ACCEPT, "counted")),
        (CLAIMED, _parts(CLAIM, "counted")),
        (SETTLED, _parts(SETTLE[False, False], "signs", "signs_counted", "counted")),
        (LOST, _parts(RESCUE, "signs", "signs_counted", "counted")),
        (PROVEN, ended),
        (CLOSED, _parts(CLOSE, "counted")),
    ]


def write_deltas(*, now: dt.datetime) -> int:
    """Write them, in the order of their time; returns how many.

    Of days whose minutes were forgotten since, one for each hour instead of each minute: the other grains are the same.
    """
    execute(DELTAS)
    cut = now - dt.timedelta(days=outcomes.MINUTES_KEPT + 1)
    for moved, counting in transitions():
        counting = counting.replace("INSERT INTO queues_outcomedelta", "INSERT INTO scale_delta")
        for which, grain in (("<", "hour"), (">=", "minute")):
            parts = counting.replace("date_trunc('minute',", f"date_trunc('{grain}',")
            # No parameters here: what counts has per cent signs of its own where a driver would look for them.
            chosen = f"SELECT * FROM ({moved}) AS t WHERE happened {which} '{cut.isoformat()}'"  # noqa: S608 (constants of this module)
            execute(f"WITH moved AS MATERIALIZED ({chosen}), {parts} SELECT 1")
    execute(DUPLICATES)
    execute(ORDERED)
    execute("DROP TABLE scale_delta")
    return int(execute("SELECT count(*) FROM queues_outcomedelta")[0][0])


def fold_and_forget() -> None:
    """Fold everything, then forget what is past its retention."""
    while lifecycle.fold(limit=FOLD):
        pass
    for grain, days in (
        ("minute", outcomes.MINUTES_KEPT),
        ("hour", outcomes.HOURS_KEPT),
        ("day", outcomes.DAYS_KEPT),
    ):
        while lifecycle.forget_rollups(grain=grain, days=days, limit=FORGET):
            pass
