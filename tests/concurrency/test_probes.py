"""Schedulers beside each other, and beside a person, send one probe of a type at a time and count how it went once."""

from __future__ import annotations

import datetime as dt
from typing import Final

import pytest

from queues import outcomes as read
from queues import probes
from queues.models import Job, Probe, ProbeRun
from tests.concurrency.rivals import outcomes, together
from tests.factories import make_type, set_columns, sql

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db")]
NAMES: Final = [f"type.{number}" for number in range(6)]
ROUNDS: Final = 4


def all_due() -> None:
    """Let a probe of every type be due."""
    sql("UPDATE queues_probe SET next_at = jobs_now() - interval '1 s'")


@pytest.fixture(autouse=True)
def _types(transactional_db: None) -> None:
    for name in NAMES:
        make_type(name, probe_every_seconds=60, window_seconds=60)
    together(probes.sweep, probes.sweep)
    assert Probe.objects.count() == len(NAMES)


def test_many_schedulers_send_one_and_count_it_once() -> None:
    for number in range(1, ROUNDS + 1):
        all_due()
        outcomes(together(*[probes.sweep] * 4))
        assert ProbeRun.objects.filter(outcome="running").count() == len(NAMES)
        for job_id in Job.objects.filter(state="accepted").values_list("id", flat=True):
            set_columns(job_id, raw_ready_at="jobs_now() - interval '1 hour'")
        assert sum(outcomes(together(*[probes.settle_open] * 4))) == len(NAMES)
        assert set(Probe.objects.values_list("failures", flat=True)) == {number}
    assert ProbeRun.objects.count() == Job.objects.count() == ROUNDS * len(NAMES)


def test_a_person_beside_the_schedule() -> None:
    """Whoever is first sends it; the other one finds it."""
    for _ in range(ROUNDS):
        all_due()

        def press() -> int:
            return probes.run_now("type.0", actor="ann", reason="test").run_id

        def sweep() -> int:
            return probes.begin_due()

        pressed, *_ = outcomes(together(press, sweep, sweep))
        running = ProbeRun.objects.get(type="type.0", outcome="running")
        assert pressed == running.pk
        outcomes(together(probes.settle_open, press, sweep))
        for run in ProbeRun.objects.filter(outcome="running"):
            assert run.job_id is not None
            sql("DELETE FROM queues_job WHERE id = %s", run.job_id)
        assert sum(outcomes(together(probes.settle_open, probes.settle_open))) > 0
    assert ProbeRun.objects.exclude(job_id=None).values("job_id").distinct().count() == ProbeRun.objects.count()


def test_two_clicks_at_once_send_one() -> None:
    Probe.objects.update(next_at=read.board().now + dt.timedelta(hours=1))

    def press() -> probes.Sent:
        return probes.run_now("type.0", actor="ann", reason="test", after=0)

    sent = outcomes(together(press, press, press))
    assert len({one.run_id for one in sent}) == 1
    assert [one.fresh for one in sent].count(True) == 1
    assert Job.objects.count() == 1
