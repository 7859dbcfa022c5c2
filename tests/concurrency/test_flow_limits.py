"""Scenario 8, scenario 18: many claimers at once, on connections of their own, never exceed a limit."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from uuid import UUID

import pytest
from django.db import transaction

from queues import lifecycle
from queues.models import Dependency, JobType
from queues.states import JobState, Reason
from tests.concurrency.rivals import Rival
from tests.factories import TYPE, accept, confirmed, make_type, sql

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db")]

CLAIMERS = 6


class Watch:
    """Runs that hold a lease, counted from outside: who begins says so after its claim, who ends before its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: dict[str, list[UUID]] = {}

    def began(self, runs: list[lifecycle.Run]) -> None:
        with self._lock:
            for run in runs:
                for what in ("all", f"group {run.group}"):
                    self._now[what] += 1
                    self.most[what] = max(self.most[what], self._now[what])
                self.order.setdefault(str(run.group), []).append(run.id)

    def ends(self, runs: list[lifecycle.Run]) -> None:
        with self._lock:
            for run in runs:
                for what in ("all", f"group {run.group}"):
                    self._now[what] -= 1


def work(watch: Watch, *, chunk: int, seed: int) -> Callable[[], int]:
    """Claim and finish random chunks until all jobs have ended."""
    chance = random.Random(seed)

    def claimer() -> int:
        done = 0
        while left := [i for (i,) in sql("SELECT id FROM queues_job WHERE state <> 'confirmed'")]:
            runs = lifecycle.claim_limited(chance.sample(left, min(chunk, len(left))), worker=f"w{seed}/{done}")
            watch.began(runs)
            threading.Event().wait(0.1 if chunk == 1 else chance.random() * 0.02)
            watch.ends(runs)
            lifecycle.settle([confirmed(run, f"ref-{run.id}") for run in runs])
            done += len(runs)
        return done

    return claimer


def all_run(ids: list[UUID], *, chunk: int) -> Watch:
    watch = Watch()
    rivals = [Rival(work(watch, chunk=chunk, seed=seed)) for seed in range(CLAIMERS)]
    for rival in rivals:
        rival.join(60)
    assert sum(rival.outcome() for rival in rivals) == len(ids)
    assert sql("SELECT state, count(*) FROM queues_job GROUP BY 1") == [(JobState.CONFIRMED, len(ids))]
    assert sql("SELECT max(fence), max(attempt) FROM queues_job") == [(1, 1)]
    return watch


@pytest.mark.parametrize("chunk", [1, 10])
def test_scenario_08_many_claimers_and_one_limit(chunk: int) -> None:
    """Counting in one statement let 40 run under a limit of 5; lock, then count: 5."""
    make_type(success="reference", concurrency=5)
    watch = all_run(accept(40 * min(chunk, 3)), chunk=chunk)
    assert watch.most["all"] == 5


def test_limits_of_groups_and_type_together() -> None:
    """Chunks lock several groups at once, in one order: nobody deadlocks."""
    make_type(success="reference", concurrency=6, group_concurrency=2)
    ids = [job for n in range(5) for job in accept(24, group=f"g{n}")]
    watch = all_run(ids, chunk=20)
    assert watch.most["all"] <= 6
    assert max(watch.most[f"group g{n}"] for n in range(5)) == 2


def test_scenario_18_ordered_groups_run_in_order() -> None:
    """Scenario 18: none begins beside another of its group, whoever claims."""
    make_type(success="reference", ordered=True)
    groups = {f"g{n}": accept(12, group=f"g{n}") for n in range(4)}
    watch = all_run([job for ids in groups.values() for job in ids], chunk=20)
    assert watch.order == groups
    assert max(watch.most[f"group {group}"] for group in groups) == 1


def test_a_rate_is_kept_by_many_claimers() -> None:
    """Over the time that all of it took: the burst, and what the rate gave in that time."""
    make_type(success="reference", rate_per_second=100, rate_burst=10)
    ids = accept(60)
    [(began,)] = sql("SELECT jobs_now()")
    all_run(ids, chunk=10)
    [(first, last)] = sql("SELECT min(started_at), max(started_at) FROM queues_job")
    assert first >= began
    assert (last - began).total_seconds() >= (60 - 10) / 100 - 0.05


def test_a_half_open_breaker_lends_exactly_its_trials() -> None:
    Dependency.objects.create(name="crm", state="half_open", trials_left=3)
    make_type(success="reference", dependency="crm")
    make_type("test.other", success="reference", dependency="crm")
    JobType.objects.update(breaker="half_open")
    ids = accept(10) + accept(10, kind="test.other")
    rivals = [Rival(partial(lifecycle.claim_limited, ids[n:] + ids[:n], worker=f"w{n}")) for n in range(CLAIMERS)]
    runs = [run for rival in rivals for run in rival.outcome()]
    assert len(runs) == 3
    assert sql("SELECT trials_left FROM queues_dependency") == [(0,)]


def test_two_first_claims_of_a_group_make_its_state_once() -> None:
    make_type(success="reference", group_concurrency=1)
    ids = accept(8, group="new")
    rivals = [Rival(partial(lifecycle.claim_limited, [ids[n]], worker=f"w{n}")) for n in range(8)]
    assert sum(len(rival.outcome()) for rival in rivals) == 1
    assert sql('SELECT type, "group" FROM queues_flowstate') == [(TYPE, "new")]


def test_a_claimer_that_stands_still_holds_up_nobody_for_long() -> None:
    """Frozen between its two statements it keeps the lock; others give their hint up soon, without an error."""
    make_type(success="reference", concurrency=2)
    ids = accept(3)
    lifecycle.claim_limited(ids[:1], worker="first")
    with transaction.atomic():
        sql("SELECT 1 FROM queues_flowstate FOR UPDATE")
        assert Rival(partial(lifecycle.claim_limited, ids[1:], worker="second")).outcome() == []
    assert len(lifecycle.claim_limited(ids[1:], worker="third")) == 1


def test_scenario_18_two_that_look_first_do_not_both_begin() -> None:
    """A replay takes its parent's place, before one that is being claimed at that moment."""
    make_type(success="reference", ordered=True)
    first, second = accept(2, group="a")
    lifecycle.cancel([first], reason=Reason.OPERATOR)
    claimed, go_on = threading.Event(), threading.Event()

    def slow() -> list[lifecycle.Run]:
        with transaction.atomic():
            runs = lifecycle.claim_limited([second], worker="slow")
            claimed.set()
            assert go_on.wait(20)
        return runs

    rival = Rival(slow)
    assert claimed.wait(20)
    child = lifecycle.replay(first, by="me")
    assert child is not None
    assert lifecycle.claim_limited([child], worker="fast") == []
    go_on.set()
    runs = rival.outcome()
    assert [run.id for run in runs] == [second]
    assert lifecycle.claim_limited([child], worker="fast") == []
    lifecycle.settle([confirmed(run) for run in runs])
    assert [run.id for run in lifecycle.claim_limited([child], worker="fast")] == [child]
