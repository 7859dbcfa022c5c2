"""The race matrix: whatever can happen to one job, beside whatever else can, in both orders (I-09, I-10, I-31).

The first one has done its statement and holds the row; the second one comes. Who must act on this very row waits for
it; sweeps, claims and heartbeats pass by and come again. Then the first one commits, or is rolled back. What each is
told, and what the row then says, stands in `race_table`.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from django.db import transaction
from pytest_django import DjangoDbBlocker

from queues import actions, broker, confirmation, contracts, lifecycle
from queues.accept import Item, enqueue_many
from queues.confirmation import Evidence
from queues.lifecycle import End, Verdict
from queues.models import AuditEntry, DedupeKey, Job
from queues.states import OPEN, TERMINAL, TRANSITIONS, JobState
from tests.concurrency.race_table import COSTS, NOTHING, ON_RECORD, SITUATIONS, TEN, VERBS, Cell
from tests.concurrency.rivals import Second, committing_database
from tests.factories import TYPE, WORKER, make_type, sql
from tests.old_days import days_ago, make_old_job, make_partition, part_of

pytestmark = pytest.mark.concurrency
S = JobState
WHO: Final[dict[str, Any]] = {"actor": "ada", "reason": "why", "source": "api"}


# What each verb does, and the word for what its caller is told.


def _settle(verdict: Verdict, **values: Any) -> Callable[[UUID], str]:
    return lambda i: lifecycle.settle([End(id=i, fence=1, verdict=verdict, **values)]).get((i, 1), "superseded")


def _sweep(statement: Callable[[list[UUID]], dict[UUID, JobState]]) -> Callable[[UUID], str]:
    return lambda i: statement([i]).get(i, "nothing")


def _heartbeat(job_id: UUID) -> str:
    held = lifecycle.heartbeat([(job_id, 1, 15.0)])
    return "lost" if not held else "held, stop" if held[job_id, 1] else "held"


def _claim(job_id: UUID) -> str:
    return "run" if lifecycle.claim([job_id], worker=WORKER) else "nothing"


def _cancel(job_id: UUID) -> str:
    try:
        done = actions.cancel_job(job_id, **WHO)
    except actions.NotCancellable:
        return "refused"
    return ("requested" if done.requested else "cancelled") + ("" if done.changed else " already")


def _say(outcome: Any) -> Callable[[UUID], str]:
    def say(job_id: UUID) -> str:
        found = confirmation.by_token(job_id, Evidence(outcome=outcome, ref="from outside", run=1))
        return found.applied.value + ("" if found.job_id == job_id else " child")

    return say


def _replay(job_id: UUID) -> str:
    try:
        actions.replay_job(job_id, **WHO)
    except actions.NotReplayable as refused:
        return refused.code
    return "child"


def _close(job_id: UUID) -> str:
    try:
        return "closed" if actions.cancel_dead_letter(job_id, **WHO) else "closed already"
    except actions.NotCancellable:
        return "refused"


def _prune(job_id: UUID) -> str:
    """Let the pruner look at this very row, and at no other one."""
    if _read(job_id) is None:
        return "no job"
    [(day,)] = sql("SELECT (to_timestamp(('x' || left(replace(%s, '-', ''), 12))::bit(48)::bigint / 1000.0)"
                   " AT TIME ZONE 'UTC')::date", str(job_id))  # fmt: skip
    look = lifecycle.prune_day(day, after=UUID(int=job_id.int - 1), most=1)
    if look is None:
        return "busy"
    if look.removed:
        return "removed"
    return "stays" if list(look.stay) == [job_id] else "no job"


ACTS: Final[dict[str, Callable[[UUID], str]]] = {
    "finish": _settle(Verdict.CONFIRMED, evidence={"kind": "reference", "ref": "from the run", "late": False}),
    "fail": _settle(Verdict.FAILED, failure={"error_class": "Boom", "message": "boom", "traceback": ""}),
    "release": _settle(Verdict.RELEASED),
    "heartbeat": _heartbeat,
    "claim": _claim,
    "rescue": _sweep(lifecycle.rescue),
    "expire": _sweep(lifecycle.expire),
    "deadline": _sweep(lifecycle.give_up_waiting),
    "cancel": _cancel,
    "confirm": _say("confirmed"),
    "reject": _say("rejected"),
    "replay": _replay,
    "close": _close,
    "prune": _prune,
}


def act(verb: str, job_id: UUID) -> str:
    """Do it, and return what its caller is told."""
    try:
        return ACTS[verb](job_id)
    except actions.JobNotFound:
        return "no job"


# Jobs, many of a kind at once.


def _accepted(n: int, *, keyed: bool = True) -> list[UUID]:
    items = [Item(type=TYPE, payload={}, dedupe_key=str(uuid4()) if keyed else None) for _ in range(n)]
    return [receipt.job_id for receipt in enqueue_many(items)]


def _set(ids: Sequence[UUID], values: str) -> list[UUID]:
    sql(f"UPDATE queues_job SET {values} WHERE id = ANY(%s)", list(ids))
    return list(ids)


def _running(n: int, *, keyed: bool = True) -> list[UUID]:
    ids = [run.id for run in lifecycle.claim(_accepted(n, keyed=keyed), worker=WORKER)]
    # As a claim of one job leaves it; and nobody has renewed its lease.
    return _set(ids, "alone = true, due_at = jobs_now() - interval '1 s'")


def _ended(n: int, verdict: Verdict, *, keyed: bool = True, **values: Any) -> list[UUID]:
    ids = _running(n, keyed=keyed)
    lifecycle.settle([End(id=i, fence=1, verdict=verdict, **values) for i in ids])
    return ids


def _awaiting(n: int) -> list[UUID]:
    ids = _ended(n, Verdict.AWAITING, confirm_in=60.0, act_in=60.0)
    past = "jobs_now() - interval '1 s'"
    return _set(ids, f"due_at = {past}, confirm_by = {past}, expires_at = {past}")


def _stale(ids: Sequence[UUID]) -> list[UUID]:
    return _set(ids, "expires_at = jobs_now() - interval '1 s'")


@cache
def _long_ago() -> dt.date:
    """Return a day past every retention, the same one also after midnight."""
    return days_ago(60)


MAKE: Final[dict[str, Callable[[int], list[UUID]]]] = {
    "running": _running,
    "awaiting": _awaiting,
    "retrying": lambda n: _ended(n, Verdict.FAILED),
    "released": lambda n: _ended(n, Verdict.RELEASED),
    "stale-retrying": lambda n: _stale(_ended(n, Verdict.FAILED)),
    "stale-accepted": lambda n: _stale(_ended(n, Verdict.RELEASED)),
    "dead": lambda n: _ended(n, Verdict.FAILED, reason="permanent_error"),
    "keyless-dead": lambda n: _ended(n, Verdict.FAILED, keyed=False, reason="permanent_error"),
    "prunable": lambda n: [make_old_job(_long_ago(), S.EXPIRED, key=str(uuid4()), fence=1).id for _ in range(n)],
}
AT_ONCE: Final = 28


@dataclass
class Arena:
    """A second session, and jobs that nobody has touched so far."""

    second: Second
    jobs: dict[str, list[UUID]] = field(default_factory=dict)

    def take(self, situation: str) -> UUID:
        """Return a job in this situation; nothing is counted so far."""
        # A race that failed may still go on.
        self.second.begin(lambda: None).outcome()
        ready = self.jobs.setdefault(situation, [])
        if not ready:
            ready += MAKE[situation](AT_ONCE)
        sql("DELETE FROM queues_outcomedelta")
        return ready.pop()


@pytest.fixture(scope="module")
def transactional_db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """The fixture of this name, once for the whole matrix: each race has a job of its own."""
    with committing_database(django_db_blocker):
        yield


@pytest.fixture(scope="module")
def arena(transactional_db: None) -> Iterator[Arena]:
    """Two sessions, one job type, the partition of a day long past every retention; no broker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broker, "is_short", lambda queue: False)
        contracts.forget()
        make_type(window_seconds=3600)
        make_partition(_long_ago())
        second = Second()
        yield Arena(second)
        second.close()
        sql(f"DROP TABLE IF EXISTS {part_of(_long_ago())}")


