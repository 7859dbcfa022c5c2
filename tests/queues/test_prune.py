"""What is removed when, and what never is. Not here: who waits for whom (`tests/concurrency/test_prune.py`)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import ProgrammingError, transaction
from django.db.utils import DatabaseError
from django.test import Client

from jobsboard.api.keys import issue_key
from jobsboard.models import SCOPES
from queues import broker, lifecycle
from queues.accept import enqueue
from queues.lifecycle import Swap
from queues.models import Job, JobType
from queues.scheduler import housekeeping, prune
from queues.states import JobState
from tests.factories import TYPE, fold_all, make_job, make_type, sql, state_counts, true_counts
from tests.old_days import days, days_ago, ids_of, make_old_job, make_partition, part_of

pytestmark = pytest.mark.django_db
S = JobState
Make = Callable[..., Job]


@pytest.fixture(autouse=True)
def kind(db: None, monkeypatch: pytest.MonkeyPatch) -> JobType:
    """A job type with the default retention; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    return make_type()


@pytest.fixture
def day() -> dt.date:
    """A day long past every default retention, with its partition."""
    found = days_ago(60)
    make_partition(found)
    return found


def run_round(service: prune.Prune | None = None) -> prune.Prune:
    """Do one round of the service."""
    service = service or prune.Prune()
    for _ in range(1000):
        if not service.run_once():
            return service
    raise AssertionError("the round does not end")


def filler(day: dt.date, n: int, *, keys: bool = False) -> None:
    """Insert confirmed jobs that may go."""
    sql(
        f"""
        WITH new AS (
          INSERT INTO queues_job (id, type, tier, contract_version, attempt_limit, window_seconds, due_at, ready_at,
            expires_at, accepted_at, request_hash, idempotency_key, root, payload, dedupe_key)
          SELECT (substr(jobs_day_floor(%s)::text, 1, 13) || substr(jobs_uuid7()::text, 14))::uuid, %s, 2, 1, 5, 60,
            at, at, at, at, sha256('{{}}'), 'jb', jobs_uuid7(), '{{}}', {"'k' || n" if keys else "NULL"}
          FROM generate_series(1, %s) AS n, (SELECT %s::timestamp AT TIME ZONE 'UTC' AS at) AS t
          RETURNING id, type, dedupe_key, request_hash
        ) INSERT INTO queues_dedupekey (type, key, request_hash, job_id)
        SELECT type, dedupe_key, request_hash, id FROM new WHERE dedupe_key IS NOT NULL
        """,
        day, TYPE, n, day,
    )  # fmt: skip
    sql(
        f"UPDATE {part_of(day)} SET state = 'confirmed', due_at = NULL, settled_at = accepted_at, evidence = '{{}}'"
        " WHERE state = 'accepted' AND idempotency_key = 'jb'"
    )


# What may go


@pytest.mark.parametrize(
    ("state", "columns", "settled_days_ago", "goes"),
    [
        (S.CONFIRMED, {}, 7.1, True),
        (S.CONFIRMED, {}, 6.9, False),
        (S.DEAD, {"resolution": "ignored"}, 30.1, True),
        (S.DEAD, {"resolution": "cancelled"}, 30.1, True),
        (S.DEAD, {"resolution": "ignored"}, 29.9, False),
        (S.DEAD, {}, 59.0, False),
        (S.EXPIRED, {}, 30.1, True),
        (S.EXPIRED, {}, 29.9, False),
        (S.CANCELLED, {}, 30.1, True),
        (S.CANCELLED, {}, 29.9, False),
        (S.ACCEPTED, {}, None, False),
        (S.PROCESSING, {}, None, False),
        (S.AWAITING_CONFIRMATION, {}, None, False),
        (S.RETRYING, {}, None, False),
    ],
)
@pytest.mark.parametrize("remove", [False, True], ids=["swap", "delete"])
def test_a_job_goes_after_its_retention_and_only_then(
    state: JobState, columns: dict[str, Any], settled_days_ago: float | None, goes: bool, remove: bool, day: dt.date
) -> None:
    """I-41: never an open row, never an unresolved dead letter, nothing before its time."""
    job = _old(day, state, settled_days_ago=settled_days_ago, **columns)
    _prune(day, remove=remove)
    assert Job.objects.filter(id=job.id).exists() is not goes


