"""The history checker of `make chaos`: it finds nothing in a good history, and each broken promise in a bad one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.chaos.checker import judge
from benchmarks.chaos.clients import Told
from benchmarks.chaos.exhaust import Probe
from benchmarks.chaos.handlers import PLAIN
from benchmarks.chaos.history import History
from benchmarks.chaos.repairs import CancelTold, ReplayTold
from tests.chaos.stories import body, callback, effect, good, noted, row, run, step


def history() -> History:
    """Return the good history."""
    return noted(good())


def broken(found: History) -> set[str]:
    """Return the verdicts that speak against a history, without the ids of their invariants."""
    return {name.partition(" (")[0] for name, evidence in judge(found).broken.items() if evidence}


def test_a_good_history_breaks_nothing() -> None:
    """Otherwise every other test here would prove nothing."""
    assert broken(history()) == set()


def _job(found: History, name: str) -> dict[str, Any]:
    return next(job for job in found.jobs if job["id"] == name)


def _drop(found: History, name: str) -> None:
    found.jobs.remove(_job(found, name))


def _accept_lost(found: History) -> None:
    """I-01: a 2xx named it, and it is not there."""
    _drop(found, "atomic")


def _accepted_twice(found: History) -> None:
    found.jobs.append(row("other", "chaos.atomic", dedupe_key="atomick"))
    found.atomic = {**found.atomic, "other": {"id": "other", "n": 1, "at": 1.0}}
    _job(found, "other")["evidence"]["ref"] = "atomick/1"


def _never_accepted(found: History) -> None:
    found.told = {**found.told, "never": Told(PLAIN, unknown=3)}


def _no_effect(found: History) -> None:
    found.effects = {**found.effects, "plaink": [effect("plain", 1)]}


def _untold(found: History) -> None:
    """I-12: the second run had its effect without knowing of the first one."""
    found.effects = {**found.effects, "plaink": [effect("plain", 1), effect("plain", 2)]}


def _acted_twice(found: History) -> None:
    found.effects = {**found.effects, "calledk": [effect("called"), effect("called", maybe=True)]}


def _unknown_run(found: History) -> None:
    found.effects = {**found.effects, "calledk": [effect("called"), effect("called", 9, maybe=True)]}


def _two_live(found: History) -> None:
    """I-08: the first body ends after the second began, and its lease was renewed beyond that."""
    found.runs = {**found.runs, ("plain", 1): body("plain", 0.0, seconds=9.0)}
    rows = found.transitions["plain"]
    found.transitions = {
        **found.transitions,
        "plain": [rows[0], step("processing", "processing", 1, 4.0, 12.0), *rows[1:]],
    }


def _robbed(found: History) -> None:
    """I-08: the row was taken from a run that was said to be dead, and it was not."""
    found.runs = {**found.runs, ("called", 1): body("called", 0.0, seconds=3.0)}


def _began_twice(found: History) -> None:
    lines = found.runs["plain", 2]
    found.runs = {**found.runs, ("plain", 2): [lines[0], *lines]}


def _began_unclaimed(found: History) -> None:
    found.runs = {**found.runs, ("plain", 5): body("plain", 9.0, 5)}


def _settled_twice(found: History) -> None:
    """I-10: two ends of one job."""
    found.transitions = {**found.transitions, "child": [*found.transitions["child"], step("retrying", "dead", 1, 8.0)]}


def _claimed_after_the_end(found: History) -> None:
    """I-12: a confirmed job never runs again."""
    found.transitions = {**found.transitions, "child": [*run(4.0), *run(6.0, 2, was="retrying")[:1]]}


def _stale_write(found: History) -> None:
    """I-09: the row has the proof of a run that had lost it."""
    _job(found, "plain")["evidence"] = {"ref": "plaink/1", "run": 1}


def _stale_ref(found: History) -> None:
    """I-09: the reference is an earlier run's, where no check could have found it."""
    _job(found, "plain")["evidence"] = {"ref": "plaink/1", "run": 2}


def _atomic_twice(found: History) -> None:
    found.atomic = {"atomic": {"id": "atomic", "n": 2, "at": 1.0}}


def _atomic_lost(found: History) -> None:
    found.atomic = {}


def _cancel_lost(found: History) -> None:
    """I-31: "cancelled" was answered, and it was confirmed."""
    found.cancels.append(CancelTold("called", 200, "cancelled", "possible", at=9.0))


def _cancel_refused(found: History) -> None:
    """I-31: "not cancellable" was answered, and it is cancelled."""
    found.cancels.append(CancelTold("stopped", 409, "not_cancellable", None, at=0.5))


def _cancelled_ran(found: History) -> None:
    """I-31: a claim after the answer."""
    found.transitions = {
        **found.transitions,
        "stopped": [*run(2.0, to="retrying"), step("retrying", "cancelled", 1, 3.2)],
    }
    _job(found, "stopped")["fence"] = 1


def _cancelled_had_run(found: History) -> None:
    """I-31: the answer said that no effect is possible, and a body had begun."""
    found.transitions = {
        **found.transitions,
        "stopped": [*run(0.0, to="retrying"), step("retrying", "cancelled", 1, 1.05)],
    }
    found.runs = {**found.runs, ("stopped", 1): body("stopped", 0.0)}
    _job(found, "stopped")["fence"] = 1


def _cancelled_unasked(found: History) -> None:
    found.cancel_asked.clear()


def _two_children(found: History) -> None:
    """I-30: a double click, two children."""
    twin = row("twin", "chaos.atomic", dedupe_key="twink", replay_of="died")
    found.jobs.append(twin)
    found.atomic = {**found.atomic, "twin": {"id": "twin", "n": 1, "at": 1.0}}


