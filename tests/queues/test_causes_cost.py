"""What an explanation costs: counts that are bounded, statements on indexes, bursts."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from queues import outcomes
from queues.lifecycle import Verdict
from queues.models import Job
from queues.outcomes import Span, causes
from queues.outcomes.causes import explain_job, explain_type, facts
from tests.factories import accept, analyze, fold_all, make_job, make_type, sql
from tests.queues.late import NAME, falling, machines, of_job, of_type, overdue, settle


@pytest.mark.django_db
def test_counts_are_bounded_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "LOOK_AT_MOST", 5)
    monkeypatch.setattr(causes.of_type, "LOOK_AT_MOST", 5)
    monkeypatch.setattr(causes.of_job, "LOOK_AT_MOST", 5)
    make_type(NAME)
    machines("tier2")
    ids = accept(12, kind=NAME)
    overdue(*ids)
    assert of_job(ids[-1]).sentence == "5 or more jobs of this type are ahead of it."
    found = of_type().causes[0]
    assert found.sentence == "5 or more jobs wait for a worker"
    assert found.evidence["waiting"] == 5
    assert found.evidence["drained_in_seconds"] is None


@pytest.mark.django_db
def test_an_explanation_is_three_statements_on_indexes() -> None:
    """The same cost whatever the number of jobs: with sequential scans forbidden none is left in a plan."""
    make_type(NAME)
    machines("tier2")
    ids = accept(50, kind=NAME)
    settle(accept(50, kind=NAME), Verdict.FAILED)
    overdue(*ids[:20])
    fold_all()
    analyze("queues_job")
    sql("SET LOCAL enable_seqscan = off")
    board, job = outcomes.board(), Job.objects.get(id=ids[30])
    span = Span.of("6h", now=board.now)
    with CaptureQueriesContext(connection) as captured:
        explain_type(NAME, board=board, span=span, broker=True, series=falling(span), stages=[], changes=[])
    assert len(captured) == 3
    with CaptureQueriesContext(connection) as asked:
        explain_job(job, board=board, broker=True)
    assert len(asked) == 3
    for query in [*captured, *asked]:
        if "queues_job " in query["sql"]:
            switched_off, asked_for, _ = query["sql"].split("; ")
            assert switched_off == "SET LOCAL enable_sort = off"
            plan = "\n".join(row[0] for row in sql(f"EXPLAIN {asked_for}"))
            assert not re.search(r"Seq Scan on queues_job_\d", plan), plan
            assert re.search(r"Index.* Scan.*queues_job_\d", plan), plan


@pytest.mark.django_db
def test_a_burst_that_no_statistics_know_is_not_read_whole() -> None:
    """The planner believes that there is one job; the parts that count up to a bound must still end there."""
    make_type(NAME)
    machines("tier2")
    job = make_job(type=NAME)
    analyze("queues_job")
    sql("ALTER TABLE queues_job DISABLE TRIGGER USER")
    columns = ", ".join(f'"{f.column}"' for f in Job._meta.concrete_fields if f.name not in ("id", "root", "failures"))
    sql(
        f"INSERT INTO queues_job (id, root, {columns}) SELECT id, id, {columns} FROM ("
        f"SELECT jobs_uuid7() AS id, {columns} FROM queues_job CROSS JOIN generate_series(1, 20000)) AS t"
    )
    sql("ALTER TABLE queues_job ENABLE TRIGGER USER")
    for ask in (lambda: facts.open_jobs(NAME, tiers=[2]), lambda: facts.ahead_of(job)):
        with CaptureQueriesContext(connection) as captured:
            ask()
        sql("SET LOCAL enable_sort = off")
        plan = "\n".join(row[0] for row in sql(f"EXPLAIN (ANALYZE, TIMING OFF) {captured[0]['sql'].split('; ')[1]}"))
        sql("SET LOCAL enable_sort = on")
        read = [float(n) for n in re.findall(r"Scan .*?actual rows=([0-9.]+)", plan)]
        removed = [int(n) for n in re.findall(r"Rows Removed by Filter: ([0-9]+)", plan)]
        assert max([*read, *removed]) <= facts.LOOK_AT_MOST + 1, plan
