"""Merging: which waiting jobs a new one takes the place of, when it is ready, what is left alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from queues import broker, contracts, lifecycle
from queues.accept import DedupeConflict, Item, Receipt, accept_probe, enqueue, enqueue_many
from queues.contract_flow import DEBOUNCE_MOST, flow_words
from queues.lifecycle import Run
from queues.models import Job, JobType, OverlapState
from queues.scheduler import housekeeping
from queues.states import JobState, Reason, Resolution
from tests.factories import TYPE, WORKER, confirmed, failed, fold_all, get, make_type, sql

pytestmark = pytest.mark.django_db

S = JobState


DEFAULTS = {f.name: f.get_default() for f in JobType._meta.concrete_fields}


@pytest.fixture(autouse=True)
def _no_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent after a commit would lie in the queue of the tests that follow."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)


def put(n: int = 1, *, group: str | None = "g", **more: Any) -> UUID:
    """Enqueue one job."""
    return enqueue(TYPE, {"n": n}, group=group, **more).job_id


def run(job_id: UUID) -> Run:
    """Claim one job as a worker does."""
    [started] = lifecycle.claim([job_id], worker=WORKER)
    return started


def states(*ids: UUID) -> list[str]:
    return [get(job_id).state for job_id in ids]


def shift(seconds: float) -> None:
    """Let so much time pass for the groups and their jobs."""
    step = timedelta(seconds=seconds)
    sql("UPDATE queues_overlapstate SET ready_at = ready_at - %s, since = since - %s", step, step)
    sql("UPDATE queues_job SET ready_at = ready_at - %s, due_at = due_at - %s, accepted_at = accepted_at - %s,"
        " entered_at = entered_at - %s WHERE state = 'accepted'", step, step, step, step)  # fmt: skip


def ready_in(job_id: UUID) -> float:
    """Return in how many seconds from now a job is ready."""
    seconds = "extract(epoch FROM ready_at - jobs_clock())::float8"
    return float(sql(f"SELECT {seconds} FROM queues_job WHERE id = %s", job_id)[0][0])


@pytest.mark.parametrize("overlap", ["keep_last", "throttle", "debounce", "replace"])
def test_the_newest_takes_the_place_of_those_that_wait(overlap: str) -> None:
    """Each job has its end: those that lost their place say why, and of each group one is left."""
    make_type(overlap=overlap, overlap_seconds=60 if overlap in ("throttle", "debounce") else 0)
    first, second, other, without, third = put(1), put(2), put(3, group="h"), put(4, group=None), put(5)
    assert states(first, second, third, other, without) == [S.CANCELLED, S.CANCELLED, *[S.ACCEPTED] * 3]
    lost = get(first)
    assert (lost.reason, lost.resolution, lost.replayed_by) == (Reason.SUPERSEDED, Resolution.OPEN, None)
    newest = put(6, group=None)
    assert states(without, newest, third) == [S.CANCELLED, S.ACCEPTED, S.ACCEPTED]


def test_without_merging_nothing_is_locked() -> None:
    make_type()
    ids = [put()]
    with CaptureQueriesContext(connection) as plain:
        ids.append(put())
    assert states(*ids) == [S.ACCEPTED] * 2
    assert not OverlapState.objects.exists()
    assert len(plain) == 1


def test_what_merging_costs() -> None:
    """Lock, look, insert, cancel, note; and savepoint and release, inside the transaction of the test."""
    make_type(overlap="keep_last")
    put()
    with CaptureQueriesContext(connection) as second:
        put()
    assert len(second) == 7
    with CaptureQueriesContext(connection) as batch:
        enqueue_many([Item(type=TYPE, payload=n, group=f"g{n % 5}") for n in range(50)], on_error="return")
    assert len(batch) == 7


def test_a_run_goes_on() -> None:
    """keep_last: at most one waits; what runs, or waits for its proof, is left alone."""
    make_type(overlap="keep_last", success="callback")
    running, waiting = run(put()), put()
    awaiting = run(waiting)
    lifecycle.settle([lifecycle.End(id=waiting, fence=awaiting.fence, verdict=lifecycle.Verdict.AWAITING, act_in=60,
                                    confirm_in=60)])  # fmt: skip
    put()
    assert states(running.id, waiting) == [S.PROCESSING, S.AWAITING_CONFIRMATION]
    assert not get(running.id).cancel_requested


def test_a_job_that_waits_for_its_retry_loses_its_place_too() -> None:
    make_type(overlap="keep_last")
    failing = run(put())
    lifecycle.settle([failed(failing, retry_in=60)])
    assert states(failing.id) == [S.RETRYING]
    newer = put()
    assert states(failing.id, newer) == [S.CANCELLED, S.ACCEPTED]
    assert len(get(failing.id).failures) == 1


def test_replace_asks_what_runs_to_stop(django_capture_on_commit_callbacks: Any) -> None:
    """After the commit, so that the end of the run waits for nobody; its own proof still counts."""
    make_type(overlap="replace")
    running = run(put())
    with django_capture_on_commit_callbacks() as callbacks:
        newer = put()
    assert not get(running.id).cancel_requested
    for callback in callbacks:
        callback()
    assert states(running.id, newer) == [S.PROCESSING, S.ACCEPTED]
    assert lifecycle.cancelled([(running.id, running.fence)]) == {(running.id, running.fence)}
    lifecycle.settle([confirmed(running)])
    assert states(running.id) == [S.CONFIRMED]


def test_debounce_waits_for_quiet_and_not_for_ever() -> None:
    """Each newer job puts it off by its seconds; after DEBOUNCE_MOST times those it is ready however many come."""
    make_type(overlap="debounce", overlap_seconds=10, max_age_seconds=86400)
    assert ready_in(put()) == pytest.approx(10, abs=5)
    for _ in range(DEBOUNCE_MOST - 1):
        shift(9.5)
        assert ready_in(put()) == pytest.approx(10, abs=5)
    shift(12)
    last = put()
    assert ready_in(last) < 3
    shift(3)
    run(last)
    assert ready_in(put()) == pytest.approx(10, abs=5), "the next one begins a wait of its own"


def test_throttle_begins_one_at_a_time() -> None:
    """At once; then one in so many seconds, with the newest payload; the turn of one that waits is given away."""
    make_type(overlap="throttle", overlap_seconds=60)
    first = put(1)
    assert ready_in(first) <= 0
    run(first)
    shift(20)
    second = put(2)
    # The first was ready 20 s ago.
    assert ready_in(second) == pytest.approx(40, abs=5)
    shift(30)
    third = put(3)
    assert ready_in(third) == pytest.approx(10, abs=5)
    assert states(second, third) == [S.CANCELLED, S.ACCEPTED]
    shift(12)
    # No worker was there when its turn came: a newer job shall not wait for another one.
    fourth = put(4)
    assert ready_in(fourth) <= 0
    run(fourth)
    assert ready_in(put(5)) == pytest.approx(60, abs=5)


@pytest.mark.parametrize(
    ("overlap", "steps", "each"),
    [("keep_last", 2, 1.5), ("replace", 2, 1.5), ("throttle", 2, 1.5), ("debounce", 11, 4.7)],
)
def test_a_stream_that_is_faster_than_workers_starves_nothing(overlap: str, steps: int, each: float) -> None:
    """No worker is free: what has been due for five seconds keeps its place, and newer ones merge behind it."""
    make_type(overlap=overlap, overlap_seconds=5 if overlap in ("throttle", "debounce") else 0, max_age_seconds=86400)
    ids = [put(0)]
    for n in range(steps):
        shift(each)
        ids.append(put(n))
    assert states(*ids) == [S.CANCELLED] * (len(ids) - 1) + [S.ACCEPTED]
    shift(4)
    [kept, *behind] = ids[-1], put(), put(), put()
    assert states(kept, *behind) == [S.ACCEPTED, S.CANCELLED, S.CANCELLED, S.ACCEPTED]
    shift(60)
    last = put()
    assert states(kept, behind[-1], last) == [S.ACCEPTED, S.CANCELLED, S.ACCEPTED], "one is kept, however long it lasts"
    run(kept)
    if overlap == "keep_last":
        assert states(put(), last) == [S.ACCEPTED] * 2, "then it is the next one's turn to keep its place"


def test_a_throttled_retry_does_not_give_its_turn_away() -> None:
    """It ran already; the next turn comes a while after it."""
    make_type(overlap="throttle", overlap_seconds=60)
    lifecycle.settle([failed(run(put()), retry_in=5)])
    assert ready_in(put()) == pytest.approx(60, abs=5)


def test_a_later_time_of_the_producer_is_kept() -> None:
    make_type(overlap="debounce", overlap_seconds=10)
    [(now,)] = sql("SELECT jobs_clock()")
    assert ready_in(put(run_at=now + timedelta(hours=1))) > 3500
    assert ready_in(put(run_at=now - timedelta(hours=1))) == pytest.approx(10, abs=5)
    [late] = enqueue_many([Item(type=TYPE, payload=1, group="x", delay_seconds=500)])
    assert ready_in(late.job_id) == pytest.approx(500, abs=5)


def test_a_batch_is_merged_in_itself() -> None:
    """The last of each group is left; receipts say what became of the others."""
    make_type(overlap="keep_last")
    waiting = put(group="a")
    answers = enqueue_many([Item(type=TYPE, payload=n, group=g) for n, g in enumerate("abaab")], on_error="return")
    receipts = [answer for answer in answers if isinstance(answer, Receipt)]
    assert [receipt.state for receipt in receipts] == [S.CANCELLED, S.CANCELLED, S.CANCELLED, S.ACCEPTED, S.ACCEPTED]
    assert states(waiting, *(receipt.job_id for receipt in receipts)) == [S.CANCELLED] * 4 + [S.ACCEPTED] * 2


def test_a_duplicate_takes_no_place() -> None:
    """Nothing new came, so nothing is left out."""
    make_type(overlap="keep_last")
    first = put(1, dedupe_key="k")
    second = put(2)
    again = enqueue(TYPE, {"n": 1}, group="g", dedupe_key="k")
    assert (again.job_id, again.duplicate, again.state) == (first, True, S.CANCELLED)
    with pytest.raises(DedupeConflict):
        put(3, dedupe_key="k")
    assert states(second) == [S.ACCEPTED]


def test_a_rollback_gives_all_places_back() -> None:
    make_type(overlap="throttle", overlap_seconds=60)
    first = put()
    with pytest.raises(RuntimeError), transaction.atomic():
        put()
        raise RuntimeError
    assert states(first) == [S.ACCEPTED]
    assert Job.objects.count() == 1


def test_an_item_that_is_refused_leaves_the_others() -> None:
    make_type(overlap="keep_last", schema={"type": "object"})
    first = put()
    answers = enqueue_many([Item(type=TYPE, payload=1, group="g")], on_error="return")
    assert not isinstance(answers[0], Receipt)
    assert states(first) == [S.ACCEPTED]


def test_probes_take_no_place_and_lose_none() -> None:
    make_type(overlap="keep_last")
    waiting = put(group=None)
    probe = accept_probe(TYPE, key="probe-1").job_id
    newer = put(group=None)
    assert states(waiting, probe, newer) == [S.CANCELLED, S.ACCEPTED, S.ACCEPTED]


def test_a_backlog_from_before_the_rule_goes_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much waits, one accept looks at a bounded number."""
    make_type()
    ids = [put() for _ in range(5)]
    JobType.objects.filter(name=TYPE).update(overlap="keep_last")
    contracts.forget()
    monkeypatch.setattr(lifecycle.overlap, "MERGED_MOST", 3)
    put()
    assert states(*ids).count(S.CANCELLED) == 3
    put()
    assert states(*ids).count(S.CANCELLED) == 5


def test_merged_jobs_are_counted_as_cancelled() -> None:
    make_type(overlap="keep_last")
    put(), put(), put()
    fold_all()
    assert sql("SELECT state, n FROM queues_statecount WHERE n <> 0 ORDER BY 1") == [("accepted", 1)]
    assert sql("SELECT sum(cancelled), sum(excluded) FROM queues_outcomerollup WHERE grain = 'minute'") == [(2, 2)]


def test_a_lane_that_rests_is_forgotten() -> None:
    make_type(overlap="throttle", overlap_seconds=60)
    put(group="a"), put(group="b")
    sql("""UPDATE queues_overlapstate SET touched_at = jobs_now() - interval '49 hours' WHERE "group" = 'a'""")
    housekeeping.forget_old()
    assert [state.group for state in OverlapState.objects.all()] == ["b"]


def test_words() -> None:
    assert flow_words(DEFAULTS) == ""
    assert "60 s" in flow_words({**DEFAULTS, "overlap": "debounce", "overlap_seconds": 6})
