"""What a run tells of its dependency, and what a chunk does when its breaker opens in the middle."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from queues import broker, contracts, handlers, lifecycle
from queues.handlers import (
    AwaitingConfirmation,
    Confirmed,
    JobContext,
    NoHandler,
    PermanentError,
    Rejected,
    RetryLater,
    RunSuperseded,
    SoftTimeLimitExceeded,
)
from queues.http_target import SecretMissing, TargetFailed
from queues.lifecycle import End, Run, Verdict
from queues.models import Dependency, JobType
from queues.outbound import TargetRefused, TargetTimeout, TargetUnreachable
from queues.runtime import calls, chunk, limits
from queues.runtime.chunk import Runner, _without_data
from queues.runtime.context import context_of
from queues.runtime.execute import execute
from queues.runtime.leases import LeaseTable
from tests.factories import TYPE, accept, make_type, sql
from tests.queues.breaking import CRM, KIND, begin, claim, judged, make_dependency, standing
from tests.queues.reviewed import World
from tests.queues.test_http_target import Receiver, receiver

__all__ = ["receiver"]
pytestmark = pytest.mark.django_db
NO_RETRY = ["ValueError", "ConnectionRefusedError", "SoftTimeLimitExceeded"]


@pytest.fixture(autouse=True)
def time_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is released for its neighbours' slowness: the machine may have other things to do.

    Nor is an end written by the finisher, whose session does not see a test's transaction.
    """
    monkeypatch.setattr(chunk, "BEGIN_SECONDS", 60.0)
    monkeypatch.setattr(chunk, "FINISH_SECONDS", 60.0)


@pytest.fixture
def told(made: World) -> World:
    """A handler of a type with a dependency, which does what a test says."""
    make_dependency(TYPE)
    change(never_retry=NO_RETRY)
    return made


def change(**values: Any) -> None:
    """Change the type and every version of it."""
    JobType.objects.filter(name=TYPE).update(**values)
    sql("UPDATE queues_contractrevision SET fields = fields || %s::jsonb", json.dumps(values))
    contracts.forget()


def run(*, kind: str = TYPE) -> End:
    """Run a job, and return the end that would be written."""
    [one] = begin(kind=kind)
    return execute(one, context_of(one), begin=lambda limit: None).end


@pytest.mark.parametrize(
    "outcome",
    [Confirmed("ref"), Confirmed(None), None, AwaitingConfirmation()],
    ids=["proof", "no-reference", "nothing", "awaiting"],
)
@pytest.mark.parametrize("success", ["return", "reference", "callback"])
def test_a_body_that_returned_had_its_answer(told: World, outcome: Any, success: str) -> None:
    """Whether the outcome is proven is another question than whether the dependency works."""
    change(success=success)
    told.outcome = outcome
    assert run().called == "ok"


