"""The counts that transitions leave behind, and a random walk through all of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from uuid import UUID

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queues import lifecycle
from queues.lifecycle import Run
from queues.states import OPEN, REPLAYABLE, JobState, Reason
from tests.factories import (
    WORKER,
    accept,
    buckets,
    claim,
    confirmed,
    failed,
    fold_all,
    get,
    lose_lease,
    released,
    set_columns,
    sql,
    state_counts,
    true_counts,
)
from tests.queues.lives import kind  # noqa: F401 (a fixture)

pytestmark = pytest.mark.django_db
S = JobState
Shift = Callable[[str], None]


def _rollup(*names: str, grain: str = "day") -> dict[str, int]:
    columns = ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in names)
    return dict(zip(names, sql(f"SELECT {columns} FROM queues_outcomerollup WHERE grain = %s", grain)[0], strict=True))


def test_a_cohort_is_the_minute_a_job_became_ready(shift_clock: Shift) -> None:
    """DESIGN 5: in time, late, dead and cancelled jobs of one minute; a replay is in no cohort."""
    ids = accept(6)
    set_columns(ids[0], raw_ready_at="ready_at")
    in_time, late, dead, quiet, *_ = claim(ids)
    lifecycle.settle([confirmed(in_time)])
    lifecycle.cancel([ids[4]], reason=Reason.OPERATOR)  # running: asked
    lifecycle.cancel([ids[5]], reason=Reason.OPERATOR)
    lifecycle.settle([failed(claim_run) for claim_run in _[:1]])  # stopped inside its window: excluded
    lifecycle.settle([failed(dead, reason="rejected")])
    shift_clock("61 seconds")
    lifecycle.settle([confirmed(late)])
    lifecycle.settle([failed(_[1])])  # cancelled after its window: a miss
    child = lifecycle.replay(dead.id, by="me")
    assert child is not None
    [replayed] = claim([child])
    lifecycle.settle([confirmed(replayed)])
    fold_all()
    counts = _rollup("ready", "in_window", "excluded", "confirmed", "dead", "cancelled", "replayed", "accepted")
    assert counts == {
        "ready": 6, "in_window": 1, "excluded": 1, "confirmed": 3, "dead": 1, "cancelled": 2, "replayed": 1,
        "accepted": 6,
    }  # fmt: skip
    assert get(quiet.id).state == S.PROCESSING
    assert state_counts() == true_counts() == {"processing": 1}
    assert buckets("dead") == {3: 1}


def test_folding_in_pieces_is_folding_at_once() -> None:
    """Scenario 19: whatever is taken first, the sums are the same in every grain."""
    runs = claim(accept(20))
    for run in runs:
        lifecycle.settle([confirmed(run, seconds=run.fence / 100)])
    while lifecycle.fold(limit=3):
        pass
    for grain in ("minute", "hour", "day", "total"):
        assert _rollup("accepted", "runs", "confirmed", "ready", "in_window", grain=grain) == dict.fromkeys(
            ("accepted", "runs", "confirmed", "ready", "in_window"), 20
        )
        assert [sum(buckets(measure, grain=grain).values()) for measure in ("lag", "run", "wait", "await")] == [
            20,
            20,
            20,
            0,
        ]
    assert lifecycle.fold() == 0


def test_a_fold_is_seen_by_the_board() -> None:
    """DESIGN 8: the version rises when something was folded or somebody acted, and only then."""

    def version() -> int:
        return int(sql("SELECT n FROM queues_boardversion WHERE id = 1")[0][0])

    accept()
    before = version()
    fold_all()
    assert version() == before + 1
    fold_all()
    assert version() == before + 1
    lifecycle.touch_board()
    assert version() == before + 2


_MOVES = (
    "accept",
    "claim",
    "confirm",
    "fail",
    "bury",
    "release",
    "lose",
    "expire",
    "cancel",
    "replay",
    "close",
    "beat",
    "fold",
)


class Walk:
    """A random walk of jobs through their lives, a few at a time."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.runs: list[Run] = []

    def some(self, states: tuple[JobState, ...] = tuple(JobState)) -> list[UUID]:
        """Pick ids, mostly of jobs in these states."""
        found = [i for (i,) in sql("SELECT id FROM queues_job WHERE state = ANY(%s) ORDER BY id", list(states))]
        return self.draw.sample(found, min(len(found), self.draw.randint(1, 3)))

    def ends(self) -> list[Run]:
        """Pick runs, also of long ago."""
        return self.draw.sample(self.runs, min(len(self.runs), self.draw.randint(1, 3)))

    def step(self, move: str) -> None:
        """Make one move."""
        getattr(self, move)()

    def accept(self) -> None:
        accept(self.draw.randint(1, 4))

    def claim(self) -> None:
        sql("UPDATE queues_job SET due_at = jobs_now() WHERE state IN ('accepted', 'retrying')")
        self.runs += lifecycle.claim(self.some(OPEN), worker=WORKER)

    def confirm(self) -> None:
        lifecycle.settle([confirmed(run, seconds=self.draw.random()) for run in self.ends()])

    def fail(self) -> None:
        lifecycle.settle([failed(run, seconds=self.draw.random()) for run in self.ends()])

    def bury(self) -> None:
        lifecycle.settle([failed(run, reason="permanent_error") for run in self.ends()])

    def release(self) -> None:
        lifecycle.settle([released(run) for run in self.ends()])

    def lose(self) -> None:
        ids = self.some((S.PROCESSING,))
        lose_lease(*ids)
        lifecycle.rescue(ids)

    def expire(self) -> None:
        for job_id in self.some((S.ACCEPTED, S.RETRYING)):
            set_columns(job_id, raw_expires_at="jobs_now()")
        lifecycle.expire(lifecycle.stale(limit=10))

    def cancel(self) -> None:
        lifecycle.cancel(self.some(), reason=Reason.OPERATOR)

    def replay(self) -> None:
        for job_id in self.some(REPLAYABLE):
            lifecycle.replay(job_id, by="me")

    def close(self) -> None:
        lifecycle.close_dead_letters(self.some((S.DEAD,)), resolution="ignored", by="me")

    def beat(self) -> None:
        lifecycle.heartbeat([(run.id, run.fence, 15.0) for run in self.ends()])

    def fold(self) -> None:
        lifecycle.fold(limit=self.draw.randint(1, 9))


