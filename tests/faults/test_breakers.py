"""A breaker whose change is struck at any point: it is made once, and its types have it, whoever dies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import OperationalError

from queues import broker
from queues.faults import POINTS
from queues.models import JobType
from tests.factories import fold_all, sql
from tests.faults.child import Action, tell
from tests.faults.stories import BREAKER_POINTS, STORIES
from tests.queues.breaking import KIND, begin, call, changes, end, judged, make_dependency, standing

pytestmark = pytest.mark.concurrency


@pytest.fixture(autouse=True)
def crm(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A dependency that fails; no broker, and nobody waits long for a session that was held up."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    sql("SET lock_timeout = '200ms'")
    make_dependency()
    call(20, "failed")
    fold_all()
    yield
    sql("RESET lock_timeout")


def states() -> tuple[str, str]:
    """Return the state of the breaker, and what its type says."""
    return standing().state, JobType.objects.get(name=KIND).breaker


@pytest.mark.parametrize("action", ["kill", "error", "delay"])
@pytest.mark.parametrize("point", BREAKER_POINTS)
def test_a_change_that_is_struck_is_made_once(point: str, action: Action) -> None:
    """I-22: killed, failed or held up while another scheduler does the same; and so is each change after it."""
    assert point in POINTS
    beside: list[str] = []

    def another_scheduler() -> None:
        try:
            STORIES["judge_breakers"]()
        except OperationalError:
            # The one that is held up has the row.
            beside.append("waited")

    told = tell("judge_breakers", point=point, action=action, env={}, meanwhile=another_scheduler)
    assert told.struck
    assert states()[0] == states()[1], "what claims look at is what the breaker is"
    assert (beside == ["waited"]) == ((point, action) == ("breaker.flipped", "delay"))
    STORIES["judge_breakers"]()
    assert (states(), changes()) == (("open", "open"), [("closed", "open")])
    assert begin(5) == []
    sql("UPDATE queues_dependency SET retry_at = jobs_now()")
    assert judged().trials_left == 3
    trials = begin(5)
    assert len(trials) == 3
    end(trials, "ok")
    told = tell("judge_breakers", point=point, action=action, env={}, meanwhile=another_scheduler)
    judged()
    assert states() == ("closed", "closed")
    assert changes() == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]


def test_a_type_that_lags_behind_is_brought_along() -> None:
    """What an older release or a hand left: the state of the breaker counts."""
    STORIES["judge_breakers"]()
    sql("UPDATE queues_jobtype SET breaker = 'closed'")
    STORIES["judge_breakers"]()
    assert (states(), len(changes())) == (("open", "open"), 1)
