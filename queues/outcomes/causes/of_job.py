"""Why one job is not running, or not confirmed: what it waits for, in the order in which that holds it.

Not here: reading (`facts`); what may be done with the job.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from queues.models import Job
from queues.outcomes.causes import checks, limits
from queues.outcomes.causes.checks import Held, Machine
from queues.outcomes.causes.facts import LOOK_AT_MOST, RECENT_MINUTES
from queues.outcomes.causes.found import PROVIDER, SHARE, STOP, Cause, Next, Verdict, Why, ranked
from queues.outcomes.causes.limits import Place
from queues.outcomes.causes.words import clock, have, jobs, length, per_minute, when
from queues.states import TERMINAL, JobState

SOON_SECONDS: Final = 10
"""A job that is due and free to run starts within so long; then it is asked why not."""
_ONE: Final = Held(n=1)


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """Everything that the verdicts about a job rest on.

    `ahead`: jobs that a claim would take before it, counted up to LOOK_AT_MOST. `success`: what its contract wants as
    proof; None where that is not known. `retries_unconfirmed`: without a proof another attempt follows. `place`: where
    it stands among the limits of its type; None without limits.
    """

    on: Machine
    job: Job
    ahead: int = 0
    success: str | None = None
    retries_unconfirmed: bool = False
    place: Place | None = None


def why_open(facts: JobFacts) -> Why:
    """Explain what an open job waits for; of a settled one say how it ended."""
    state = JobState(facts.job.state)
    as_of = facts.on.situation.as_of
    if state in TERMINAL:
        return Why(state=state, sentence=_settled_words(facts), as_of=as_of)
    if state == JobState.PROCESSING:
        found = _running(facts)
    elif state == JobState.AWAITING_CONFIRMATION:
        found = _awaiting(facts)
    else:
        found = _waiting(facts)
    causes = ranked(found)
    # Without a cause, what is said of the job itself.
    first = next((one for one in causes if one.verdict == Verdict.CAUSE), found[0])
    return Why(state=state, sentence=f"{first.sentence}.", causes=causes, as_of=as_of)


def _settled_words(facts: JobFacts) -> str:
    job, now = facts.job, facts.on.now
    ended = f"{job.state.capitalize()} at {clock(job.settled_at, now)}" if job.settled_at else job.state.capitalize()
    if job.state == JobState.CONFIRMED and job.settled_at is not None:
        lag = length((job.settled_at - job.ready_at).total_seconds())
        return f"{ended}, {lag} after it was ready: nothing holds it."
    return f"{ended}, reason {job.reason}: it has ended, nothing holds it."


def _waiting(facts: JobFacts) -> list[Cause]:
    """A job that waits for its time, its next attempt or a worker."""
    job, on = facts.job, facts.on
    retries = job.state == JobState.RETRYING
    ahead_of_time = job.due_at is not None and job.due_at > on.now
    # Before its time nothing else holds it; what would hold it then comes after.
    stopped = [_later(one) if ahead_of_time else one for one in checks.stops(on, _ONE)]
    limited = [] if ahead_of_time or facts.place is None else limits.of_place(facts.place, ahead=facts.ahead)
    held = {one.code for one in limited if one.verdict == Verdict.CAUSE}
    found: list[Cause] = []
    # What a limit holds waits for no worker; how many go before it is worth saying all the same, of a group that is
    # ordered it is said there.
    if (
        not ahead_of_time
        and not any(one.verdict == Verdict.CAUSE and one.rank == STOP for one in stopped)
        and (not held or (facts.ahead and "order" not in held))
    ):
        found.append(_backlog(facts))
    found += limited
    if retries:
        found.append(_retrying(facts, due=not ahead_of_time))
        if not checks.is_held(on):
            found.append(_provider(on))
    elif ahead_of_time:
        found.append(_scheduled(facts))
    return [*found, *stopped]


def _later(stop: Cause) -> Cause:
    """A stop that will hold the job when its time has come."""
    if stop.verdict != Verdict.CAUSE:
        return stop
    detail = f"It would hold the job then. {stop.detail}".strip()
    return _changed(stop, detail=detail, rank=SHARE + 1)


def _changed(cause: Cause, **values: Any) -> Cause:
    return Cause(**{**cause.__dict__, **values})


def _provider(on: Machine) -> Cause:
    cause = checks.provider_failing(on)
    # A job that waits to retry needs no numbers to know that its own attempts failed.
    return _changed(cause, rank=PROVIDER, next=Next(kind="job_type", params={"type": on.name}))


def _scheduled(facts: JobFacts) -> Cause:
    job, now = facts.job, facts.on.now
    due = job.due_at or job.ready_at
    own = job.ready_at > now
    return Cause(
        code="scheduled",
        verdict=Verdict.CAUSE,
        sentence=f"Waiting for its time: {when(due, now)}" if own else f"Put off until {when(due, now)}",
        detail="Its clock starts then." if own else "Its run was given back and is due again then.",
        evidence={"due_at": job.due_at, "ready_at": job.ready_at},
        rank=STOP,
    )


def _retrying(facts: JobFacts, *, due: bool) -> Cause:
    job, now = facts.job, facts.on.now
    last = _last_failure(job)
    error = ": ".join(part for part in (last.get("error_class"), last.get("message")) if part)
    lost = (
        f", {jobs(job.crashes, what='run')} {have(job.crashes, 'was', 'were')} lost with their worker"
        if job.crashes
        else ""
    )
    at = "the next one is due" if due or job.due_at is None else f"next at {when(job.due_at, now)}"
    parts = [f"Last error {error}."] if error else []
    if job.check_failures:
        parts.append(
            f"The check before the next attempt could not answer, {job.check_failures} times so far, and the work waits"
            " for it."
        )
    return Cause(
        code="retrying",
        verdict=Verdict.NOT_A_CAUSE if due else Verdict.CAUSE,
        sentence=f"{job.attempt} of {job.attempt_limit} attempts failed{lost}, {at}",
        detail=" ".join(parts),
        evidence={
            "attempt": job.attempt, "attempt_limit": job.attempt_limit, "crashes": job.crashes, "due_at": job.due_at,
            "error_class": last.get("error_class"), "check_failures": job.check_failures,
        },
        rank=SHARE,
    )  # fmt: skip


def _last_failure(job: Job) -> Mapping[str, str]:
    last = job.failures[-1] if job.failures and isinstance(job.failures[-1], dict) else {}
    message = str(last.get("message") or "").split("\n")[0]
    return {"error_class": str(last.get("error_class") or ""), "message": message[:140]}


def _backlog(facts: JobFacts) -> Cause:
    """A job that is due, and nothing stops it: what is ahead of it, and whether workers are free."""
    job, on, ahead = facts.job, facts.on, facts.ahead
    pool, own = on.pool, on.situation.own
    rate = own.runs / RECENT_MINUTES
    grouped = facts.place is not None and facts.place.ahead_in_group is not None
    # The pace is the type's: of one group, or of jobs without one among groups that wait, it says nothing.
    paced = facts.place is None or not facts.place.limits.in_groups
    seconds = ahead / rate * 60 if ahead and rate and paced and not on.stands_still and ahead < LOOK_AT_MOST else None
    least = facts.place.starts_in(ahead) if facts.place is not None and ahead else 0.0
    bound = least > (seconds or 0.0)
    seconds = least if bound else seconds
    due_for = (on.now - job.due_at).total_seconds() if job.due_at else 0.0
    busy, slots = (min(pool.busy, pool.slots), pool.slots) if pool else (0, 0)
    evidence: dict[str, Any] = {
        "ahead": ahead, "ahead_at_most": LOOK_AT_MOST, "runs_per_minute": None if on.stands_still else rate,
        "starts_in_seconds": seconds, "queue": on.queue, "slots": slots, "busy": busy, "due_at": job.due_at,
        "priority": job.priority,
    }  # fmt: skip
    slots_words = f"{f'All {slots}' if busy >= slots else f'{busy} of {slots}'} slots of {on.queue} are busy."
    if ahead:
        started = f"{per_minute(rate)} a minute{' of its type' if grouped else ''} were started in the last"
        started = f"{started} {RECENT_MINUTES} min"
        if on.stands_still:
            started = on.not_known.rstrip(".")
        elif not rate:
            started = f"None was started in the last {RECENT_MINUTES} min"
        about = f": about {length(seconds)} at that pace" if seconds is not None else ""
        about = f": at least {length(least)} by its rate" if bound else about
        return Cause(
            code="backlog",
            verdict=Verdict.CAUSE,
            sentence=f"{jobs(ahead, most=LOOK_AT_MOST)} of {'its group' if grouped else 'this type'}"
            f" {have(ahead, 'is', 'are')} ahead of it",
            detail=f"Of the same or a higher priority, and due earlier. {started}{about}. {slots_words}",
            evidence=evidence,
            next=Next(kind="jobs", params={"type": job.type, "state": "accepted"}),
        )
    if slots and busy >= slots:
        return Cause(
            code="backlog",
            verdict=Verdict.CAUSE,
            sentence=f"It is the next of its type; all {slots} slots of {on.queue} are busy",
            detail=f"Due for {length(due_for)}. Other jobs run there now.",
            evidence=evidence,
            next=Next(kind="jobs", params={"state": "processing"}),
        )
    if due_for <= SOON_SECONDS:
        return Cause(
            code="backlog",
            verdict=Verdict.NOT_A_CAUSE,
            sentence="Nothing is ahead of it: it should start within seconds",
            detail=f"Due for {length(due_for)}. {slots_words}",
            evidence=evidence,
        )
    return Cause(
        code="backlog",
        verdict=Verdict.UNKNOWN,
        sentence=f"Due for {length(due_for)}, nothing is ahead of it and slots are free: why it waits is not known",
        detail=slots_words,
        evidence=evidence,
    )


def _running(facts: JobFacts) -> list[Cause]:
    """A job with a live run, or one whose lease ran out."""
    job, on = facts.job, facts.on
    started = f" since {clock(job.started_at, on.now)}" if job.started_at else ""
    alive = job.due_at is not None and job.due_at > on.now
    lease = f"Its lease is good until {when(job.due_at, on.now)}" if job.due_at else "It holds no lease"
    if not alive and job.due_at:
        lease = f"Its lease ran out at {when(job.due_at, on.now)}: the scheduler takes the job back within seconds"
    asked = " It was asked to stop." if job.cancel_requested else ""
    run = Cause(
        code="running",
        verdict=Verdict.CAUSE,
        sentence=f"Attempt {job.attempt} is running{started} on {job.worker}",
        detail=f"{lease}.{asked}",
        evidence={
            "attempt": job.attempt, "worker": job.worker, "started_at": job.started_at, "lease_until": job.due_at,
            "cancel_requested": job.cancel_requested,
        },
        since=job.started_at,
        rank=STOP + 1,
    )  # fmt: skip
    if alive:
        return [run]
    return [run, checks.scheduler_down(on, _ONE)]


def _awaiting(facts: JobFacts) -> list[Cause]:
    """A job that is done and not proven."""
    job, on = facts.job, facts.on
    what = {"callback": "a callback", "check": "a check"}.get(facts.success or "", "its proof")
    until = job.confirm_by or job.expires_at
    then = (
        "another attempt follows" if facts.retries_unconfirmed and job.attempt < job.attempt_limit else "it is given up"
    )
    parts = [f"Its run ended at {when(job.finished_at, on.now)}."] if job.finished_at else []
    parts.append(f"Without a proof by then {then}.")
    if job.polled and job.due_at is not None and job.due_at < until:
        parts.append(f"The check is asked {when(job.due_at, on.now)}." if job.due_at > on.now else "The check is due.")
        unanswered = job.checks + job.check_failures
        parts += [f"{jobs(unanswered, what='check')} without an answer so far."] if unanswered else []
    found = [
        Cause(
            code="awaiting_confirmation",
            verdict=Verdict.CAUSE,
            sentence=f"Waiting for {what} until {when(until, on.now)}",
            detail=" ".join(parts),
            evidence={
                "success": facts.success, "until": until, "ended_at": job.finished_at, "polled": job.polled,
                "next_check_at": job.due_at if job.polled else None,
                "checks_without_answer": job.checks + job.check_failures, "reference": bool(job.reference),
            },
            since=job.finished_at,
            rank=STOP + 1,
        )
    ]  # fmt: skip
    overdue = job.due_at is not None and job.due_at <= on.now
    scheduler = checks.scheduler_down(on, _ONE)
    found.append(scheduler if overdue else _later_than_proof(scheduler))
    if job.polled:
        worker = checks.no_worker(on, _ONE)
        found.append(worker if overdue else _later_than_proof(worker))
    return found


def _later_than_proof(stop: Cause) -> Cause:
    """A stop that does not keep a callback away, only the next check or the deadline."""
    if stop.verdict != Verdict.CAUSE:
        return stop
    return _changed(stop, rank=SHARE, detail=f"Checks and the deadline wait for it. {stop.detail}".strip())
