"""Planned stops: one process that is asked to end, and all of them restarted one after the other under load."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from django.db import connection

from jobsboard.api.keys import issue_key
from jobsboard.local import ports
from queues import broker
from queues.models import WorkerProcess
from queues.states import JobState
from tests.acceptance.conftest import Stack, limbo
from tests.acceptance.fleet import Fleet, Process, Producers, answers, stop
from tests.acceptance.rolling_jobs import HELD, QUICK, WORK
from tests.factories import accept, fold_all, get, make_type, sql, state_counts, true_counts

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

LEASE: Final = 7
SLACK: Final = 60.0
"""Starting processes on a busy machine."""
END: Final = 30.0
"""A stop: a statement that waits for a lock gives up after 3 s; then what is still to be done, on a busy machine."""


@pytest.fixture
def rolling(stack: Stack) -> Iterator[Fleet]:
    """Types with a lease that is short enough for a body that drains to outlive it, and with no second attempt."""
    stack.env["JOBSBOARD_HANDLERS"] = "tests.acceptance.rolling_jobs"
    for name in (QUICK, WORK, HELD):
        make_type(name, success="reference", lease_seconds=LEASE, max_attempts=1)
    fleet = Fleet(stack)
    yield fleet
    fleet.end()


@pytest.fixture
def api_key(transactional_db: None) -> str:
    """A key that may post jobs."""
    return issue_key(label="producers", scopes=["jobs:write"], type_patterns=["*"])[1]


def _log(stack: Stack, job_id: UUID) -> list[tuple[str, int]]:
    """Return what the bodies of one job wrote: what, and which worker's."""
    return [(line["what"], line["worker"]) for line in stack.runs("rolling.") if line["id"] == str(job_id)]


def _settled_truth(stack: Stack) -> None:
    assert limbo() == []
    fold_all()
    stack.until(lambda: state_counts() == true_counts(), seconds=5)


def _ask_one(process: Process) -> None:
    process.send_signal(signal.SIGTERM)


def _ask_all(process: Process) -> None:
    """As systemd does with the default `KillMode`: every process of the service gets it, pool processes too."""
    os.killpg(process.pid, signal.SIGTERM)


@dataclass(frozen=True)
class _Draining:
    """A worker with a body that runs, neighbours of its chunk that have not begun, and how it is asked to end."""

    worker: Process
    held: UUID
    behind: list[UUID]
    ask: Callable[[Process], None]
    pid: int
    """The parent of the process that runs the bodies: the worker, or with threads and solo the worker's own parent."""


def _draining(fleet: Fleet, kinds: Sequence[tuple[str, Callable[[Process], None]]]) -> list[_Draining]:
    """Start workers, each on a queue of its own; send each a chunk whose first body runs until the test lets it go."""
    queues = [f"drain{number}" for number in range(len(kinds))]
    with fleet.together():
        workers = [
            fleet.worker(pool=pool, concurrency=1, queue=queue) for (pool, _), queue in zip(kinds, queues, strict=True)
        ]
    made = []
    for worker, queue, (pool, ask) in zip(workers, queues, kinds, strict=True):
        [held], behind = accept(kind=HELD), accept(3, kind=QUICK)
        assert broker.publish([(queue, [held, *behind])])
        made.append(_Draining(worker, held, behind, ask, worker.pid if pool == "prefork" else os.getpid()))
    fleet.stack.until(lambda: all(_log(fleet.stack, one.held) for one in made), seconds=SLACK)
    return made


def test_what_runs_at_a_stop_ends_there_and_nothing_runs_twice(rolling: Fleet) -> None:
    """I-17: SIGTERM to workers of each pool while a body runs and an idle worker waits: the body keeps its lease for
    longer than one lease, ends, and is confirmed once; its neighbours that have not begun run elsewhere, unspent."""
    stack = rolling.stack
    kinds = [("prefork", _ask_one), ("prefork", _ask_all), ("threads", _ask_one), ("solo", _ask_one)]
    stopping = _draining(rolling, kinds)
    with rolling.together():
        idle, _ = rolling.worker(), rolling.scheduler()
    leases = dict(sql("SELECT id, due_at FROM queues_job WHERE type = %s", HELD))
    for one in stopping:
        one.ask(one.worker)
    stack.until(
        lambda: (
            sql(
                "SELECT count(*) FROM queues_job WHERE state = 'processing' AND fence = 1 AND due_at >"
                " (SELECT max(t) FROM unnest(%s::timestamptz[]) AS t) + interval '%s s'",
                list(leases.values()),
                LEASE,
            )
            == [(len(kinds),)]
        ),
        seconds=SLACK,
    )
    stack.until(lambda: stack.states() == {"processing": 4, "confirmed": 12}, seconds=SLACK)
    assert [one.worker.poll() for one in stopping] == [None] * 4
    stack.go()
    assert [one.worker.wait(END) for one in stopping] == [0] * 4
    stack.all_confirmed(16, seconds=SLACK)
    for one in stopping:
        assert _log(stack, one.held) == [("start", one.pid), ("end", one.pid)]
        for behind in one.behind:
            assert _log(stack, behind) == [("start", idle.pid), ("end", idle.pid)]
    assert not any(line["maybe_duplicate"] for line in stack.runs("rolling."))
    assert sql("SELECT DISTINCT attempt, begun, crashes, failures::text FROM queues_job") == [(1, 1, 0, "[]")]
    # Claimed in the chunk and given back, then claimed once more.
    assert sql("SELECT DISTINCT fence FROM queues_job WHERE type = %s", QUICK) == [(2,)]
    _settled_truth(stack)


