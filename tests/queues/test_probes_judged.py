"""How a run of a probe is judged: in time, late, failed, held, cancelled, gone."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from queues import lifecycle, probes
from queues.models import Job, ProbeRun
from queues.scheduler import housekeeping
from queues.scheduler.probes import Probes
from queues.states import Reason
from tests.factories import claim, confirmed, failed, get, set_columns, sql
from tests.outcomes.deeds import reject
from tests.queues.probing import EVERY, WINDOW, Clock, a_type, begin, bury, change, now, settled

pytestmark = pytest.mark.django_db


def test_confirmed_inside_its_window() -> None:
    a_type()
    run, job = begin()
    assert settled()[0] == "running", "nothing is known so far"
    set_columns(job.id, raw_ready_at="jobs_now() - interval '3 s'")
    assert lifecycle.settle([confirmed(claim([job.id])[0])])
    assert settled() == ("passed", "", "")
    run.refresh_from_db()
    assert run.took_seconds is not None
    assert 3 <= run.took_seconds < 10
    found = now()
    assert (found.outcome, found.failures, found.failing_since, found.passes) == ("passed", 0, None, True)
    assert (found.took_seconds, found.last_ok_at) == (run.took_seconds, run.settled_at)


def test_confirmed_after_its_window() -> None:
    a_type()
    run, job = begin()
    set_columns(job.id, raw_ready_at="jobs_now() - interval '45 s'")
    assert lifecycle.settle([confirmed(claim([job.id])[0])])
    outcome, reason, detail = settled()
    assert (outcome, reason) == ("failed", "late")
    assert detail.startswith("Confirmed 45.")
    assert ProbeRun.objects.get().late_at == get(job.id).settled_at


def _past_window(job_id: UUID) -> None:
    set_columns(job_id, raw_ready_at=f"jobs_now() - interval '{WINDOW} s'", raw_expires_at="jobs_now()")


def _expire(job: Job) -> None:
    _past_window(job.id)
    assert lifecycle.expire([job.id])


def _reject(job: Job) -> None:
    run = claim([job.id])[0]
    assert lifecycle.settle([failed(run)])
    assert reject(job.id, run=run.fence, detail="not ours") == "rejected"


def _retrying(job: Job) -> None:
    assert lifecycle.settle([failed(claim([job.id])[0])])
    _past_window(job.id)


def _waiting(job: Job) -> None:
    _past_window(job.id)


def _running(job: Job) -> None:
    claim([job.id])
    _past_window(job.id)


def _gone(job: Job) -> None:
    sql("DELETE FROM queues_job WHERE id = %s", job.id)


@pytest.mark.parametrize(
    ("deed", "reason", "detail"),
    [
        (_expire, "stale", "No worker began it within 30 s."),
        (bury, "permanent_error", "Boom: no answer, Authorization: [redacted]"),
        (_retrying, "late", "Not confirmed within 30 s: it waits for another attempt. Boom: boom"),
        (_waiting, "late", "No worker began it within 30 s."),
        (_running, "late", "Not confirmed within 30 s: its run goes on."),
        (_gone, "missing", "Its job is gone."),
    ],
)
def test_a_run_that_fails(deed: Callable[[Job], None], reason: str, detail: str) -> None:
    a_type()
    for failures in (1, 2):
        _, job = begin()
        deed(job)
        assert settled() == ("failed", reason, detail)
        assert now().failures == failures
        lifecycle.cancel([job.id], reason=Reason.OPERATOR)
    first = ProbeRun.objects.earliest("id")
    assert now().failing_since == first.settled_at
    assert (now().reason, now().detail) == (reason, detail)


def test_after_a_first_failure_the_next_probe_comes_soon() -> None:
    """So that one bad minute is told from an outage without waiting for an interval; after that the interval counts."""
    a_type()
    waits = []
    for _ in range(2):
        bury(begin()[1])
        probes.settle_open()
        waits.append(sql("SELECT extract(epoch FROM next_at - jobs_now())::float8 FROM queues_probe")[0][0])
    assert 0 < waits[0] <= probes.AGAIN_SECONDS
    assert waits[1] > EVERY / 2


def test_a_success_ends_the_row_of_failures() -> None:
    a_type()
    bury(begin()[1])
    probes.settle_open()
    assert now().passes is False
    _, job = begin()
    assert lifecycle.settle([confirmed(claim([job.id])[0])])
    probes.settle_open()
    assert (now().failures, now().failing_since, now().passes) == (0, None, True)


def test_what_a_person_cancelled_or_paused_fails_nothing() -> None:
    a_type()
    _, job = begin()
    lifecycle.cancel([job.id], reason=Reason.OPERATOR)
    assert settled()[:2] == ("skipped", "cancelled")
    _, job = begin()
    change(paused=True)
    assert settled()[0] == "running", "it may be resumed in time"
    _expire(job)
    assert settled()[:2] == ("skipped", "paused")
    assert (now().failures, now().passes) == (0, None)


def test_a_pause_hides_no_failure() -> None:
    a_type()
    bury(begin()[1])
    change(paused=True)
    assert settled()[:2] == ("failed", "permanent_error")


def test_a_proof_that_comes_late_is_noted_and_the_run_stays_failed(shift_clock: Clock) -> None:
    a_type(success="callback")
    _, job = begin()
    _expire(job)
    assert settled()[0] == "failed"
    assert probes.note_late() == 0
    [said] = lifecycle.confirm([lifecycle.Proof(id=job.id, positive=True, kind="callback", ref="a")])
    assert said.applied == "late"
    assert [probes.note_late(), probes.note_late()] == [1, 0]
    run = ProbeRun.objects.get()
    assert (run.outcome, run.detail) == ("failed", "Confirmed late, 30 s after it was ready.")
    assert run.late_at is not None
    assert now().failures == 1


def test_a_run_that_ended_late_by_itself_is_noted() -> None:
    """Its window passed while it ran, which does not stop it."""
    a_type()
    _, job = begin()
    [claimed] = claim([job.id])
    _past_window(job.id)
    assert settled()[1] == "late"
    assert lifecycle.settle([confirmed(claimed)])
    assert probes.note_late() == 1
    assert (ProbeRun.objects.get().outcome, now().failures) == ("failed", 1)


def test_the_service_looks_for_late_proofs_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(probes, "note_late", lambda: looks.append(1))
    service = Probes()
    assert [service.run_once(), service.run_once()] == [False, False]
    assert len(looks) == 1


def test_runs_of_a_week_ago_are_forgotten(shift_clock: Clock) -> None:
    a_type()
    bury(begin()[1])
    probes.settle_open()
    shift_clock("6 days")
    assert not housekeeping.forget_old()
    assert ProbeRun.objects.count() == 1
    shift_clock("7 days 1 second")
    assert not housekeeping.forget_old()
    assert not ProbeRun.objects.exists()
