"""Limits of types and groups, rates, order: what a claim lets begin, and what the stage publishes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from queues import backlog, broker, contracts, handlers, lifecycle
from queues.handlers import Confirmed, JobContext, handler
from queues.histogram import bucket_of
from queues.lifecycle import Run
from queues.models import Dependency, FlowState, JobType
from queues.runtime import chunk
from queues.runtime.chunk import Runner
from queues.runtime.leases import LeaseTable
from queues.scheduler import stage_limited
from queues.scheduler.stage import HISTORY_LEAST, Stage
from queues.states import JobState, Reason, Resolution
from tests.factories import (
    TYPE,
    WORKER,
    accept,
    confirmed,
    failed,
    fold_all,
    get,
    make_job,
    make_type,
    put_buckets,
    released,
    set_columns,
    sql,
)
from tests.queues.test_stage import Wire, _Time, wire

__all__ = ["wire"]
pytestmark = pytest.mark.django_db


def change(**values: object) -> None:
    """Change the type as the admin does: for all jobs, also those that wait."""
    JobType.objects.filter(name=TYPE).update(**values)
    contracts.forget()


def claim(ids: list[UUID]) -> list[Run]:
    """Claim as a worker does."""
    return lifecycle.claim(ids, worker=WORKER) or lifecycle.claim_limited(ids, worker=WORKER)


def end(runs: list[Run]) -> None:
    lifecycle.settle([confirmed(run) for run in runs])


def in_group(group: str, n: int = 1, **more: Any) -> list[UUID]:
    return accept(n, group=group, **more)


def test_a_type_without_limits_needs_one_statement() -> None:
    make_type()
    ids = accept(5)
    assert len(lifecycle.claim(ids, worker=WORKER)) == 5
    assert FlowState.objects.count() == 0


def test_the_plain_claim_takes_nothing_of_a_limited_type() -> None:
    """However a hint came, it cannot go around the limit."""
    make_type(concurrency=2)
    ids = accept(5)
    assert lifecycle.claim(ids, worker=WORKER) == []
    assert [run.limited for run in claim(ids)] == [True, True]


def test_a_limit_lets_so_many_hold_a_lease() -> None:
    """Scenario 8, one claimer: what ends, is lost or is given back makes room again."""
    make_type(concurrency=3)
    ids = accept(8)
    first = claim(ids)
    assert len(first) == 3
    assert claim(ids) == []
    end(first[:2])
    assert len(claim(ids)) == 2
    lifecycle.settle([released(first[2])])
    assert len(claim(ids)) == 1
    # A body that outlived its lease is not counted: its job runs again anyway.
    [running, *_] = sql("SELECT id FROM queues_job WHERE state = 'processing' ORDER BY id")
    set_columns(running[0], raw_due_at="jobs_now() - interval '1 s'")
    assert len(claim(ids)) == 1


def test_best_first() -> None:
    make_type(concurrency=2)
    low, first, second = accept()[0], accept(priority=7)[0], accept(priority=7)[0]
    assert {run.id for run in claim([low, first, second])} == {first, second}


def test_a_lowered_limit_holds_for_jobs_that_wait() -> None:
    """Scenario 13: flow is always current."""
    make_type()
    ids = accept(6)
    started = lifecycle.claim(ids[:3], worker=WORKER)
    change(concurrency=2)
    assert claim(ids) == []
    end(started[:1])
    assert claim(ids) == []
    end(started[1:2])
    assert len(claim(ids)) == 1
    change(concurrency=0)
    assert len(claim(ids)) == 2


def test_groups_have_limits_of_their_own() -> None:
    """One group's backlog takes nothing from another; jobs without a group are only under the type's limit."""
    make_type(concurrency=5, group_concurrency=2)
    ids = in_group("a", 6) + in_group("b", 1) + accept(1)
    runs = claim(ids)
    assert Counter(run.group for run in runs) == {"a": 2, "b": 1, None: 1}
    assert len(claim(ids)) == 0
    end([run for run in runs if run.group == "a"][:1])
    assert [run.group for run in claim(ids)] == ["a"]


def test_groups_come_in_turn_inside_the_types_limit() -> None:
    make_type(concurrency=3, group_concurrency=3)
    ids = in_group("a", 3) + in_group("b", 1) + in_group("c", 1)
    assert Counter(run.group for run in claim(ids)) == {"a": 1, "b": 1, "c": 1}


def later(seconds: float) -> None:
    """Let the tokens' clock go on."""
    FlowState.objects.update(filled_at=sql("SELECT jobs_now() - make_interval(secs => %s)", seconds)[0][0])