def _old(day: dt.date, state: JobState, **columns: Any) -> Job:
    if state == S.AWAITING_CONFIRMATION:
        job = make_old_job(day, S.PROCESSING)
        sql("UPDATE queues_job SET state = 'awaiting_confirmation' WHERE id = %s", job.id)
        return job
    return make_old_job(day, state, **columns)


def _prune(day: dt.date, *, remove: bool) -> None:
    look = lifecycle.prune_day(day, most=100, remove=remove)
    assert look is not None
    if not remove:
        assert lifecycle.swap_day(day, stay=look.stay) in (Swap.SWAPPED, Swap.DROPPED)


@pytest.mark.parametrize(
    ("keep", "settled_days_ago", "goes"),
    [
        ({"keep_confirmed_days": 2}, 3, True),
        ({"keep_confirmed_days": 90}, 59, False),
        ({"keep_confirmed_days": 0}, 0.5, True),
        ({"keep_confirmed_days": 2147483647}, 59, False),
    ],
)
def test_the_contract_of_now_says_how_long(
    keep: dict[str, int], settled_days_ago: float, goes: bool, day: dt.date
) -> None:
    """A change of retention reaches jobs that were accepted before; no number makes the sum overflow."""
    JobType.objects.update(**keep)
    make_old_job(day, settled_days_ago=settled_days_ago)
    look = lifecycle.prune_day(day, most=10)
    assert look is not None
    assert look.may_go == goes


def test_a_dead_probe_goes_by_its_age_and_a_dead_letter_waits(day: dt.date) -> None:
    """Nobody resolves a probe; how it ended is said by the transition (`tests/outcomes/test_probes_out.py`)."""
    letter = make_old_job(day, S.DEAD)
    make_old_job(day, S.DEAD, probe=True, key="probe-1", resolution="ignored", resolved_by="probe")
    run_round()
    assert ids_of(day) == {letter.id}
    assert sql("SELECT count(*) FROM queues_dedupekey") == [(0,)]


def test_jobs_of_a_type_that_is_gone_have_the_defaults(day: dt.date) -> None:
    """7 days and 30 days."""
    kept = {make_old_job(day, kind="gone", settled_days_ago=6.9).id}
    kept.add(make_old_job(day, S.EXPIRED, kind="gone", settled_days_ago=29.9).id)
    make_old_job(day, kind="gone", settled_days_ago=7.1)
    make_old_job(day, S.EXPIRED, kind="gone", settled_days_ago=30.1)
    run_round()
    assert ids_of(day) == kept


@pytest.mark.parametrize("remove", [False, True])
def test_a_job_stays_while_its_keys_window_goes_on(remove: bool, day: dt.date) -> None:
    """Promise 2, scenario 7: its duplicates must find it, in its window."""
    kept, gone, moved = (make_old_job(day, key=key) for key in ("kept", "gone", "moved"))
    sql("UPDATE queues_dedupekey SET expires_at = jobs_now() + interval '1 day' WHERE key = 'kept'")
    sql("UPDATE queues_dedupekey SET expires_at = jobs_now() - interval '1 s' WHERE key = 'gone'")
    sql(
        "UPDATE queues_dedupekey SET expires_at = jobs_now() + interval '1 day', job_id = %s WHERE key = 'moved'",
        uuid4(),
    )
    _prune(day, remove=remove)
    assert ids_of(day) == {kept.id}
    assert {gone.id, moved.id}.isdisjoint(ids_of(day))
    assert sql("SELECT key FROM queues_dedupekey ORDER BY key") == [("kept",), ("moved",)]


