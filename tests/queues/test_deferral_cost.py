"""What a look at who waits costs the scheduler: few statements, one entry of an index for each type and priority."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from queues import contracts, deferral
from queues.models import Job
from tests.factories import analyze, make_type, set_columns, sql
from tests.queues.test_deferral import MAIL, SCORE, change, kinds, waiting

pytestmark = pytest.mark.django_db

__all__ = ["kinds"]


def test_a_look_costs_nothing_without_types_that_can_wait_and_one_statement_with() -> None:
    waiting(20)
    for name in (MAIL, SCORE):
        change(name, deferrable=False)
    contracts.all_current()
    with CaptureQueriesContext(connection) as idle:
        deferral.sweep()
    assert len(idle) == 0
    change(MAIL, deferrable=True)
    contracts.all_current()
    with CaptureQueriesContext(connection) as looked:
        deferral.sweep()
    asked = [query["sql"] for query in looked if "SAVEPOINT" not in query["sql"]]
    assert len(asked) == 1


def test_the_number_of_statements_does_not_grow_with_the_types(shift_clock: Callable[[str], None]) -> None:
    job_id = waiting(42)
    for number in range(40):
        make_type(f"more.{number}", tier_id=3, deferrable=True)
    contracts.all_current()
    with CaptureQueriesContext(connection) as begun:
        assert len(deferral.sweep().deferred) == 42
    assert len(begun) <= 8
    shift_clock("2 min")
    set_columns(job_id, raw_due_at="jobs_now()")
    contracts.forget()
    contracts.all_current()
    with CaptureQueriesContext(connection) as ended:
        assert len(deferral.sweep().taken_back) == 42
    assert len(ended) <= 8


def test_a_backlog_is_not_read_to_see_how_long_it_waits() -> None:
    """One row of an index for each type and priority, whatever the statistics say: they know of one job."""
    waiting(42)
    analyze("queues_job")
    sql("ALTER TABLE queues_job DISABLE TRIGGER USER")
    columns = ", ".join(
        f'"{f.column}"' for f in Job._meta.concrete_fields if f.name not in ("id", "root", "failures", "priority")
    )
    sql(
        f"INSERT INTO queues_job (id, root, priority, {columns}) SELECT id, id, n %% 5, {columns} FROM ("
        f"SELECT jobs_uuid7() AS id, n, {columns} FROM queues_job CROSS JOIN generate_series(1, %s) AS n) AS t",
        10_000,
    )
    sql("ALTER TABLE queues_job ENABLE TRIGGER USER")
    with CaptureQueriesContext(connection) as captured:
        [wait] = deferral.waits()
    assert 42 <= wait.seconds < 100
    *settings, asked = captured[0]["sql"].split(";")[:3]
    for setting in settings:
        sql(setting)
    plan = "\n".join(row[0] for row in sql(f"EXPLAIN (ANALYZE, TIMING OFF) {asked}"))
    scans = re.findall(r"(\S+(?: Only)? Scan|Seq Scan)[^\n]* on queues_job_\d+[^\n]*actual rows=([0-9.]+)", plan)
    assert scans, plan
    assert not re.search(r"Seq Scan on queues_job_\d", plan), plan
    assert max(float(rows) for _, rows in scans) <= 1, plan
    assert not re.search(r"Rows Removed by Filter: [1-9]\d", plan), plan
