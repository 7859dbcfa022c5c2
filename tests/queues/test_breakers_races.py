"""Circuit breakers with real commits: several claimers, several schedulers, people, and locks that are held."""

from __future__ import annotations

from functools import partial

import pytest
from django.db import transaction

from queues import breaker_actions, breakers, broker, lifecycle
from queues.breaker_actions import force
from queues.breakers import Reading, judge
from queues.models import AuditEntry, JobType
from queues.scheduler import breakers as service
from tests.concurrency.rivals import Rival, outcomes, together
from tests.factories import accept, fold_all, sql
from tests.queues.breaking import (
    CRM,
    KIND,
    begin,
    call,
    changes,
    claim,
    end,
    judged,
    make_dependency,
    opened,
    released,
    standing,
)

pytestmark = pytest.mark.concurrency


@pytest.fixture(autouse=True)
def crm(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dependency with a job type; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    make_dependency()


def half_open() -> None:
    opened()
    sql("UPDATE queues_dependency SET retry_at = jobs_now()")
    assert judged().state == "half_open"


def read() -> Reading:
    [one] = breakers.readings()
    return one


def test_exactly_so_many_trials_begin_however_many_claim_at_once() -> None:
    """Scenario 8 for trials: eight claimers, each with hints of its own."""
    half_open()
    hints = [accept(10, kind=KIND) for _ in range(8)]
    runs = [run for taken in outcomes(together(*(partial(claim, ids) for ids in hints))) for run in taken]
    assert (len(runs), standing().trials_left) == (3, 0)
    assert sql("SELECT count(*), sum(attempt) FROM queues_job WHERE state <> 'retrying'") == [(80, 3)]


def test_two_schedulers_at_once_make_one_change() -> None:
    """I-22: both have judged by the same numbers; one of them changes it."""
    call(20, "failed")
    fold_all()
    one = read()
    wanted = judge(one)
    assert wanted is not None
    assert sorted(outcomes(together(*[partial(breaker_actions.apply, one, wanted)] * 2))) == [False, True]
    assert changes() == [("closed", "open")]
    sql("UPDATE queues_dependency SET retry_at = jobs_now()")
    together(*[service.run_once] * 3)
    assert changes() == [("closed", "open"), ("open", "half_open")]
    assert (standing().state, standing().trials_left) == ("half_open", 3)


def test_a_breaker_that_closed_and_opened_meanwhile_is_another_one() -> None:
    opened()
    seen = read()
    sql("UPDATE queues_dependency SET since = since + interval '1 ms'")
    sql("UPDATE queues_dependency SET retry_at = jobs_now()")
    wanted = judge(read())
    assert wanted is not None and not breaker_actions.apply(seen, wanted)
    assert standing().state == "open"


def test_new_trials_are_lent_once() -> None:
    half_open()
    runs = begin(10)
    lifecycle.rescue([run.id for run in runs], dead_runs=[(run.id, run.fence) for run in runs])
    assert judged().retry_at is not None
    sql("UPDATE queues_dependency SET retry_at = jobs_now()")
    one = read()
    wanted = judge(one)
    assert wanted is not None
    assert sorted(outcomes(together(*[partial(breaker_actions.apply, one, wanted)] * 3))) == [False, False, True]
    assert standing().trials_left == 3


def test_what_a_person_decided_meanwhile_wins() -> None:
    """The service has judged, then a person acts, then the service comes to its statement."""
    call(20, "failed")
    fold_all()
    one = read()
    wanted = judge(one)
    assert wanted is not None
    force(CRM, state="closed", by="ann", reason="we know", until=None)
    assert not breaker_actions.apply(one, wanted)
    assert (standing().state, changes()) == ("closed", [])


def test_two_people_at_once_are_one_after_the_other() -> None:
    press = partial(force, CRM, state="open", by="ann", reason="down", until=None)
    outcomes(together(press, press, press))
    assert (changes(), AuditEntry.objects.count()) == ([("closed", "open")], 1)


def test_a_type_that_somebody_has_locked_is_not_waited_for() -> None:
    """Claims wait for the breaker's row: it waits for nobody that holds a contract. The next round brings the rest."""
    call(20, "failed")
    fold_all()
    with transaction.atomic():
        JobType.objects.select_for_update().get(name=KIND)
        rival = Rival(service.run_once)
        # The board's version is the last lock of both; here nobody holds it.
        assert not rival.waits()
        rival.outcome()
    assert (standing().state, JobType.objects.get(name=KIND).breaker) == ("open", "closed")
    service.run_once()
    assert JobType.objects.get(name=KIND).breaker == "open"
    assert begin(3) == []


def test_a_run_that_is_given_back_while_it_flips_gives_no_trial_to_another_time() -> None:
    half_open()
    runs = begin(10)
    with transaction.atomic():
        sql("UPDATE queues_dependency SET state = 'half_open', since = jobs_clock(), trials_left = 1")
        rival = Rival(partial(released, runs))
        assert rival.waits()
    rival.outcome()
    assert standing().trials_left == 1


def test_trials_and_their_ends_beside_rounds_of_the_service() -> None:
    """Claims, ends, releases, folds and rounds at once: nobody deadlocks, and it closes when all went well."""
    half_open()
    hints = [accept(5, kind=KIND) for _ in range(3)]

    def work(number: int) -> None:
        for _ in range(15):
            runs = claim(hints[number])
            released(runs[:1])
            end(runs[1:], "ok")

    def look() -> None:
        for _ in range(15):
            lifecycle.fold()
            service.run_once()

    rivals = together(*(partial(work, n) for n in range(3)), look, look)
    assert [rival.error for rival in rivals] == [None] * 5
    for _ in range(3):
        end(claim([job for ids in hints for job in ids]), "ok")
        judged()
    assert standing().state == "closed"
    assert changes() == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]


def test_two_schedulers_let_go_of_one_that_was_held_once() -> None:
    force(CRM, state="open", by="ann", reason="maintenance", until=sql("SELECT jobs_now() + interval '1 hour'")[0][0])
    sql("UPDATE queues_dependency SET forced_until = jobs_now() - interval '1 s'")
    assert sorted(outcomes(together(*[breaker_actions.expire] * 2))) == [0, 1]
    assert AuditEntry.objects.filter(action="breaker.let_go").count() == 1
    assert standing().forced == ""