@pytest.mark.parametrize(
    ("newest", "columns", "stays"),
    [
        (S.ACCEPTED, {}, True),
        (S.PROCESSING, {}, True),
        (S.DEAD, {}, True),
        (S.EXPIRED, {}, True),
        (S.DEAD, {"resolution": "ignored"}, False),
        (S.CONFIRMED, {}, False),
        (None, {}, False),
    ],
)
@pytest.mark.parametrize("generations", [1, 2])
def test_a_replayed_job_stays_while_its_lineage_may_run(
    newest: JobState | None, columns: dict[str, Any], stays: bool, generations: int, day: dt.date
) -> None:
    """The results of its steps are its descendants'; a descendant that can be replayed may need them again."""
    child = make_job(newest, **columns).id if newest else uuid4()
    if generations == 2:
        child = make_job(S.DEAD, resolution="replayed", replayed_by=child).id
    parent = make_old_job(day, S.DEAD, resolution="replayed", replayed_by=child)
    sql("INSERT INTO queues_stepresult (root, name, job_id, fence) VALUES (%s, 'charge', %s, 1)", parent.id, parent.id)
    run_round()
    assert (parent.id in ids_of(day)) is stays
    assert sql("SELECT count(*)::integer FROM queues_stepresult") == [(int(stays),)]


def test_what_belongs_to_a_job_goes_with_it(day: dt.date) -> None:
    """Keys, references and results of steps; those of others stay."""
    gone, kept = make_old_job(day, key="gone"), make_old_job(day, S.DEAD, key="kept")
    for job in (gone, kept):
        sql("INSERT INTO queues_stepresult (root, name, job_id, fence) VALUES (%s, 'a', %s, 1)", job.id, job.id)
        sql("INSERT INTO queues_jobreference (type, ref, job_id, fence) VALUES (%s, 'r', %s, 1)", TYPE, job.id)
    run_round()
    for table in ("queues_stepresult", "queues_jobreference", "queues_dedupekey"):
        assert sql(f"SELECT job_id FROM {table}") == [(kept.id,)]


def test_callbacks_go_when_they_were_kept_long_enough() -> None:
    """Matched or not: what they say about a job is in its row."""
    for name, keep in (("old", "-1 s"), ("new", "1 day")):
        sql(
            "INSERT INTO queues_callback (type, webhook_id, ref, outcome, retryable, detail, applied, keep_until)"
            " VALUES (%s, %s, 'r', 'confirmed', false, '', '', jobs_now() + %s::interval)",
            TYPE, name, keep,
        )  # fmt: skip
    run_round()
    assert sql("SELECT webhook_id FROM queues_callback") == [("new",)]


