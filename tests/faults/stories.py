"""What processes do when a fault strikes: small stories, each told in a process of its own, and again by the parent.

A story leaves no doubt how often its jobs act outside: every effect is a line in a file. Stories are told again after
a fault, as a client, an operator or the next scheduler would; told twice they must do nothing twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from django.db import connection
from django.test import Client

from dlq.plans import advance
from dlq.plans.create import PlanRequest, create
from dlq.plans.selection import Selection
from dlq.replaying import Who
from jobsboard.alerts import engine
from queues import actions, confirmation, lifecycle, probes, schedule_ticks
from queues.accept import enqueue
from queues.actions import NotReplayable
from queues.confirmation import Evidence
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext, check, handler
from queues.runtime.chunk import Runner
from queues.runtime.heartbeat import Heart
from queues.runtime.leases import LeaseTable
from queues.scheduler import breakers, confirmations, expire, prune, rescue, rollup
from queues.scheduler.stage import Stage

PLAIN, LIMITED, MERGING, ATOMIC, STEPS, HTTP, CALLBACK, CHECKED = (
    f"fault.{name}" for name in ("plain", "limited", "merging", "atomic", "steps", "http", "callback", "checked")
)
PLAN_POINTS: Final = (
    "plan.frozen", "plan.locked", "replay_many.before", "replay_many.after", "plan.stepped", "plan.committed",
)  # fmt: skip
"""Struck in test_plans."""
BREAKER_POINTS: Final = ("breaker.judged", "breaker.flipped", "breaker.committed")
"""Struck in test_breakers."""
SCHEDULE_POINTS: Final = ("schedules.selected", "schedules.accepted", "schedules.written", "schedules.committed")
"""Struck in test_schedules."""
EFFECTS: Final = "FAULT_EFFECTS"
"""The variable that names the file of effects."""
WHO: Final[dict[str, Any]] = {"actor": "ann", "reason": "test", "source": "board"}


@dataclass(frozen=True)
class Effect:
    """One thing that a handler did outside."""

    job: str
    run: int
    what: str
    told: bool
    """The handler knew that an earlier run may have done it already."""


def act(job: JobContext, what: str = "effect") -> str:
    """Have an effect, once and for all, and return its reference."""
    line = json.dumps(asdict(Effect(str(job.id), job.run, what, job.maybe_duplicate)))
    with open(os.environ[EFFECTS], "a", encoding="utf-8") as file:
        file.write(line + "\n")
    return f"{job.id}/{job.run}"


def effects(path: Path) -> list[Effect]:
    """Return what was done."""
    return [Effect(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


@handler(PLAIN)
@handler(LIMITED)
@handler(MERGING)
def plain(job: JobContext) -> Confirmed:
    """Act, and bring the proof back."""
    return Confirmed(ref=act(job))


@handler(ATOMIC, atomic=True)
def atomic(job: JobContext) -> Confirmed:
    """Act in the transaction that confirms the job."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO fault_row (job_id, run) VALUES (%s, %s)", [job.id, job.run])
    return Confirmed(ref=f"{job.id}/{job.run}")


@handler(STEPS)
def steps(job: JobContext) -> Confirmed:
    """Act in two steps of which each is done once."""
    for name in ("one", "two"):
        job.once(name, lambda name=name: act(job, name))  # type: ignore[misc]
    return Confirmed(ref=f"{job.id}/{job.run}")


@handler(CALLBACK)
@handler(CHECKED)
def hand_over(job: JobContext) -> AwaitingConfirmation:
    """Act, and wait for the proof from outside."""
    return AwaitingConfirmation(ref=act(job))


@check(CHECKED)
def asked(job: JobContext) -> Confirmed | None:
    """Tell whether an effect is there."""
    done = [one for one in effects(Path(os.environ[EFFECTS])) if one.job == str(job.id)]
    return Confirmed(ref=f"{job.id}/{done[0].run}") if done else None


def accept() -> str:
    """Accept one job under a key, as a producer with Django does."""
    return str(enqueue(PLAIN, {"n": 1}, dedupe_key="the-key").job_id)


def merge() -> str:
    """Accept one job that takes the place of those that wait."""
    return str(enqueue(MERGING, {"n": 2}, dedupe_key="the-key").job_id)


