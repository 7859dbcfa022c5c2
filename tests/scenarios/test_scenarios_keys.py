"""Scenarios of keys, accepts and replays: 6, 7, 15 and 24."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from django.db import OperationalError, connection, transaction

from jobsboard.testing import run_pending
from queues import actions, edited_replay, handlers, lifecycle, outbound
from queues.accept import DedupeConflict, Item, KeyInvalid, Receipt, enqueue, enqueue_many
from queues.handlers import Confirmed, JobContext, PermanentError
from queues.models import DedupeKey, Job
from queues.states import JobState
from tests.api.conftest import Api
from tests.concurrency.rivals import Rival, sqlstate
from tests.factories import TYPE, claim, confirmed, failed, get, make_type, sql
from tests.scenarios.conftest import open_transaction

S = JobState
HOUR = dt.timedelta(hours=1)


# Scenario 6.


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize("winner", ["commits", "rolls back", "had another payload"])
def test_scenario_06_the_loser_of_a_dedupe_race_gets_an_answer(winner: str) -> None:
    """Scenario 6, I-06, I-07: the winner's transaction is open when the loser comes. It waits, and learns what its own
    snapshot cannot show: the winner's job, that it is free to insert, or that the payload differs."""
    make_type()
    first: list[Receipt] = []

    def accept_first() -> None:
        first.append(enqueue(TYPE, {"n": 2 if winner == "had another payload" else 1}, dedupe_key="k"))

    with open_transaction(accept_first, roll_back=winner == "rolls back"):
        loser: Rival[Receipt] = Rival(lambda: enqueue(TYPE, {"n": 1}, dedupe_key="k"), lock_timeout="8s")
        assert loser.waits()
    if winner == "had another payload":
        with pytest.raises(DedupeConflict) as refused:
            loser.outcome()
        assert refused.value.job_id == first[0].job_id
    else:
        told = loser.outcome()
        assert told.duplicate == (winner == "commits")
        assert (told.job_id == first[0].job_id) == (winner == "commits")
    assert Job.objects.count() == DedupeKey.objects.count() == 1


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
def test_scenario_06_a_snapshot_of_the_caller_is_the_callers_to_retry() -> None:
    """Scenario 6: in REPEATABLE READ the loser cannot be told anything true: 40001, nothing stored, and a second try
    in a new transaction is a duplicate."""
    make_type()
    with pytest.raises(OperationalError) as raised, transaction.atomic():
        sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        sql("SELECT 1 FROM queues_job")
        first = Rival(lambda: enqueue(TYPE, {}, dedupe_key="k")).outcome()
        enqueue(TYPE, {}, dedupe_key="k")
    assert sqlstate(raised.value) == "40001"
    assert enqueue(TYPE, {}, dedupe_key="k") == Receipt(job_id=first.job_id, state=S.ACCEPTED, duplicate=True)


@pytest.mark.usefixtures("world")
def test_scenario_06_a_key_twice_in_one_batch() -> None:
    """Scenario 6: the second item is paired with the first in code: duplicate, or conflict when it differs, where the
    database alone says nothing (DO NOTHING) or 21000 (DO UPDATE)."""
    make_type()
    items = [Item(type=TYPE, payload={"n": n}, dedupe_key=key) for n, key in ((1, "a"), (1, "a"), (2, "a"), (1, "b"))]
    a, again, other, b = enqueue_many(items, on_error="return")
    assert isinstance(a, Receipt) and isinstance(again, Receipt) and isinstance(b, Receipt)
    assert (again.job_id, again.duplicate, a.duplicate) == (a.job_id, True, False)
    assert isinstance(other, DedupeConflict) and other.job_id == a.job_id
    assert b.job_id != a.job_id
    assert Job.objects.count() == 2


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
def test_scenario_06_waiting_for_an_uncommitted_accept_ends(make_api: Callable[..., Api]) -> None:
    """Scenario 6, I-42: over HTTP the wait ends at the lock time-out: 503 `retryable` with Retry-After, nothing stored;
    the next try, after the other one committed, is the duplicate."""
    make_type()
    api, body = make_api(), {"type": TYPE, "payload": {}, "dedupe_key": "k"}
    connection.close()
    with open_transaction(lambda: enqueue(TYPE, {}, dedupe_key="k")):
        sql("SET lock_timeout = '300ms'")
        answer = api.post("/jobs", body)
    assert (answer.status_code, answer.json()["retryable"], int(answer["Retry-After"]) > 0) == (503, True, True)
    again = api.post("/jobs", body)
    assert (again.status_code, again["Idempotency-Replayed"], Job.objects.count()) == (200, "true", 1)


# Scenario 7.