def test_callbacks_go_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for a hundred thousand of them."""
    sql(
        "INSERT INTO queues_callback (type, webhook_id, ref, outcome, retryable, detail, applied, keep_until)"
        " SELECT 't', n::text, 'r', 'confirmed', false, '', '', jobs_now() - interval '1 s'"
        " FROM generate_series(1, 25) AS n"
    )
    monkeypatch.setattr(prune, "CALLBACKS_MOST", 10)
    service = prune.Prune()
    assert [service.run_once() for _ in range(3)] == [True, True, False]
    assert sql("SELECT count(*) FROM queues_callback") == [(0,)]


# Which days are looked at


def test_days_are_looked_at_once_all_of_them_may_be_old() -> None:
    """Yesterday and today never; others after the shortest retention and six hours."""
    for n in (2, 3, 7, 8, 9, 10):
        make_partition(days_ago(n))
    hours = "extract(hour FROM jobs_now() AT TIME ZONE 'UTC')::integer"
    early = sql(f"SELECT {hours} < 6")[0][0]
    shift = 1 if early else 0

    def prunable() -> list[dt.date]:
        return [day for day in lifecycle.prunable_days() if day >= days_ago(10)]

    assert prunable() == [days_ago(n) for n in (10, 9, 8) if n >= 8 + shift]
    JobType.objects.update(keep_confirmed_days=2)
    assert prunable() == [days_ago(n) for n in (10, 9, 8, 7, 3) if n >= 3 + shift]
    JobType.objects.update(keep_other_days=0)
    assert prunable() == [days_ago(n) for n in (10, 9, 8, 7, 3, 2)]
    JobType.objects.update(keep_confirmed_days=365, keep_other_days=365)
    assert prunable() == [days_ago(n) for n in (10, 9, 8) if n >= 8 + shift], "jobs of types that are gone"


def test_young_days_cannot_be_swapped_away() -> None:
    """Whatever a caller says: the partition of a day that may still be needed is not touched."""
    job = make_job(S.CONFIRMED)
    today = days_ago(0)
    assert lifecycle.swap_day(today, stay=[]) == Swap.GONE
    assert lifecycle.swap_day(days_ago(500), stay=[]) == Swap.GONE
    assert job.id in ids_of(today)


def test_a_day_without_a_partition_has_nothing() -> None:
    """Another scheduler dropped it in the meantime."""
    look = lifecycle.prune_day(days_ago(500), most=10)
    assert look is not None
    assert (look.seen, look.stay, look.may_go) == (0, [], 0)


# How they go


@pytest.mark.usefixtures("two_weeks")
def test_an_empty_day_is_dropped(day: dt.date) -> None:
    """Ids are made by the clock of now, so nothing ever comes into it again."""
    run_round()
    assert day not in days()
    assert housekeeping.make_partitions() == 0, "and nothing makes it again"


def test_a_day_of_which_nothing_stays_is_dropped(day: dt.date) -> None:
    """Few or many: the partition goes as a whole."""
    filler(day, 10)
    run_round()
    assert day not in days()


def test_few_jobs_are_deleted(day: dt.date) -> None:
    """A swap would make everybody wait for them."""
    filler(day, 10)
    dead = make_old_job(day, S.DEAD)
    before = _oid(day)
    run_round()
    assert ids_of(day) == {dead.id}
    assert _oid(day) == before


def _oid(day: dt.date) -> int:
    oid: int = sql("SELECT %s::regclass::oid::bigint", part_of(day))[0][0]
    return oid


def test_many_jobs_are_swapped_away(day: dt.date, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenario 14: a small partition takes the place of the large one, guarded and indexed like it."""
    monkeypatch.setattr(prune, "SWAP_FROM", 20)
    monkeypatch.setattr(prune, "MOST", 7)
    filler(day, 30, keys=True)
    kept = {make_old_job(day, state, key=state.value) for state in (S.DEAD, S.ACCEPTED, S.RETRYING, S.PROCESSING)}
    rows = {str(job.id): _row(job.id) for job in kept}
    before, shape = _oid(day), _shape(day)
    run_round()
    assert ids_of(day) == {job.id for job in kept}
    assert {i: _row(UUID(i)) for i in rows} == rows
    assert _oid(day) != before
    assert _shape(day) == shape
    assert sql("SELECT count(*)::integer FROM queues_dedupekey") == [(len(kept),)]
    with pytest.raises(DatabaseError, match="cannot change"), transaction.atomic():
        sql("UPDATE queues_job SET attempt = 9 WHERE state = 'dead'")


def _row(job_id: UUID) -> Any:
    return sql("SELECT to_jsonb(j)::text, payload::text FROM queues_job j WHERE id = %s", job_id)


def _shape(day: dt.date) -> list[Any]:
    """Return the bounds, options, triggers, constraints, and indexes of a partition, as far as they have no name."""
    part = part_of(day)
    return [
        sql("SELECT pg_get_expr(relpartbound, oid), relkind FROM pg_class WHERE oid = %s::regclass", part),
        sql("SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = %s::regclass ORDER BY 1", part),
        sql(
            "SELECT contype, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass ORDER BY 1, 2",
            part,
        ),
        sql(
            "SELECT p.inhparent::regclass::text, indisvalid FROM pg_index JOIN pg_inherits p ON p.inhrelid = indexrelid"
            " WHERE indrelid = %s::regclass ORDER BY 1",
            part,
        ),
    ]