# What the rows must say.

Done = Sequence[tuple[str, str]]
COUNTED: Final = """
SELECT CASE WHEN measure ~ '^(died|resolved)[.]' THEN split_part(measure, '.', 1) ELSE measure END, sum(n)::integer
FROM queues_outcomedelta WHERE bucket < 0 OR measure IN ('lag', 'run') GROUP BY 1 HAVING sum(n) <> 0
"""
YES: Final = frozenset({("finish", "confirmed"), ("confirm", "kept"), ("confirm", "late")})
COLUMNS: Final = ("fence", "attempt", "begun", "crashes", "failures")


def _read(job_id: UUID) -> Job | None:
    return Job.objects.filter(id=job_id).first()


def _numbers(job: Job) -> dict[str, int]:
    return {c: len(job.failures) if c == "failures" else getattr(job, c) for c in COLUMNS}


def _shown(state: str, resolution: str | None) -> bool:
    """Whether the board counts it."""
    return state in OPEN or (state == S.DEAD and resolution == "open")


def _evidence(done: Done) -> str | None:
    """Return the reference that counts: the first one."""
    for deed in done:
        if deed == ("finish", "confirmed"):
            return "from the run"
        if deed in {("confirm", "kept"), ("confirm", "confirmed")}:
            return "from outside"
    return None