def test_a_rate_lets_a_burst_through_and_then_so_many_a_second() -> None:
    make_type(rate_per_second=10, rate_burst=4)
    ids = accept(30)
    assert len(claim(ids)) == 4
    later(0)
    assert len(claim(ids)) == 0
    later(0.55)
    assert len(claim(ids)) == 5 - 1, "never more than the burst"
    later(0.25)
    assert len(claim(ids)) == 2
    # What was left over is kept: half a token and half a token are one.
    later(0.05)
    assert len(claim(ids)) == 1


def test_a_rate_below_one_a_second_lets_one_through_at_once() -> None:
    make_type(rate_per_second=0.1)
    ids = accept(3)
    assert len(claim(ids)) == 1
    later(9)
    assert claim(ids) == []
    later(10.1)
    assert len(claim(ids)) == 1


def test_a_groups_rate() -> None:
    make_type(group_rate_per_second=2)
    ids = in_group("a", 5) + in_group("b", 5) + accept(2)
    assert Counter(run.group for run in claim(ids)) == {"a": 2, "b": 2, None: 2}
    later(0.5)
    assert Counter(run.group for run in claim(ids)) == {"a": 1, "b": 1}


def test_a_clock_that_went_back_gives_no_tokens_and_takes_none() -> None:
    make_type(rate_per_second=10, rate_burst=4)
    ids = accept(9)
    assert len(claim(ids)) == 4
    later(-0.9)
    assert claim(ids) == []
    later(0.1)
    assert len(claim(ids)) == 1


def test_an_ordered_group_runs_one_after_the_other() -> None:
    """Scenario 18: by acceptance, whatever the priority, and none before its predecessor has an outcome."""
    make_type(ordered=True)
    a, b = in_group("a", 3), in_group("b", 2, priority=5)
    assert [get(i).seq for i in (*a, *b)] == sorted(get(i).seq or 0 for i in (*a, *b))
    assert {run.id for run in claim([*a, *b])} == {a[0], b[0]}
    assert claim([*a, *b]) == []
    lifecycle.settle([failed(run) for run in runs_of(a[0])])
    assert get(a[0]).state == JobState.RETRYING
    assert claim(a[1:]) == [], "a predecessor that will be tried again is not over"
    set_columns(a[0], raw_due_at="jobs_now()")
    end(claim(a))
    assert {run.id for run in claim(a)} == {a[1]}


def runs_of(job_id: UUID) -> list[Run]:
    """Return the run that a job has now, as far as its end needs it."""
    job = get(job_id)
    return [Run(
        id=job.id, fence=job.fence, type=job.type, contract_version=1, attempt=job.attempt, begun=1, payload="{}",
        idempotency_key="k", group=job.group, accepted_at=0, expires_at=0, failures="[]", probe=False, trace=None,
        lease_seconds=15, root=job.root, reference=None, check_failures=0,
    )]  # fmt: skip


@pytest.mark.parametrize(("on_failure", "goes_on"), [("block", False), ("step_aside", True)])
def test_a_dead_letter_in_an_ordered_group(on_failure: str, goes_on: bool) -> None:
    """`block`: its successors wait until somebody decides; `step_aside`: the group goes on without it."""
    make_type(ordered=True, ordered_on_failure=on_failure)
    first, second, third = in_group("a", 3)
    [run] = claim([first])
    lifecycle.settle([failed(run, reason=Reason.PERMANENT_ERROR)])
    assert get(first).state == JobState.DEAD
    assert [r.id for r in claim([second, third])] == ([second] if goes_on else [])
    if not goes_on:
        lifecycle.close_dead_letters([first], resolution=Resolution.IGNORED, by="me")
        assert [r.id for r in claim([second, third])] == [second]


