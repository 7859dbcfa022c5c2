"""I-41, what prune never deletes, and I-42, that no call waits for ever: somebody locks the jobs table and stays."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from django.contrib.auth.models import Group, User
from django.db import OperationalError, connection
from django.test import Client

from queues import audit, lifecycle, workers
from queues.accept import DedupeConflict, enqueue
from queues.models import AuditEntry, DedupeKey
from queues.runtime import leases
from queues.runtime.chunk import write_ends
from queues.scheduler import confirmations, expire, prune, rescue, rollup, service
from queues.scheduler.service import Service
from queues.states import JobState
from tests.api.conftest import Api
from tests.concurrency.rivals import Rival, sqlstate
from tests.factories import TYPE, accept, assignments, claim, confirmed, get, lose_lease, make_type, sql
from tests.old_days import days_ago, ids_of, make_old_job, make_partition, part_of
from tests.scenarios.conftest import open_transaction, until

S = JobState
pytestmark = pytest.mark.concurrency

MOST_SECONDS = 9.0
"""The lock time-out is 3 s; the rest is for a machine that has much else to do."""


# I-41.


@pytest.fixture
def old_day(committed: None) -> Iterator[dt.date]:
    """A day long past every retention, with its partition."""
    make_type(keep_confirmed_days=1, keep_other_days=1)
    day = days_ago(60)
    make_partition(day)
    yield day
    sql(f"DROP TABLE IF EXISTS {part_of(day)}")


@pytest.mark.parametrize("way", ["row by row", "by a swap"])
def test_i_41_prune_leaves_what_somebody_may_need(way: str, old_day: dt.date, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-41: open jobs of every state, unresolved dead letters, holders of a key whose window goes on with their
    key, and every audit entry stay, however old; what settled long ago goes, with its key."""
    monkeypatch.setattr(prune, "SWAP_FROM", 1 if way == "by a swap" else 10_000)
    stay = {make_old_job(old_day, state).id for state in (S.ACCEPTED, S.PROCESSING, S.RETRYING)}
    awaiting = make_old_job(old_day, S.PROCESSING).id
    sql(f"UPDATE queues_job SET {assignments(S.AWAITING_CONFIRMATION)} WHERE id = %s", awaiting)
    stay |= {awaiting, make_old_job(old_day, S.DEAD).id}
    held = make_old_job(old_day, key="held")
    sql("UPDATE queues_dedupekey SET expires_at = jobs_now() + interval '1 day' WHERE key = 'held'")
    gone = {make_old_job(old_day, key=f"gone-{n}").id for n in range(5)}
    gone |= {make_old_job(old_day, S.EXPIRED).id, make_old_job(old_day, S.CANCELLED).id}
    gone.add(make_old_job(old_day, S.DEAD, resolution="ignored").id)
    for job_id in sorted(stay | gone | {held.id}):
        audit.record("job.looked_at", actor="ada", object_type="job", object_id=str(job_id))
    pruner = prune.Prune()
    while pruner.run_once():
        pass
    assert ids_of(old_day) == stay | {held.id}
    assert [row.key for row in DedupeKey.objects.all()] == ["held"]
    assert AuditEntry.objects.count() == len(stay) + len(gone) + 1
    with pytest.raises(DedupeConflict) as refused:
        enqueue(TYPE, {"other": "payload"}, dedupe_key="held")
    assert refused.value.job_id == held.id, "it is found by its key"


# I-42.


@dataclass
class Ended:
    """How one component came out of its wait: what it answered or raised, and after how long."""

    value: object
    error: Exception | None
    seconds: float

    @property
    def refused(self) -> bool:
        """It ended by the lock time-out, and says so."""
        return sqlstate(self.error) == "55P03"


def _start(works: dict[str, Callable[[], object]]) -> dict[str, Rival[Ended]]:
    """Start everything at once, each on a connection with the time-outs of the settings."""

    def timed(work: Callable[[], object]) -> Callable[[], Ended]:
        def run() -> Ended:
            began, value, error = time.monotonic(), None, None
            try:
                value = work()
            except OperationalError as raised:
                error = raised
            return Ended(value, error, time.monotonic() - began)

        return run

    return {name: Rival(timed(work), lock_timeout="3s") for name, work in works.items()}


