"""Accepting jobs: what is stored, what is answered, what it costs. Races are in tests/concurrency."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoCaptureOnCommitCallbacks

from queues import backlog, broker, contracts, lifecycle
from queues.accept import (
    DedupeConflict,
    EnqueueError,
    Item,
    KeyInvalid,
    Overloaded,
    PayloadInvalid,
    Receipt,
    TypeDisabled,
    UnknownJobType,
    enqueue,
    enqueue_many,
)
from queues.models import DedupeKey, Job, JobType, StateCount, Tier
from queues.states import JobState, Reason
from tests.factories import (
    TYPE,
    claim,
    confirmed,
    failed,
    fold_all,
    get,
    make_type,
    set_columns,
    sql,
    state_counts,
    true_counts,
)

pytestmark = pytest.mark.django_db
SECOND = dt.timedelta(seconds=1)


class Sent(list[tuple[str, list[UUID]]]):
    """The hints that would have been published."""


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Let the queues be short, and keep hints instead of sending them."""
    hints = Sent()
    monkeypatch.setattr(broker, "is_short", lambda queue: True)

    def publish(found: Sequence[tuple[str, Sequence[UUID]]]) -> bool:
        hints.extend((queue, list(ids)) for queue, ids in found)
        return True

    monkeypatch.setattr(broker, "publish", publish)
    return hints


@pytest.fixture(autouse=True)
def kind(db: None) -> JobType:
    """A job type without any demands."""
    return make_type()


def item(payload: Any = None, **overrides: Any) -> Item:
    return Item(**{"type": TYPE, "payload": {"n": 1} if payload is None else payload, **overrides})


def change_type(**values: Any) -> None:
    JobType.objects.filter(name=TYPE).update(**values)
    contracts.forget()


# What is stored.


def test_a_new_job_is_stored_as_asked() -> None:
    """I-04: the row says what the caller said, and it is due at once."""
    receipt = enqueue(TYPE, {"n": 1}, dedupe_key="k-1", group="g-1", priority=7)
    job = get(receipt.job_id)
    assert receipt == Receipt(job_id=job.id, state=JobState.ACCEPTED)
    assert (job.type, job.tier, job.priority, job.dedupe_key, job.group) == (TYPE, 2, 7, "k-1", "g-1")
    assert (job.contract_version, job.attempt, job.fence, job.begun, job.attempt_limit) == (1, 0, 0, 0, 5)
    assert (job.window_seconds, job.root, job.replay_of, job.payload) == (60, job.id, None, '{"n":1}')
    assert job.accepted_at == job.ready_at == job.due_at
    assert job.expires_at - job.ready_at == 7 * 86400 * SECOND


def test_the_idempotency_key_comes_from_the_business_key() -> None:
    """Stable over attempts, replays and accepts; without a dedupe key it comes from the root job's id."""
    with_key, without = enqueue(TYPE, {}, dedupe_key="k-1"), enqueue(TYPE, {})
    wanted = hashlib.sha256(f"{TYPE}\x00k-1".encode()).hexdigest()[:32]
    assert get(with_key.job_id).idempotency_key == f"jb_{wanted}"
    wanted = hashlib.sha256(f"{TYPE}\x00{without.job_id}".encode()).hexdigest()[:32]
    assert get(without.job_id).idempotency_key == f"jb_{wanted}"


@pytest.mark.parametrize(
    "text",
    [
        '{"b":1e2, "a":1.0,\t"c":[1,2 ,3],"z":"\\u00e9\\/"}',
        ' {"a" : 10000000000000000000000000000000 , "b":0.1000 } ',
        '"text"',
        "[]",
        "null",
        '{"":"","é":"€😀"}',
    ],
)
def test_a_payload_is_kept_byte_for_byte(text: str) -> None:
    """H-16, scenario 24: what is delivered is what was sent, whatever JSON thinks is the same."""
    receipt = enqueue(TYPE, text.encode())
    assert get(receipt.job_id).payload == text
    [run] = claim([receipt.job_id])
    assert run.payload == text


