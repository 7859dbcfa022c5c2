"""The rate of one API key, spent by many at once: exact, used, and no reason to wait for long."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from django.db import transaction
from django.test import Client

from jobsboard.api import database, jobs, keys, rate
from jobsboard.api.keys import Key
from jobsboard.api.problems import Problem
from jobsboard.models import SCOPES, ApiKeyBucket
from queues import contracts
from queues.models import Job
from tests.concurrency.rivals import DEADLINE, Rival, outcomes, together
from tests.factories import make_type, sql

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db")]

THREADS = 8


@pytest.fixture(autouse=True)
def _fresh_keys() -> Iterator[None]:
    keys.forget_cached()
    yield
    keys.forget_cached()


def rated(per_second: float, burst: int) -> tuple[Key, str]:
    text = keys.issue_key(label="rated", scopes=SCOPES, rate_per_second=per_second, rate_burst=burst)[1]
    key = keys.authenticate(f"Bearer {text}")
    assert key is not None
    return key, text


def clock() -> float:
    at: float = sql("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0]
    return at


def send(text: str) -> Any:
    body = json.dumps({"type": "billing.receipt", "payload": {}}).encode()
    headers = {"Authorization": f"Bearer {text}"}
    return Client().post("/api/v1/jobs", body, content_type="application/json", headers=headers)


def test_many_at_once_never_take_more_and_leave_little() -> None:
    """8 threads, singles and batches that fit: at most burst + rate x time, and at least 80 percent of that."""
    burst, per_second, seconds = 60, 60.0, 1.5
    key, _ = rated(per_second, burst)
    over = threading.Event()

    def spend(size: int) -> tuple[int, int]:
        taken = refused = 0
        while not over.is_set():
            try:
                rate.spend(key, jobs=size)
                taken += size
            except Problem:
                refused += 1
                # Between two tries of one thread: eight that never pause would starve the one that ends them.
                over.wait(0.002)
        return taken, refused

    begun = clock()
    threading.Timer(seconds, over.set).start()
    found = outcomes(together(*[partial(spend, 1 + number % 3) for number in range(THREADS)]))
    took = clock() - begun
    most = burst + per_second * took
    taken = sum(one for one, _ in found)
    assert taken <= most
    assert taken >= 0.8 * (burst + per_second * seconds)
    assert all(refused > 0 for _, refused in found)
    # What is said to be left is what was not taken.
    [bucket] = ApiKeyBucket.objects.all()
    assert bucket.tokens <= most - taken


def test_the_first_requests_of_a_key_share_one_bucket() -> None:
    """None has a row yet: eight that make it at once are given one burst, not eight."""
    key, _ = rated(0.001, 5)

    def spend() -> int:
        taken = 0
        for _ in range(3):
            try:
                rate.spend(key, jobs=1)
                taken += 1
            except Problem as error:
                assert error.code == "rate_limited"
        return taken

    assert sum(outcomes(together(*[spend] * THREADS))) == 5


def test_over_http_what_is_answered_is_what_is_stored() -> None:
    make_type("billing.receipt")
    contracts.forget()
    _, text = rated(0.001, 5)

    def post() -> list[int]:
        return [send(text).status_code for _ in range(2)]

    found = [status for statuses in outcomes(together(*[post] * THREADS)) for status in statuses]
    assert sorted(found) == [201] * 5 + [429] * (2 * THREADS - 5)
    assert Job.objects.count() == 5


def test_who_waits_too_long_for_the_bucket_is_answered_as_by_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with Retry-After, nothing stored, nothing spent; other keys go on meanwhile."""
    make_type("billing.receipt")
    contracts.forget()
    key, text = rated(0.001, 5)
    _, other = rated(0.001, 5)
    assert send(text).status_code == 201
    monkeypatch.setattr(database, "STATEMENT_SECONDS", 0.3)
    has, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            rate.spend(key, jobs=1)
            has.set()
            assert enough.wait(DEADLINE)
            transaction.set_rollback(True)

    holder = Rival(hold)
    assert has.wait(DEADLINE)
    answer = send(text)
    monkeypatch.setattr(database, "STATEMENT_SECONDS", 3)
    assert send(other).status_code == 201
    assert holder.is_alive()
    enough.set()
    holder.outcome()
    assert (answer.status_code, json.loads(answer.content)["code"]) == (503, "unavailable")
    assert int(answer["Retry-After"]) >= 1
    assert Job.objects.count() == 2
    assert [send(text).status_code for _ in range(5)] == [201] * 4 + [429]


def test_it_is_spent_before_accept_and_in_no_transaction_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """While jobs are accepted the bucket is free for others, and an accept that fails gives nothing back.

    Were its row still locked, the rival would end with a time-out.
    """
    make_type("billing.receipt")
    contracts.forget()
    key, text = rated(0.001, 3)
    seen: list[str] = []

    def fail(*args: Any, **kwargs: Any) -> Any:
        seen.append(sql("SELECT current_setting('synchronous_commit')")[0][0])
        Rival(partial(rate.spend, key, jobs=1)).outcome()
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "enqueue_many", fail)
        assert send(text).status_code == 500
    # What accept stores is kept: only the transaction of the bucket waits for no disk.
    assert seen == ["on"]
    assert [send(text).status_code for _ in range(2)] == [201, 429]