@pytest.mark.usefixtures("world")
def test_scenario_07_a_key_lives_as_long_as_its_job(shift_clock: Callable[[str], None]) -> None:
    """Scenario 7, promise 2: the window of an hour is over and the job still retries: its key is not let go, else two
    jobs of one key would run at once. When it has settled, the key is free."""
    make_type(dedupe_window_seconds=3600, backoff="fixed", backoff_base_seconds=4 * 3600.0, backoff_cap_seconds=86400.0)
    first = enqueue(TYPE, {}, dedupe_key="k")
    [run] = claim([first.job_id])
    lifecycle.settle([failed(run, retry_in=4 * 3600.0)])
    shift_clock("3 hours")
    assert enqueue(TYPE, {}, dedupe_key="k").job_id == first.job_id
    shift_clock("5 hours")
    lifecycle.settle([confirmed(claim([first.job_id])[0])])
    second = enqueue(TYPE, {}, dedupe_key="k")
    assert not second.duplicate
    assert enqueue(TYPE, {}, dedupe_key="k").job_id == second.job_id


@pytest.mark.usefixtures("world")
def test_scenario_07_a_cancelled_job_keeps_its_key_and_comes_back_by_replay() -> None:
    """Scenario 7: cancelled by mistake before its first run; a second enqueue is told so (200 would mean "it runs"),
    and a replay brings the job back under the same key."""
    make_type(success="return")
    handlers.handler(TYPE)(lambda job: Confirmed("r"))
    first = enqueue(TYPE, {}, dedupe_key="k")
    actions.cancel_job(first.job_id, actor="ada", reason="by mistake", source="ui")
    told = enqueue(TYPE, {}, dedupe_key="k")
    assert (told.job_id, told.duplicate, told.state) == (first.job_id, True, S.CANCELLED)
    child = actions.replay_job(first.job_id, actor="ada", reason="it was a mistake", source="ui")
    run_pending()
    told = enqueue(TYPE, {}, dedupe_key="k")
    assert (told.job_id, told.state) == (child, S.CONFIRMED)


@pytest.mark.usefixtures("world")
def test_scenario_07_a_key_shows_nobody_elses_job(make_api: Callable[..., Api]) -> None:
    """Scenario 7, H-08: a key that is held in another type is free here; a type that an API key may not use does not
    exist for it, whatever business key it names."""
    make_type("a.mail")
    make_type("b.mail")
    mine, body = make_api(type_patterns=("a.*",)), {"payload": {}, "dedupe_key": "k"}
    theirs = enqueue("b.mail", {}, dedupe_key="k")
    assert mine.post("/jobs", {**body, "type": "a.mail"}).status_code == 201
    answer = mine.post("/jobs", {**body, "type": "b.mail"})
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_job_type")
    assert str(theirs.job_id) not in answer.content.decode()


# Scenario 15.


@pytest.fixture
def dead(world: None) -> UUID:
    """A dead letter with a key, whose run may have done its work."""
    make_type(success="reference", max_attempts=1)
    receipt = enqueue(TYPE, {"to": "a"}, dedupe_key="k")
    lifecycle.settle([failed(claim([receipt.job_id])[0])])
    return receipt.job_id


def replay(job_id: UUID, **values: Any) -> UUID:
    """Replay as a person does."""
    return actions.replay_job(job_id, actor="ada", reason="again", source="ui", **values)


def test_scenario_15_a_lineage_has_one_newest_job(dead: UUID) -> None:
    """Scenario 15: the child died as well. Replaying the original now would fork the lineage: refused; only the newest
    is replayed, and the key follows."""
    child = replay(dead)
    with pytest.raises(actions.NotReplayable) as refused:
        replay(dead)
    assert refused.value.code == "already_replayed"
    lifecycle.settle([failed(claim([child])[0])])
    with pytest.raises(actions.NotReplayable):
        replay(dead)
    grandchild = replay(child)
    assert sql("SELECT id, replay_of, root FROM queues_job ORDER BY id") == [
        (dead, None, dead), (child, dead, dead), (grandchild, child, dead),
    ]  # fmt: skip
    assert DedupeKey.objects.get().job_id == grandchild


def test_scenario_15_after_an_edited_replay_the_producers_retry_is_still_known(dead: UUID) -> None:
    """Scenario 15: the key keeps the first request hash, so the old payload is a duplicate of the newest job, and the
    edited one a conflict; the provider's key stays and the person is told."""
    edited = edited_replay.prepare(get(dead), payload={"to": "b"})
    child = replay(dead, edit=edited.edit, diff=edited.diff)
    again = enqueue(TYPE, {"to": "a"}, dedupe_key="k")
    assert (again.job_id, again.duplicate) == (child, True)
    with pytest.raises(DedupeConflict):
        enqueue(TYPE, {"to": "b"}, dedupe_key="k")
    assert get(child).idempotency_key == get(dead).idempotency_key
    assert any("idempotency key" in note for note in edited.notes)
    assert get(dead).payload == '{"to":"a"}'