def test_times_follow_run_at_and_delay() -> None:
    """Scenario 12: due time, window and max age count from the time the job is ready."""
    at = dt.datetime.now(dt.UTC) + dt.timedelta(hours=5)
    later = get(enqueue(TYPE, {}, run_at=at, max_age=60).job_id)
    assert later.ready_at == later.due_at == at
    assert later.expires_at == at + 60 * SECOND
    [delayed] = enqueue_many([item(delay_seconds=90)])
    job = get(delayed.job_id)
    assert job.ready_at == job.due_at == job.accepted_at + 90 * SECOND
    past = get(enqueue(TYPE, {}, run_at=at - dt.timedelta(days=2)).job_id)
    assert past.ready_at == past.accepted_at


def test_priority_defaults_to_the_contract() -> None:
    """A priority that was sent wins, also 0."""
    change_type(priority_default=5)
    assert get(enqueue(TYPE, {}).job_id).priority == 5
    assert get(enqueue(TYPE, {}, priority=0).job_id).priority == 0


def test_a_job_keeps_the_numbers_of_its_version() -> None:
    """I-44: what was promised at acceptance stays; new jobs get the new promise."""
    old = enqueue(TYPE, {})
    change_type(version=2, window_seconds=5, max_attempts=2, max_age_seconds=10)
    new = get(enqueue(TYPE, {}).job_id)
    assert (new.contract_version, new.window_seconds, new.attempt_limit) == (2, 5, 2)
    kept = get(old.job_id)
    assert (kept.contract_version, kept.window_seconds, kept.attempt_limit) == (1, 60, 5)


# What is answered.


def test_the_same_request_returns_its_job() -> None:
    """I-05: the holder is returned in whatever state, with evidence and result."""
    first = enqueue(TYPE, {"n": 1}, dedupe_key="k")
    assert enqueue(TYPE, {"n": 1}, dedupe_key="k") == Receipt(
        job_id=first.job_id, state=JobState.ACCEPTED, duplicate=True
    )
    [run] = claim([first.job_id])
    lifecycle.settle([confirmed(run, ref="mail-7", result={"id": 7})])
    again = enqueue(TYPE, b'{ "n" : 1 }', dedupe_key="k")
    assert (again.job_id, again.state, again.duplicate, again.result) == (
        first.job_id,
        JobState.CONFIRMED,
        True,
        {"id": 7},
    )
    assert again.evidence is not None
    assert again.evidence["ref"] == "mail-7"
    assert Job.objects.count() == 1


@pytest.mark.parametrize(
    ("payload", "group"), [({"n": 2}, None), ({"n": 1}, "other"), (b'{"n":1.0}', None), (b'{"n":true}', None)]
)
def test_another_request_under_the_key_is_refused(payload: Any, group: str | None) -> None:
    """I-07: the stored job stays as it was; 1 and 1.0 differ, and the group belongs to the request."""
    first = enqueue(TYPE, {"n": 1}, dedupe_key="k")
    before = sql("SELECT to_jsonb(j)::text FROM queues_job j")
    with pytest.raises(DedupeConflict) as refused:
        enqueue(TYPE, payload, dedupe_key="k", group=group)
    assert refused.value.job_id == first.job_id
    assert sql("SELECT to_jsonb(j)::text FROM queues_job j") == before


def test_keys_are_per_type_and_exact() -> None:
    """Another type's key is another key; so is the same word in capitals."""
    make_type("other.job")
    ids = {enqueue(kind, {}, dedupe_key=key).job_id for kind in (TYPE, "other.job") for key in ("k", "K")}
    assert len(ids) == 4


def test_repeats_inside_a_batch_are_paired() -> None:
    """Scenario 6: the first of a key is stored, its repeats are duplicates of it, another payload is a conflict."""
    answers = enqueue_many(
        [
            item(dedupe_key="a"),
            item(dedupe_key="a"),
            item({"n": 2}, dedupe_key="a"),
            item(),
            item(),
            item(dedupe_key="b"),
        ],
        on_error="return",
    )
    first, repeat, conflict, *rest = answers
    assert isinstance(first, Receipt)
    assert repeat == Receipt(job_id=first.job_id, state=JobState.ACCEPTED, duplicate=True)
    assert isinstance(conflict, DedupeConflict)
    assert conflict.job_id == first.job_id
    assert all(isinstance(one, Receipt) and not one.duplicate for one in rest)
    assert Job.objects.count() == 4


