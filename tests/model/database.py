"""The same steps on the real code and PostgreSQL, and the rows as they are there, in the model's words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from uuid import UUID

import msgspec

from queues import accept, actions, canonical, confirmation, contracts, edited_replay, lifecycle
from queues.accept import DedupeConflict, EnqueueError, Item, Receipt, TypeDisabled
from queues.confirmation import Evidence as Said
from queues.confirmation import Outcome
from queues.lifecycle import CheckEnd, DueCheck, End, Verdict
from queues.models import Job
from queues.states import JobState, Reason
from tests.factories import sql
from tests.model import steps
from tests.model.actors import seconds
from tests.model.proofs import Check, Word
from tests.model.rows import Kind
from tests.model.rules import Request
from tests.model.steps import Step

S = JobState
WHO: Final[Mapping[str, Any]] = {"actor": "ada", "reason": "model", "source": "ui"}
UNKNOWN: Final = -1
"""The number of a job that the model does not know."""
BOOM: Final = {"error_class": "Boom", "message": "boom", "traceback": ""}


def payload_of(number: int) -> dict[str, int]:
    """Return the payload that a number stands for."""
    return {"n": number}


def _hash(number: int) -> bytes:
    return canonical.request_hash(payload_of(number), None)


HASHES: Final = {_hash(number): number for number in (1, 2)}


def _text(number: int) -> str:
    return msgspec.json.encode(payload_of(number)).decode()


class Names:
    """Which job of the model is which job of the database."""

    def __init__(self) -> None:
        self._ids: dict[int, UUID] = {}
        self._numbers: dict[UUID, int] = {}
        self.due: dict[Check, DueCheck] = {}
        self.kinds: dict[int, Kind] = {}
        """The contracts of the jobs, also of those that were pruned."""

    def bind(self, number: int, job_id: UUID) -> None:
        """Note that this is the same job."""
        self._ids[number], self._numbers[job_id] = job_id, number

    def id(self, number: int) -> UUID:
        """Return the id of a job."""
        return self._ids[number]

    def ids(self, numbers: Iterable[int]) -> list[UUID]:
        """Return the ids of jobs."""
        return [self._ids[number] for number in numbers]

    def all_ids(self) -> list[UUID]:
        """Return every id."""
        return list(self._numbers)

    def number(self, job_id: UUID | None) -> int | None:
        """Return the number of a job."""
        return None if job_id is None else self._numbers.get(job_id, UNKNOWN)

    def same(self, expected: object, found: object) -> bool:
        """Compare answers; a job that both say is new is bound, so that from here on it is the same one."""
        if isinstance(found, UUID) and isinstance(expected, int):
            if found not in self._numbers and expected not in self._ids:
                self.bind(expected, found)
            return self._ids.get(expected) == found
        if isinstance(expected, tuple) and isinstance(found, tuple):
            return len(expected) == len(found) and all(map(self.same, expected, found))
        return expected == found


def work_of(step: Step, names: Names, *, held: bool) -> Callable[[], Any]:
    """Return the call that takes a step. `held`: as one statement, since its transaction stays open."""
    if held and isinstance(step, steps.Cancel | steps.RetryNow | steps.Close | steps.Replay):
        return _HELD[type(step)](step, names)  # type: ignore[operator,no-any-return]
    return _DIRECT[type(step)](step, names)  # type: ignore[operator,no-any-return]


# Accepting.


def _item(request: Request) -> Item:
    return Item(
        type=request.kind, payload=_text(request.payload), dedupe_key=request.key, max_age=request.max_age,
        delay_seconds=request.delay or None,
    )  # fmt: skip


def _answer(answer: Receipt | EnqueueError) -> tuple[object, ...]:
    if isinstance(answer, DedupeConflict):
        return ("conflict", answer.job_id)
    if isinstance(answer, TypeDisabled):
        return ("disabled",)
    assert isinstance(answer, Receipt), answer
    if not answer.duplicate:
        return ("new", answer.job_id)
    return ("duplicate", answer.job_id, answer.state, answer.evidence["ref"] if answer.evidence else None)


def _accept(step: steps.Accept, names: Names) -> Callable[[], Any]:
    items = [_item(request) for request in step.requests]

    def work() -> Any:
        if not step.strict:
            return tuple(map(_answer, accept.enqueue_many(items, on_error="return")))
        try:
            return tuple(map(_answer, accept.enqueue_many(items)))
        except EnqueueError as error:
            return ("refused", error.position, *_answer(error))

    return work


# Running.


def _claim(step: steps.Claim, names: Names) -> Callable[[], Any]:
    ids = names.ids(step.jobs)

    def work() -> Any:
        runs = lifecycle.claim(ids, worker="worker")
        return tuple(sorted((names.number(run.id), run.fence, run.attempt, run.begun) for run in runs))

    return work


def _heartbeat(step: steps.Heartbeat, names: Names) -> Callable[[], Any]:
    held = [(names.id(number), fence, 1.0) for number, fence in step.runs]
    return lambda: {(names.number(i), fence): asked for (i, fence), asked in lifecycle.heartbeat(held).items()}


def _finish(step: steps.Finish, names: Names) -> Callable[[], Any]:
    # As `queues.runtime.execute` writes it.
    kind = names.kinds[step.run[0]]
    awaited: dict[str, Any] = {}
    if step.verdict is Verdict.AWAITING:
        awaited = {
            "reference": step.ref,
            "confirm_in": None if kind.on_unconfirmed == "check_again" else float(kind.confirm_within),
            "act_in": float(kind.check_every if kind.polled else kind.confirm_within),
            "polled": kind.polled,
        }
    evidence = {"kind": "reference", "ref": f"run{step.run[1]}", "late": False}
    end = End(
        id=names.id(step.run[0]), fence=step.run[1], verdict=step.verdict, reason=step.reason,
        evidence=evidence if step.verdict is Verdict.CONFIRMED else None,
        failure=BOOM if step.verdict is Verdict.FAILED else None,
        retry_in=float(kind.retry_seconds), on_stale=kind.on_stale, **awaited,
    )  # fmt: skip
    return lambda: lifecycle.settle([end]).get((end.id, end.fence))


def _states(found: Mapping[UUID, JobState], names: Names) -> dict[int | None, JobState]:
    return {names.number(job_id): state for job_id, state in found.items()}


def _crash(step: steps.Crash, names: Names) -> Callable[[], Any]:
    dead = [(names.id(number), fence) for number, fence in step.runs]
    return lambda: _states(lifecycle.rescue([i for i, _ in dead], dead_runs=dead, blame=step.blame), names)


def _sweep(step: steps.Sweep, names: Names) -> Callable[[], Any]:
    look, act = {
        "rescue": (lifecycle.lost, lifecycle.rescue),
        "expire": (lifecycle.stale, lifecycle.expire),
        "overdue": (lifecycle.overdue, lifecycle.give_up_waiting),
    }[step.service]
    return lambda: _states(act(look(limit=500)), names)


# Evidence.


def _said(word: Word) -> Said:
    return Said(
        outcome="confirmed" if word.positive else "rejected", ref=word.ref, retryable=word.retryable, run=word.run,
        kind="manual" if word.kind == "manual" else "callback",
    )  # fmt: skip


def _outcome(work: Callable[[], Outcome], names: Names) -> tuple[object, ...]:
    try:
        found = work()
    except actions.JobNotFound:
        return ("not found",)
    return (names.number(found.job_id), found.applied, found.state, found.heard)


def _prove(step: steps.Prove, names: Names) -> Callable[[], Any]:
    job_id, said = names.id(step.job), _said(step.word)
    if step.word.by:
        return lambda: _outcome(lambda: confirmation.confirm_job(job_id, said, **WHO), names)
    return lambda: _outcome(lambda: confirmation.by_token(job_id, said), names)


def _provider(step: steps.Provider, names: Names) -> Callable[[], Any]:
    job_id = None if step.job is None else names.id(step.job)
    webhook = f"wh{step.webhook}"
    return lambda: _outcome(
        lambda: confirmation.by_provider(step.kind, webhook_id=webhook, job_id=job_id, evidence=_said(step.word)), names
    )


def _match_again(step: steps.MatchAgain, names: Names) -> Callable[[], Any]:
    def work() -> None:
        confirmation.match_again(within_seconds=confirmation.KEEP_LEAST, after=0, limit=500)

    return work


# People.


def _cancel(step: steps.Cancel, names: Names) -> Callable[[], Any]:
    job_id = names.id(step.job)

    def work() -> Any:
        try:
            done = actions.cancel_job(job_id, **WHO)
        except actions.JobNotFound:
            return ("not found",)
        except actions.NotCancellable as refused:
            return ("not cancellable", refused.state)
        return ("cancel", done.state, done.effect == "possible", done.changed)

    return work


def _cancel_held(step: steps.Cancel, names: Names) -> Callable[[], Any]:
    def work() -> Any:
        [done] = lifecycle.cancel([names.id(step.job)], reason=Reason.OPERATOR)
        return ("cancel", done.state, done.may_have_acted, True)

    return work


def _retry_now(step: steps.RetryNow, names: Names) -> Callable[[], Any]:
    job_id = names.id(step.job)

    def work() -> Any:
        before = sql("SELECT due_at FROM queues_job WHERE id = %s", job_id)
        try:
            actions.retry_now(job_id, **WHO)
        except actions.JobNotFound:
            return ("not found",)
        except actions.NotRetrying as refused:
            return ("not retrying", refused.state)
        return ("retry now", before != sql("SELECT due_at FROM queues_job WHERE id = %s", job_id))

    return work


def _retry_now_held(step: steps.RetryNow, names: Names) -> Callable[[], Any]:
    return lambda: ("retry now", bool(lifecycle.retry_now([names.id(step.job)])))


def _close(step: steps.Close, names: Names) -> Callable[[], Any]:
    job_id = names.id(step.job)

    def work() -> Any:
        try:
            return ("closed", actions.cancel_dead_letter(job_id, **WHO))
        except actions.JobNotFound:
            return ("not found",)
        except actions.NotCancellable as refused:
            return ("not cancellable", refused.state)

    return work


def _close_held(step: steps.Close, names: Names) -> Callable[[], Any]:
    job_id = names.id(step.job)
    return lambda: ("closed", bool(lifecycle.close_dead_letters([job_id], resolution="cancelled", by="ada")))


def _replay(step: steps.Replay, names: Names) -> Callable[[], Any]:
    job_id = names.id(step.job)

    def work() -> Any:
        edit = None
        job = Job.objects.filter(id=job_id).first()
        if job is not None and (step.payload is not None or step.key is not None):
            payload = None if step.payload is None else _text(step.payload)
            edit = edited_replay.prepare(job, payload=payload, dedupe_key=step.key).edit
        try:
            return ("replayed", actions.replay_job(job_id, edit=edit, **WHO))
        except actions.JobNotFound:
            return ("not found",)
        except actions.NotReplayable as refused:
            return ("not replayable", refused.code)

    return work


def _replay_held(step: steps.Replay, names: Names) -> Callable[[], Any]:
    def work() -> Any:
        job = Job.objects.get(id=names.id(step.job))
        edit = None
        if step.payload is not None or step.key is not None:
            payload = None if step.payload is None else _text(step.payload)
            edit = edited_replay.prepare(job, payload=payload, dedupe_key=step.key).edit
        return ("replayed", lifecycle.replay(job.id, by="ada", edit=edit))

    return work


# Checks.


def _claim_checks(step: steps.ClaimChecks, names: Names) -> Callable[[], Any]:
    ids = names.ids(step.jobs)

    def work() -> Any:
        claimed = []
        for due in lifecycle.claim_checks(ids):
            check = Check(names.number(due.id) or UNKNOWN, due.fence, seconds(due.due_at) or 0)
            names.due[check] = due
            claimed.append(check)
        return tuple(sorted(claimed, key=lambda check: check.job))

    return work


def _finish_check(step: steps.FinishCheck, names: Names) -> Callable[[], Any]:
    due, outcome, kind = names.due[step.check], step.outcome, names.kinds[step.check.job]
    end = CheckEnd(
        id=due.id, fence=due.fence, due_at=due.due_at, outcome=outcome,
        evidence={"kind": "check", "ref": f"check{due.fence}", "late": False} if outcome == "confirmed" else None,
        failure={"error_class": "Rejected", "message": "no"} if outcome == "rejected" else None,
        next_in=float(kind.check_every), otherwise="retry" if kind.on_unconfirmed == "retry" else "dead",
    )  # fmt: skip
    return lambda: lifecycle.finish_checks([end]).get((due.id, due.fence))


# Retention and switches.


def _prune(step: steps.Prune, names: Names) -> Callable[[], Any]:
    def work() -> None:
        days = sql("SELECT DISTINCT right(tableoid::regclass::text, 8)::date FROM queues_job ORDER BY 1")
        for (day,) in days:
            assert lifecycle.prune_day(day, most=1000, remove=step.remove) is not None, "two prunes at once"

    return work


def _switch(step: steps.Switch, names: Names) -> Callable[[], Any]:
    column, value = ("paused", step.on) if step.name == "paused" else ("enabled", not step.on)

    def work() -> None:
        sql(f"UPDATE queues_jobtype SET {column} = %s WHERE name = %s", value, step.kind)
        contracts.forget()

    return work


_DIRECT: Final[Mapping[type[Step], object]] = {
    steps.Accept: _accept, steps.Claim: _claim, steps.Heartbeat: _heartbeat, steps.Finish: _finish,
    steps.Crash: _crash, steps.Sweep: _sweep, steps.Prove: _prove, steps.Provider: _provider,
    steps.MatchAgain: _match_again, steps.Cancel: _cancel, steps.RetryNow: _retry_now, steps.Close: _close,
    steps.Replay: _replay, steps.ClaimChecks: _claim_checks, steps.FinishCheck: _finish_check, steps.Prune: _prune,
    steps.PruneInbox: lambda step, names: lambda: lifecycle.prune_callbacks(limit=500), steps.Switch: _switch,
}  # fmt: skip
_HELD: Final[Mapping[type[Step], object]] = {
    steps.Cancel: _cancel_held, steps.RetryNow: _retry_now_held, steps.Close: _close_held, steps.Replay: _replay_held,
}  # fmt: skip