def _notes(done: Done) -> int:
    """Return how many words are kept beside the outcome: a repeated one is kept once."""
    other_reference = _evidence(done) == "from the run" and ("confirm", "duplicate") in done
    late = other_reference or any(deed in done for deed in (("confirm", "late"), ("confirm", "confirmed child")))
    return late + any(("reject", told) in done for told in ("late", "contradiction", "superseded"))


def _reason(before: Job, state: str, done: Done) -> str | None:
    rejected = ("reject", "rejected") in done or ("reject", "kept") in done
    if state == before.state:
        return "producer" if ("cancel", "requested") in done else before.reason
    if state == S.DEAD:
        return "rejected" if rejected else "unconfirmed"
    if state == S.PROCESSING:
        return "producer" if ("cancel", "requested") in done else None
    return {S.CANCELLED: "producer", S.EXPIRED: "stale"}.get(JobState(state))


def _costs(done: Done, *, counted: bool) -> Counter[str]:
    """Sum what the deeds cost, in what is counted or in columns."""
    costs: Counter[str] = Counter()
    for deed in dict.fromkeys(done):
        # The same word again is kept and counted once; no other deed can be done twice.
        costs.update({name.lstrip("."): n for name, n in COSTS.get(deed, {}).items() if (name[0] == ".") == counted})
    return costs


def _counts(before: Job, state: str, resolution: str | None, done: Done) -> dict[str, int]:
    """Return what must have been counted, to the last one."""
    counts = _costs(done, counted=True)
    counts[f"open.{before.state}"] -= _shown(before.state, before.resolution)
    counts[f"open.{state}"] += state != "gone" and _shown(state, resolution)
    if state in TERMINAL and before.state not in TERMINAL:
        counts.update({state: 1, "lag": state == S.CONFIRMED, "in_window": state == S.CONFIRMED})
        counts["excluded"] += state == S.CANCELLED
        counts["ended"] += before.replay_of is None
        counts["died"] += state == S.DEAD
    if S.DEAD in (before.state, state):
        counts["resolved"] += ("close", "closed") in done or ("replay", "child") in done
    back = before.state == S.RETRYING or any(deed in done for deed in (("fail", "retrying"), ("rescue", "retrying")))
    counts["retries"] += ("claim", "run") in done and back
    no = [i for i, deed in enumerate(done) if deed in {("reject", "kept"), ("reject", "rejected")}]
    yes = [i for i, deed in enumerate(done) if deed in YES]
    counts["confirmed_after_rejection"] += bool(no and yes and min(no) < max(yes))
    return {name: n for name, n in counts.items() if n}


