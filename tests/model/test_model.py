"""L1: the model of a job's life, alone. Random steps of everybody who acts, and what must hold after each.

Without a database. In CI the steps are the same each time. `JOBSBOARD_MODEL=deep` searches as long as RELIABILITY.md B0
says (2,000 examples of 50 steps), from another seed each time; Hypothesis prints how to repeat a failure.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest

from queues.states import JobState
from tests.model.machine import Lifecycle
from tests.model.orders import TOLD, TORN, once, orders, play
from tests.model.profile import profile, search

S = JobState
SEEN: Final = frozenset(
    """
    Accept conflict|Accept disabled|Accept duplicate|Accept new|Accept refused|Cancel cancel|Cancel not cancellable
    Claim False|Claim True|ClaimChecks False|ClaimChecks True|Close closed|Crash cancelled|Crash confirmed|Crash dead
    Crash retrying|Finish None|Finish accepted|Finish awaiting_confirmation|Finish cancelled|Finish confirmed
    Finish dead|Finish expired|Finish retrying|FinishCheck None|FinishCheck awaiting_confirmation|FinishCheck confirmed
    FinishCheck dead|FinishCheck retrying|Heartbeat True|Prove confirmed|Prove confirmed of another|Prove contradiction
    Prove duplicate|Prove kept|Prove late|Prove late of another|Prove rejected|Prove retrying|Prove superseded
    Provider confirmed|Provider duplicate|Provider kept|Provider late|Provider pending|Provider rejected
    Provider superseded|PruneInbox 1|Replay not replayable|Replay replayed|RetryNow retry now|Sweep cancelled
    Sweep confirmed|Sweep dead|Sweep expired|Sweep retrying
    """.strip().replace("\n", "|").replace("    ", "").split("|")
)  # fmt: skip
"""What the search has to come across; one that does not has tested less than it says."""


@pytest.mark.timeout(900)
def test_the_model_keeps_every_invariant() -> None:
    """I-08 to I-13, I-15, I-16, I-26, I-28 to I-31, I-41, promise 5."""

    class Alone(Lifecycle):
        seen = Counter()

    search(Alone, Alone.seen, SEEN, settings=profile(examples=800, deep=2000, steps=50))


class Told(Lifecycle):
    """The machine, driven by a list of events."""

    seen = Counter()


def test_good_news_in_any_order_has_one_result() -> None:
    """I-26: a callback, its repeat, a token's word, the end of the run and its loss, in all orders: confirmed once."""
    for events in orders(TOLD):
        job = play(Told(), events)
        assert (job.state, job.evidence and job.evidence.ref) == (S.CONFIRMED, "r1"), events


def test_said_twice_is_said_once() -> None:
    """I-26: a yes and a no about one run, in all orders: whoever comes first wins, and repeats change nothing."""
    results = Counter[JobState]()
    for events in orders(TORN):
        job, lone = play(Told(), events), play(Told(), once(events))
        assert job == lone, events
        assert job.state in (S.CONFIRMED, S.DEAD), events
        results[job.state] += 1
    assert set(results) == {S.CONFIRMED, S.DEAD}