def test_repeats_of_a_held_key_get_the_holder() -> None:
    """Scenario 6: also when the first of the batch was a duplicate or a conflict itself."""
    held = enqueue(TYPE, {"n": 1}, dedupe_key="a").job_id
    answers = enqueue_many([item({"n": 2}, dedupe_key="a"), item({"n": 1}, dedupe_key="a")], on_error="return")
    assert isinstance(answers[0], DedupeConflict)
    assert answers[1] == Receipt(job_id=held, state=JobState.ACCEPTED, duplicate=True)


def test_jobs_are_stored_in_request_order() -> None:
    """Ids ascend with the positions of the batch, keys or not."""
    receipts = enqueue_many([item(dedupe_key=key) for key in ("z", "a", "m", None, "b")])
    ids = [receipt.job_id for receipt in receipts]
    assert ids == sorted(ids)
    assert [get(i).dedupe_key for i in ids] == ["z", "a", "m", None, "b"]


def test_raise_is_all_or_nothing() -> None:
    """I-39: the savepoint is rolled back, the error says which item it was, and the caller's work stays."""
    make_type("caller.work")
    with pytest.raises(PayloadInvalid) as refused:
        enqueue_many([item(dedupe_key="a"), item(), item(b"{")])
    assert refused.value.position == 2
    assert (Job.objects.count(), DedupeKey.objects.count()) == (0, 0)
    assert JobType.objects.filter(name="caller.work").exists()


def test_return_stores_what_is_right() -> None:
    """I-39: each item has its own answer, in request order."""
    answers = enqueue_many(
        [item(), item(b"{"), item(type="nobody"), item(dedupe_key=""), item(priority=101)], on_error="return"
    )
    assert [type(answer) for answer in answers] == [Receipt, PayloadInvalid, UnknownJobType, KeyInvalid, PayloadInvalid]
    assert Job.objects.count() == 1


def test_a_disabled_type_takes_no_jobs() -> None:
    """`enabled` is read inside the statement: a cache that is two seconds old opens no door."""
    JobType.objects.filter(name=TYPE).update(enabled=False)
    for key in (None, "k"):
        with pytest.raises(TypeDisabled):
            enqueue(TYPE, {}, dedupe_key=key)
    contracts.forget()
    with pytest.raises(TypeDisabled):
        enqueue(TYPE, {})
    assert (Job.objects.count(), DedupeKey.objects.count()) == (0, 0)


def test_a_paused_type_takes_jobs() -> None:
    """Paused types still accept."""
    change_type(paused=True)
    assert enqueue(TYPE, {}).state == JobState.ACCEPTED


def test_a_payload_is_held_against_the_schema() -> None:
    """The answer says where and what."""
    change_type(schema={"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}})
    with pytest.raises(PayloadInvalid) as refused:
        enqueue(TYPE, {"id": "seven"})
    assert refused.value.pointer == "/payload/id"
    assert enqueue(TYPE, {"id": 7}).state == JobState.ACCEPTED


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "invalid_json"),
        (b'{"a":1,"a":2}', "duplicate_key"),
        ({"x": float("nan")}, "invalid_json"),
        ({"x": object()}, "invalid_json"),
        ({"x": "\ud800"}, "invalid_unicode"),
        (b'"' + b"x" * 262_143 + b'"', "payload_too_large"),
    ],
)
def test_bad_payloads_are_refused(payload: Any, code: str) -> None:
    """Nothing that PostgreSQL or a reader could stumble over is stored."""
    with pytest.raises(PayloadInvalid) as refused:
        enqueue(TYPE, payload)
    assert refused.value.code == code


