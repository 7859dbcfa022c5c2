"""Deferral beside other schedulers, beside a person, and beside claims that go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import pytest
from django.db import transaction

from queues import contracts, deferral, lifecycle
from queues.contract_switches import set_switch
from queues.models import AuditEntry, Job, JobType, Tier
from queues.states import JobState
from tests.concurrency.rivals import DEADLINE, Rival, outcomes, together
from tests.factories import accept, fold_all, make_type, set_columns, sql

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db")]

LOW = "low"


@pytest.fixture(autouse=True)
def starving(transactional_db: None) -> Iterator[UUID]:
    """Tier 1 waits for longer than its bound. Tiers are rows that stay: the next test finds them without one."""
    Tier.objects.filter(pk=1).update(defer_after_seconds=30)
    make_type("pay", tier_id=1)
    [job_id] = accept(kind="pay")
    set_columns(job_id, raw_due_at="jobs_now() - interval '42 s'")
    fold_all()
    yield job_id
    Tier.objects.update(defer_after_seconds=0)


def low(number: int = 0) -> str:
    name = f"{LOW}.{number}"
    make_type(name, tier_id=3, deferrable=True)
    return name


def clock() -> datetime:
    at: datetime = sql("SELECT clock_timestamp()")[0][0]
    return at


def test_many_schedulers_defer_it_once_and_take_it_back_once(starving: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferral, "BATCH", 5)
    for number in range(20):
        low(number)
    contracts.forget()

    def all_of(action: str) -> int:
        for _ in range(100):
            outcomes(together(*[deferral.sweep] * 4))
            contracts.forget()
            if AuditEntry.objects.filter(action=action).count() >= 20:
                break
        outcomes(together(*[deferral.sweep] * 4))
        return AuditEntry.objects.filter(action=action).count()

    assert all_of("contract.deferred") == 20
    assert JobType.objects.filter(deferred=True).count() == 20
    assert lifecycle.claim([starving], worker="w")
    sql("UPDATE queues_jobtype SET deferred_until = jobs_now() + interval '3 min'")
    assert all_of("contract.undeferred") == 20
    assert not JobType.objects.filter(deferred=True).exists()


def test_a_type_that_somebody_edits_is_left_for_the_next_look() -> None:
    """The scheduler waits for nobody, and a deferral that a person has begun meanwhile stays theirs."""
    edited, free = low(1), low(2)
    has, enough = threading.Event(), threading.Event()

    def edit() -> None:
        with transaction.atomic():
            JobType.objects.select_for_update().get(pk=edited)
            has.set()
            assert enough.wait(DEADLINE)
            set_switch(edited, deferred=True, actor="cleo", reason="quiet hours")

    editor = Rival(edit)
    assert has.wait(DEADLINE)
    assert deferral.sweep().deferred == [free]
    enough.set()
    editor.outcome()
    contracts.forget()
    assert deferral.sweep() == deferral.Swept()
    assert JobType.objects.get(pk=edited).deferred_by == "cleo"


def test_no_claim_begins_once_the_deferral_is_committed() -> None:
    """With the tier above starved, claims that go on all the time take nothing more of the type, not for a moment.

    Processes know of it two seconds later; the claim itself reads the row.
    """
    name = low()
    ids = accept(800, kind=name)
    begun, done = threading.Event(), threading.Event()

    def claims(lane: list[UUID]) -> list[tuple[datetime, int]]:
        """Claim one job after the other, 20 times more once it is deferred; when each began, and what it took."""
        seen: list[tuple[datetime, int]] = []
        after = 0
        for job_id in lane:
            after += done.is_set()
            seen.append((clock(), len(lifecycle.claim([job_id], worker="w"))))
            if len(seen) == 5:
                begun.set()
            if after == 20:
                break
            done.wait(0.01)
        return seen

    rivals = [Rival(partial(claims, lane)) for lane in (ids[:400], ids[400:])]
    assert begun.wait(DEADLINE)
    assert deferral.sweep().deferred == [name]
    committed = clock()
    done.set()
    seen = [one for rival in rivals for one in rival.outcome()]
    assert sum(n for at, n in seen if at < committed) >= 5
    assert [n for at, n in seen if at >= committed][:30] == [0] * 30
    assert sum(n for at, n in seen if at >= committed) == 0
    [last] = Job.objects.filter(type=name, state=JobState.PROCESSING).order_by("-started_at")[:1]
    assert last.started_at is not None
    assert last.started_at < committed + timedelta(seconds=2)
