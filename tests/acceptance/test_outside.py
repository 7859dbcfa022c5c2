"""A question about a dead letter reaches a real worker, and its answer the row, within two seconds."""

from __future__ import annotations

import pytest

from dlq import replaying
from dlq.replaying import Unsafe, VerdictChanged, Who
from queues import outside
from tests.acceptance.conftest import Stack
from tests.acceptance.jobs import CHECKED, QUICK
from tests.dlq.deaths import die
from tests.factories import get, sql

pytestmark = pytest.mark.acceptance
ANN = Who(actor="ann", reason="INC-7", source="ui")


def test_a_worker_asks_the_check_and_a_changed_answer_refuses_the_replay(stack: Stack) -> None:
    """Must show 4: not done at the look, done at the press: refused with the difference; a type without a check."""
    [asked], [blind] = die(1, kind=CHECKED, reason="attempts_exhausted"), die(1, kind=QUICK)
    stack.worker()
    # The worker reports itself before its pool takes the first message.
    stack.until(lambda: outside.ask_and_wait([asked]), seconds=30)

    def answer(job_id: object) -> str:
        checks = replaying.look(get(job_id)).checks  # type: ignore[arg-type]
        return next(check.result for check in checks if check.name == "already_done")

    assert answer(asked) == "pass"
    assert answer(blind) == "unknown"
    assert outside.answers([blind])[blind].outcome == "no_check"
    seen = replaying.look(get(asked))
    stack.go()
    age = "asked_at = asked_at - interval '15 s', answered_at = answered_at - interval '15 s'"
    sql(f"UPDATE queues_outsideanswer SET {age}")
    assert outside.ask_and_wait([asked])[asked].outcome == "confirmed"
    with pytest.raises((VerdictChanged, Unsafe)) as caught:
        replaying.replay(asked, who=ANN, verdict=seen.fingerprint)
    assert isinstance(caught.value, VerdictChanged)
    assert [(c.name, c.was, c.now) for c in caught.value.changes] == [("already_done", "pass", "fail")]
    assert get(asked).replayed_by is None
    assert stack.runs() == [], "asking runs no job"