def test_the_key_template_makes_the_key() -> None:
    """A sent key beats the template; without the field there is no key to make."""
    change_type(key_template="invoice-{id}", key_required=True)
    assert get(enqueue(TYPE, {"id": 7}).job_id).dedupe_key == "invoice-7"
    assert get(enqueue(TYPE, {"id": 7, "x": 1}, dedupe_key="own").job_id).dedupe_key == "own"
    with pytest.raises(KeyInvalid):
        enqueue(TYPE, {})


def test_a_required_key_is_required() -> None:
    """No key, no template: refused."""
    change_type(key_required=True)
    with pytest.raises(KeyInvalid):
        enqueue(TYPE, {})


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "a\n", "\x00", "x" * 256, 7, "a\u200b"])
def test_invalid_keys_are_refused(key: Any) -> None:
    """Scenario 24: keys are header values, 1 to 255 visible ASCII characters."""
    with pytest.raises(KeyInvalid):
        enqueue(TYPE, {}, dedupe_key=key)


@pytest.mark.parametrize("key", ["4", "x" * 255, "~!\"#$%&'()*+,-./:;<=>?@[]^_`{|}"])
def test_unusual_keys_are_taken(key: str) -> None:
    """Short, long and strange ones."""
    assert get(enqueue(TYPE, {}, dedupe_key=key).job_id).dedupe_key == key


UTC_MAX = dt.datetime.max.replace(tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "wrong",
    [
        {"priority": -101},
        {"max_age": 0},
        {"max_age": -1},
        {"max_age": float("nan")},
        {"max_age": float("inf")},
        {"max_age": 366 * 86400},
        {"group": "a b"},
        {"run_at": dt.datetime(2030, 1, 1)},  # noqa: DTZ001 (the point: no time zone)
        {"run_at": dt.datetime(2030, 1, 1, tzinfo=dt.UTC), "delay_seconds": 1},
        {"run_at": UTC_MAX},
        {"delay_seconds": float("inf")},
        {"delay_seconds": float("nan")},
        {"delay_seconds": -1},
        {"delay_seconds": 1e15},
        {"delay_seconds": 9e10},
    ],
    ids=str,
)
def test_bad_numbers_and_times_are_refused(wrong: dict[str, Any]) -> None:
    """Each is this item's error: never the database's, never another meaning, never a row nobody can read."""
    answer, neighbour = enqueue_many([item(**wrong), item()], on_error="return")
    assert isinstance(answer, EnqueueError)
    assert isinstance(neighbour, Receipt)
    assert Job.objects.get().id == neighbour.job_id


# When a key is let go.


def _settle(job_id: UUID) -> None:
    [run] = claim([job_id])
    lifecycle.settle([confirmed(run)])


def test_a_key_is_let_go_after_its_window_and_its_job(shift_clock: Callable[[str], None]) -> None:
    """Scenario 7: neither the window alone nor the end of the job alone frees a key."""
    change_type(dedupe_window_seconds=3600)
    first = enqueue(TYPE, {"n": 1}, dedupe_key="k").job_id
    shift_clock("2 hours")
    assert enqueue(TYPE, {"n": 1}, dedupe_key="k").job_id == first, "its job still lives"
    with pytest.raises(DedupeConflict):
        enqueue(TYPE, {"n": 2}, dedupe_key="k")
    _settle(first)
    second = enqueue(TYPE, {"n": 2}, dedupe_key="k")
    assert (second.duplicate, second.job_id != first) == (False, True)
    _settle(second.job_id)
    assert enqueue(TYPE, {"n": 2}, dedupe_key="k").duplicate, "its window is open"
    assert DedupeKey.objects.get().job_id == second.job_id


def test_without_a_window_a_key_stays(shift_clock: Callable[[str], None]) -> None:
    """Scenario 7: the default is as long as the job's row is kept."""
    first = enqueue(TYPE, {"n": 1}, dedupe_key="k").job_id
    _settle(first)
    shift_clock("300 days")
    assert enqueue(TYPE, {"n": 1}, dedupe_key="k").job_id == first