def check_whole(before: Job, state: str, done: Done) -> None:
    """Hold the row, its key, its lineage, the audit log and the counts against what was done, in this order."""
    job = _read(before.id)
    children = list(Job.objects.filter(replay_of=before.id))
    assert len(children) == list(done).count(("replay", "child"))
    resolution = before.resolution
    if state == "gone":
        assert job is None
    else:
        assert job is not None and job.state == state
        costs = _costs(done, counted=False)
        assert _numbers(job) == {name: n + costs[name] for name, n in _numbers(before).items()}
        assert job.reason == _reason(before, state, done)
        if state in TERMINAL and state != S.CONFIRMED:
            resolution = "replayed" if children else "cancelled" if ("close", "closed") in done else "open"
        assert job.resolution == resolution
        assert (None if job.evidence is None else job.evidence["ref"]) == _evidence(done)
        assert len(job.late_evidence or []) == _notes(done)
        assert (job.settled_at is None, job.due_at is None) == (state in OPEN, state in TERMINAL)
        assert job.cancel_requested == any(deed in done for deed in ON_RECORD if deed[0] == "cancel")
        if ("heartbeat", "held") in done or ("heartbeat", "held, stop") in done:
            assert job.due_at is None or before.due_at is None or job.due_at > before.due_at
        assert job.replayed_by == (children[0].id if children else None)
    for child in children:
        proven = ("confirm", "confirmed child") in done
        assert (child.state, child.root) == (S.CONFIRMED if proven else S.ACCEPTED, before.root)
        assert child.idempotency_key == before.idempotency_key
    holders = [] if state == "gone" or before.dedupe_key is None else [children[0].id if children else before.id]
    assert list(DedupeKey.objects.filter(key=before.dedupe_key).values_list("job_id", flat=True)) == holders
    written = AuditEntry.objects.filter(object_id=str(before.id)).order_by("id").values_list("action", flat=True)
    assert list(written) == [ON_RECORD[deed] for deed in done if deed in ON_RECORD]
    assert dict(sql(COUNTED)) == _counts(before, state, resolution, done)


CASES: Final = [
    pytest.param(name, first, second, commits, id=f"{name}-{first}-then-{second}" + ("" if commits else "-rolled-back"))
    for name, situation in SITUATIONS.items()
    for first in situation.then
    for second in VERBS
    for commits in (True, False)
    # Who does nothing alone does nothing beside what never happened.
    if commits or second in situation.alone
]


@pytest.mark.parametrize(("name", "first", "second", "commits"), CASES)
def test_race(name: str, first: str, second: str, commits: bool, arena: Arena) -> None:
    """I-09, I-10, I-26, I-30, I-31, I-35, I-41: one of two comes first, and the other acts on what that one left."""
    situation = SITUATIONS[name]
    job_id = arena.take(name)
    before = _read(job_id)
    assert before is not None and before.state == situation.state
    with transaction.atomic():
        assert act(first, job_id) == situation.alone[first].told
        rival = arena.second.begin(partial(act, second, job_id))
        waited = rival.waits_for_us()
        assert waited == (second in situation.waits)
        transaction.set_rollback(not commits)
    done = [(first, situation.alone[first].told)] if commits else []
    left = situation.alone[first].state if commits else before.state
    then: Cell = situation.after(first, second) if commits else situation.by_itself(second)
    told = rival.outcome()
    if not waited:
        # It passed by: told that there is nothing, it changed nothing. Then it comes again.
        assert told == ("busy" if first == second == "prune" else NOTHING[second])
        check_whole(before, left, done)
        told = act(second, job_id)
    assert told == then.told
    check_whole(before, then.state, [*done, (second, told)])


def test_the_table_has_every_pair() -> None:
    """All ordered pairs of ten statements are there, and who does nothing in a situation has a reason for it."""
    pairs = {(first, second) for s in SITUATIONS.values() for first in s.then for second in VERBS}
    assert {(a, b) for a in TEN for b in TEN} <= pairs
    for name, situation in SITUATIONS.items():
        acts = set(situation.alone) | {verb for cells in situation.then.values() for verb in cells}
        assert set(VERBS) == acts | set(situation.never), name
        assert not acts & set(situation.never), name
        assert set(situation.then) <= set(situation.alone), name


def test_the_table_asks_for_legal_transitions_only() -> None:
    """I-10, I-11: each step of each cell is one of `states.TRANSITIONS`, or none."""
    for situation in SITUATIONS.values():
        steps = {(situation.state, cell.state) for cell in situation.alone.values()}
        steps |= {
            (situation.alone[first].state, cell.state)
            for first, cells in situation.then.items()
            for cell in cells.values()
        }
        assert all(old == new or new == "gone" or JobState(new) in TRANSITIONS[JobState(old)] for old, new in steps)
