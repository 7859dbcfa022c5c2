"""Review of issue F, on real connections: locks of plans, groups and counts. Each test states what should hold."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import transaction

from dlq import groups
from dlq.models import PlanItem
from dlq.plans import people
from queues import lifecycle
from queues.models import FailureCount
from tests.concurrency.rivals import Rival
from tests.dlq.deaths import die, fold
from tests.dlq.test_plans import ANN, plan, step
from tests.factories import make_type, sql

pytestmark = pytest.mark.usefixtures("transactional_db")


@pytest.fixture(autouse=True)
def _type(transactional_db: None) -> None:
    make_type()


def test_aborting_a_plan_and_writing_a_note_do_not_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of a group and of the board's version are taken in one order by all."""
    die(1)
    fold()
    found = plan(1)
    group_id = FailureCount.objects.get().id
    rivals: list[Rival[Any]] = []
    touch = lifecycle.touch_board

    def touched() -> None:
        touch()
        if rivals:
            return
        # `abort` has the board's version now; somebody writes a note at this moment.
        rivals.append(Rival(lambda: groups.annotate(group_id, note="known", owner="bob", who=ANN)))
        rivals[0].waits()

    monkeypatch.setattr(lifecycle, "touch_board", touched)
    people.abort(found.id, who=ANN)
    rivals[0].join(10)
    assert rivals[0].error is None, rivals[0].error


def test_a_row_that_somebody_holds_for_some_seconds_is_replayed_after_that() -> None:
    """20 tries at four rounds a second are five seconds: a slow confirm or somebody's psql holds a row longer."""
    [job_id] = die(1)
    found = plan(1)
    locked, go = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            sql("SELECT id FROM queues_job WHERE id = %s FOR UPDATE", job_id)
            locked.set()
            go.wait(30)

    rival = Rival(hold)
    assert locked.wait(10)
    for _ in range(25):
        found = step(found)
    go.set()
    rival.join(10)
    found = step(found)
    assert (found.done, found.failed) == (1, 0), PlanItem.objects.get(plan_id=found.id).detail


def test_a_recount_does_not_hold_up_whoever_acts() -> None:
    """Every operator's action and each step of a plan writes the board's version; a recount reads all dead letters."""
    die(1)
    fold()
    locked, go = threading.Event(), threading.Event()

    def recount() -> None:
        with transaction.atomic():
            lifecycle.recount_failures()
            # As long as its statement takes: 1.4 s for 300,000 dead letters.
            locked.set()
            go.wait(30)

    rival = Rival(recount)
    assert locked.wait(10)
    acting = Rival(lifecycle.touch_board, lock_timeout="500ms")
    acting.join(10)
    go.set()
    rival.join(10)
    assert acting.error is None, acting.error