def test_a_key_does_not_outlive_its_row() -> None:
    """Scenario 7: never longer: a duplicate is not answered with a job that is gone."""
    first = enqueue(TYPE, {"n": 1}, dedupe_key="k").job_id
    _settle(first)
    sql("DELETE FROM queues_job")
    second = enqueue(TYPE, {"n": 1}, dedupe_key="k")
    assert (second.duplicate, second.job_id != first) == (False, True)


def test_a_window_counts_from_the_time_the_job_is_ready(shift_clock: Callable[[str], None]) -> None:
    """Scenario 12: a job for tomorrow with a window of an hour keeps its key until tomorrow and an hour."""
    change_type(dedupe_window_seconds=3600)
    first = enqueue(TYPE, {}, dedupe_key="k", run_at=dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).job_id
    shift_clock("24 hours 30 minutes")
    _settle(first)
    assert enqueue(TYPE, {}, dedupe_key="k").job_id == first
    shift_clock("25 hours 1 minute")
    assert enqueue(TYPE, {}, dedupe_key="k").job_id != first


def test_the_replay_holds_the_key(shift_clock: Callable[[str], None]) -> None:
    """Scenario 15: after a replay duplicates get the newest job, and its life keeps the key."""
    change_type(dedupe_window_seconds=3600)
    first = enqueue(TYPE, {"n": 1}, dedupe_key="k").job_id
    [run] = claim([first])
    lifecycle.settle([failed(run, reason="permanent_error")])
    child = lifecycle.replay(first, by="me")
    assert child is not None
    shift_clock("2 hours")
    assert enqueue(TYPE, {"n": 1}, dedupe_key="k").job_id == child
    _settle(child)
    assert enqueue(TYPE, {"n": 1}, dedupe_key="k").job_id not in (first, child)


def test_a_cancelled_job_keeps_its_key() -> None:
    """DESIGN 5: it is brought back by replay, not by its key."""
    from_key = enqueue(TYPE, {"n": 1}, dedupe_key="k").job_id
    lifecycle.cancel([from_key], reason=Reason.OPERATOR)
    assert enqueue(TYPE, {"n": 1}, dedupe_key="k") == Receipt(job_id=from_key, state=JobState.CANCELLED, duplicate=True)


def test_a_key_without_its_job_is_found_free() -> None:
    """A holder that was rolled back between the two statements: the key is tried again."""
    gone = DedupeKey.objects.create(type=TYPE, key="k", request_hash=b"x" * 32, job_id=uuid4())
    sql("UPDATE queues_dedupekey SET expires_at = jobs_now() - interval '1 s'")
    receipt = enqueue(TYPE, {}, dedupe_key="k")
    assert (receipt.duplicate, receipt.job_id != gone.job_id) == (False, True)


# Transactions and hints.


