"""What each statement of a request reads: EXPLAIN (ANALYZE, BUFFERS), at both sizes, largest growth first."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.test import Client

from benchmarks.scale.sites import Site, using
from jobsboard.metrics import view

# What reads a table; the others read what these gave.
_INNER = ("CTE Scan", "Subquery Scan", "Function Scan", "Values Scan", "WorkTable Scan", "Bitmap Index Scan")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One statement of a request. Units: milliseconds; `rows` looked at in tables, `pages` of 8 kB."""

    sql: str
    ms: float
    planning_ms: float
    rows: int
    pages: int
    text: str


def read(site: Site, path: str) -> tuple[float, list[Statement]]:
    """Ask for a page in this process; returns its milliseconds and its statements."""
    with using(site.url):
        client = Client(headers={**site.headers(path), "Host": "127.0.0.1"})
        if path != "/metrics" and not path.startswith("/api/"):
            client.cookies["sessionid"] = site.cookie
        seen: list[tuple[str, Any]] = []

        def note(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
            seen.append((sql, params))
            return execute(sql, params, many, context)

        client.get(path)
        view.forget()
        began = time.perf_counter()
        with connection.execute_wrapper(note):
            status = client.get(path).status_code
        took = (time.perf_counter() - began) * 1000
        if status != 200:
            raise SystemExit(f"{path} of {site.name} jobs in this process: {status}")
        return took, [_explain(sql, params) for sql, params in seen if sql.lstrip().startswith(("SELECT", "WITH"))]


def _explain(sql: str, params: Any) -> Statement:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params)
        found = cursor.fetchone()[0]
        plan = (json.loads(found) if isinstance(found, str) else found)[0]
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", params)
        text = "\n".join(row[0] for row in cursor.fetchall())
    top = plan["Plan"]
    return Statement(
        sql=" ".join(sql.split()),
        ms=plan["Execution Time"],
        planning_ms=plan["Planning Time"],
        rows=round(_rows(top)),
        pages=top["Shared Hit Blocks"] + top["Shared Read Blocks"],
        text=text,
    )


def _rows(node: dict[str, Any]) -> float:
    own = 0.0
    if node["Node Type"].endswith("Scan") and node["Node Type"] not in _INNER:
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        own = (node["Actual Rows"] + removed) * node["Actual Loops"]
    return own + sum(_rows(child) for child in node.get("Plans", []))


def compare(path: str, small: Site, large: Site) -> list[str]:
    """Return lines that say what grows in a request, from one size to the other."""
    (few_ms, few), (many_ms, many) = read(small, path), read(large, path)
    lines = [f"{path}: {few_ms:.1f} ms and {many_ms:.1f} ms in this process; {len(few)} and {len(many)} statements"]
    for one, other in zip(few, many, strict=True):
        lines.append(
            f"  {one.ms:8.2f} {other.ms:8.2f} ms  {one.planning_ms:6.2f} {other.planning_ms:6.2f} planning"
            f"  {one.rows:7} {other.rows:7} rows  {one.pages:6} {other.pages:6} pages  {other.sql[:110]}"
        )
    return lines


def texts(path: str, site: Site, *, least_ms: float) -> list[str]:
    """Return the plans of the statements that took at least so long."""
    return [f"{path}\n{one.sql}\n{one.text}\n" for one in read(site, path)[1] if one.ms >= least_ms]
