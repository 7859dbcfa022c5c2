"""Two people pause a queue at the same time: each of its types is paused once."""

from __future__ import annotations

import pytest
from django.db import transaction

from jobsboard.board import queue_acting
from queues.models import AuditEntry, JobType
from tests.concurrency.rivals import Rival
from tests.factories import make_type

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db")]


def test_the_second_waits_and_finds_it_done() -> None:
    """Its reason replaces nothing, so that the first one's resume finds what it paused."""
    for name in ("mail.send", "mail.bounce"):
        make_type(name, tier_id=1)
    with transaction.atomic():
        first = queue_acting.pause("tier1", actor="ada", reason="relay is down", until=None)
        second = Rival(lambda: queue_acting.pause("tier1", actor="bob", reason="me too", until=None))
        assert second.waits()
    assert (first, second.outcome()) == (["mail.bounce", "mail.send"], [])
    found = JobType.objects.filter(paused=True).values_list("paused_by", "paused_reason")
    assert set(found) == {("ada", "Pool tier1: relay is down")}
    assert AuditEntry.objects.filter(action="contract.paused").count() == 2
