"""What the database itself refuses and how it finds rows. Not here: what `lifecycle` does with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from queues import lifecycle
from queues.models import Job
from queues.scheduler import housekeeping
from queues.states import OPEN, RESOLUTION_COLUMNS, TERMINAL, TRANSITIONS, JobState, Reason
from tests import factories
from tests.factories import analyze, assignments, make_job, make_type, set_columns, sql

pytestmark = pytest.mark.django_db
PAIRS = [(old, new) for old, new in product(JobState, JobState) if old != new]
TERMINAL_STATES = [pytest.param(state, id=state.value) for state in TERMINAL]


@contextmanager
def refused(match: str | None = None) -> Iterator[None]:
    """Expect that the database refuses a statement, and go on after it."""
    with pytest.raises(IntegrityError, match=match), transaction.atomic():
        yield


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=lambda state: state.value)
def test_exactly_the_legal_transitions_pass(old: JobState, new: JobState) -> None:
    """I-11: the table in `states` is the database's own."""
    job = make_job(old)

    def move() -> None:
        sql(f"UPDATE queues_job SET {assignments(new)} WHERE id = %s", job.id)

    if new in TRANSITIONS[old]:
        move()
        assert factories.get(job.id).state == new
    else:
        with refused("legal change"):
            move()
        assert factories.get(job.id).state == old


def test_the_transition_table_is_complete() -> None:
    """I-10: every state is in the table, no terminal state has a way out, every state can be reached and every open
    one can end."""
    assert set(TRANSITIONS) == set(JobState)
    assert all(not TRANSITIONS[state] for state in TERMINAL)
    assert set().union(*TRANSITIONS.values()) == set(JobState)
    assert all(TRANSITIONS[state] & set(TERMINAL) for state in OPEN)


_OTHER_VALUES = {
    "state": "'accepted'", "type": "'other'", "tier": "3", "priority": "7", "contract_version": "9", "attempt": "9",
    "attempt_limit": "9", "fence": "fence + 9", "crashes": "9", "begun": "9", "alone": "NOT alone",
    "cancel_requested": "NOT cancel_requested", "probe": "NOT probe", "canary": "NOT canary", "window_seconds": "9",
    "request_hash": "sha256('x')", "idempotency_key": "'x'", "root": "jobs_uuid7()", "replay_of": "jobs_uuid7()",
    "id": "jobs_uuid7()", "evidence": """'{"kind": "forged"}'""", "result": "'9'", "progress": "'9'",
    "failures": "'[9]'", "trace": "'{}'", "seq": "9", "checks": "9",
    "check_failures": "9", "polled": "NOT polled", "unknown_end": "NOT unknown_end", "rejection": "'{}'",
}  # fmt: skip


@pytest.mark.parametrize("state", TERMINAL_STATES)
def test_a_settled_row_never_changes(state: JobState) -> None:
    """I-10: no column of a terminal row changes but those that resolve it."""
    job = make_job(state)
    before = row(job.id)
    for name in set(columns()) - set(RESOLUTION_COLUMNS):
        kind = columns()[name]
        value = _OTHER_VALUES.get(name) or ("jobs_clock() + interval '1 s'" if kind.startswith("timestamp") else "'x'")
        with refused():
            sql(f'UPDATE queues_job SET "{name}" = {value} WHERE id = %s', job.id)
    assert row(job.id) == before


@pytest.mark.parametrize("state", [JobState.DEAD, JobState.EXPIRED, JobState.CANCELLED])
def test_a_settled_row_can_be_resolved_once_and_erased(state: JobState) -> None:
    """I-10, S-43: resolution columns change; a replay is not undone; a payload goes away and never comes back."""
    job = make_job(state)
    child = uuid4()
    sql(
        "UPDATE queues_job SET resolution = 'replayed', replayed_by = %s, resolved_by = 'me' WHERE id = %s",
        child,
        job.id,
    )
    with refused("cannot change"):
        sql("UPDATE queues_job SET replayed_by = NULL WHERE id = %s", job.id)
    with refused("cannot change"):
        sql("UPDATE queues_job SET replayed_by = %s WHERE id = %s", uuid4(), job.id)
    with refused("cannot change"):
        sql("""UPDATE queues_job SET payload = '{"x": 1}' WHERE id = %s""", job.id)
    sql("UPDATE queues_job SET payload = NULL, erased_at = jobs_clock() WHERE id = %s", job.id)
    with refused("cannot change"):
        sql("UPDATE queues_job SET payload = '{}', erased_at = NULL WHERE id = %s", job.id)
    sql("""UPDATE queues_job SET late_evidence = '{"ref": "x"}' WHERE id = %s""", job.id)