@pytest.mark.usefixtures("committed")
def test_i_42_nothing_waits_for_ever(make_api: Callable[..., Api]) -> None:
    """I-42, S-34: the jobs table is locked exclusively from outside. Accept, claim, finish, heartbeat, each sweep, the
    stage, the board and the API end at the lock time-out and say what it was; the fold, which needs no job, goes on.
    When the lock is gone the same calls do their work, and nothing was lost or done by halves."""
    connection.close()
    limits = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
    assert [sql(f"SHOW {name}") for name in limits] == [[("3s",)], [("15s",)], [("30s",)]], "what every session has"
    make_type()
    api, user = make_api(), User.objects.create_user("ada")
    user.groups.add(Group.objects.get_or_create(name="viewer")[0])
    client = Client(raise_request_exception=False)
    client.force_login(user)
    [waiting], [running], [lost] = accept(), claim(accept()), claim(accept())
    lose_lease(lost.id)
    ends = [confirmed(running)]
    works: dict[str, Callable[[], object]] = {
        "enqueue": lambda: enqueue(TYPE, {}, dedupe_key="k"),
        "accept": lambda: api.post("/jobs", {"type": TYPE, "payload": {}, "dedupe_key": "api"}),
        "list": lambda: api.get("/jobs"),
        "claim": lambda: lifecycle.claim([waiting], worker="w"),
        "finish": lambda: write_ends(ends, give_up_at=leases.now() + 2),
        "heartbeat": lambda: lifecycle.heartbeat([(running.id, running.fence, 15.0)]),
        "rescue": rescue.run_once,
        "expire": expire.run_once,
        "deadlines": confirmations.end_waits,
        "stage": lambda: lifecycle.stageable([lifecycle.Ask(2, TYPE, 10)]),
        "prune": lambda: prune.Prune().run_once(),
        "board": lambda: client.get("/jobs/"),
        "job page": lambda: client.get(f"/jobs/{waiting}/"),
        "rollup": rollup.run_once,
    }
    with open_transaction(lambda: sql("LOCK TABLE queues_job IN ACCESS EXCLUSIVE MODE")):
        started = _start(works)
        for rival in started.values():
            rival.join(MOST_SECONDS + 5)
            assert not rival.is_alive(), "it waits for ever"
        found = {name: rival.outcome() for name, rival in started.items()}
    assert {name: end.seconds for name, end in found.items() if end.seconds > MOST_SECONDS} == {}
    by_error = {"enqueue", "claim", "heartbeat", "rescue", "expire", "deadlines", "stage"}
    assert {name for name, end in found.items() if end.refused} >= by_error
    for name in ("accept", "list"):
        answer = found[name].value
        assert (answer.status_code, answer["Retry-After"] != "") == (503, True), name  # type: ignore[attr-defined, index]
    for name in ("board", "job page"):
        assert found[name].value.status_code >= 500, name  # type: ignore[attr-defined]
    assert (found["finish"].value, found["rollup"].error) == (set(), None), "given up, and said in the log; not held up"
    # Nothing of it is there by halves, and everything goes on.
    assert sql("SELECT count(*) FROM queues_job") == [(3,)]
    assert not DedupeKey.objects.exists()
    assert write_ends(ends, give_up_at=leases.now() + 5) == {(running.id, running.fence)}
    rescue.run_once()
    assert get(lost.id).state == S.RETRYING
    assert len(lifecycle.claim([waiting], worker="w")) == 1
    assert api.post("/jobs", {"type": TYPE, "payload": {}, "dedupe_key": "api"}).status_code == 201
    assert client.get("/jobs/").status_code == 200


@pytest.mark.usefixtures("committed")
def test_i_42_a_service_says_what_held_it_up_and_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-42, I-16: a scheduler beside the same lock: its services fail one round, each with a line in the log, take a
    break and come again; a service that needs no job is not held up by its neighbours."""
    make_type()
    [lost] = claim(accept())
    lose_lease(lost.id)
    rounds, stop = {"fold": 0}, threading.Event()

    def fold() -> bool:
        rounds["fold"] += 1
        return rollup.run_once()

    monkeypatch.setattr(workers, "own_id", lambda: "scenario/1")
    services = [
        Service(name="rescue", every_seconds=0.2, run_once=rescue.run_once),
        Service(name="expire", every_seconds=0.2, run_once=expire.run_once),
        Service(name="stage", every_seconds=0.2, run_once=_stage),
        Service(name="rollup", every_seconds=0.1, run_once=fold),
    ]
    with caplog.at_level(logging.WARNING, logger="queues.scheduler.service"):
        thread = threading.Thread(target=_schedule, args=(services, stop), daemon=True)
        with open_transaction(lambda: sql("LOCK TABLE queues_job IN ACCESS EXCLUSIVE MODE")):
            thread.start()
            until(lambda: "service rescue failed" in caplog.text, "the rescue waits and says nothing", seconds=15)
            until(lambda: "service expire failed" in caplog.text, "the expire waits and says nothing", seconds=15)
            assert "lock timeout" in caplog.text
            assert rounds["fold"] > 3, "held up by its neighbours"
        until(lambda: get(lost.id).state == S.RETRYING, "the rescue never came back", seconds=20)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def _stage() -> bool:
    return bool(lifecycle.stageable([lifecycle.Ask(2, TYPE, 10)]))


def _schedule(services: list[Service], stop: threading.Event) -> None:
    try:
        service.run_forever(services, stop=stop)
    finally:
        connection.close()
