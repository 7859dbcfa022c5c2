"""I-03: the connection breaks at a commit, and nobody knows whether it was made. Whoever asked asks again.

Each story is one public call. The answer of every commit in it is lost in turn: once after the server has committed,
once before. The second try is told what DESIGN.md section 9 says of a repetition, and everything is there once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import pytest
from django.db import OperationalError, connection
from pytest_django import DjangoDbBlocker
from standardwebhooks import Webhook

from dlq.models import PlanItem, ReplayPlan
from jobsboard.api import keys
from jobsboard.models import SCOPES
from queues import broker, handlers, lifecycle, outside
from queues.accept import enqueue
from queues.callback_tokens import callback_token
from queues.handlers import Confirmed, JobContext
from queues.lifecycle import End, Verdict
from queues.models import AuditEntry, DedupeKey, Job
from queues.runtime.chunk import Runner
from queues.runtime.leases import LeaseTable
from queues.states import JobState
from tests.api.conftest import Api
from tests.concurrency.rivals import answer_lost, committing_database
from tests.factories import TYPE, claim, failed, fold_all, get, make_type, sql, state_counts, true_counts

pytestmark = pytest.mark.concurrency
S = JobState
SECRET: Final = "whsec_" + "a2tra2tra2tra2tra2tra2tra2tra2tr"
LOST: Final = ("error", "503 unavailable")
COMMITS_MOST: Final = 8


@dataclass
class World:
    """A client with every right, a worker's runner, and how often each body ran."""

    api: Api
    runner: Runner
    bodies: list[UUID] = field(default_factory=list)


@pytest.fixture(scope="module")
def transactional_db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """The fixture of this name, once for all stories: each try empties the tables that it looks at."""
    with committing_database(django_db_blocker):
        yield


