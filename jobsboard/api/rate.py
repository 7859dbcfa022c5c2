"""The rate of an API key: a token bucket in PostgreSQL, so that it is exact over all web processes.

Counted in jobs that are sent, whatever becomes of them. Not here: where a key's rate is kept (`jobsboard.api.keys`);
the limits of a job type's runs (`queues.lifecycle.claim_limited`).
"""

from __future__ import annotations

import math
from typing import Any, Final

from django.db import connection

from jobsboard.api.database import bounded
from jobsboard.api.keys import Key, rate_words
from jobsboard.api.problems import Problem

ANSWER: Final[dict[str, Any]] = {
    "responses": {
        429: {
            "description": "`rate_limited`: the key is over its rate; `overloaded`: the tier is over its backlog "
            "limit. Nothing was stored.",
            "headers": {"Retry-After": {"description": "Whole seconds.", "schema": {"type": "integer", "minimum": 1}}},
        }
    }
}
"""For `openapi_extra` of the calls that spend."""

_AHEAD: Final = "b.filled_at > jobs_now() + interval '5 s'"
"""The database's clock was set back. Nothing else makes it look so: a statement that waits for the row's lock carries
the time of its begin, and `bounded` ends it after 3 s."""

_TOKENS: Final = f"""CASE WHEN {_AHEAD} THEN %(burst)s::float8 ELSE least(%(burst)s::float8, b.tokens
    + %(rate)s::float8 * greatest(0, extract(epoch FROM jobs_now() - b.filled_at)::float8)) END"""

# What fits is taken. More than ever fits is taken from a full bucket, which then owes the rest: it would wait for ever.
# The time of a bucket never goes back by a statement that began earlier and came later: it would be counted twice.
_SPEND: Final = f"""
INSERT INTO jobsboard_apikeybucket AS b (key_id, tokens, filled_at)
VALUES (%(key)s, %(burst)s::float8 - %(jobs)s, jobs_now())
ON CONFLICT (key_id) DO UPDATE SET tokens = {_TOKENS} - %(jobs)s,
  filled_at = CASE WHEN {_AHEAD} THEN jobs_now() ELSE greatest(b.filled_at, jobs_now()) END
WHERE {_TOKENS} >= least(%(jobs)s, %(burst)s)
RETURNING b.key_id
"""  # noqa: S608 (constants of this module)
_WAIT: Final = f"""
SELECT (least(%(jobs)s, %(burst)s) - {_TOKENS}) / %(rate)s FROM jobsboard_apikeybucket b WHERE b.key_id = %(key)s
"""  # noqa: S608 (constants of this module)


def spend(key: Key, *, jobs: int) -> None:
    """Take so many jobs of the key's rate, in a transaction of its own. A key without a rate costs no statement.

    Called before the jobs are accepted, never in their transaction: all requests of the key would wait for it.
    Raises: Problem 429 `rate_limited`; DatabaseError, which is answered as one of accept is.
    """
    if key.rate is None:
        return
    of = {"key": key.rate.key_id, "rate": key.rate.per_second, "burst": key.rate.burst, "jobs": jobs}
    nested = connection.in_atomic_block
    with bounded(), connection.cursor() as cursor:
        if not nested:
            # A crash of the database may give back what was spent in its last moment; nobody waits for the disk.
            cursor.execute("SET LOCAL synchronous_commit = off")
        cursor.execute(_SPEND, of)
        if cursor.fetchone():
            return
        cursor.execute(_WAIT, of)
        row = cursor.fetchone()
    seconds = max(1, math.ceil(row[0])) if row else 1
    raise Problem(
        "rate_limited",
        f"This key may send {rate_words(key.rate)}. Nothing was stored. Send it again in {seconds} s.",
        headers={"Retry-After": str(seconds)},
        retryable=True,
    )