def accept_by_api(token: str) -> str:
    """Accept one job under a key over HTTP; an answer that is no 2xx is an error."""
    body = {"type": PLAIN, "payload": {"n": 1}, "dedupe_key": "the-key"}
    answer = Client(SERVER_NAME="127.0.0.1").post(
        "/api/v1/jobs", json.dumps(body), content_type="application/json", headers={"authorization": f"Bearer {token}"}
    )
    if answer.status_code not in (200, 201):
        raise RuntimeError(f"{answer.status_code} {answer.content.decode()}")
    return str(answer.json()["id"])


def run(job_id: UUID) -> None:
    """Follow a hint."""
    Runner(LeaseTable(), node="story").run([job_id])


def ask(job_id: UUID) -> None:
    """Follow a hint that a check is due."""
    Runner(LeaseTable(), node="story").check([job_id])


def beat(job_id: UUID) -> None:
    """Extend the lease of a run in hand, claimed a long time ago by this process's clock."""
    claimed = lifecycle.claim([job_id], worker="story/1.1")
    heart = Heart(LeaseTable(), parent=os.getppid(), node="story", queues=["tier2"], slots=1)
    slot = heart.table.take_slot()
    for one in claimed:
        slot.hold(one.id, one.fence, one.lease_seconds, since=0.0)
        slot.begin(one.id, one.fence, hard_limit=0)
    heart.beat()


def cancel(job_id: UUID) -> str:
    """Press cancel."""
    return actions.cancel_job(job_id, **WHO).state.value


def replay(job_id: UUID) -> str:
    """Press replay; that somebody did before is an answer as well."""
    try:
        return str(actions.replay_job(job_id, **WHO))
    except NotReplayable as error:
        if error.code != "already_replayed":
            raise
        return error.detail.rpartition(" ")[2]


def confirm(job_id: UUID) -> str:
    """Confirm by hand."""
    return confirmation.confirm_job(
        job_id, Evidence(outcome="confirmed", ref="by-hand", kind="manual"), **WHO
    ).applied.value


def token(job_id: UUID, run: int) -> str:
    """Call back as an HTTP target does."""
    return confirmation.by_token(job_id, Evidence(outcome="confirmed", ref="told", run=run)).applied.value


def provider(ref: str) -> str:
    """Call back as a provider does, by its reference."""
    evidence = Evidence(outcome="confirmed", ref=ref)
    return confirmation.by_provider(CALLBACK, webhook_id="msg_1", job_id=None, evidence=evidence).applied.value


def sweep(what: str) -> None:
    """Do one round of a service."""
    {"rescue": rescue.run_once, "expire": expire.run_once, "give_up": confirmations.end_waits}[what]()


def probe() -> None:
    """Send the probes that are due, and settle those that ended."""
    probes.sweep()


def tick() -> None:
    """Make jobs of the ticks of schedules that are due."""
    schedule_ticks.sweep()


def alerts() -> None:
    """Evaluate the alert rules."""
    engine.run_once()


def fold() -> None:
    """Fold what there is."""
    rollup.run_once()


def stage() -> bool:
    """Publish what is due, as the only scheduler there is."""
    service = Stage(read_at=float("inf"), active=True, walks=[(2, PLAIN)], slots={"tier2": 1}, busy={PLAIN})
    return service.run_once()


def judge_breakers() -> None:
    """Do one round of the service."""
    breakers.run_once()


def prune_all() -> None:
    """Do one round, by a swap however few jobs there are."""
    prune.SWAP_FROM = 1  # type: ignore[misc]
    service = prune.Prune()
    while service.run_once():
        pass


def make_plan() -> str:
    """Ask for a plan of all dead letters, under a key."""
    request = PlanRequest(
        action="replay", selection=Selection(type=PLAIN), types=[PLAIN], expected_count=3, idempotency_key="the-plan",
        who=Who(actor="ann", reason="test", source="api"),
    )  # fmt: skip
    return str(create(request)[0].id)


def advance_plan(plan_id: UUID) -> None:
    """Do one round of the service, a second after the last one."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE dlq_replayplan SET paced_at = paced_at - interval '1 second'")
    advance.advance(plan_id)


STORIES: Final[dict[str, Callable[..., Any]]] = {
    one.__name__: one
    for one in (
        accept, merge, accept_by_api, run, ask, beat, cancel, replay, confirm, token, provider, sweep, probe, tick,
        alerts, fold, stage, judge_breakers, prune_all, make_plan, advance_plan,
    )
}  # fmt: skip
