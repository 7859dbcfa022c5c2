"""A run whose lease was lost and that comes back with a reference: real runners, real commits (DESIGN.md section 5)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from django.db import OperationalError

from queues import confirmation, contracts, handlers, lifecycle, outcomes
from queues.confirmation import Outcome
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext
from queues.models import JobType
from queues.runtime.chunk import Runner
from tests.factories import TYPE, accept, claim, confirmed, fold_all, get, sql
from tests.queues.test_chunk import kind, runner  # noqa: F401 (fixtures)

pytestmark = pytest.mark.concurrency


@pytest.fixture
def by_reference(runner: Runner) -> Runner:  # noqa: F811
    """A runner of a type whose handler's reference is the proof."""
    succeeds_by("reference")
    return runner


def succeeds_by(what: str) -> None:
    """Change what proves the work, in the version that jobs were accepted under."""
    JobType.objects.filter(name=TYPE).update(success=what)
    sql("UPDATE queues_contractrevision SET fields = jsonb_set(fields, '{success}', to_jsonb(%s::text))", what)
    contracts.forget()


def lose(job: JobContext) -> None:
    """Lose the run, while its body goes on."""
    assert lifecycle.rescue([job.id], dead_runs=[(job.id, job.run)])


def superseded() -> int:
    fold_all()
    return int(sql("SELECT coalesce(sum(superseded), 0) FROM queues_outcomerollup WHERE grain = 'day'")[0][0])


def test_its_reference_confirms_the_job_that_waits_for_its_next_run(by_reference: Runner) -> None:
    """I-09: it cannot finish the job, but its word is evidence: the mail that went out is not sent again."""
    bodies = []

    @handlers.handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        bodies.append(job.run)
        lose(job)
        return Confirmed("mail-1")

    [job_id] = accept()
    by_reference.run([job_id])
    job = get(job_id)
    assert job.evidence is not None
    assert (job.state, job.evidence["kind"], job.evidence["ref"], job.evidence["run"]) == (
        "confirmed", "reference", "mail-1", 1,
    )  # fmt: skip
    assert by_reference.run([job_id]) == 0
    assert bodies == [1]
    assert superseded() == 1, "it is counted before its word counts"
    assert outcomes.signs_of([job_id]) == []


def test_its_reference_and_that_of_its_successor_are_a_sign(by_reference: Runner) -> None:
    @handlers.handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        lose(job)
        lifecycle.settle([confirmed(claim([job.id])[0], "mail-2")])
        return Confirmed("mail-1")

    [job_id] = accept()
    by_reference.run([job_id])
    assert [(s.kind, s.fence, dict(s.detail)) for s in outcomes.signs_of([job_id])] == [
        ("blind_attempt", 2, {"error_class": "WorkerLost"}),
        ("second_reference", 1, {"known": "mail-2", "said": "mail-1"}),
    ]


def test_members_of_a_chunk_are_offered_one_by_one(by_reference: Runner) -> None:
    """One that is locked, or was settled in time, keeps no other back."""

    @handlers.handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        if job.payload["n"] != 1:
            lose(job)
        return Confirmed(f"mail-{job.payload['n']}")

    ids = accept(3)
    assert by_reference.run(ids) == 3
    assert [get(i).state for i in ids] == ["confirmed"] * 3
    assert [(get(i).evidence or {}).get("ref") for i in ids] == ["mail-0", "mail-1", "mail-2"]


@pytest.mark.parametrize("what", ["unverified", "no reference", "awaiting", "failed", "atomic"])
def test_what_is_no_evidence_is_not_offered(by_reference: Runner, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A return is no proof that another run's work is not needed; what an atomic handler wrote was rolled back."""
    offered = []
    monkeypatch.setattr(confirmation, "by_superseded_run", lambda *args, **kwargs: offered.append(args))
    if what == "unverified":
        succeeds_by("return")

    def work(job: JobContext) -> Confirmed | AwaitingConfirmation:
        lose(job)
        if what == "failed":
            raise ValueError("no")
        if what == "awaiting":
            return AwaitingConfirmation("mail-1")
        return Confirmed("" if what == "no reference" else "mail-1")

    handlers.handler(TYPE, atomic=what == "atomic")(work)
    [job_id] = accept()
    by_reference.run([job_id])
    assert (get(job_id).state, offered) == ("retrying", [])


def test_an_end_whose_answer_was_lost_is_offered_and_changes_nothing(
    by_reference: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-03: the first write arrived, the second finds it; nothing is counted twice."""
    real: Callable[..., object] = lifecycle.settle
    outcomes_seen: list[Outcome] = []
    told = confirmation.by_superseded_run

    def settle(ends: object) -> object:
        monkeypatch.setattr(lifecycle, "settle", real)
        real(ends)
        raise OperationalError("the answer is lost")

    def by_superseded_run(*args: object, **kwargs: object) -> Outcome:
        outcomes_seen.append(told(*args, **kwargs))  # type: ignore[arg-type]
        return outcomes_seen[-1]

    monkeypatch.setattr(lifecycle, "settle", settle)
    monkeypatch.setattr(confirmation, "by_superseded_run", by_superseded_run)
    handlers.handler(TYPE)(lambda job: Confirmed("mail-1"))
    [job_id] = accept()
    by_reference.run([job_id])
    assert [one.applied for one in outcomes_seen] == [confirmation.Applied.DUPLICATE]
    assert (get(job_id).state, get(job_id).late_evidence) == ("confirmed", None)
    assert (superseded(), outcomes.signs_of([job_id])) == (0, [])


def test_a_database_that_is_away_costs_one_try(
    by_reference: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def away(*args: object, **kwargs: object) -> Outcome:
        tries.append(args)
        raise OperationalError("away")

    @handlers.handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        lose(job)
        return Confirmed("mail-1")

    monkeypatch.setattr(confirmation, "by_superseded_run", away)
    ids = accept(3)
    with caplog.at_level(logging.WARNING):
        assert by_reference.run(ids) == 3
    assert len(tries) == 1
    assert "the reference of its superseded run 1 is lost" in caplog.text
    assert [get(i).state for i in ids] == ["retrying"] * 3
    assert list(by_reference.table.held()) == []
