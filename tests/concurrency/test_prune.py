"""Pruning beside accepts, open readers, replays, writers and other pruners (scenario 14)."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest
from django.db import transaction

from queues import broker, contracts, lifecycle
from queues.accept import enqueue
from queues.lifecycle import Look, Swap
from queues.models import DedupeKey, Job, JobType
from queues.scheduler import prune
from queues.states import JobState
from tests.concurrency.rivals import DEADLINE, Rival, outcomes, together
from tests.factories import TYPE, accept, fold_all, get, make_type, sql, state_counts, true_counts
from tests.old_days import days, days_ago, ids_of, make_old_job, make_partition, part_of

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db", "kind")]
S = JobState


@pytest.fixture
def kind(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> JobType:
    """A job type; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    made = make_type()
    contracts.all_current()
    return made


@pytest.fixture
def day(transactional_db: None) -> Iterator[dt.date]:
    """A day long past every retention, with its partition."""
    found = days_ago(60)
    make_partition(found)
    yield found
    sql(f"DROP TABLE IF EXISTS {part_of(found)}")


@pytest.fixture(autouse=True)
def _swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "SWAP_FROM", 1)


@contextmanager
def open_transaction(work: Callable[[], object]) -> Iterator[None]:
    """Let another session do something and stay in its transaction."""
    done, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            work()
            done.set()
            assert enough.wait(2 * DEADLINE)

    rival = Rival(hold)
    assert done.wait(DEADLINE)
    try:
        yield
    finally:
        enough.set()
        rival.outcome()


def look_at(day: dt.date) -> Look:
    """Look at a whole day."""
    look = lifecycle.prune_day(day, most=10_000)
    assert look is not None
    return look


def run_round(service: prune.Prune) -> None:
    """Do one round."""
    while service.run_once():
        pass


def test_a_reader_is_waited_for_a_moment_only_and_accepts_go_on(day: dt.date) -> None:
    """Scenario 14: beside an open reader the swap gives up each time and comes again; accepts hardly notice."""
    dead = make_old_job(day, S.DEAD)
    make_old_job(day)
    service, slowest, enough = prune.Prune(), [0.0], threading.Event()

    def accepts() -> int:
        n = 0
        while not enough.is_set():
            began = time.monotonic()
            enqueue(TYPE, {"n": n})
            slowest[0] = max(slowest[0], time.monotonic() - began)
            n += 1
        return n

    with open_transaction(lambda: ids_of(day)):
        producer = Rival(accepts, lock_timeout="3s")
        for _ in range(5):
            began = time.monotonic()
            run_round(service)
            assert time.monotonic() - began < 3
            assert len(ids_of(day)) == 2
        assert service.refused[day][1] == 5
        enough.set()
        assert producer.outcome() > 5
    assert slowest[0] < 1
    run_round(service)
    assert ids_of(day) == {dead.id}
    assert service.refused == {}


def test_a_refused_swap_leaves_nothing_behind(day: dt.date) -> None:
    """Neither a table nor a lock."""
    make_old_job(day, S.DEAD)
    stay = look_at(day).stay
    with open_transaction(lambda: ids_of(day)), transaction.atomic():
        assert lifecycle.swap_day(day, stay=stay) == Swap.REFUSED
        assert sql("SELECT to_regclass(%s)", part_of(day) + "_new") == [(None,)]
        held = sql(
            "SELECT mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 'queues_job'::regclass AND granted"
        )
        assert ("AccessExclusiveLock",) not in held
    assert lifecycle.swap_day(day, stay=stay) == Swap.SWAPPED


def test_a_writer_of_the_day_is_waited_for(day: dt.date) -> None:
    """The copy holds what was committed, never the row before an update that is under way."""
    job = make_old_job(day, S.RETRYING)
    make_old_job(day)
    stay = look_at(day).stay

    with open_transaction(lambda: lifecycle.claim([job.id], worker="w")):
        assert lifecycle.swap_day(day, stay=stay) == Swap.REFUSED
    assert lifecycle.swap_day(day, stay=stay) == Swap.SWAPPED
    assert (get(job.id).state, get(job.id).fence) == (S.PROCESSING, job.fence + 1)


def test_whoever_waits_for_the_swap_finds_the_jobs_in_the_new_partition(day: dt.date) -> None:
    """A finish that came in the middle of it changes its row; it is not told that it was superseded."""
    job = make_old_job(day, S.RETRYING)
    make_old_job(day)
    [run] = lifecycle.claim([job.id], worker="w")
    stay = look_at(day).stay
    with transaction.atomic():
        assert lifecycle.swap_day(day, stay=stay) == Swap.SWAPPED
        end = lifecycle.End(id=run.id, fence=run.fence, verdict=lifecycle.Verdict.FAILED, reason="rejected")
        finisher = Rival(lambda: lifecycle.settle([end]))
        assert finisher.waits()
    assert finisher.outcome() == {(run.id, run.fence): S.DEAD}
    assert get(job.id).state == S.DEAD


