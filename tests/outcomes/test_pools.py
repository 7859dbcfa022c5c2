"""Queues and workers now: since when work waits, who runs what, what is held; bounded looks at indexes."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from queues import lifecycle, outcomes, workers
from queues.accept import accept_probe
from queues.contract_switches import database_now, set_switch
from queues.models import Job, JobType, WorkerProcess
from queues.outcomes import pools
from queues.outcomes.pools import Process, RunNow
from tests.factories import accept, analyze, claim, fold_all, make_job, make_type, set_columns, sql

pytestmark = pytest.mark.django_db
NAME = "mail.send"


def due(*ids: UUID, seconds: int) -> None:
    """Let jobs be due for so long; less than nothing is the future."""
    for job_id in ids:
        set_columns(job_id, raw_due_at=f"jobs_now() - interval '{seconds} s'")


def age(pair: tuple[int, str]) -> float | None:
    """Return since how many seconds the first job of a pair is due, in tens."""
    found = pools.due_since([pair]).get(pair)
    return None if found is None else round((database_now() - found).total_seconds(), -1)


def test_the_oldest_due_job_is_found_in_every_priority() -> None:
    make_type(NAME)
    urgent, usual, later = accept(1, kind=NAME, priority=50)[0], *accept(2, kind=NAME)
    last = accept(1, kind=NAME, priority=-7)[0]
    due(urgent, seconds=20)
    due(usual, seconds=90)
    due(later, seconds=40)
    due(last, seconds=600)
    assert age((2, NAME)) == 600
    lifecycle.claim([last], worker="w/1.1")
    assert age((2, NAME)) == 90
    due(usual, later, seconds=-3600)
    assert age((2, NAME)) == 20
    due(urgent, seconds=-3600)
    assert age((2, NAME)) is None, "their time has not come"


def test_a_tier_that_jobs_are_left_in_is_asked_by_itself_and_probes_are_nobodys_oldest() -> None:
    make_type(NAME, probe_every_seconds=60)
    probe = accept_probe(NAME, key="probe-1").job_id
    due(probe, seconds=900)
    (job,) = accept(1, kind=NAME)
    due(job, seconds=60)
    JobType.objects.filter(name=NAME).update(tier_id=1)
    assert age((2, NAME)) == 60
    assert age((1, NAME)) is None
    set_columns(probe, priority=-5)
    assert age((2, NAME)) == 60, "also in a priority that is walked to"
    assert pools.due_since([]) == {}


def test_more_priorities_than_are_walked_end_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    make_type(NAME)
    ids = [accept(1, kind=NAME, priority=priority)[0] for priority in (30, 20, 10)]
    for job_id, seconds in zip(ids, (30, 60, 900), strict=True):
        due(job_id, seconds=seconds)
    assert age((2, NAME)) == 900
    monkeypatch.setattr(pools, "PRIORITIES_MAX", 2)
    assert age((2, NAME)) == 60


def test_looks_are_one_statement_each_on_indexes_however_many_jobs_wait() -> None:
    """Also while the statistics say that hardly anything is there: a sort would read the whole backlog."""
    make_type(NAME)
    job = make_job(type=NAME)
    analyze("queues_job")
    sql("ALTER TABLE queues_job DISABLE TRIGGER USER")
    columns = ", ".join(f'"{f.column}"' for f in Job._meta.concrete_fields if f.name not in ("id", "root"))
    sql(
        f"INSERT INTO queues_job (id, root, {columns}) SELECT id, id, {columns} FROM ("
        f"SELECT jobs_uuid7() AS id, {columns} FROM queues_job CROSS JOIN generate_series(1, 5000)) AS t"
    )
    sql("ALTER TABLE queues_job ENABLE TRIGGER USER")
    claim([job.id])
    for ask, index in (
        (lambda: pools.due_since([(2, NAME)]), "_tier_type_priority_due_at_idx"),
        (pools.runs, "_due_at_idx"),
    ):
        with CaptureQueriesContext(connection) as captured:
            assert ask()
        assert len(captured) == 1
        sql("SET LOCAL enable_sort = off")
        plan = "\n".join(row[0] for row in sql(f"EXPLAIN (ANALYZE, TIMING OFF) {captured[0]['sql'].split('; ')[1]}"))
        sql("SET LOCAL enable_sort = on")
        assert index in plan, plan
        read = [float(n) for n in re.findall(r"Scan .*?queues_job.*?actual rows=([0-9.]+)", plan)]
        removed = [int(n) for n in re.findall(r"Rows Removed by Filter: ([0-9]+)", plan)]
        assert max([*read, *removed]) <= pools.RUNS_MAX, plan
        assert max(read) <= 3, plan


def test_running_jobs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    make_type(NAME)
    claim(accept(3, kind=NAME), worker="w/7.1.1")
    assert [(run.type, run.worker, run.host) for run in pools.runs()] == [(NAME, "w/7.1.1", "w")] * 3
    monkeypatch.setattr(pools, "RUNS_MAX", 2)
    found = pools.runs()
    assert len(found) == 2
    assert pools.place(found, [], board=outcomes.board()).cut_off


def process(name: str, *queues: str, **values: Any) -> Process:
    host, _, pid = name.partition("/")
    now = database_now()
    base = {
        "id": name, "kind": "worker", "hostname": host, "pid": int(pid), "queues": queues, "slots": 4, "busy": 1,
        "trouble": "", "release": 1, "started_at": now, "seen_at": now, "silent": False,
    }  # fmt: skip
    return Process(**{**base, **values})


@pytest.mark.parametrize(
    ("claimed_as", "processes", "expected"),
    [
        ("a/10.777.1", ["a/10 tier2", "a/11 tier2"], "a/10"),
        ("a/99.777.1", ["a/10 tier2", "b/10 tier2"], "a/10"),
        ("a/99.777.1", ["a/10 tier1", "a/11 tier2"], "a/11"),
        ("a/99.777.1", ["a/10 tier1"], "a/10"),
        ("a/99.777.1", ["a/10 tier2", "a/11 tier2"], "unplaced"),
        ("a/99.777.1", ["a/10", "a/11 tier2"], "unplaced"),
        ("a/99.777.1", ["b/99 tier2"], "astray"),
        ("a.b-c.example/10.777.1", ["a.b-c.example/10 tier3", "a/10 tier2"], "a.b-c.example/10"),
        ("", ["a/10 tier2"], "astray"),
    ],
)  # fmt: skip
def test_a_run_is_found_with_its_worker(claimed_as: str, processes: list[str], expected: str) -> None:
    """By the worker's own process id, else as the only one of its host that takes such jobs, or takes none any more."""
    make_type(NAME)
    run = RunNow(id=uuid4(), type=NAME, worker=claimed_as, started_at=database_now())
    known = [process(*one.split()) for one in processes]
    placed = pools.place([run], known, board=outcomes.board())
    where = {**placed.by_process, "unplaced": placed.unplaced, "astray": placed.astray}
    assert [name for name, runs in where.items() if runs] == [expected]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"silent": True, "seen_at": -60}, "a/11"),
        ({"silent": True, "seen_at": -2}, "unplaced"),
        ({"started_at": 60}, "a/11"),
        ({"started_at": 2}, "unplaced"),
    ],
)
def test_a_worker_that_did_not_live_then_does_not_have_the_run(other: dict[str, Any], expected: str) -> None:
    """So after a worker was killed and another began in its place it is known whose run it is. Seconds from the run."""
    make_type(NAME)
    at = database_now()
    times = {key: at + dt.timedelta(seconds=value) if key != "silent" else value for key, value in other.items()}
    long_ago = at - dt.timedelta(hours=1)
    known = [
        process("a/10", "tier2", **{"started_at": long_ago, **times}),
        process("a/11", "tier2", started_at=long_ago),
    ]
    run = RunNow(id=uuid4(), type=NAME, worker="a/99.777.1", started_at=at)
    placed = pools.place([run], known, board=outcomes.board())
    assert [*placed.by_process, *(["unplaced"] if placed.unplaced else [])] == [expected]


