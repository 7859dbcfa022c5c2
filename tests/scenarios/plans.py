"""Which statements a piece of code really runs, and what PostgreSQL does for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction

_PARTITION = re.compile(r"queues_job_\d{8}")


@dataclass(frozen=True)
class Statement:
    """A statement as it went to the driver."""

    sql: str
    params: Any


@dataclass(frozen=True)
class Plan:
    """What EXPLAIN ANALYZE said, as its JSON."""

    root: dict[str, Any]

    def nodes(self) -> Iterator[dict[str, Any]]:
        """Yield every node."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.get("Plans", [])

    @property
    def partitions(self) -> set[str]:
        """Partitions of the jobs table that the plan names, executed or not."""
        return {n["Relation Name"] for n in self.nodes() if _PARTITION.fullmatch(n.get("Relation Name", ""))}

    @property
    def buffers(self) -> int:
        """Pages that were looked at."""
        return int(self.root["Shared Hit Blocks"]) + int(self.root["Shared Read Blocks"])

    @property
    def thrown_away(self) -> int:
        """Rows that were read and that a filter, not an index, then left out."""
        return sum(int(n.get("Rows Removed by Filter", 0)) * int(n["Actual Loops"]) for n in self.nodes())

    @property
    def conditions(self) -> str:
        """What indexes were asked, in one text."""
        return "\n".join(n["Index Cond"] for n in self.nodes() if "Index Cond" in n)


def statements_of(work: Callable[[], object]) -> list[Statement]:
    """Return the statements that a piece of code ran about the jobs table."""
    seen: list[Statement] = []

    def note(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        seen.append(Statement(str(sql), params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        work()
    return [one for one in seen if re.search(r"\bqueues_job\b", one.sql)]


def explain(statement: Statement) -> Plan:
    """Run a statement, take it back, and return its plan with what it cost."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement.sql, statement.params)
        plan = Plan(cursor.fetchone()[0][0]["Plan"])
        transaction.set_rollback(True)
    return plan