@pytest.fixture(scope="module")
def world(transactional_db: None) -> Iterator[World]:
    """Everything that stories are about. No broker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broker, "is_short", lambda queue: False)
        # What is asked before a replay is written, and no worker is there to answer: nobody waits for it.
        patch.setattr(outside, "ask_and_wait", lambda ids, **_: outside.ask(ids))
        patch.setenv("CALLBACK_SECRET", SECRET)
        keys.forget_cached()
        make_type(callback_secret_env="CALLBACK_SECRET", backoff="fixed", backoff_base_seconds=30.0)
        api = Api(keys.issue_key(label="test", scopes=SCOPES)[1])
        # The first use of a key is noted, which is a commit of no interest here.
        assert api.get("/jobs").status_code == 200
        yield World(api, Runner(LeaseTable(), node="here"))
        handlers._handlers.pop(TYPE, None)
        keys.forget_cached()


# Jobs in a state; each has a key, since what is retried with the same key is the point.


def _accepted() -> UUID:
    return enqueue(TYPE, {"n": 1}, dedupe_key="k").job_id


def _running() -> UUID:
    return claim([_accepted()])[0].id


def _awaiting() -> UUID:
    job_id = _running()
    end = End(id=job_id, fence=1, verdict=Verdict.AWAITING, reference="R", confirm_in=60.0, act_in=60.0)
    assert lifecycle.settle([end])
    return job_id


def _retrying() -> UUID:
    job_id = _running()
    lifecycle.settle([End(id=job_id, fence=1, verdict=Verdict.FAILED, retry_in=600.0)])
    return job_id


def _dead() -> UUID:
    [run] = claim([_accepted()])
    lifecycle.settle([failed(run, reason="permanent_error")])
    return run.id


def _nothing() -> None:
    return None


# What is called, and what the caller is told: status and the words that matter.


def _answer(response: Any, *words: str) -> str:
    body = response.json()
    if response.status_code >= 400:
        assert body.get("retryable") is (True if response.status_code == 503 else None)
        return f"{response.status_code} {body['code']}"
    return " ".join([str(response.status_code), *(str(body[word]) for word in words)])


def _post_job(world: World, job_id: UUID | None) -> str:
    response = world.api.post("/jobs", {"type": TYPE, "payload": {"n": 1}, "dedupe_key": "k"})
    told = _answer(response)
    return told + " replayed" if response.get("Idempotency-Replayed") == "true" else told


def _post_jobs(world: World, job_id: UUID | None) -> str:
    jobs = [{"type": TYPE, "payload": {"n": n}, "dedupe_key": f"k{n}"} for n in range(3)]
    response = world.api.post("/jobs/batch", {"jobs": jobs})
    if response.status_code != 200:
        return _answer(response)
    return " ".join(str(one["status"]) for one in response.json()["results"])


def _enqueue(world: World, job_id: UUID | None) -> str:
    return "duplicate" if enqueue(TYPE, {"n": 1}, dedupe_key="k").duplicate else "new"


def _cancel(world: World, job_id: UUID) -> str:
    return _answer(world.api.post(f"/jobs/{job_id}/cancel", {"reason": "no"}), "status", "effect")


def _retry_now(world: World, job_id: UUID) -> str:
    return _answer(world.api.post(f"/jobs/{job_id}/retry-now", {"reason": "now"}), "state")


def _confirm(world: World, job_id: UUID) -> str:
    response = world.api.post(f"/jobs/{job_id}/confirm", {"outcome": "confirmed", "ref": "R"})
    return _answer(response) if response.status_code != 200 else f"200 {response.json()['confirmation']['result']}"


def _tell(world: World, job_id: UUID) -> str:
    body = json.dumps({"outcome": "confirmed", "ref": "R"})
    token = callback_token(job_id, 1)
    path = f"/api/v1/callbacks/jobs/{token}"
    return _answer(world.api.client.post(path, body, content_type="application/json"), "result")


def _provider(world: World, job_id: UUID) -> str:
    body = json.dumps({"outcome": "confirmed", "ref": "R", "job_id": str(job_id)})
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("msg_1", now, body),
    }
    path = f"/api/v1/callbacks/{TYPE}"
    return _answer(world.api.client.post(path, body, content_type="application/json", headers=headers), "result")


def _replay(world: World, job_id: UUID) -> str:
    response = world.api.post(f"/jobs/{job_id}/replay", {"reason": "again"})
    if response.status_code == 409:
        # The answer that was lost said which job goes on; so does this one.
        assert str(Job.objects.get(replay_of=job_id).id) in response.json()["detail"]
    return _answer(response, "state")


def _plan(world: World, job_id: UUID) -> str:
    body = {"filter": {"type": TYPE}, "expected_count": 1, "reason": "again"}
    response = world.api.post("/replays", body, **{"Idempotency-Key": "once"})
    told = _answer(response)
    return told + " replayed" if response.get("Idempotency-Replayed") == "true" else told


def _ignore(world: World, job_id: UUID) -> str:
    return _answer(world.api.post(f"/dead-letters/{job_id}/ignore", {"reason": "no"}), "state")


def _close(world: World, job_id: UUID) -> str:
    return _answer(world.api.post(f"/dead-letters/{job_id}/cancel", {"reason": "no"}), "state")


def _run(world: World, job_id: UUID) -> str:
    """Take a hint, as a worker does."""

    def body(job: JobContext) -> Confirmed:
        world.bodies.append(job.id)
        return Confirmed("R")

    handlers._handlers.pop(TYPE, None)
    handlers.handler(TYPE)(body)
    return f"{world.runner.run([job_id])} ran: {get(job_id).state}"


def _run_atomic(world: World, job_id: UUID) -> str:
    """Take a hint for a handler whose effect is a row."""

    def body(job: JobContext) -> Confirmed:
        AuditEntry.objects.create(actor="handler", action="effect", object_type="effect", object_id=str(job.id))
        return Confirmed("R")

    handlers._handlers.pop(TYPE, None)
    handlers.handler(TYPE, atomic=True)(body)
    sql("UPDATE queues_job SET due_at = jobs_now() WHERE state = 'retrying'")
    return f"{world.runner.run([job_id])} ran: {get(job_id).state}"


def _fail(world: World, job_id: UUID) -> str:
    """Take a hint for a handler that fails; the next attempt is due in half a minute."""

    def body(job: JobContext) -> Confirmed:
        raise RuntimeError("no")

    handlers._handlers.pop(TYPE, None)
    handlers.handler(TYPE)(body)
    return f"{world.runner.run([job_id])} ran: {get(job_id).state}"


# What must be there in the end, once.


def _one_job(world: World, job_id: UUID | None) -> bool:
    assert Job.objects.count() <= 1
    return sql("SELECT j.id = k.job_id FROM queues_job j, queues_dedupekey k") == [(True,)]


def _three_jobs(world: World, job_id: UUID | None) -> bool:
    assert Job.objects.count() == DedupeKey.objects.count() in (0, 3)
    return Job.objects.count() == 3


def _recorded(job_id: UUID, *actions: str) -> bool:
    """Return whether these are what the audit log has of the job; never more than once."""
    written = list(AuditEntry.objects.filter(object_id=str(job_id)).order_by("id").values_list("action", flat=True))
    assert written in ([], list(actions))
    return written == list(actions)


def _is_cancelled(world: World, job_id: UUID) -> bool:
    return get(job_id).state == S.CANCELLED and _recorded(job_id, "job.cancelled")


def _is_asked_to_stop(world: World, job_id: UUID) -> bool:
    return get(job_id).cancel_requested and _recorded(job_id, "job.cancel_requested")


def _is_due(world: World, job_id: UUID) -> bool:
    return sql("SELECT due_at <= jobs_now() FROM queues_job") == [(True,)] and _recorded(job_id, "job.retried_now")


def _is_confirmed(world: World, job_id: UUID) -> bool:
    job = get(job_id)
    assert (job.evidence or {}).get("ref") in (None, "R")
    assert job.late_evidence is None
    return job.state == S.CONFIRMED


def _is_confirmed_by_hand(world: World, job_id: UUID) -> bool:
    return _is_confirmed(world, job_id) and _recorded(job_id, "job.confirmed_by_hand")


def _is_replayed(world: World, job_id: UUID) -> bool:
    children = list(Job.objects.filter(replay_of=job_id).values_list("id", flat=True))
    assert len(children) <= 1
    if not children:
        return False
    assert (get(job_id).replayed_by, DedupeKey.objects.get().job_id) == (children[0], children[0])
    return _recorded(job_id, "job.replayed")


def _is_planned(world: World, job_id: UUID) -> bool:
    plans = list(ReplayPlan.objects.values_list("id", flat=True))
    assert len(plans) <= 1
    assert list(PlanItem.objects.values_list("plan_id", "job_id")) == [(plan_id, job_id) for plan_id in plans]
    assert AuditEntry.objects.filter(object_id__in=[str(one) for one in plans]).count() == len(plans)
    return bool(plans)


def _is_ignored(world: World, job_id: UUID) -> bool:
    return get(job_id).resolution == "ignored" and _recorded(job_id, "dead_letter.ignored")


def _is_closed(world: World, job_id: UUID) -> bool:
    return get(job_id).resolution == "cancelled" and _recorded(job_id, "dead_letter.cancelled")


def _has_run(world: World, job_id: UUID) -> bool:
    job = get(job_id)
    # Neither a lost claim nor a lost end costs an attempt, a crash or a second effect.
    assert (job.crashes, job.failures) == (0, [])
    assert job.attempt == len(world.bodies) == (job.state == S.CONFIRMED)
    return job.state == S.CONFIRMED


def _has_failed(world: World, job_id: UUID) -> bool:
    job = get(job_id)
    assert (job.crashes, job.attempt) == (0, len(job.failures))
    # What finds its own end written is no stale write (I-09's count).
    assert sql("SELECT sum(n) FROM queues_outcomedelta WHERE measure = 'superseded'") == [(None,)]
    return (job.state, job.attempt) == (S.RETRYING, 1)


def _has_run_with_its_row(world: World, job_id: UUID) -> bool:
    job = get(job_id)
    assert AuditEntry.objects.filter(object_type="effect", object_id=str(job_id)).count() == (job.state == S.CONFIRMED)
    return job.state == S.CONFIRMED


@dataclass(frozen=True, kw_only=True)
class Story:
    """One call: `told` when it goes well, `again` when it was done before; `done` looks, and insists on once.

    `asks`: somebody waits for the answer and asks again; a worker finds out by itself.
    """

    before: Callable[[], UUID | None]
    call: Callable[[World, Any], str]
    told: str
    again: str
    done: Callable[[World, Any], bool]
    asks: bool = True


_RUN: Final[dict[str, Any]] = {"told": "1 ran: confirmed", "again": "0 ran: confirmed", "asks": False}
_TWICE: Final[dict[str, Any]] = {"told": "200 confirmed", "again": "200 duplicate"}


def _same(told: str) -> dict[str, Any]:
    return {"told": told, "again": told}


STORIES: Final = {
    "accept": Story(before=_nothing, call=_post_job, told="201", again="200 replayed", done=_one_job),
    "accept-batch": Story(before=_nothing, call=_post_jobs, told="201 201 201", again="200 200 200", done=_three_jobs),
    "enqueue": Story(before=_nothing, call=_enqueue, told="new", again="duplicate", done=_one_job),
    "claim-and-finish": Story(before=_accepted, call=_run, done=_has_run, **_RUN),
    "claim-and-fail": Story(
        before=_accepted, call=_fail, done=_has_failed, told="1 ran: retrying", again="0 ran: retrying", asks=False
    ),
    "atomic-handler": Story(before=_accepted, call=_run_atomic, done=_has_run_with_its_row, **_RUN),
    "cancel": Story(before=_accepted, call=_cancel, done=_is_cancelled, **_same("200 cancelled none")),
    "cancel-running": Story(
        before=_running, call=_cancel, done=_is_asked_to_stop, **_same("202 cancel_requested possible")
    ),
    "retry-now": Story(before=_retrying, call=_retry_now, done=_is_due, **_same("200 retrying")),
    "confirm": Story(before=_awaiting, call=_confirm, done=_is_confirmed_by_hand, **_TWICE),
    "confirm-by-token": Story(before=_awaiting, call=_tell, done=_is_confirmed, **_TWICE),
    "confirm-by-provider": Story(before=_awaiting, call=_provider, done=_is_confirmed, **_TWICE),
    "replay": Story(before=_dead, call=_replay, told="201 accepted", again="409 already_replayed", done=_is_replayed),
    "cancel-dead-letter": Story(before=_dead, call=_close, done=_is_closed, **_same("200 dead")),
    "ignore-dead-letter": Story(before=_dead, call=_ignore, done=_is_ignored, **_same("200 dead")),
    "plan": Story(before=_dead, call=_plan, told="202", again="200 replayed", done=_is_planned),
}
TABLES: Final = (
    "queues_job", "queues_dedupekey", "queues_callback", "queues_jobreference", "queues_outcomedelta",
    "queues_statecount", "queues_outcomerollup", "queues_outsideanswer", "dlq_planitem", "dlq_replayplan",
)  # fmt: skip


@pytest.mark.parametrize("reached", [True, False], ids=["committed", "never-arrived"])
@pytest.mark.parametrize("name", STORIES)
def test_a_commit_whose_answer_was_lost(name: str, reached: bool, world: World) -> None:
    """I-03: whichever commit of a call it is, the caller hears an error or nothing of it, and calls again."""
    story, doubts = STORIES[name], []
    for nth in range(1, COMMITS_MOST + 1):
        for table in TABLES:
            sql(f"DELETE FROM {table}")
        world.bodies.clear()
        subject = story.before()
        with answer_lost(nth, reached=reached) as lost:
            try:
                told = story.call(world, subject)
            except OperationalError:
                told = "error"
        if not lost.happened:
            assert told == story.told
            break
        connection.close()
        was_done = story.done(world, subject)
        # An atomic handler whose commit failed has failed; its job is tried again.
        assert told in (*LOST, story.told) or (told, story.call) == ("1 ran: retrying", _run_atomic)
        assert was_done or told != story.told, "told that it is done, and it is not"
        doubts += [was_done] if told in LOST else []
        assert story.call(world, subject) == (story.again if was_done else story.told)
        assert story.done(world, subject)
        assert story.call(world, subject) == story.again
        assert story.done(world, subject)
        fold_all()
        assert state_counts() == true_counts()
    assert nth < COMMITS_MOST
    assert (reached and story.asks) in doubts, "nobody was in doubt: nothing was proved"