def test_a_replay_takes_its_parents_place() -> None:
    """Before all that was accepted after its parent."""
    make_type(ordered=True)
    first, second = in_group("a", 2)
    [run] = claim([first])
    lifecycle.settle([failed(run, reason=Reason.PERMANENT_ERROR)])
    child = lifecycle.replay(first, by="me")
    assert child is not None and get(child).seq == get(first).seq
    assert [r.id for r in claim([child, second])] == [child]
    assert claim([second]) == []
    end(runs_of(child))
    assert [r.id for r in claim([second])] == [second]


def test_ordered_without_a_group_is_not_ordered() -> None:
    make_type(ordered=True)
    ids = accept(3)
    assert [get(i).seq for i in ids] == [None] * 3
    assert len(claim(ids)) == 3


def test_jobs_from_before_the_order_have_no_place_in_it() -> None:
    make_type()
    old = in_group("a", 2)
    change(ordered=True)
    new = in_group("a", 2)
    assert {run.id for run in claim([*old, *new])} == {*old, new[0]}


def test_paused_and_expired_stay_out() -> None:
    make_type(concurrency=5)
    ids = accept(3)
    set_columns(ids[0], raw_expires_at="jobs_now() - interval '1 s'")
    set_columns(ids[1], raw_due_at="jobs_now() + interval '1 h'")
    assert [run.id for run in claim(ids)] == [ids[2]]
    change(paused=True)
    assert claim(accept(1)) == []


@pytest.fixture
def breaker() -> Dependency:
    make_type(dependency="crm")
    return Dependency.objects.create(name="crm")


def set_breaker(state: str, *, trials: int = 0) -> None:
    Dependency.objects.update(state=state, trials_left=trials)
    change(breaker=state)


def test_an_open_breaker_lets_nothing_begin_and_costs_no_attempt(breaker: Dependency) -> None:
    ids = accept(3)
    set_breaker("open")
    assert claim(ids) == []
    assert [get(i).attempt for i in ids] == [0, 0, 0]
    set_breaker("closed")
    assert len(claim(ids)) == 3


def test_a_half_open_breaker_lets_its_trials_begin(breaker: Dependency) -> None:
    """Over all types that name it, and no more after them."""
    make_type("test.other", dependency="crm", breaker="half_open")
    ids = accept(3)
    others = accept(3, kind="test.other")
    set_breaker("half_open", trials=2)
    assert len(claim(ids[:1])) == len(claim(others)) == 1
    assert claim([*ids, *others]) == []
    breaker.refresh_from_db()
    assert breaker.trials_left == 0