def test_the_run_that_goes_on_for_longest_comes_first() -> None:
    make_type(NAME)
    now = database_now()
    found = [
        RunNow(id=uuid4(), type=NAME, worker="a/1.1", started_at=now - dt.timedelta(seconds=n)) for n in (5, 90, 30)
    ]
    (runs,) = pools.place(found, [process("a/1", "tier2")], board=outcomes.board()).by_process.values()
    assert [round((now - run.started_at).total_seconds()) for run in runs] == [90, 30, 5]


def test_the_fleet_is_what_reported_itself_and_says_who_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    workers.report(
        "a/1", kind="worker", hostname="a", pid=1, queues=["tier2", "tier1"], slots=4, busy=9, trouble="deaf"
    )
    workers.report("a/2", kind="worker", hostname="a", pid=2, queues=[], slots=4, busy=1)
    workers.report("a/3", kind="scheduler", hostname="a", pid=3)
    WorkerProcess.objects.filter(id="a/2").update(seen_at=database_now() - dt.timedelta(seconds=16))
    found = {one.id: one for one in pools.fleet(gone_seconds=15)}
    assert (found["a/1"].queues, found["a/1"].busy, found["a/1"].well, found["a/1"].silent) == (
        ("tier1", "tier2"), 4, False, False,
    )  # fmt: skip
    assert found["a/2"].silent
    assert not found["a/2"].draining, "of one that is silent nothing more is known"
    assert (found["a/3"].kind, found["a/3"].well, found["a/3"].draining) == ("scheduler", True, False)
    monkeypatch.setattr(pools, "WORKERS_MAX", 2)
    assert {one.id for one in pools.fleet(gone_seconds=15)} == {"a/1", "a/3"}, "the newest heartbeats"


def test_what_is_held_says_by_whom_and_why() -> None:
    for name in (NAME, "crm.sync", "report.build", "free.type"):
        make_type(name, deferrable=True)
    set_switch(NAME, paused=True, reason="relay is down", actor="ada")
    until = database_now() + dt.timedelta(minutes=5)
    JobType.objects.filter(name__in=[NAME, "crm.sync"]).update(
        deferred=True, deferred_reason="Tier 1 waits", deferred_by="scheduler", deferred_until=until
    )
    found = pools.holds()
    assert [(one.type, one.how, one.by, one.reason, one.until) for one in found.values()] == [
        ("crm.sync", "deferred", "scheduler", "Tier 1 waits", until),
        (NAME, "paused", "ada", "relay is down", None),
    ]


def test_queues_are_those_of_tiers_types_and_workers() -> None:
    make_type(NAME, tier_id=1, pool="mail")
    accept(2, kind=NAME)
    fold_all()
    board = outcomes.board()
    assert pools.queue_names(board, consumed=["tier3.big", "celery", "mail1.x", "tier4", "tier1"]) == {
        "tier1": 1, "tier1.mail": 1, "tier2": 2, "tier3": 3, "tier3.big": 3,
    }  # fmt: skip
    assert pools.queue_of(board, tier=2, name=NAME) == "tier1.mail", "its jobs go where its contract says now"
    assert pools.queue_of(board, tier=2, name="gone") == "tier2"