def test_scenario_15_the_first_run_of_a_replay_asks_the_world(dead: UUID) -> None:
    """Scenario 15: the dangerous run is the *first* one of a replay: it is told that it may be a duplicate, and the
    check is asked before it. What the world knows is not done again."""
    seen: list[bool] = []
    answers: list[Confirmed | None] = [None, Confirmed("msg-1")]
    handlers.check(TYPE)(lambda job: answers.pop(0))

    @handlers.handler(TYPE)
    def send(job: JobContext) -> Confirmed:
        seen.append(job.maybe_duplicate)
        raise PermanentError("550")

    first = replay(dead)
    run_pending()
    assert (get(first).state, seen) == (S.DEAD, [True])
    second = replay(first)
    run_pending()
    assert (get(second).state, seen, answers) == (S.CONFIRMED, [True], [])


def test_scenario_15_a_key_that_moved_on_is_not_taken_back(dead: UUID) -> None:
    """Scenario 15, R-02: the window is over and a newer job holds the key: 409, nothing marked, nothing inserted."""
    sql("UPDATE queues_dedupekey SET expires_at = jobs_now() - interval '1 s'")
    newer = enqueue(TYPE, {"to": "a"}, dedupe_key="k")
    assert not newer.duplicate
    with pytest.raises(actions.NotReplayable) as refused:
        replay(dead)
    assert refused.value.code == "key_moved_on"
    assert (get(dead).replayed_by, Job.objects.count()) == (None, 2)


# Scenario 24.


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("key", ["", "é", "a b", "a\r\nX: 1", "a\tb", "k" * 256, "\u200b"])
def test_scenario_24_a_key_that_breaks_a_header_is_refused(key: str, make_api: Callable[..., Api]) -> None:
    """Scenario 24: keys become header values and part of a signed text."""
    make_type()
    with pytest.raises(KeyInvalid):
        enqueue(TYPE, {}, dedupe_key=key)
    answer = make_api().post("/jobs", {"type": TYPE, "payload": {}, "dedupe_key": key})
    assert (answer.status_code, answer.json()["code"]) == (400, "dedupe_key_invalid")
    assert Job.objects.count() == 0


@pytest.mark.usefixtures("world")
def test_scenario_24_a_short_key_and_a_templated_one_are_fine() -> None:
    """Scenario 24: `42` is an order number; a payload value outside visible ASCII is percent-encoded, so that two
    different ones stay different."""
    make_type(key_template="order-{name}")
    assert get(enqueue(TYPE, {"name": "x"}, dedupe_key="42").job_id).dedupe_key == "42"
    keys = {get(enqueue(TYPE, {"name": name}).job_id).dedupe_key for name in ("é", "e", "e b", "e\nb")}
    assert len(keys) == 4
    assert all(key and key.isascii() and key.isprintable() and " " not in key for key in keys)


BYTES = '{ "b":1e2,"a":1.0, "t":"\\u00e9",\n"n":12345678901234567890}'


@pytest.mark.usefixtures("world")
def test_scenario_24_a_replay_is_another_webhook_of_the_same_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenario 24: the receiver has acknowledged the first `webhook-id`, so a replay has its own; the business key in
    `Idempotency-Key` stays. The body is, byte for byte, what the producer sent, and what the hash was taken of."""
    sent: list[tuple[bytes, dict[str, str]]] = []

    def post(url: str, *, body: bytes, headers: dict[str, str]) -> outbound.Answer:
        sent.append((body, headers))
        return outbound.Answer(status=422, body=b"no", headers={}, seconds=0.1)

    monkeypatch.setattr(outbound, "post", post)
    monkeypatch.setenv("SHOP_SECRET", "a plain secret, taken as it is")
    make_type(handler="http", target_url="https://shop.example/jobs", target_secret_env="SHOP_SECRET")
    first = enqueue(TYPE, BYTES, dedupe_key="order-1")
    run_pending()
    assert get(first.job_id).state == S.DEAD
    child = replay(first.job_id)
    run_pending()
    assert [headers["webhook-id"] for _, headers in sent] == [str(first.job_id), str(child)]
    assert len({headers["Idempotency-Key"] for _, headers in sent}) == 1
    assert {body for body, _ in sent} == {BYTES.encode()}
    assert enqueue(TYPE, '{"a":1.0,"b":100.0,"n":12345678901234567890,"t":"é"}', dedupe_key="order-1").duplicate
