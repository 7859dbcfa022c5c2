"""What pages of dead letters read, however many there are: counted by the database's own plans, not by the clock."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from queues.models import FailureCount
from tests.board.plans import BULK
from tests.factories import analyze, make_type, sql

FEW: Final = 300
MANY: Final = 9_000
GROUPS: Final = 30
KIND: Final = "mail.send"
READ_MOST: Final = 1_000
"""Rows that one statement of these pages may touch: fifty of a page, some more for edges, types and hours."""

# Dead letters of a few failures, as the fold would have counted them; half of them without an error of their own.
_JOBS: Final = """
INSERT INTO queues_job (id, type, tier, contract_version, attempt, attempt_limit, window_seconds, due_at, ready_at,
  expires_at, accepted_at, request_hash, idempotency_key, root, payload, state, reason, resolution, fingerprint,
  settled_at, begun, failures)
SELECT id, %(kind)s, 1, 1, 1, 1, 60, NULL, now, now + interval '7 days', now, sha256('{}'), 'jb_' || id, id, '{}',
  'dead', 'attempts_exhausted', 'open', lpad(to_hex(n %% %(groups)s), 16, '0'), now, 1,
  '[{"error_class": "Boom", "message": "connection reset", "traceback": ""}]'
FROM (SELECT jobs_uuid7() AS id, jobs_clock() AS now, n FROM generate_series(1, %(jobs)s) AS n) AS t
"""
_COUNTS: Final = """
INSERT INTO queues_failurecount (type, tier, reason, fingerprint, died, open, first_at, last_at)
SELECT type, 1, reason, fingerprint, count(*), count(*), min(settled_at), max(settled_at) FROM queues_job
WHERE state = 'dead' GROUP BY type, reason, fingerprint
ON CONFLICT (type, reason, fingerprint) DO UPDATE SET died = excluded.died, open = excluded.open
"""


def bury(n: int) -> None:
    """Make so many more dead letters of thirty failures."""
    # The trigger wants the whole life of each row, which is not what is looked at here.
    sql("SET LOCAL session_replication_role = replica")
    with connection.cursor() as cursor:
        cursor.execute(_JOBS, {"kind": KIND, "groups": GROUPS, "jobs": n})
    sql("SET LOCAL session_replication_role = origin")
    sql(_COUNTS)
    analyze("queues_job")
    analyze("queues_failurecount")


def nodes(plan: Any) -> Iterator[dict[str, Any]]:
    """Walk a plan."""
    if isinstance(plan, list):
        for part in plan:
            yield from nodes(part)
    elif isinstance(plan, dict):
        if "Node Type" in plan:
            yield plan
        for part in plan.values():
            if isinstance(part, list | dict):
                yield from nodes(part)


def touched(statement: str) -> int:
    """Return how many rows the busiest scan of a statement reads: those that it gives and those that it throws away."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}")
        found = cursor.fetchone()[0]
    plan = json.loads(found) if isinstance(found, str) else found
    most = 0
    for node in nodes(plan):
        if "Scan" not in node["Node Type"] or node["Node Type"] in ("CTE Scan", "Function Scan", "Subquery Scan"):
            continue
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        most = max(most, (node["Actual Rows"] + removed) * node["Actual Loops"])
    return int(most)


def cost(client: Client, url: str) -> tuple[int, int]:
    """Return how many statements a page takes, and the rows that the busiest scan of them reads."""
    client.get(url)
    with CaptureQueriesContext(connection) as captured:
        assert client.get(url).status_code == 200
    reads = [query["sql"] for query in captured if re.match(r"\s*(SELECT|WITH)", query["sql"])]
    return len(captured), max(touched(statement) for statement in reads)


def test_a_page_reads_its_page_however_many_are_dead(operator: Client) -> None:
    """DESIGN promise 10: the list, one failure, the flat list and its second page."""
    make_type(KIND, tier_id=1)
    bury(FEW)
    group = FailureCount.objects.order_by("id")[0]
    second = re.search(r'rel="next" href="([^"]+)"', operator.get("/dlq/?view=flat").text)
    assert second is not None
    urls = ["/dlq/", "/dlq/?reason=attempts_exhausted", f"/dlq/groups/{group.id}/", "/dlq/?view=flat"]
    urls.append("/dlq/" + second[1].replace("&amp;", "&"))
    few = [cost(operator, url)[0] for url in urls]
    bury(MANY)
    # A statement that reads all of them would be seen.
    assert touched("SELECT id FROM queues_job WHERE payload IS NOT NULL") > READ_MOST
    for url, before in zip(urls, few, strict=True):
        statements, rows = cost(operator, url)
        assert statements <= before, url
        assert rows <= READ_MOST, (url, rows)


def test_the_dialog_of_one_failure_reads_that_failure_and_no_other(operator: Client) -> None:
    """It counts exactly what it is about, from the index of dead letters by failure."""
    make_type(KIND, tier_id=1)
    bury(FEW + MANY)
    group = FailureCount.objects.order_by("id")[0]
    statements, rows = cost(operator, f"{BULK}?verb=replay&failure={group.id}&all=1")
    assert statements <= 16
    assert (FEW + MANY) // GROUPS <= rows <= READ_MOST
