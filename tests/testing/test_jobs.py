"""What was enqueued is found and said; a callback and a lost run are as the outside world makes them."""

from __future__ import annotations

from uuid import uuid4

import pytest
from django.test import TestCase

from jobsboard.testing import assert_enqueued, confirm, enqueued, expire_lease, run_pending
from queues.accept import enqueue
from queues.confirmation import JobNotFound
from queues.handlers import AwaitingConfirmation, Confirmed, handler
from queues.lifecycle import Applied
from queues.states import JobState
from tests.factories import TYPE, get, make_type

pytestmark = pytest.mark.django_db


class InATestCase(TestCase):
    """As a project's own tests use it."""

    def test_a_job_is_found(self) -> None:
        """By what matters in it."""
        make_type()
        receipt = enqueue(TYPE, {"invoice": "INV-1", "customer": {"id": 7, "name": "A"}}, dedupe_key="k-1", group="g")
        for found in (
            assert_enqueued(TYPE),
            assert_enqueued(TYPE, {"customer": {"id": 7}}),
            assert_enqueued(TYPE, lambda payload: payload["invoice"].startswith("INV"), dedupe_key="k-1", group="g"),
        ):
            assert found.id == receipt.job_id
        assert not enqueued(TYPE, {"customer": {"id": 8}})
        assert not enqueued(TYPE, {"customer": 7})
        assert not enqueued("other.type")


def test_what_was_enqueued_is_said() -> None:
    """Whoever reads the failure sees what was there instead."""
    make_type()
    with pytest.raises(AssertionError, match="Nothing was enqueued"):
        assert_enqueued(TYPE)
    enqueue(TYPE, {"n": 1}, dedupe_key="k-1")
    enqueue(TYPE, {"n": 2})
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(TYPE, {"n": 3}, dedupe_key="k-2")
    said = str(caught.value)
    assert "0 jobs fit 'test.job', payload={'n': 3}, dedupe_key='k-2', and not 1" in said
    assert """test.job {"n":1} key='k-1' (accepted)""" in said and """test.job {"n":2} (accepted)""" in said
    with pytest.raises(AssertionError, match="2 jobs fit"):
        assert_enqueued(TYPE)
    assert assert_enqueued(TYPE, count=2).payload == '{"n":2}'
    with pytest.raises(ValueError, match="not enqueued"):
        assert_enqueued(TYPE, count=0)


def test_a_rejection_counts_for_the_run_that_it_names() -> None:
    """As with the token of a callback address."""
    make_type(success="callback", max_attempts=3, backoff="fixed", backoff_base_seconds=0.001)
    handler(TYPE)(lambda job: AwaitingConfirmation(f"ref-{job.run}"))
    receipt = enqueue(TYPE, {})
    run_pending()
    assert confirm(receipt, outcome="rejected", retryable=True).applied is Applied.RETRYING
    [job] = run_pending()
    assert (job.state, job.fence) == (JobState.AWAITING_CONFIRMATION, 2)
    assert confirm(job, outcome="rejected", run=1).applied is Applied.SUPERSEDED
    assert confirm(job.id, outcome="rejected", detail="no such customer").state is JobState.DEAD
    late = confirm(job, "ref-2")
    assert (late.applied, get(job.id).reason) == (Applied.LATE, "rejected")
    with pytest.raises(JobNotFound):
        confirm(uuid4())


def test_a_lost_run_follows_its_contract() -> None:
    """`on_worker_lost`, and the count that finds poison."""
    make_type(poison_after=2)
    job = expire_lease(enqueue(TYPE, {}))
    assert (job.state, job.begun, job.crashes) == (JobState.RETRYING, 1, 1)
    job = expire_lease(job)
    assert (job.state, job.reason) == (JobState.DEAD, "poison")
    with pytest.raises(AssertionError, match="no run that could be lost"):
        expire_lease(job)


def test_a_settled_job_has_no_run() -> None:
    """Nothing can be lost any more."""
    make_type()
    handler(TYPE)(lambda job: Confirmed(None))
    enqueue(TYPE, {})
    [job] = run_pending()
    with pytest.raises(AssertionError, match=r"\(confirmed\)"):
        expire_lease(job)