def _two_answers(found: History) -> None:
    """I-30: both clicks were told of a child of their own."""
    found.replays = [ReplayTold("died", children={"child", "nobody"})]


def _no_child(found: History) -> None:
    """I-30: "already replayed" was answered, and nothing was."""
    _drop(found, "child")
    found.replays = [ReplayTold("died", refused=["409 already_replayed"])]
    _job(found, "died")["replayed_by"] = "child"


def _left_over(found: History) -> None:
    _drop(found, "child")
    found.replays = []
    _job(found, "died")["replayed_by"] = None


def _callback_lost(found: History) -> None:
    """A proof was answered with 200, and the job is dead all the same."""
    found.callbacks = {**found.callbacks, "rejected": [*found.callbacks["rejected"], callback("rejected")]}


def _late_word_lost(found: History) -> None:
    _job(found, "called")["late_evidence"] = None


def _callback_refused(found: History) -> None:
    refused = callback("called", status=404, result="unknown_job")
    found.callbacks = {**found.callbacks, "called": [*found.callbacks["called"], refused]}


def _unproven(found: History) -> None:
    found.callbacks = {"rejected": found.callbacks["rejected"]}


def _dead_unasked(found: History) -> None:
    found.callbacks = {"called": found.callbacks["called"]}


def _probe(found: History, **values: Any) -> None:
    usual = {"key": "probe", "status": 503, "retryable": True, "seconds": 0.1, "starved": True}
    found.probes = [Probe(**{**usual, **values})]


def _limbo(found: History) -> None:
    found.limbo = [{"id": "plain"}]


def _not_settled(found: History) -> None:
    _job(found, "atomic").update(state="processing", evidence=None)
    found.atomic = {}


def _ended_otherwise(found: History) -> None:
    _job(found, "atomic").update(state="dead", reason="poison", evidence=None)
    found.atomic = {}


def _counts(found: History) -> None:
    """I-35: a confirmation was counted twice."""
    found.counted = {PLAIN: {"accepted": 1, "confirmed": 2}}


def _counts_left(found: History) -> None:
    """I-35: a job is counted as open that is not."""
    found.counted = {PLAIN: {"accepted": 1, "confirmed": 1, "open processing": 1}}


def _deaf(found: History) -> None:
    found.deaf = ["canary.w1@here"]


SETTLED = "jobs settled other than once"
ANSWERS = "cancel answers that did not hold"
REPLAYS = "replay answers that did not hold"
CALLBACKS = "callback answers that did not hold"
REFUSED = "without a connection: not refused with 503 in time"
CASES: dict[str, list[Callable[[History], None]]] = {
    "acknowledged accepts lost": [_accept_lost],
    "keys accepted twice": [_accepted_twice],
    "keys never accepted after healing": [_never_accepted],
    "confirmed without an effect": [_no_effect],
    "second effects that were not told": [_untold],
    "runs that acted twice": [_acted_twice],
    "effects of a run that the row does not know": [_unknown_run],
    "two live leases of one job": [_two_live],
    "runs given up while they lived": [_robbed],
    "bodies that began twice, or without a claim": [_began_twice, _began_unclaimed],
    SETTLED: [_settled_twice, _claimed_after_the_end],
    "stale writes that landed": [_stale_write, _stale_ref],
    "atomic: confirmed without exactly one row, or a row without": [_atomic_twice, _atomic_lost],
    ANSWERS: [_cancel_lost, _cancel_refused],
    "cancelled, and it ran": [_cancelled_ran, _cancelled_had_run],
    "cancelled without being asked": [_cancelled_unasked],
    "replays doubled": [_two_children],
    REPLAYS: [_two_answers, _no_child],
    "dead letters left over": [_left_over],
    CALLBACKS: [_callback_lost, _late_word_lost, _callback_refused],
    "settled without the callback that would say so": [_unproven, _dead_unasked],
    REFUSED: [
        lambda found: _probe(found, status=500),
        lambda found: _probe(found, status=201),
        lambda found: _probe(found, status=None),
        lambda found: _probe(found, seconds=30.0),
        lambda found: _probe(found, retryable=False),
    ],
    "without a connection: stored all the same": [lambda found: _probe(found, key="atomick")],
    "limbo rows": [_limbo],
    "jobs not settled": [_not_settled],
    "jobs ended otherwise than their type may": [_ended_otherwise],
    "counts that are not those of the rows": [_counts, _counts_left],
    "workers that take no messages at the end": [_deaf],
}


@pytest.mark.parametrize(
    ("verdict", "breaks"),
    [pytest.param(name, act, id=f"{name}-{n}") for name, acts in CASES.items() for n, act in enumerate(acts)],
)
def test_each_broken_promise_is_seen(verdict: str, breaks: Callable[[History], None]) -> None:
    """The verdict says so, and the few that follow from the same change besides."""
    found = history()
    breaks(found)
    seen = broken(found)
    assert verdict in seen
    assert len(seen) <= 3, seen


def test_every_verdict_has_a_case() -> None:
    """A verdict that nobody has seen failing proves nothing."""
    assert {name.partition(" (")[0] for name in judge(history()).broken} == set(CASES)


def test_a_probe_that_another_session_stood_beside_proves_nothing() -> None:
    """I-39: web may accept as long as it has a connection."""
    found = history()
    _probe(found, status=201, starved=False)
    assert broken(found) == set()


def test_a_body_that_went_on_after_its_lease_ran_out_is_allowed() -> None:
    """I-08: a stopped worker that wakes up still runs its old body; only its writes must not land."""
    found = history()
    found.runs = {**found.runs, ("plain", 1): body("plain", 0.0, seconds=60.0)}
    assert broken(found) == set()
    assert judge(found).facts["bodies that went on after their run was given up"] == 1