@pytest.mark.parametrize("state", [s for s in JobState if s != JobState.ACCEPTED])
def test_a_job_starts_as_accepted(state: JobState) -> None:
    """I-11: no row is inserted in any other state."""
    source = make_job(state)
    names = ", ".join(f'"{name}"' for name in columns() if name != "id")
    with refused("starts as accepted"):
        sql(
            f"INSERT INTO queues_job (id, {names}) SELECT jobs_uuid7(), {names} FROM queues_job WHERE id = %s",
            source.id,
        )


@pytest.mark.parametrize("state", OPEN)
def test_the_fence_never_falls(state: JobState) -> None:
    """I-09: whatever a statement says, the fence of a job does not go down."""
    job = make_job(state, fence=3)
    with refused():
        set_columns(job.id, fence=2)
    set_columns(job.id, fence=3)
    set_columns(job.id, fence=4)


@pytest.mark.parametrize(
    ("state", "change"),
    [
        (JobState.ACCEPTED, "due_at = NULL"),
        (JobState.ACCEPTED, "settled_at = jobs_clock()"),
        (JobState.ACCEPTED, "reason = 'stale'"),
        (JobState.ACCEPTED, "resolution = 'open'"),
        (JobState.ACCEPTED, "tier = 4"),
        (JobState.ACCEPTED, "priority = 101"),
        (JobState.ACCEPTED, "attempt = -1"),
        (JobState.ACCEPTED, "begun = -1"),
        (JobState.ACCEPTED, "crashes = -1"),
        (JobState.ACCEPTED, "attempt_limit = 0"),
        (JobState.ACCEPTED, "attempt_limit = 101"),
        (JobState.ACCEPTED, "payload = NULL"),
        (JobState.ACCEPTED, "erased_at = jobs_clock()"),
        (JobState.ACCEPTED, "state = 'paused'"),
        (JobState.PROCESSING, "worker = NULL"),
        (JobState.PROCESSING, "started_at = NULL"),
        (JobState.PROCESSING, "due_at = NULL"),
    ],
)
def test_checks_hold_a_row_together(state: JobState, change: str) -> None:
    """I-13: no limbo row can be written: every open state has its time, every count its range."""
    job = make_job(state)
    with refused():
        sql(f"UPDATE queues_job SET {change} WHERE id = %s", job.id)


@pytest.mark.parametrize(
    ("state", "column", "value"),
    [
        (JobState.CONFIRMED, "evidence", None),
        (JobState.CONFIRMED, "reason", "stale"),
        (JobState.CONFIRMED, "resolution", "open"),
        (JobState.DEAD, "reason", None),
        (JobState.DEAD, "resolution", None),
        (JobState.DEAD, "resolution", "shrugged"),
        (JobState.EXPIRED, "reason", None),
        (JobState.CANCELLED, "reason", None),
        *((JobState.DEAD, "reason", r.value) for r in (Reason.OPERATOR, Reason.PRODUCER, Reason.SUPERSEDED)),
        *((JobState.EXPIRED, "reason", r.value) for r in Reason if r != Reason.STALE),
        *((JobState.CANCELLED, "reason", r.value) for r in (Reason.STALE, Reason.POISON)),
    ],
)
def test_an_end_has_its_evidence_or_its_reason(state: JobState, column: str, value: str | None) -> None:
    """I-28: `confirmed` needs evidence; every other end needs a reason that fits it."""
    with refused():
        make_job(state, **{column: value})


