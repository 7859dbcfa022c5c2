"""What a reviewer proved wrong: counters that fell, ranges that lost a cohort, a migration that invented late jobs."""

from __future__ import annotations

import datetime as dt
import importlib
import threading
from collections.abc import Iterator

import pytest
from django.db import Error, connection, transaction

from queues import broker, contracts, lifecycle, outcomes
from queues.models import Job, JobType
from queues.outcomes import Span
from queues.runtime import chunk
from queues.scheduler.stage import Stage
from queues.states import JobState, Reason
from tests.factories import accept, claim, confirmed, failed, fold_all, get, make_type, released, set_columns, sql
from tests.model.actors import install_clock
from tests.queues.test_stage import Wire, wire  # noqa: F401 (a fixture)

WEEK = 7 * 86_400
START = dt.datetime(2026, 11, 22, 8, 10, 5, tzinfo=dt.UTC)
FILL = importlib.import_module("queues.migrations.0008_outcomes_so_far").FILL


def clock(at: dt.datetime | None) -> None:
    """Let the database's clock stand at a time."""
    sql("SELECT set_config('model.now', %s, false)", at.isoformat() if at else "")


@pytest.fixture
def still(db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock that stands; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    install_clock(fake=True)
    clock(START)
    yield
    clock(None)


def forget() -> None:
    """Forget minutes as housekeeping does."""
    while lifecycle.forget_rollups(grain="minute", days=outcomes.MINUTES_KEPT, limit=500):
        pass


def due_at(at: dt.datetime) -> tuple[int, int]:
    """Fold, forget, and return what is due for metrics and for pages."""
    clock(at)
    fold_all()
    forget()
    [counts] = outcomes.totals().counts.values()
    return counts.due, outcomes.flow(Span.of("30d", now=at, folded_at=at)).total().due


def test_a_window_longer_than_minutes_are_kept(still: None) -> None:
    """Its cohort is judged by its minutes until it has passed; a late cancel is no cohort of its own."""
    make_type(window_seconds=WEEK, max_age_seconds=30 * 86_400)
    ids = accept(1)
    clock(START + dt.timedelta(minutes=20))
    accept(1)
    fold_all()
    seen = [due_at(START + dt.timedelta(days=days)) for days in (1, 4)]
    clock(START + dt.timedelta(days=6))
    assert lifecycle.cancel(ids, reason=Reason.OPERATOR)
    seen += [due_at(START + dt.timedelta(days=7, minutes=minutes)) for minutes in (10, 90)]
    assert seen == [(0, 0), (0, 0), (0, 0), (1, 1)]


def test_a_window_that_was_raised_within_an_hour(still: None) -> None:
    """The old window's jobs are due, the new one's not, also when minutes are forgotten."""
    kind = make_type(window_seconds=60, max_age_seconds=30 * 86_400)
    lifecycle.settle([confirmed(run) for run in claim(accept(5))])
    JobType.objects.filter(name=kind.name).update(window_seconds=WEEK)
    contracts.forget()
    clock(START + dt.timedelta(minutes=5))
    ids = accept(100)
    fold_all()
    seen = [due_at(START + dt.timedelta(days=days)) for days in (0.1, 2, 3.2)]
    lifecycle.cancel(ids[:50], reason=Reason.OPERATOR)
    seen.append(due_at(START + dt.timedelta(days=3.3)))
    assert seen == [(5, 5)] * 4
    assert due_at(START + dt.timedelta(days=8)) == (55, 55)


def test_a_migration_invents_no_late_job(still: None) -> None:
    """What is open, what is not folded and what has ended, when it runs."""
    make_type(window_seconds=60)
    first = accept(5)
    fold_all()
    second = accept(10)
    lifecycle.settle([confirmed(run) for run in claim(second[:4])])
    sql("DELETE FROM queues_outcomedelta WHERE measure = 'ended'")
    sql("UPDATE queues_outcomerollup SET ended = 0")
    sql("DELETE FROM queues_outcomebuckets")
    sql(FILL)
    clock(START + dt.timedelta(minutes=3))
    fold_all()
    now = START + dt.timedelta(minutes=3)
    assert outcomes.flow(Span.of("1h", now=now, folded_at=now)).total().open_late == 11
    lifecycle.settle([confirmed(run) for run in claim(first + second[4:])])
    fold_all()
    assert outcomes.flow(Span.of("1h", now=now, folded_at=now)).total().open_late == 0
    assert Job.objects.exclude(state=JobState.CONFIRMED).count() == 0


def test_the_release_before_folds_no_more(db: None) -> None:
    """Its fold names the table of its histograms, and is refused as a whole: nothing that it does not know is lost."""
    make_type()
    accept(1)
    with pytest.raises(Error, match="folds no more"), transaction.atomic():
        sql(
            "WITH taken AS (DELETE FROM queues_outcomedelta RETURNING n) INSERT INTO queues_outcomehistogram"
            " (grain, at, type, tier, measure, bucket, n) SELECT 'day', jobs_now(), 'x', 1, 'lag', 1, n FROM taken"
            " WHERE false"
        )
    assert sql("SELECT count(*) > 0 FROM queues_outcomedelta") == [(True,)]


def test_a_fold_beside_another_is_not_complete(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other one has taken and not committed is not in the rollups so far."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    make_type()
    accept(3)
    sql("UPDATE queues_boardversion SET folded_at = jobs_now() - interval '1 hour'")
    held, done = threading.Event(), threading.Event()

    def other() -> None:
        with transaction.atomic():
            sql("SELECT id FROM queues_outcomedelta ORDER BY id LIMIT 1 FOR UPDATE")
            held.set()
            done.wait(20)
        connection.close()

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(20)
    lifecycle.fold()
    behind = sql("SELECT jobs_now() - folded_at > interval '30 min' FROM queues_boardversion")
    done.set()
    thread.join(20)
    lifecycle.fold()
    assert behind == [(True,)]
    assert sql("SELECT jobs_now() - folded_at < interval '1 min' FROM queues_boardversion") == [(True,)]


def test_a_retry_that_is_given_back_is_published_at_once(wire: Wire) -> None:  # noqa: F811 (the fixture)
    """It is due by its age, which is before the due time for which its hint was sent."""
    [job] = accept()
    set_columns(job, raw_ready_at="jobs_now() - interval '1 min'")
    [run] = claim([job])
    lifecycle.settle([failed(run, retry_in=0.0)])
    stage = Stage()
    stage.run_once()
    assert wire.taken()
    [run] = claim([job])
    lifecycle.settle([released(run)])
    stage.run_once()
    assert wire.taken()


@pytest.mark.django_db
@pytest.mark.parametrize("edited", [True, False])
def test_a_stale_run_confirms_no_edited_replay(edited: bool) -> None:
    """Promise 3: its reference is about the payload that it ran; of the same payload it is evidence."""
    make_type(success="reference", on_worker_lost="dead")
    [job] = accept(dedupe_key="k1")
    [run] = claim([job])
    lifecycle.rescue([job], dead_runs=[(run.id, run.fence)])
    edit = lifecycle.Edit(payload='{"n": 42}', request_hash="00" * 32) if edited else None
    child = lifecycle.replay(job, by="jane", edit=edit)
    assert child is not None
    chunk._keep_references([confirmed(run, "ref-of-the-old-payload")])
    assert get(child).state == (JobState.ACCEPTED if edited else JobState.CONFIRMED)
    assert [note["ref"] for note in get(job).late_evidence or []] == ["ref-of-the-old-payload"]


def test_what_a_range_reads_is_not_forgotten_meanwhile() -> None:
    """Rollups are kept an hour longer than a range may begin with them."""
    now = dt.datetime(2026, 11, 22, 12, 0, 30, tzinfo=dt.UTC)
    span = Span.between(now - dt.timedelta(days=3) + dt.timedelta(seconds=10), now, now=now)
    assert now - span.since < dt.timedelta(days=outcomes.MINUTES_KEPT, hours=1)