def test_a_swapped_day_can_be_swapped_again(day: dt.date, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the first swap are not in the way of the second, nor of the options of a partition."""
    monkeypatch.setattr(prune, "SWAP_FROM", 1)
    dead = [make_old_job(day, S.DEAD) for _ in range(3)]
    for job in dead:
        filler(day, 5)
        run_round()
        lifecycle.close_dead_letters([job.id], resolution="ignored", by="me")
    assert ids_of(day) == {dead[-1].id}
    assert sql("SELECT reloptions FROM pg_class WHERE oid = %s::regclass", part_of(day)) == sql(
        "SELECT reloptions FROM pg_class WHERE oid = %s::regclass", part_of(days_ago(0))
    )
    run_round()
    assert day not in days()


@pytest.mark.parametrize("limit", [("STAY_MOST", 2), ("COPY_BYTES", 5)])
def test_where_too_much_stays_the_others_are_deleted(
    limit: tuple[str, int], day: dt.date, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of so much would hold up the partition's writers."""
    name, value = limit
    monkeypatch.setattr(lifecycle if name == "STAY_MOST" else prune, name, value)
    monkeypatch.setattr(prune, "SWAP_FROM", 1)
    monkeypatch.setattr(prune, "MOST", 4)
    kept = {make_old_job(day, S.DEAD).id for _ in range(4)}
    filler(day, 10)
    kept |= {make_old_job(day, S.DEAD).id for _ in range(4)}
    before = _oid(day)
    run_round()
    assert ids_of(day) == kept
    assert _oid(day) == before


def test_a_swap_keeps_open_jobs_and_dead_letters_whatever_it_is_told(day: dt.date) -> None:
    """I-41: a wrong list costs no job that somebody waits for."""
    states = (S.ACCEPTED, S.PROCESSING, S.RETRYING, S.DEAD)
    kept = {make_old_job(day, state).id for state in states}
    make_old_job(day, S.CONFIRMED)
    assert lifecycle.swap_day(day, stay=[]) == Swap.SWAPPED
    assert ids_of(day) == kept


def test_a_swap_refuses_to_copy_too_much(day: dt.date) -> None:
    """The bound is the database's, too."""
    with pytest.raises(ProgrammingError, match="5000"), transaction.atomic():
        lifecycle.swap_day(day, stay=[uuid4() for _ in range(5001)])


def test_only_the_owner_may_prune() -> None:
    """S-33: a role that merely connects can remove nothing."""
    sql("CREATE ROLE passer_by")
    for call in ("jobs_prune('2026-01-01', NULL, 10, true)", "jobs_prune_swap('2026-01-01', '{}')"):
        with pytest.raises(ProgrammingError, match="permission denied"), transaction.atomic():
            sql("SET LOCAL ROLE passer_by")
            sql(f"SELECT {call}")


# What others see of it


def test_counts_stay_true(day: dt.date, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open jobs and unresolved dead letters are what the board counts; none of them goes."""
    monkeypatch.setattr(prune, "SWAP_FROM", 5)
    make_old_job(day, S.DEAD)
    filler(day, 10)
    make_old_job(day, S.DEAD, resolution="ignored")
    sql("INSERT INTO queues_statecount (type, tier, state, n) VALUES (%s, 2, 'dead', 1)", TYPE)
    before = true_counts()
    run_round()
    fold_all()
    assert state_counts() == true_counts() == before == {"dead": 1}


@pytest.mark.parametrize("swap", [False, True])
def test_the_key_of_a_removed_job_is_free(swap: bool, day: dt.date, monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 5: by default a key is held as long as the row is kept, never longer."""
    monkeypatch.setattr(prune, "SWAP_FROM", 1 if swap else 100)
    gone, kept = make_old_job(day, key="gone"), make_old_job(day, S.DEAD, key="kept")
    run_round()
    again = enqueue(TYPE, {}, dedupe_key="gone")
    assert (again.duplicate, again.state) == (False, S.ACCEPTED)
    assert again.job_id != gone.id
    sql("UPDATE queues_dedupekey SET request_hash = %s WHERE key = 'kept'", _hash_of("gone"))
    assert enqueue(TYPE, {}, dedupe_key="kept").job_id == kept.id


def test_a_removed_job_is_unknown_to_the_api(day: dt.date, client: Client) -> None:
    """Its address answers like one that never was."""
    key = issue_key(label="test", scopes=SCOPES)[1]
    gone, kept = make_old_job(day), make_old_job(day, S.DEAD)

    def get(job: Job) -> int:
        return client.get(f"/api/v1/jobs/{job.id}", headers={"Authorization": f"Bearer {key}"}).status_code

    assert (get(gone), get(kept)) == (200, 200)
    run_round()
    assert (get(gone), get(kept)) == (404, 200)


def _hash_of(key: str) -> bytes:
    return bytes(sql("SELECT request_hash FROM queues_dedupekey WHERE key = %s", key)[0][0])


def test_a_key_left_behind_is_let_go_by_accept(day: dt.date) -> None:
    """A key that was locked when its job went belongs to nobody."""
    gone = make_old_job(day, key="k")
    run_round()
    sql(
        "INSERT INTO queues_dedupekey (type, key, request_hash, job_id) VALUES (%s, 'k', sha256('x'), %s)",
        TYPE,
        gone.id,
    )
    assert not enqueue(TYPE, {}, dedupe_key="k").duplicate


# The round


def test_a_day_is_looked_at_again_after_hours(day: dt.date, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of which much stays is not walked every ten minutes."""
    dead = make_old_job(day, S.DEAD)
    service = run_round()
    lifecycle.close_dead_letters([dead.id], resolution="ignored", by="me")
    run_round(service)
    assert ids_of(day) == {dead.id}
    monkeypatch.setattr(prune, "LOOK_AGAIN_SECONDS", -1.0)
    run_round(service)
    assert day not in days()


def test_a_day_that_fails_keeps_no_other_from_its_turn(day: dt.date, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the service's to log; the next step is the next day."""
    other = days_ago(59)
    make_partition(other)
    real = lifecycle.swap_day

    def broken(of: dt.date, **named: Any) -> Swap:
        if of == day:
            raise DatabaseError("broken")
        return real(of, **named)

    monkeypatch.setattr(lifecycle, "swap_day", broken)
    service = prune.Prune()
    with pytest.raises(DatabaseError):
        run_round(service)
    run_round(service)
    assert days() & {day, other} == {day}


def test_a_round_is_left_to_whoever_prunes(day: dt.date, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once would only do everything twice."""
    monkeypatch.setattr(lifecycle, "prune_day", lambda *_, **__: None)
    assert prune.Prune().run_once() is False
    monkeypatch.undo()
    monkeypatch.setattr(lifecycle, "swap_day", lambda *_, **__: Swap.BUSY)
    run_round()
    assert day in days()


def test_what_was_refused_is_tried_once_a_round_and_deleted_in_the_end(
    day: dt.date, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions that use the table all the time delay pruning, they do not prevent it."""
    other = days_ago(59)
    make_partition(other)
    tried: list[dt.date] = []

    def refuse(of: dt.date, **_: Any) -> Swap:
        tried.append(of)
        return Swap.REFUSED

    monkeypatch.setattr(lifecycle, "swap_day", refuse)
    monkeypatch.setattr(prune, "REFUSALS", 3)
    monkeypatch.setattr(prune, "SWAP_FROM", 5)
    filler(day, 10)
    service = prune.Prune()
    for n in range(3):
        run_round(service)
        assert tried == [day] * (n + 1), "the other day waits: it would be refused as well"
        assert len(ids_of(day)) == 10
    run_round(service)
    assert ids_of(day) == set()
    assert tried == [day] * 3 + [other]