def _truth() -> dict[str, int]:
    [row] = sql(
        """
        SELECT count(*) FILTER (WHERE replay_of IS NULL), count(*) FILTER (WHERE replay_of IS NOT NULL),
          count(*) FILTER (WHERE state = 'confirmed'), count(*) FILTER (WHERE state = 'dead'),
          count(*) FILTER (WHERE state = 'expired'), count(*) FILTER (WHERE state = 'cancelled'),
          count(*) FILTER (WHERE replay_of IS NULL),
          count(*) FILTER (WHERE replay_of IS NULL AND state = 'confirmed'),
          count(*) FILTER (WHERE replay_of IS NULL AND state = 'cancelled'),
          coalesce(sum(fence), 0)::bigint
        FROM queues_job
        """
    )
    names = (
        "accepted",
        "replayed",
        "confirmed",
        "dead",
        "expired",
        "cancelled",
        "ready",
        "in_window",
        "excluded",
        "runs",
    )
    return dict(zip(names, row, strict=True))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(_MOVES), min_size=5, max_size=40), st.randoms(use_true_random=False))
def test_counts_are_the_truth_after_any_walk(moves: list[str], draw: random.Random) -> None:
    """I-35, I-10, I-13: after any history, folded in any pieces, counts equal SQL truth and no row is in limbo."""
    with transaction.atomic():
        _walk_and_check(moves, draw)
        transaction.set_rollback(True)


def _walk_and_check(moves: list[str], draw: random.Random) -> None:
    walk = Walk(draw)
    for move in ["accept", "claim", *moves]:
        walk.step(move)
    while lifecycle.fold(limit=7):
        pass
    assert state_counts() == true_counts()
    for grain in ("minute", "hour", "day"):
        wanted = _truth()
        assert _rollup(*wanted, grain=grain) == wanted
    assert sql("SELECT count(*) FROM queues_job WHERE attempt > begun OR attempt < 0 OR attempt > attempt_limit") == [
        (0,)
    ]
    assert sum(buckets("lag").values()) == _truth()["confirmed"]