def test_the_model_is_the_catalogue() -> None:
    """The unmanaged model has the table's columns, in type and in nullability."""
    types = {
        "UUIDField": "uuid", "CharField": "character varying", "SmallIntegerField": "smallint",
        "IntegerField": "integer", "BigIntegerField": "bigint", "BooleanField": "boolean",
        "DateTimeField": "timestamp with time zone", "BinaryField": "bytea", "JSONField": "jsonb", "JsonText": "json",
    }  # fmt: skip
    ours = {}
    for f in Job._meta.concrete_fields:
        size = f"({f.max_length})" if f.get_internal_type() == "CharField" else ""
        name = type(f).__name__ if type(f).__name__ in types else f.get_internal_type()
        ours[f.column] = (types[name] + size, f.null)
    catalogue = sql(
        "SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull FROM pg_attribute"
        " WHERE attrelid = 'queues_job'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    assert ours == {name: (kind, null) for name, kind, null in catalogue}


def test_nothing_refers_to_jobs_by_a_foreign_key() -> None:
    """Scenario 14: a partition with a foreign key to it can be neither dropped nor detached."""
    assert sql("SELECT conname FROM pg_constraint WHERE contype = 'f' AND confrelid = 'queues_job'::regclass") == []


@pytest.mark.usefixtures("two_weeks")
def test_two_weeks_of_partitions_are_ahead() -> None:
    """Scenario 14: no default partition, two weeks ahead, and making them again makes none."""
    days = {
        name
        for (name,) in sql("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'queues_job'::regclass")
    }
    wanted = sql(
        "SELECT 'queues_job_' || to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + n, 'YYYYMMDD')"
        " FROM generate_series(0, 14) AS n"
    )
    assert {name for (name,) in wanted} <= days
    assert sql("SELECT partdefid FROM pg_partitioned_table WHERE partrelid = 'queues_job'::regclass") == [(0,)]
    assert housekeeping.make_partitions() == 0


@pytest.mark.usefixtures("two_weeks")
def test_a_new_partition_is_guarded_like_the_others() -> None:
    """I-10, I-11: partitions made by LIKE and ATTACH have every guard, constraint and index of the table."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT jobs_make_partitions(20)")
        assert cursor.fetchone()[0] == 6

    def parts(query: str) -> set[tuple[str, int]]:
        return {(name, n) for name, n in sql(query)}

    guards = parts(
        "SELECT i.inhrelid::regclass::text, count(t.oid) FROM pg_inherits i LEFT JOIN pg_trigger t"
        " ON t.tgrelid = i.inhrelid AND t.tgenabled = 'O' WHERE i.inhparent = 'queues_job'::regclass GROUP BY 1"
    )
    assert {n for _, n in guards} == {4}
    checks = parts(
        "SELECT i.inhrelid::regclass::text, count(c.oid) FROM pg_inherits i JOIN pg_constraint c"
        " ON c.conrelid = i.inhrelid AND c.contype = 'c' WHERE i.inhparent = 'queues_job'::regclass GROUP BY 1"
    )
    own = sql("SELECT count(*) FROM pg_constraint WHERE conrelid = 'queues_job'::regclass AND contype = 'c'")[0][0]
    assert {n for _, n in checks} == {own}


@pytest.mark.parametrize("timezone", ["UTC", "Pacific/Auckland", "America/Los_Angeles"])
def test_the_day_of_a_partition_does_not_depend_on_the_session(timezone: str) -> None:
    """I-19: the bounds are midnights in UTC whatever the session's time zone is."""
    sql(f"SET LOCAL timezone = '{timezone}'")
    [(first,)] = sql("SELECT jobs_day_floor('2026-03-01')::text")
    assert int(first.replace("-", "")[:12], 16) == 1772323200000


def test_ids_ascend_and_carry_the_time() -> None:
    """Scenario 14: ids are UUIDv7 made by the database, in order inside a statement."""
    _check_ids("jobs_uuid7")


def test_ids_before_postgresql_18_ascend_and_carry_the_time() -> None:
    """Scenario 14: so are those of our own function, which older servers use."""
    from_file = Path(lifecycle.__file__).parents[1] / "migrations" / "0002_jobs.py"
    body = re.search(r'UUID7_OWN = """(.*?)"""', from_file.read_text(), re.DOTALL)
    assert body is not None
    sql(body[1].replace("jobs_uuid7", "own_uuid7"))
    _check_ids("own_uuid7")


def _check_ids(function: str) -> None:
    made = [i for (i,) in sql(f"SELECT {function}() FROM generate_series(1, 500)")]
    now_ms = sql("SELECT extract(epoch FROM clock_timestamp())::float8 * 1000")[0][0]
    assert len(set(made)) == 500
    assert {i.version for i in made} == {7}
    assert {i.variant for i in made} == {"specified in RFC 4122"}
    assert all(abs((i.int >> 80) - now_ms) < 60_000 for i in made)
    assert sum(a > b for a, b in zip(made, made[1:], strict=False)) == 0 or function == "own_uuid7"
    assert [i.int >> 64 for i in made] == sorted(i.int >> 64 for i in made)


# Statements that name their ids: what the planner makes of them.


def _plan_of(run: Callable[[], object]) -> list[dict[str, Any]]:
    with CaptureQueriesContext(connection) as seen, transaction.atomic():
        run()
        transaction.set_rollback(True)
    plans = []
    with transaction.atomic():
        for statement in (query["sql"] for query in seen.captured_queries):
            if statement.startswith("SET LOCAL"):
                sql(statement)
            elif "queues_job" in statement:
                [(plan,)] = sql("EXPLAIN (FORMAT JSON) " + statement)
                plans.append(plan if isinstance(plan, list) else json.loads(plan))
        transaction.set_rollback(True)
    return [one[0]["Plan"] for one in plans]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _fill(n: int) -> None:
    sql(
        """
        INSERT INTO queues_job (id, type, tier, contract_version, attempt_limit, window_seconds, due_at, ready_at,
          expires_at, accepted_at, request_hash, idempotency_key, root, payload)
        SELECT jobs_uuid7(), 'test.job', 2, 1, 5, 60, now, now, now + interval '7 days', now, sha256('{}'), 'jb',
          jobs_uuid7(), '{}'
        FROM generate_series(1, %s), (SELECT jobs_clock() AS now) AS t
        """,
        n,
    )


@pytest.fixture
def settled(db: None) -> list[UUID]:
    """Some of 3,000 jobs, all settled, from the first to the last; the statistics say so."""
    make_type()
    _fill(3000)
    sql(f"UPDATE queues_job SET {assignments(JobState.CONFIRMED)}")
    analyze("queues_job")
    return [i for (i,) in sql("SELECT id FROM queues_job ORDER BY id")][::30]


STATEMENTS: dict[str, Callable[[list[UUID]], object]] = {
    "claim": lambda ids: lifecycle.claim(ids, worker="w"),
    "settle": lambda ids: lifecycle.settle(
        [lifecycle.End(id=i, fence=1, verdict=lifecycle.Verdict.RELEASED) for i in ids]
    ),
    "heartbeat": lambda ids: lifecycle.heartbeat([(i, 1, 15.0) for i in ids]),
    "rescue": lambda ids: lifecycle.rescue(ids, dead_runs=[(i, 1) for i in ids]),
    "expire": lambda ids: lifecycle.expire(ids),
    "cancel": lambda ids: lifecycle.cancel(ids, reason=Reason.OPERATOR),
    "close": lambda ids: lifecycle.close_dead_letters(ids, resolution="ignored", by="me"),
    "replay": lambda ids: lifecycle.replay(ids[0], by="me"),
}


@pytest.mark.parametrize("n", [1, 100])
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_that_names_ids_reads_one_partition_by_them(name: str, n: int, settled: list[UUID]) -> None:
    """Scenario 22: partitions are pruned while planning, and rows are found by their ids, also when the planner
    believes that a partial index of some state has next to no rows."""
    [plan] = _plan_of(lambda: STATEMENTS[name](settled[:n]))
    scans = [
        node for node in _nodes(plan)
        if node.get("Relation Name", "").startswith("queues_job_2") and node["Node Type"] != "ModifyTable"
    ]  # fmt: skip
    assert scans, plan
    assert len({node["Relation Name"] for node in scans}) == 1
    partial = {name for (name,) in sql("SELECT indexrelid::regclass::text FROM pg_index WHERE indpred IS NOT NULL")}
    for node in scans:
        used = [inner for inner in _nodes(node) if "Index Name" in inner]
        assert used or node["Node Type"] == "Seq Scan", node
        assert all("(id = " in inner["Index Cond"] and inner["Index Name"] not in partial for inner in used), used


@pytest.mark.parametrize("statistics", ["fresh", "from before the burst"])
@pytest.mark.parametrize(
    ("name", "index"),
    [("stage", "tier_type_priority_due_at_idx"), ("lost", "due_at_idx"), ("stale", "expires_at_idx")],
)
def test_a_sweep_reads_its_own_index(name: str, index: str, statistics: str, settled: list[UUID]) -> None:
    """Scenarios 9 and 10: what is due comes from the index made for it and `jobs_now` is an index condition, also while
    the statistics still say that nothing is open: then a burst of jobs waits, and each round would read all of it."""
    _fill(5000)
    if statistics == "fresh":
        analyze("queues_job")
    sweep: dict[str, Callable[[], object]] = {
        "stage": lambda: lifecycle.stageable([lifecycle.Ask(2, "test.job", 10)]),
        "lost": lambda: lifecycle.lost(limit=500),
        "stale": lambda: lifecycle.stale(limit=500),
    }
    [plan] = _plan_of(sweep[name])
    today = sql("SELECT tableoid::regclass::text FROM queues_job LIMIT 1")[0][0]
    [scan] = [node for node in _nodes(plan) if node.get("Relation Name") == today]
    assert scan.get("Index Name", scan["Node Type"]) == f"{today}_{index}"
    assert "statement_timestamp()" in scan["Index Cond"]


@pytest.mark.parametrize(
    "change",
    ["UPDATE queues_auditentry SET actor = 'x'", "DELETE FROM queues_auditentry", "TRUNCATE queues_auditentry"],
)
def test_the_audit_log_is_append_only(change: str) -> None:
    """I-45: an entry is neither changed nor taken away."""
    sql("INSERT INTO queues_auditentry (actor, action, object_type, object_id, reason, source, request_id)"
        " VALUES ('me', 'a', 'job', '1', '', 'ui', '')")  # fmt: skip
    with refused("append-only"):
        sql(change)
    assert sql("SELECT count(*) FROM queues_auditentry WHERE actor = 'me'") == [(1,)]


def columns() -> dict[str, str]:
    """Return the columns of the jobs table and their types."""
    found = sql(
        "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_name = 'queues_job' AND table_schema = 'public'"
    )
    return dict(found)


def row(job_id: UUID) -> str:
    """Return a whole row as text."""
    return str(sql("SELECT to_jsonb(j)::text FROM queues_job j WHERE id = %s", job_id)[0][0])
