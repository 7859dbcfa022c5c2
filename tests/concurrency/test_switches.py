"""Schedulers beside each other, and beside a person, turn a switch back once and wait for nobody."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import transaction

from queues.contract_switches import database_now, set_switch, turn_back
from queues.models import AuditEntry, JobType
from tests.concurrency.rivals import DEADLINE, Rival, outcomes, together
from tests.factories import make_type

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db")]


def paused(name: str) -> None:
    """Make a type whose pause is over."""
    make_type(name)
    set_switch(name, paused=True, reason="x", actor="bob")
    JobType.objects.filter(pk=name).update(paused_until=database_now() - timedelta(seconds=1))


def test_many_schedulers_turn_it_back_once() -> None:
    for number in range(20):
        paused(f"type.{number}")
    works = [lambda: turn_back(limit=5)] * 4
    done = 0
    while done < 20:
        done += sum(outcomes(together(*works)))
    assert done == 20
    assert AuditEntry.objects.filter(action="contract.resumed").count() == 20
    assert not JobType.objects.filter(paused=True).exists()


def test_a_type_that_somebody_edits_is_left_for_the_next_round() -> None:
    paused("edited")
    paused("free")
    has, enough = threading.Event(), threading.Event()
    later = database_now() + timedelta(hours=1)

    def edit() -> None:
        with transaction.atomic():
            JobType.objects.select_for_update().get(pk="edited")
            has.set()
            assert enough.wait(DEADLINE)
            set_switch("edited", paused=True, until=later, reason="longer", actor="cleo")

    editor = Rival(edit)
    assert has.wait(DEADLINE)
    assert turn_back(limit=10) == 1
    enough.set()
    editor.outcome()
    assert turn_back(limit=10) == 0
    assert JobType.objects.get(pk="edited").paused_until == later
    assert not JobType.objects.get(pk="free").paused
