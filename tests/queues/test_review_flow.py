"""What a review of limits, groups, rates and order found: each of these was wrong once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib import import_module

import pytest
from django.db import connection

from queues import contract_fields, lifecycle
from queues.contract_flow import flow_problems
from queues.runtime import chunk as runtime
from queues.scheduler.stage import Stage
from queues.states import Reason
from tests.factories import TYPE, accept, fold_all, make_type, set_columns, sql
from tests.queues.test_flow import change, claim, end, in_group, known, later, published, rounds
from tests.queues.test_stage import Wire, wire

__all__ = ["known", "wire"]
pytestmark = pytest.mark.django_db


def test_a_replay_of_an_ordered_job_waits_for_the_one_that_runs() -> None:
    """Scenario 18: its place is before the running one's, and still one at a time."""
    make_type(ordered=True)
    first, second = in_group("a", 2)
    lifecycle.cancel([first], reason=Reason.OPERATOR)
    [running] = claim([second])
    child = lifecycle.replay(first, by="me")
    assert child is not None
    assert claim([child]) == []
    end([running])
    assert [run.id for run in claim([child])] == [child]


def test_an_ordered_job_whose_accept_committed_late_waits_for_the_one_that_runs() -> None:
    """Its place was taken before another's that committed earlier, and runs already."""
    make_type(ordered=True)
    late, early = in_group("a", 2)
    # Hidden as by a transaction that is not over.
    sql("UPDATE queues_job SET seq = NULL WHERE id = %s", late)
    [running] = claim([early])
    sql("UPDATE queues_job SET seq = (SELECT seq - 1 FROM queues_job WHERE id = %s) WHERE id = %s", early, late)
    assert claim([late]) == []
    end([running])
    assert [run.id for run in claim([late])] == [late]


def test_the_stage_leaves_an_ordered_group_alone_while_one_of_it_runs(known: Wire) -> None:
    change(ordered=True)
    first, second = in_group("a", 2)
    lifecycle.cancel([first], reason=Reason.OPERATOR)
    claim([second])
    lifecycle.replay(first, by="me")
    fold_all()
    rounds(Stage())
    assert published(known) == []


def test_jobs_without_a_group_do_not_wait_behind_a_long_backlog_of_groups(known: Wire) -> None:
    """A group that may not run now, with more waiting jobs than one look reads."""
    change(group_concurrency=1)
    grouped = [i for _ in range(3) for i in in_group("a", 400)]
    [alone] = accept(1)
    claim(grouped[:1])
    fold_all()
    rounds(Stage())
    assert published(known) == [alone]


def test_work_without_a_group_does_not_keep_groups_waiting(known: Wire) -> None:
    """Of one free place at a time both have their turn."""
    change(concurrency=1, group_concurrency=1)
    accept(20)
    for group in "abc":
        in_group(group, 5)
    fold_all()
    stage = Stage()
    served: Counter[str | None] = Counter()
    for _ in range(12):
        rounds(stage)
        runs = claim(published(known))
        assert len(runs) == 1
        served.update(run.group for run in runs)
        end(runs)
    assert min(served[group] for group in (None, "a", "b", "c")) >= 2, served


def test_what_ends_gives_its_place_to_the_next_group() -> None:
    """Where a type's limit is shared, a group with a long backlog shall not hand it on to itself for ever."""
    make_type(concurrency=1, group_concurrency=1)
    ids = in_group("a", 10)
    for group in "bc":
        in_group(group, 3)
    accept(3)
    served: Counter[str | None] = Counter()
    hint = ids[:1]
    for _ in range(12):
        runs = claim(hint)
        assert len(runs) == 1
        served.update(run.group for run in runs)
        end(runs)
        due, room = runtime._next_due(Counter({(TYPE, runs[0].group): 1}))
        assert room == 1
        hint = [due[0][1]]
    assert served == {"a": 3, "b": 3, "c": 3, None: 3}


def test_a_claim_takes_only_what_it_locked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenario 8: what became due while it waited for its locks is another claim's."""
    engine = import_module("queues.lifecycle.claim_limited")
    make_type(group_concurrency=1)
    [first], [job] = in_group("a"), in_group("b")
    set_columns(job, raw_due_at="jobs_clock() + interval '1 h'")
    look = engine.transition

    def late(name: str, statement: str, params: object) -> object:
        set_columns(job, raw_due_at="jobs_clock() - interval '1 s'")
        return look(name, statement, params)

    monkeypatch.setattr(engine, "transition", late)
    assert [run.id for run in lifecycle.claim_limited([first, job], worker="w")] == [first]


def test_a_clock_that_went_back_stops_no_rate(known: Wire) -> None:
    """An hour's correction would have been an hour without a token."""
    change(rate_per_second=10, rate_burst=4)
    ids = accept(9)
    assert len(claim(ids)) == 4
    later(-3600)
    fold_all()
    rounds(Stage())
    assert len(claim(published(known))) == 4, "a bucket of the future counts as a full one, once"
    assert claim(ids) == []


def test_the_functions_are_made_again_after_a_kill() -> None:
    """Between their commit and the note that the migration ran."""
    migration = import_module("queues.migrations.0013_flow_indexes")
    with connection.cursor() as cursor:
        cursor.execute(migration.FUNCTIONS)


def test_the_functions_go_by_a_clock_that_is_replaced(shift_clock: Callable[[str], None]) -> None:
    """They keep their plans, and the clock is a part of those."""
    make_type(group_concurrency=2)
    [running], [later_job] = in_group("a"), in_group("a")
    claim([running])
    set_columns(later_job, raw_due_at="jobs_clock() + interval '1 h'")
    free = "SELECT jobs_running_in_group(%s, 'a'), (SELECT count(*) FROM jobs_due_in_group(%s, 'a', 5))"
    assert sql(free, TYPE, TYPE) == [(1, 0)]
    shift_clock("2 h")
    assert sql(free, TYPE, TYPE) == [(0, 1)], "no lease lasts two hours"


def test_a_rate_is_none_or_one_that_can_be_computed_with() -> None:
    """The time until a bucket is full overflowed for the smallest numbers, and the sweep of old states with it."""
    values = {**contract_fields.defaults(), "rate_per_second": 1e-308, "rate_burst": 1}
    assert [field for field, _ in flow_problems(values)] == ["rate_per_second"]
    assert list(flow_problems({**values, "rate_per_second": 1 / 86400})) == []