@pytest.mark.parametrize("remove", [False, True])
def test_a_job_that_is_being_replayed_stays(remove: bool, day: dt.date) -> None:
    """I-41, prune beside replay: the child finds its parent and the results of its steps."""
    parent = make_old_job(day, S.EXPIRED, key="k")
    sql("INSERT INTO queues_stepresult (root, name, job_id, fence) VALUES (%s, 'a', %s, 1)", parent.id, parent.id)
    with open_transaction(lambda: lifecycle.replay(parent.id, by="me")):
        look = lifecycle.prune_day(day, most=10, remove=remove)
        assert look is not None
        assert (list(look.stay), look.removed) == ([parent.id], 0)
    look = lifecycle.prune_day(day, most=10, remove=remove)
    assert look is not None
    assert (list(look.stay), look.may_go) == ([parent.id], 0), "its child is open now"
    [child] = Job.objects.filter(replay_of=parent.id)
    assert DedupeKey.objects.get().job_id == child.id
    assert sql("SELECT job_id FROM queues_stepresult") == [(parent.id,)]


def test_a_replay_that_comes_too_late_finds_no_job(day: dt.date) -> None:
    """It waits for the row lock and then says what it says of any job that is not there."""
    job = make_old_job(day, S.EXPIRED)
    with transaction.atomic():
        assert lifecycle.prune_day(day, most=10) is not None
        replay = Rival(lambda: lifecycle.replay(job.id, by="me"))
        assert replay.waits()
    assert replay.outcome() is None
    assert Job.objects.count() == 0


def test_duplicates_that_race_with_pruning_get_an_answer(day: dt.date) -> None:
    """Scenario 7: each is told of the old job or of a new one; a key has one new job at most."""
    keys = [f"k{n}" for n in range(60)]
    for key in keys:
        make_old_job(day, key=key)
    example = enqueue(TYPE, {}, dedupe_key="example")
    sql("UPDATE queues_dedupekey SET request_hash = %s", bytes(get(example.job_id).request_hash))
    old = ids_of(day)

    def producer(order: list[str]) -> Callable[[], list[tuple[str, UUID]]]:
        return lambda: [(key, enqueue(TYPE, {}, dedupe_key=key).job_id) for _ in range(3) for key in order]

    def pruner() -> list[tuple[str, UUID]]:
        run_round(prune.Prune())
        return []

    answers = [pair for some in outcomes(together(producer(keys), producer(keys[::-1]), pruner)) for pair in some]
    new = {(key, job_id) for key, job_id in answers if job_id not in old}
    assert len(new) == len({key for key, _ in new})
    run_round(prune.Prune())
    assert day not in days()
    assert {(k.key, k.job_id) for k in DedupeKey.objects.exclude(key="example")} == new
    fold_all()
    assert state_counts() == true_counts()


def test_two_pruners_remove_each_job_once(day: dt.date, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of schedulers: whoever meets another one leaves the round to it, and nothing that stays is lost."""
    monkeypatch.setattr(prune, "MOST", 3)
    kept = {make_old_job(day, S.DEAD).id for _ in range(4)}
    for _ in range(20):
        make_old_job(day, key=None)
    outcomes(together(*[lambda: run_round(prune.Prune())] * 3))
    run_round(prune.Prune())
    assert ids_of(day) == kept


def test_the_list_of_a_slow_pruner_is_still_true_after_anothers_swap(day: dt.date) -> None:
    """What may go may go for ever: an old list brings nothing back and loses nothing."""
    kept = make_old_job(day, S.DEAD)
    late = make_old_job(day, settled_days_ago=6.9)
    make_old_job(day)
    stay = look_at(day).stay
    assert lifecycle.swap_day(day, stay=stay) == Swap.SWAPPED
    sql("SELECT jobs_prune(%s, NULL, 10, true)", day)
    assert lifecycle.swap_day(day, stay=stay) == Swap.SWAPPED
    assert ids_of(day) == {kept.id, late.id}


def test_accepts_are_not_held_up_by_the_walk(day: dt.date) -> None:
    """While a look is under way a new key is accepted at once; only a duplicate of one of its keys waits for it."""
    make_old_job(day, key="k")
    with transaction.atomic():
        look = lifecycle.prune_day(day, most=10)
        assert look is not None
        assert Rival(accept).outcome()
        duplicate = Rival(lambda: enqueue(TYPE, {}, dedupe_key="k"))
        assert duplicate.waits()
    assert not duplicate.outcome().duplicate
