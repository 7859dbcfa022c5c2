"""Dead letters are counted by what they died of, by the statement that ends or resolves them (I-35)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from queues import actions, lifecycle
from queues.lifecycle import Proof
from queues.states import Reason
from tests.dlq.deaths import die, failures, fold, kill, truth
from tests.factories import accept, claim, get, make_type, set_columns, sql

pytestmark = pytest.mark.django_db
WHO: dict[str, Any] = {"actor": "ann", "reason": "test", "source": "ui"}


@pytest.fixture(autouse=True)
def _type() -> None:
    make_type()


def test_each_way_to_die_counts_once_and_each_way_to_be_resolved() -> None:
    """Every statement that makes or resolves a dead letter is in the counts; an empty fingerprint is too old."""
    boom = die(3)
    stale = accept(2)
    sql("UPDATE queues_jobtype SET on_stale = 'dead'")
    sql('UPDATE queues_contractrevision SET fields = fields || \'{"on_stale": "dead"}\'')
    for job_id in stale:
        set_columns(job_id, raw_expires_at="jobs_now() - interval '1 s'")
    lifecycle.expire(stale)
    fold()
    assert failures() == {
        ("test.job", "permanent_error", "f" * 16): (3, 3),
        ("test.job", "stale", ""): (2, 2),
    }
    actions.cancel_dead_letter(boom[0], **WHO)
    actions.ignore_dead_letter(boom[1], **WHO)
    child = actions.replay_job(boom[2], **WHO)
    fold()
    assert failures()[("test.job", "permanent_error", "f" * 16)] == (3, 0)
    kill([child])
    fold()
    assert failures()[("test.job", "permanent_error", "f" * 16)] == (4, 1)
    assert {key: n for key, n in truth().items() if n} == {key: left for key, (_, left) in failures().items() if left}


def test_a_rejection_a_lost_worker_and_a_wait_that_ends_are_counted() -> None:
    make_type("cb", success="callback", on_worker_lost="dead", confirm_within_seconds=5)
    rejected, lost = accept(1, kind="cb"), accept(1, kind="cb")
    run = claim(rejected)[0]
    lifecycle.settle([_awaiting(run)])
    lifecycle.confirm([Proof(id=rejected[0], positive=False, kind="callback", ref="r")])
    claim(lost)
    set_columns(lost[0], raw_due_at="jobs_now() - interval '1 s'")
    lifecycle.rescue(lost)
    waited = accept(1, kind="cb")
    lifecycle.settle([_awaiting(claim(waited)[0])])
    set_columns(waited[0], raw_due_at="jobs_now() - interval '1 s'", raw_confirm_by="jobs_now() - interval '1 s'")
    lifecycle.give_up_waiting(waited)
    fold()
    reasons = {reason: counts for (_, reason, _), counts in failures().items()}
    assert reasons == {"rejected": (1, 1), "poison": (1, 1), "unconfirmed": (1, 1)}
    assert truth() == {key: left for key, (_, left) in failures().items()}


def _awaiting(run: lifecycle.Run) -> lifecycle.End:
    return lifecycle.End(id=run.id, fence=run.fence, verdict=lifecycle.Verdict.AWAITING, confirm_in=5.0, act_in=5.0)


def test_bulk_replays_count_like_single_ones_and_only_what_they_could_replay() -> None:
    ids = die(4)
    lifecycle.replay(ids[0], by="ann")
    children = lifecycle.replay_many(ids, by="ann", priority=-100)
    assert set(children) == set(ids[1:])
    assert {get(child).priority for child in children.values()} == {-100}
    fold()
    assert failures()[("test.job", "permanent_error", "f" * 16)] == (4, 0)


def test_probes_and_cancelled_jobs_are_in_no_failure() -> None:
    accept(1)
    ids = accept(1)
    lifecycle.cancel(ids, reason=Reason.OPERATOR)
    probe = accept(1)
    sql("UPDATE queues_job SET probe = true WHERE id = %s", probe[0])
    kill(probe)
    fold()
    assert failures() == {}


def test_counts_are_the_truth_after_any_walk() -> None:
    """I-35: after any history of deaths, replays, cancels and ignores, folded in pieces, counts are what jobs say."""
    draw = random.Random(7)
    make_type("other")
    for _ in range(120):
        open_ids = [row[0] for row in sql("SELECT id FROM queues_job WHERE state = 'dead' AND resolution = 'open'")]
        deed = draw.choice(("die", "die", "replay", "many", "cancel", "ignore", "fold"))
        if deed == "die" or not open_ids:
            die(draw.randint(1, 4), kind=draw.choice(("test.job", "other")), fingerprint=draw.choice("abc") * 16,
                reason=draw.choice(("permanent_error", "time_limit")))  # fmt: skip
        elif deed == "replay":
            child = actions.replay_job(draw.choice(open_ids), **WHO)
            if draw.random() < 0.5:
                kill([child], fingerprint=draw.choice("abc") * 16)
        elif deed == "many":
            lifecycle.replay_many(draw.sample(open_ids, min(3, len(open_ids))), by="ann", priority=-100)
        elif deed == "cancel":
            actions.cancel_dead_letter(draw.choice(open_ids), **WHO)
        elif deed == "ignore":
            actions.ignore_dead_letter(draw.choice(open_ids), **WHO)
        else:
            lifecycle.fold(limit=draw.randint(1, 20))
        if draw.random() < 0.1:
            assert lifecycle.recount_failures() == 0
    fold()
    assert truth() == {key: left for key, (_, left) in failures().items() if left}
    died = sql("SELECT count(*) FROM queues_job WHERE state = 'dead'")[0][0]
    assert sum(died for died, _ in failures().values()) == died
    assert sum(row[0] for row in sql("SELECT died FROM queues_failurehour")) == died


def test_a_death_that_nobody_counted_is_put_right() -> None:
    """A worker of the release before writes no such delta; the recount finds it, also beside deltas not folded."""
    die(2)
    sql("DELETE FROM queues_outcomedelta WHERE measure LIKE 'died.%%'")
    die(1)
    assert lifecycle.recount_failures() == 1
    fold()
    assert failures() == {("test.job", "permanent_error", "f" * 16): (3, 3)}
    assert lifecycle.recount_failures() == 0