def test_rolled_back_with_its_caller(
    sent: Sent, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    """I-02: no row, no key, no count, no message."""
    with django_capture_on_commit_callbacks(execute=True), pytest.raises(ZeroDivisionError), transaction.atomic():
        enqueue(TYPE, {}, dedupe_key="k")
        enqueue_many([item(), item()])
        _ = 1 / 0
    assert (Job.objects.count(), DedupeKey.objects.count(), sent) == (0, 0, [])
    assert sql("SELECT count(*) FROM queues_outcomedelta") == [(0,)]


def test_a_hint_is_sent_after_the_commit(
    sent: Sent, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    """I-02: not before; and the row says that it was, so that the stage does not send a second one."""
    with django_capture_on_commit_callbacks(execute=True):
        job_id = enqueue(TYPE, {}).job_id
        assert sent == []
    assert sent == [("tier2", [job_id])]
    job = get(job_id)
    assert job.published_at == job.accepted_at
    assert lifecycle.stageable([lifecycle.Ask(2, TYPE, 10)]) == {}
    set_columns(job_id, raw_published_at="jobs_now() - interval '11 s'")
    assert [due.id for due in lifecycle.stageable([lifecycle.Ask(2, TYPE, 10)])[TYPE]] == [job_id], (
        "I-21: a lost hint is sent again"
    )


def test_what_is_not_due_is_not_hinted(
    sent: Sent, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    """A job for later waits for the stage."""
    with django_capture_on_commit_callbacks(execute=True):
        job_id = enqueue(TYPE, {}, run_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).job_id
    assert sent == []
    assert get(job_id).published_at is None


@pytest.mark.parametrize("switch", ["paused", "deferred"])
def test_what_is_held_back_is_not_hinted(
    switch: str, sent: Sent, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    """A claim would only refuse it."""
    JobType.objects.update(**{switch: True})
    contracts.forget()
    with django_capture_on_commit_callbacks(execute=True):
        job_id = enqueue(TYPE, {}).job_id
    assert (sent, get(job_id).published_at) == ([], None)


def test_a_long_queue_leaves_publishing_to_the_stage(
    sent: Sent, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    """DESIGN 8: so does a large batch."""
    with django_capture_on_commit_callbacks(execute=True):
        enqueue_many([item() for _ in range(20)])
        monkeypatch.setattr(broker, "is_short", lambda queue: False)
        enqueue(TYPE, {})
    assert sent == []
    assert sql("SELECT count(*) FROM queues_job WHERE published_at IS NOT NULL") == [(0,)]


def test_a_duplicate_sends_no_hint(
    sent: Sent, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    """Nothing new happened."""
    enqueue(TYPE, {}, dedupe_key="k")
    with django_capture_on_commit_callbacks(execute=True):
        enqueue(TYPE, {}, dedupe_key="k")
    assert sent == []


# What it costs.


class Statements(list[str]):
    """The statements of a block, without those that begin and end transactions and savepoints."""

    def __enter__(self) -> Statements:
        self._seen = CaptureQueriesContext(connection)
        self._seen.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._seen.__exit__(*error)
        frames = ("SAVEPOINT", "RELEASE", "BEGIN", "COMMIT", "ROLLBACK")
        self.extend(q["sql"] for q in self._seen.captured_queries if not q["sql"].lstrip().startswith(frames))


@pytest.fixture
def warm(kind: JobType) -> Iterator[None]:
    """Contracts are cached, as they are in a process that has run for a moment."""
    contracts.all_current()
    yield


@pytest.mark.parametrize("keyed", [False, True])
def test_a_hundred_jobs_cost_a_handful_of_statements(keyed: bool, warm: None) -> None:
    """Batches by nature: accept at most 2, claim 1, finish 1, deltas included."""
    with Statements() as accepting:
        receipts = enqueue_many([item({"n": n}, dedupe_key=f"k{n}" if keyed else None) for n in range(100)])
    with Statements() as claiming:
        runs = claim([r.job_id for r in receipts])
    with Statements() as finishing:
        lifecycle.settle([confirmed(run) for run in runs])
    assert len(accepting) <= 2
    assert len(claiming) == len(finishing) == 1
    fold_all()
    assert state_counts() == true_counts() == {}
    assert sql("SELECT accepted, runs, confirmed FROM queues_outcomerollup WHERE grain = 'day'") == [(100, 100, 100)]


def test_duplicates_cost_one_statement_more(warm: None) -> None:
    """Holders are read once for the whole batch, and duplicates are counted once."""
    enqueue_many([item(dedupe_key=f"k{n}") for n in range(50)])
    with Statements() as accepting:
        receipts = enqueue_many([item(dedupe_key=f"k{n % 75}") for n in range(100)])
    assert len(accepting) <= 3
    assert sum(r.duplicate for r in receipts) == 75
    fold_all()
    assert sql("SELECT accepted, duplicates FROM queues_outcomerollup WHERE grain = 'day'") == [(75, 75)]


@pytest.mark.django_db
def test_a_full_tier_takes_nothing() -> None:
    """I-39: a tier over its backlog limit answers Overloaded and stores nothing."""
    make_type("full.type", tier_id=3)
    Tier.objects.filter(number=3).update(backlog_limit=5)
    StateCount.objects.create(type="full.type", tier=3, state="accepted", n=5)
    backlog.forget_cached()
    with pytest.raises(Overloaded):
        enqueue("full.type", {})
    assert not Job.objects.filter(type="full.type").exists()