@pytest.fixture
def known(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Fast jobs, so that chunks are large; and a clock that both halves of the stage go by."""
    put_buckets(TYPE, "run", {bucket_of(0.001): HISTORY_LEAST})
    monkeypatch.setattr(stage_limited, "time", _Time(wire))
    return wire


def published(wire: Wire) -> list[UUID]:
    return [i for ids in wire.taken() for i in ids]


def rounds(stage: Stage, n: int = 2) -> None:
    """A first round sees that a limited type has work, a second one publishes it."""
    for _ in range(n):
        stage.run_once()


def test_the_stage_publishes_what_fits(known: Wire) -> None:
    """Scenario 10: not more than a claim would take, and room that hints under way will take is not given twice."""
    change(concurrency=3)
    ids = accept(10)
    fold_all()
    stage = Stage()
    rounds(stage)
    assert published(known) == ids[:3]
    rounds(stage)
    assert published(known) == []
    runs = claim(ids[:2])
    rounds(stage)
    assert published(known) == []
    end(runs[:1])
    rounds(stage)
    assert published(known) == [ids[3]]


def test_a_refused_hint_is_sent_again_soon(known: Wire) -> None:
    change(concurrency=1)
    ids = accept(2)
    fold_all()
    stage = Stage()
    rounds(stage)
    assert published(known) == ids[:1]
    known.now += lifecycle.LIMITED_HINT_SECONDS + 0.1
    rounds(stage)
    assert published(known) == ids[:1]


def test_what_a_limit_lets_run_at_once_goes_into_messages_of_its_own(known: Wire) -> None:
    change(concurrency=3)
    accept(10)
    fold_all()
    stage = Stage()
    rounds(stage)
    assert [len(ids) for ids in known.taken()] == [3], "one slot is known, it takes all"
    stage = Stage(slots={"tier2": 3}, read_at=float("inf"), active=True, walks=[(2, TYPE)], busy={TYPE})
    rounds(stage, 1)
    assert [len(ids) for ids in known.taken()] == [1, 1, 1]


def test_one_groups_backlog_keeps_no_other_waiting(known: Wire) -> None:
    """Fair shares come from the walk: each group its limit, and the type's room in turn, round after round."""
    change(group_concurrency=2, concurrency=4)
    ids = in_group("a", 300)
    for n in range(8):
        ids += in_group(f"g{n}", 2)
    fold_all()
    stage = Stage()
    served: Counter[str | None] = Counter()
    for _ in range(6):
        rounds(stage)
        runs = claim(published(known))
        assert len(runs) <= 4
        served.update(run.group for run in runs)
        end(runs)
    assert len(served) == 9, served
    assert served["a"] <= 6


def test_more_groups_than_a_round_looks_at(known: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_limited, "GROUPS", 3)
    change(group_concurrency=1)
    for n in range(8):
        in_group(f"g{n}", 2)
    fold_all()
    stage = Stage()
    rounds(stage, 5)
    groups = Counter(get(i).group for i in published(known))
    assert groups == {f"g{n}": 1 for n in range(8)}


def test_jobs_without_a_group_are_found_beside_grouped_ones(known: Wire) -> None:
    change(group_concurrency=1)
    in_group("a", 5)
    alone = accept(2)
    fold_all()
    stage = Stage()
    rounds(stage)
    assert set(alone) < set(published(known))


def test_the_stage_publishes_the_heads_of_ordered_groups(known: Wire) -> None:
    """Behind a head that waits for its retry, or a dead letter that blocks, nothing is published."""
    change(ordered=True)
    a, b, c = in_group("a", 3), in_group("b", 2), in_group("c", 2)
    fold_all()
    [dies] = claim(c[:1])
    lifecycle.settle([failed(dies, reason=Reason.PERMANENT_ERROR)])
    set_columns(b[0], raw_due_at="jobs_now() + interval '1 h'")
    stage = Stage()
    rounds(stage)
    assert known.taken() == [[a[0]]]
    lifecycle.close_dead_letters(c[:1], resolution=Resolution.CANCELLED, by="me")
    rounds(stage)
    assert published(known) == [c[1]]


def test_a_held_type_takes_no_room_of_the_others(known: Wire) -> None:
    """Scenario 10: an open breaker's backlog is not even looked at."""
    make_type("test.held", dependency="crm", breaker="open")
    accept(50, kind="test.held", priority=100)
    [free] = accept()
    fold_all()
    stage = Stage()
    rounds(stage)
    assert published(known) == [free]


def test_the_stage_publishes_so_many_trials(known: Wire, breaker_type: None) -> None:
    ids = accept(5)
    set_breaker("half_open", trials=2)
    fold_all()
    stage = Stage()
    rounds(stage)
    assert published(known) == ids[:2]


@pytest.fixture
def breaker_type(known: Wire) -> None:
    Dependency.objects.create(name="crm")
    change(dependency="crm")


def test_what_ends_names_what_may_begin() -> None:
    """The next of its group, the head of its ordered group, the best of its type."""
    make_type(group_concurrency=1)
    make_type("test.order", ordered=True)
    make_type("test.type", concurrency=2)
    grouped = in_group("a", 2) + in_group("b", 2)
    ordered = in_group("a", 3, kind="test.order")
    plain = accept(4, kind="test.type")
    for ids in (grouped, ordered, plain):
        end(claim(ids))
    wanted = [(TYPE, "a", 1), ("test.order", "a", 1), ("test.type", None, 2)]
    assert sorted(lifecycle.next_due(wanted)) == sorted([
        (TYPE, grouped[1]), ("test.order", ordered[1]), ("test.type", plain[2]), ("test.type", plain[3]),
    ])  # fmt: skip
    change(paused=True)
    assert lifecycle.next_due(wanted[:1]) == []


def test_accept_publishes_at_once_only_what_a_claim_may_take(
    monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any
) -> None:
    """Behind others of its limited type a hint would only be refused: that one is the stage's."""
    sent: list[UUID] = []
    monkeypatch.setattr(broker, "is_short", lambda queue: True)
    monkeypatch.setattr(broker, "publish", lambda hints: sent.extend(i for _, ids in hints for i in ids))
    make_type(concurrency=1)
    backlog.forget_cached()
    with django_capture_on_commit_callbacks(execute=True):
        first = accept()
    assert sent == first
    fold_all()
    backlog.forget_cached()
    with django_capture_on_commit_callbacks(execute=True):
        [second] = accept()
    assert sent == first
    assert get(second).published_at is None


def test_an_old_state_says_nothing_and_is_swept() -> None:
    """A bucket that is full again and a group that nobody uses need no row."""
    make_type(rate_per_second=10, group_concurrency=1)
    claim(in_group("a", 1))
    assert FlowState.objects.count() == 2
    assert lifecycle.forget_flow(hours=1, limit=100) == 0
    later(7200)
    assert lifecycle.forget_flow(hours=1, limit=100) == 2


def test_a_job_made_by_hand_is_no_exception() -> None:
    make_type(ordered=True)
    job = make_job(group="a")
    assert job.seq is None
    assert [run.id for run in claim([job.id])] == [job.id]


@pytest.fixture
def body() -> Iterator[list[UUID]]:
    """A handler that notes which jobs it ran."""
    ran: list[UUID] = []

    def run(job: JobContext) -> Confirmed:
        ran.append(job.id)
        return Confirmed(ref=str(job.id))

    handlers._handlers.pop(TYPE, None)
    handler(TYPE)(run)
    yield ran
    handlers._handlers.pop(TYPE, None)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """The ids of hints."""
    found: list[UUID] = []
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    monkeypatch.setattr(broker, "publish", lambda hints: found.extend(i for _, ids in hints for i in ids))
    return found


@pytest.mark.parametrize("fields", [{"concurrency": 1}, {"ordered": True}, {"group_concurrency": 1}])
def test_a_slot_goes_on_with_what_its_end_makes_room_for(
    fields: dict[str, Any], body: list[UUID], sent: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a hint for each: one after the other, as they were accepted, no more than there is room for."""
    monkeypatch.setattr(chunk, "FOLLOW_SECONDS", 60.0)
    make_type(success="reference", **fields)
    ids = in_group("a", 12)
    assert Runner(LeaseTable(), node="n").run(ids[:1]) == 12
    assert body == ids
    assert sent == []
    assert sql("SELECT DISTINCT state FROM queues_job") == [(JobState.CONFIRMED,)]


def test_after_a_while_the_next_goes_back_to_the_queue(
    body: list[UUID], sent: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limited type with a backlog does not keep a slot for itself."""
    monkeypatch.setattr(chunk, "FOLLOW_SECONDS", 0.0)
    make_type(success="reference", concurrency=1)
    ids = accept(3)
    assert Runner(LeaseTable(), node="n").run(ids[:1]) == 1
    assert sent == ids[1:2]


def test_what_somebody_else_took_is_stepped_over() -> None:
    make_type(concurrency=3)
    ids = accept(6)
    assert len(lifecycle.claim_limited(ids[:2], worker="other")) == 2
    assert [run.id for run in lifecycle.claim_limited(ids, worker="w", most=1)] == ids[2:3]
    lifecycle.settle([confirmed(run, "r") for job in ids[:3] for run in runs_of(job)])
    # In the order in which they are named, and no more than asked for.
    assert {run.id for run in lifecycle.claim_limited(ids[::-1], worker="w", most=2)} == {ids[5], ids[4]}