@pytest.mark.parametrize(
    ("error", "called"),
    [
        (PermanentError("no such customer"), "ok"),
        (Rejected("the mailbox is closed"), "ok"),
        (ValueError("never retried"), "ok"),
        (RuntimeError("boom"), "failed"),
        (RetryLater(5), "failed"),
        (SoftTimeLimitExceeded("the soft limit passed"), "failed"),
        (TimeoutError("timed out"), "failed"),
        (ConnectionResetError("reset"), "failed"),
        (ConnectionRefusedError("never retried, and no answer"), "failed"),
        (SystemExit(1), "failed"),
        (TargetFailed("500", status=500), "failed"),
        (TargetTimeout("15 s", may_have_arrived=True), "failed"),
        (TargetUnreachable("refused"), "failed"),
        (TargetRefused("not public"), "unused"),
        (SecretMissing("no secret"), "unused"),
        (NoHandler("an old worker"), "unused"),
        (RunSuperseded("lost"), "unused"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_what_an_exception_tells(told: World, error: BaseException, called: str) -> None:
    def fail(job: JobContext) -> None:
        raise error

    told.meanwhile = fail
    assert run().called == called


def test_permanent_errors_never_open_it(told: World) -> None:
    """A hundred addresses that do not exist say nothing against the mail server."""

    def fail(job: JobContext) -> None:
        raise PermanentError("no such address")

    told.meanwhile = fail
    for _ in range(2):
        runner().run(accept(50))
    found = judged()
    assert (found.state, found.calls, found.failed) == ("closed", 100, 0)


def test_a_type_without_a_dependency_tells_nothing(made: World) -> None:
    make_dependency()
    make_type(TYPE)
    assert run().called is None


def runner() -> Runner:
    return Runner(LeaseTable(), node="test")


@pytest.mark.parametrize(("slow_seconds", "called"), [(0.0, "ok"), (30.0, "ok"), (0.01, "slow")])
def test_a_slow_body_is_slow(told: World, slow_seconds: float, called: str) -> None:
    Dependency.objects.update(slow_seconds=slow_seconds)
    contracts.forget()

    def wait(job: JobContext) -> None:
        began = time.monotonic()
        while time.monotonic() - began < 0.02:
            pass

    told.meanwhile = wait
    assert run().called == called


def test_an_atomic_body_tells_with_its_commit(told: World) -> None:
    handlers._handlers[TYPE] = handlers.Registered(function=told.handle, atomic=True)
    runner().run(accept(1))
    assert judged().calls == 1


def test_a_run_that_a_check_decides_before_it_begins_was_not_used(told: World) -> None:
    [job_id] = accept(1)
    [first] = claim([job_id])
    lifecycle.rescue([job_id], dead_runs=[(first.id, first.fence)])
    told.answer = Confirmed("already done")
    [second] = claim([job_id])
    assert execute(second, context_of(second), begin=lambda limit: None).end.called == "unused"
    told.answer = RuntimeError("the check cannot say")
    end = execute(second, context_of(second), begin=lambda limit: None).end
    assert (end.verdict, end.called) == (Verdict.PUT_OFF, None)
    told.answer = None
    assert execute(second, context_of(second), begin=lambda limit: None).end.called == "ok"
    assert told.ran


def test_a_run_past_its_hard_limit_has_failed_its_dependency(told: World) -> None:
    def overrun(one: Run) -> End:
        return limits.overrun(lifecycle.runs([(one.id, one.fence)])[0], limit=60, seconds=60.1, replaced=False)

    lifecycle.settle([overrun(one) for one in begin(20, kind=TYPE)])
    found = judged()
    assert (found.state, found.failed) == ("open", 20)
    make_type("plain")
    assert overrun(begin(kind="plain")[0]).called is None


def test_an_end_that_is_written_without_its_data_keeps_what_it_tells() -> None:
    end = End(id=uuid4(), fence=1, verdict=Verdict.FAILED, called="failed")
    assert _without_data(end, ValueError("no")).called == "failed"


def test_members_that_have_not_begun_are_released_when_the_breaker_opens(told: World) -> None:
    """Scenario 5: a breaker that opens at job 3 of a chunk burns none of the other 97 attempts."""

    def open_at_the_third(job: JobContext) -> None:
        if len(told.ran) == 3:
            sql("UPDATE queues_dependency SET state = 'open', retry_at = jobs_now() + interval '30 s'")
            sql("UPDATE queues_jobtype SET breaker = 'open'")
            contracts.forget()
        raise RuntimeError("down")

    told.meanwhile = open_at_the_third
    ids = accept(97 + 3)
    assert runner().run(ids) == 3
    found = sql("SELECT state, attempt, begun, count(*) FROM queues_job GROUP BY 1, 2, 3 ORDER BY 4")
    assert found == [("retrying", 1, 1, 3), ("accepted", 0, 0, 97)]
    assert runner().run(ids) == 0


def test_what_was_known_before_the_claim_does_not_hold_a_trial(told: World) -> None:
    """Contracts are two seconds old at most: a breaker that closed since let the claim through."""
    sql("UPDATE queues_jobtype SET breaker = 'open'")
    contracts.forget()
    assert contracts.current(TYPE).breaker == "open"
    sql("UPDATE queues_jobtype SET breaker = 'closed'")
    assert runner().run(accept(5)) == 5


@pytest.fixture
def shop(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Receiver:  # noqa: F811
    """A service that takes the jobs of a type with a dependency."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    make_dependency()
    JobType.objects.filter(name=KIND).update(
        handler="http", target_url=receiver.url, target_secret_env="SHOP_SECRET", success="reference"
    )
    contracts.forget()
    return receiver


@pytest.mark.parametrize(
    ("status", "called"),
    [(200, "ok"), (202, "ok"), (400, "ok"), (410, "ok"), (422, "ok"), (404, "failed"), (429, "failed"),
     (500, "failed"), (503, "failed")],
)  # fmt: skip
def test_what_an_answer_of_an_http_target_tells(shop: Receiver, status: int, called: str) -> None:
    shop.status = status
    assert run(kind=KIND).called == called


def test_an_http_target_that_refuses_connections_has_failed(shop: Receiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    JobType.objects.filter(name=KIND).update(target_url=f"http://127.0.0.1:{port}/jobs")
    contracts.forget()
    assert run(kind=KIND).called == "failed"


@pytest.fixture
def hanging(shop: Receiver) -> Iterator[Receiver]:
    shop.hang = threading.Event()
    yield shop
    shop.hang.set()


def test_the_dependencys_timeout_bounds_a_call(hanging: Receiver) -> None:
    Dependency.objects.filter(name=CRM).update(timeout_seconds=0.3)
    contracts.forget()
    began = time.monotonic()
    end = run(kind=KIND)
    assert end.called == "failed" and end.failure is not None
    assert end.failure["error_class"] == "TargetTimeout"
    assert time.monotonic() - began < 4


def test_it_never_lengthens_one(shop: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    Dependency.objects.filter(name=CRM).update(timeout_seconds=300)
    contracts.forget()
    asked: list[float | None] = []
    monkeypatch.setattr("queues.http_target.deliver", lambda job, contract, *, seconds: asked.append(seconds))
    run(kind=KIND)
    Dependency.objects.all().delete()
    contracts.forget()
    run(kind=KIND)
    assert asked == [15.0, None]


def test_settings_are_read_again_with_the_contracts() -> None:
    make_dependency()
    contract = contracts.current(KIND)
    bounds = calls.bounds_of(contract)
    assert bounds is not None and bounds.timeout == 5.0
    Dependency.objects.update(timeout_seconds=7)
    assert calls.bounds_of(contract) is bounds
    contracts.forget()
    bounds = calls.bounds_of(contract)
    assert bounds is not None and bounds.timeout == 7.0
    assert standing().timeout_seconds == 7.0