def test_a_body_longer_than_the_grace_runs_again_elsewhere(rolling: Fleet) -> None:
    """I-17: the supervisor's SIGKILL after it hits every process, the heartbeat's too: when the lease ends the job runs
    again, is told that it may be a duplicate, and has lost no attempt."""
    stack = rolling.stack
    kinds = [("prefork", _ask_all), ("threads", _ask_one)]
    stopping = _draining(rolling, kinds)
    with rolling.together():
        second, _ = rolling.worker(), rolling.scheduler()
    for one in stopping:
        one.ask(one.worker)
    stack.until(lambda: stack.states() == {"processing": 2, "confirmed": 6}, seconds=SLACK)
    for one in stopping:
        assert one.worker.poll() is None
        for pid in stack.hearts(one.worker):
            os.kill(pid, signal.SIGKILL)
        stack.kill(one.worker)
    stack.until(lambda: all(len(_log(stack, one.held)) == 2 for one in stopping), seconds=LEASE + SLACK)
    stack.go()
    stack.all_confirmed(8, seconds=SLACK)
    for one in stopping:
        assert _log(stack, one.held) == [("start", one.pid), ("start", second.pid), ("end", second.pid)]
        job = get(one.held)
        assert (job.state, job.attempt, job.begun) == (JobState.CONFIRMED, 1, 2)
        assert [failure["error_class"] for failure in job.failures] == ["WorkerLost"]
    told = Counter((line["run"], line["maybe_duplicate"]) for line in stack.runs(HELD) if line["what"] == "start")
    assert {duplicate for (_, duplicate) in told} == {False, True}
    assert not any(line["maybe_duplicate"] for line in stack.runs(QUICK))
    _settled_truth(stack)


@contextlib.contextmanager
def _locked(table: str) -> Iterator[None]:
    """Hold a table against everybody, from a session of its own."""
    with psycopg.connect(**connection.get_connection_params() | {"cursor_factory": psycopg.ClientCursor}) as other:
        other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
        other.rollback()


def _waits_for_a_lock(words: str) -> bool:
    return bool(sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s", f"%{words}%"))


def test_a_scheduler_ends_in_bounded_time(rolling: Fleet) -> None:
    """I-17, I-42: SIGTERM while its services wait for a table that somebody else has locked."""
    scheduler = rolling.scheduler()
    with _locked("queues_job"):
        rolling.stack.until(lambda: _waits_for_a_lock("queues_job"), seconds=SLACK)
        assert stop(scheduler, seconds=END) == 0
    assert not WorkerProcess.objects.filter(kind="scheduler").exists()


def test_web_answers_what_is_in_flight_and_ends(rolling: Fleet, api_key: str) -> None:
    """I-17: gunicorn gets SIGTERM while an accept waits in the database: it is answered 201, the job is stored."""
    port = ports.free()
    web = rolling.web(port)
    answer: list[tuple[int, Any]] = []

    def post() -> None:
        client = http.client.HTTPConnection(ports.LOOPBACK, port, timeout=END)
        body = json.dumps({"type": QUICK, "payload": {}})
        headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        client.request("POST", "/api/v1/jobs", body, headers)
        response = client.getresponse()
        answer.append((response.status, json.loads(response.read())))
        client.close()

    poster = threading.Thread(target=post)
    with _locked("queues_job"):
        poster.start()
        rolling.stack.until(lambda: _waits_for_a_lock("queues_job"), seconds=SLACK)
        web.send_signal(signal.SIGTERM)
    assert web.wait(END) == 0
    poster.join(END)
    [(status, job)] = answer
    assert status == 201
    assert get(job["id"]).state == JobState.ACCEPTED
    assert not answers(port)


def test_everything_restarts_under_load(rolling: Fleet, api_key: str) -> None:
    """I-17, I-24: while clients post, two web processes (one by SIGTERM, one by SIGHUP), two schedulers and two workers
    are restarted one after the other. Every acknowledged job is confirmed, no body runs twice, nobody is told 5xx."""
    stack = rolling.stack
    first, second = ports.free(), ports.free()
    with rolling.together():
        webs = [rolling.web(first), rolling.web(second)]
        schedulers = [rolling.scheduler(), rolling.scheduler()]
        workers = [rolling.worker(), rolling.worker()]
    producers = Producers([first, second], api_key, rate=8)
    stack.until(lambda: stack.states().get("confirmed", 0) > 20, seconds=SLACK)

    assert stop(webs[0], seconds=END) == 0
    webs[0] = rolling.web(first)
    refused = producers.cut["ConnectionRefusedError"]
    old = set(stack.children(webs[1]))
    webs[1].send_signal(signal.SIGHUP)
    stack.until(lambda: len(new := set(stack.children(webs[1]))) == 2 and not new & old, seconds=SLACK)
    assert producers.cut["ConnectionRefusedError"] == refused
    for number in (0, 1):
        assert stop(schedulers[number], seconds=END) == 0
        schedulers[number] = rolling.scheduler()
    for number, ask in ((0, _ask_one), (1, _ask_all)):
        ask(workers[number])
        assert workers[number].wait(END) == 0
        workers[number] = rolling.worker()
    producers.stop()

    assert producers.refused == []
    assert set(producers.answers) <= {200, 201}
    stack.until(lambda: set(stack.states()) == {"confirmed"}, seconds=SLACK)
    assert {str(i) for (i,) in sql("SELECT id FROM queues_job")} == producers.ids
    bodies = Counter((line["id"], line["what"]) for line in stack.runs("rolling."))
    assert bodies == {(job, what): 1 for job in producers.ids for what in ("start", "end")}
    assert not any(line["maybe_duplicate"] for line in stack.runs("rolling."))
    assert sql("SELECT DISTINCT attempt, begun, crashes, failures::text FROM queues_job") == [(1, 1, 0, "[]")]
    _settled_truth(stack)
