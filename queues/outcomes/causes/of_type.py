"""Why a job type is late: every possible cause with its verdict, the one that explains most first.

Not here: reading (`facts`); what a page or the API makes of it.
"""

import datetime as dt
from collections.abc import Callable
from typing import Any, Final

from queues.outcomes.causes import checks, limits
from queues.outcomes.causes.checks import Held
from queues.outcomes.causes.facts import FAILING_SHARE, LOOK_AT_MOST, RECENT_MINUTES, RUNS_LEAST
from queues.outcomes.causes.found import CHANGE, PROVIDER, SHARE, STOP, Cause, Next, Verdict, Why, ranked
from queues.outcomes.causes.type_facts import MOST_OF, TIME_SHARE, TypeFacts
from queues.outcomes.causes.words import clock, have, jobs, length, per_minute, percent, when

CHANGE_BEFORE: Final = dt.timedelta(minutes=30)
"""A version that came so long before the promise was broken may have to do with it."""


def why_late(facts: TypeFacts) -> Why:
    """Explain why a type is late; when it is not, name only what stops its jobs."""
    on = facts.on
    if facts.past:
        then = [cause for check in CHECKS if facts.broken and (cause := check(facts, False)) is not None]
        return Why(state=facts.state, sentence=_sentence(facts), causes=ranked(then), as_of=on.situation.as_of)
    seen = sum(facts.open.of(state).n for state in ("accepted", "retrying"))
    waiting = max(seen, facts.waiting - facts.open.scheduled)
    stopped = checks.stops(on, Held(n=min(waiting, LOOK_AT_MOST), share=facts.of_open("accepted", "retrying")))
    if facts.state in ("late", "overdue"):
        hard = any(one.verdict == Verdict.CAUSE and one.rank == STOP for one in stopped)
        # Jobs that a full limit holds wait for no worker.
        held = limits.of_type(facts)
        full = any(one.verdict == Verdict.CAUSE and one.code in limits.OF_TYPE for one in held)
        checked = [cause for check in CHECKS if (cause := check(facts, hard)) is not None]
        found = [*stopped, *held, *(one for one in checked if not full or one.code != "backlog")]
    else:
        found = [one for one in (*stopped, *limits.held_groups(facts)) if one.verdict == Verdict.CAUSE]
    found += [one for one in (scheduled(facts), checks.disabled(on)) if one is not None]
    return Why(state=facts.state, sentence=_sentence(facts), causes=ranked(found), as_of=on.situation.as_of)


def _sentence(facts: TypeFacts) -> str:
    window, ratio = length(facts.window_seconds), facts.total.ratio
    over = f"{jobs(facts.open.late, most=LOOK_AT_MOST)} past {have(facts.open.late, 'its', 'their')} window"
    over = f"{over} {have(facts.open.late, 'is', 'are')} open" if facts.open.late else "No open job is past its window"
    if facts.past:
        over = "Pauses, workers and the scheduler of that time are not judged"
    if facts.state == "late":
        kept = f"{percent(ratio or 0.0)} of {jobs(facts.total.due)} were confirmed within {window}"
        again = "" if facts.since else " The newest numbers keep the promise again."
        return f"{kept}, the promise is {percent(facts.target)}.{again} {over}."
    if facts.state == "overdue":
        kept = f"The promise is kept, {percent(ratio)}" if ratio is not None else "No window has been judged yet"
        return f"{over}. {kept}."
    if facts.state == "no_data":
        return f"Nothing is late: no window of {window} has passed in this time, and no open job is past its own."
    return f"Nothing is late: the promise is kept ({percent(ratio or 0.0)}) and no open job is past its window."


def provider(facts: TypeFacts, stopped: bool) -> Cause | None:
    """Judge the provider by the last minutes; one that failed and is well again explains what was late."""
    share = facts.explains("retrying", "retrying")
    if facts.past:
        return _provider_then(facts, share)
    if checks.is_held(facts.on):
        # Its breaker says it, and holds back the runs by which it would be judged.
        return None
    now = checks.provider_failing(facts.on, share=share, retries_explain=share >= MOST_OF, errors=facts.open.errors)
    runs, failed = max(facts.bad.runs, facts.bad.failed + facts.bad.lost), facts.bad.failed
    if now.verdict == Verdict.CAUSE or not facts.broken or runs < RUNS_LEAST or failed < FAILING_SHARE * runs:
        return now
    whom = facts.on.situation.dependency or "What it calls"
    begun = f"since {clock(facts.since, facts.on.now)}" if facts.since else "in this time"
    state = "it is well now" if now.verdict == Verdict.NOT_A_CAUSE else "whether it still does is not known"
    return Cause(
        code="provider_failing",
        verdict=Verdict.CAUSE,
        sentence=f"{whom} failed {percent(failed / runs)} of {jobs(runs, what='run')} {begun}; {state}",
        detail=now.detail,
        evidence={**now.evidence, "runs_while_late": runs, "failed_while_late": failed},
        since=facts.since,
        share=share,
        next=Next(kind="jobs", params={"type": facts.on.name}),
        rank=PROVIDER if share >= TIME_SHARE else now.rank,
    )


def _provider_then(facts: TypeFacts, share: float) -> Cause:
    """Judge the provider by the runs of a range that has ended."""
    whom = facts.on.situation.dependency or "what it calls"
    runs, failed = max(facts.bad.runs, facts.bad.failed + facts.bad.lost), facts.bad.failed
    evidence = {
        "dependency": facts.on.situation.dependency or None,
        "runs_while_late": runs,
        "failed_while_late": failed,
    }
    part = f"{percent(failed / runs)} of {jobs(runs, what='run')} of this type failed while it was late" if runs else ""
    if runs < RUNS_LEAST:
        return Cause(
            code="provider_failing",
            verdict=Verdict.UNKNOWN,
            sentence=f"Whether {whom} failed is not known",
            detail=f"{jobs(runs, what='run').capitalize()} in that time: too few to judge by.",
            evidence=evidence,
        )
    failing = failed >= FAILING_SHARE * runs
    return Cause(
        code="provider_failing",
        verdict=Verdict.CAUSE if failing else Verdict.NOT_A_CAUSE,
        sentence=f"{whom[0].upper()}{whom[1:]} failed" if failing else f"{whom[0].upper()}{whom[1:]} did not fail",
        detail=f"{part}.",
        evidence=evidence,
        since=facts.since if failing else None,
        share=share if failing else None,
        rank=PROVIDER if share >= TIME_SHARE else SHARE,
    )


def runs_lost(facts: TypeFacts, stopped: bool) -> Cause | None:
    """Workers that die under their runs."""
    own = facts.on.situation.own
    whole = max(own.runs, own.failed + own.lost)
    if facts.past or facts.on.stands_still or own.lost < 2 or own.lost < FAILING_SHARE * whole:
        return None
    return Cause(
        code="runs_lost",
        verdict=Verdict.CAUSE,
        sentence=f"{own.lost:,} of {jobs(whole, what='run')} were lost with their worker in {RECENT_MINUTES} min",
        detail="A lost run is found when its lease ends, and starts again.",
        evidence={"runs": own.runs, "lost": own.lost, "minutes": RECENT_MINUTES},
        share=own.lost / whole,
        next=Next(kind="jobs", params={"type": facts.on.name}),
    )


def backlog(facts: TypeFacts, stopped: bool) -> Cause | None:
    """Work that waits for a worker, how fast it is drained, and whether workers are busy."""
    if stopped:
        # It waits for what stops it, which is said already.
        return None
    waiting, on = facts.open.of("accepted"), facts.on
    pool, own = on.pool, on.situation.own
    rate = own.runs / RECENT_MINUTES
    seconds = waiting.due / rate * 60 if rate and not on.stands_still and waiting.due < LOOK_AT_MOST else None
    least = limits.drained_in(facts, waiting.due)
    bound = seconds is not None and least > seconds
    seconds = least if bound else seconds
    evidence: dict[str, Any] = {
        "waiting": waiting.due, "waiting_at_most": LOOK_AT_MOST, "oldest_ready_at": waiting.oldest,
        "runs_per_minute": None if on.stands_still else rate, "drained_in_seconds": seconds,
        "queue": on.queue, "others_waiting": facts.others_waiting, "slots": pool.slots if pool else 0,
        "busy": pool.busy if pool else 0,
    }  # fmt: skip
    if facts.past:
        evidence = {"share_of_time": facts.of_time("waiting")}
    # Which of them wait for their group is known of some groups only.
    whom = "to be started" if facts.limits is not None and facts.limits.in_groups else "for a worker"
    if not facts.is_cause("waiting", "accepted"):
        return Cause(
            code="backlog",
            verdict=Verdict.NOT_A_CAUSE,
            sentence="No backlog held it up" if facts.past else "No backlog holds it up",
            detail="" if facts.past else f"{jobs(waiting.due, most=LOOK_AT_MOST)} {have(waiting.due)} {whom}.",
            evidence=evidence,
        )
    parts: list[str] = []
    if waiting.oldest is not None and waiting.due:
        parts.append(f"The oldest is ready for {length((on.now - waiting.oldest).total_seconds())}.")
    if not facts.past:
        parts.append(on.not_known if on.stands_still else _drain_words(rate, seconds, bound=bound))
    if pool is not None:
        busy = f"All {pool.slots} slots" if pool.busy >= pool.slots else f"{pool.busy} of {pool.slots} slots"
        parts.append(f"{busy} of {on.queue} are busy.")
    if facts.others_waiting and not facts.past:
        parts.append(f"{jobs(facts.others_waiting)} of other types {have(facts.others_waiting)} for the same workers.")
    share = facts.of_time("waiting")
    return Cause(
        code="backlog",
        verdict=Verdict.CAUSE,
        sentence=f"{jobs(waiting.due, most=LOOK_AT_MOST)} {have(waiting.due)} {whom}"
        if waiting.due
        else f"Waiting for a worker took {percent(share or 0.0)} of the time",
        detail=" ".join(parts),
        evidence=evidence,
        since=waiting.oldest if waiting.due else None,
        share=facts.explains("waiting", "accepted"),
        next=Next(kind="jobs", params={"type": on.name, "state": "accepted"}),
    )


def _drain_words(rate: float, seconds: float | None, *, bound: bool) -> str:
    if not rate:
        return f"None was started in the last {RECENT_MINUTES} min."
    words = f"{per_minute(rate)} a minute were started in the last {RECENT_MINUTES} min"
    if seconds is None:
        return f"{words}."
    about = f"at least {length(seconds)} by its rate" if bound else f"about {length(seconds)} at that pace"
    return f"{words}: {about}."


def slow_runs(facts: TypeFacts, stopped: bool) -> Cause | None:
    """Runs that take most of the time themselves."""
    share = facts.of_time("running")
    stage = next((one for one in facts.stages if one.name == "running"), None)
    running = facts.open.of("processing")
    if not (facts.broken and (share or 0.0) >= MOST_OF) and not (
        facts.open.late and facts.of_open("processing") >= MOST_OF
    ):
        return None
    p95 = f"p95 of a run is {length(stage.p95)}." if stage is not None and stage.p95 is not None else ""
    return Cause(
        code="slow_runs",
        verdict=Verdict.CAUSE,
        sentence=f"Running takes {percent(share)} of the time"
        if share
        else f"{jobs(running.late)} past the window still run",
        detail=f"{jobs(running.n, most=LOOK_AT_MOST)} {have(running.n, 'runs', 'run')} now. {p95}".strip(),
        evidence={
            "running": running.n, "running_past_window": running.late, "share_of_time": share,
            "p95_seconds": stage.p95 if stage else None,
        },
        share=facts.explains("running", "processing"),
        next=Next(kind="jobs", params={"type": facts.on.name, "state": "processing"}),
    )  # fmt: skip


def retrying(facts: TypeFacts, stopped: bool) -> Cause:
    """Jobs between two attempts, and how much of the work is trying again, against the tier's budget."""
    found, on, share = facts.open.of("retrying"), facts.on, facts.of_time("retrying")
    pressure, budget = on.situation.own.retry_pressure, on.situation.retry_budget
    known = None if on.stands_still or facts.past else pressure
    evidence: dict[str, Any] = {
        "retrying": found.n, "retrying_past_window": found.late, "next_due_at": found.next, "share_of_time": share,
        "retry_pressure": known, "retry_budget": budget, "minutes": RECENT_MINUTES,
    }  # fmt: skip
    is_cause = facts.is_cause("retrying", "retrying")
    parts = []
    if facts.past and not is_cause:
        parts.append("Waiting to retry did not take most of the time.")
    if found.next is not None:
        parts.append("An attempt is due." if found.due else f"The next attempt is due {when(found.next, on.now)}.")
    if is_cause and share:
        parts.append(f"Waiting to retry took {percent(share)} of the time.")
    if known is not None:
        over = "over" if known > budget else "within"
        parts.append(f"{percent(known)} of its runs are retries, {over} the tier's budget of {percent(budget)}.")
    return Cause(
        code="retrying",
        verdict=Verdict.CAUSE if is_cause else Verdict.NOT_A_CAUSE,
        sentence=f"{jobs(found.n, most=LOOK_AT_MOST)} {have(found.n)} for another attempt"
        if found.n or not is_cause
        else "Failed attempts made its jobs wait",
        detail=" ".join(parts),
        evidence=evidence,
        share=facts.explains("retrying", "retrying"),
        next=Next(kind="jobs", params={"type": on.name, "state": "retrying"}) if found.n else None,
    )


def awaiting(facts: TypeFacts, stopped: bool) -> Cause | None:
    """Jobs that are done and not proven."""
    found, on, share = facts.open.of("awaiting_confirmation"), facts.on, facts.of_time("awaiting")
    if not found.n and not share:
        return None
    what = {"callback": "a callback", "check": "a check"}.get(on.situation.success, "a proof")
    is_cause = facts.is_cause("awaiting", "awaiting_confirmation")
    parts = [f"The first is given up at {when(found.confirm_by, on.now)}."] if found.confirm_by else []
    if is_cause and share:
        parts.append(f"Waiting for the proof took {percent(share)} of the time.")
    return Cause(
        code="awaiting_confirmation",
        verdict=Verdict.CAUSE if is_cause else Verdict.NOT_A_CAUSE,
        sentence=f"{jobs(found.n, most=LOOK_AT_MOST)} {have(found.n)} for {what}"
        if found.n
        else f"Nothing waits for {what} now",
        detail=" ".join(parts),
        evidence={
            "awaiting": found.n, "awaiting_past_window": found.late, "first_given_up_at": found.confirm_by,
            "success": on.situation.success, "share_of_time": share,
        },
        share=facts.explains("awaiting", "awaiting_confirmation"),
        next=Next(kind="jobs", params={"type": on.name, "state": "awaiting_confirmation"}) if found.n else None,
    )  # fmt: skip


def contract_changed(facts: TypeFacts, stopped: bool) -> Cause | None:
    """A version that came shortly before the promise was broken. Only one that promises more is a cause by itself."""
    since, on = facts.since, facts.on
    if since is None:
        return None
    # A slot of a long range is wide, and its beginning says little about when in it the promise was broken.
    near = [
        one for one in facts.changes if one.version > 1 and since - CHANGE_BEFORE <= one.at <= since + CHANGE_BEFORE
    ]
    if not near:
        return Cause(
            code="contract_changed",
            verdict=Verdict.NOT_A_CAUSE,
            sentence="The contract did not change shortly before",
            detail=f"No version is from the 30 min around {clock(since, on.now)}, when the promise was broken.",
            evidence={"late_since": since, "versions": []},
        )
    newest = max(near, key=lambda one: one.version)
    stricter = [one for one in near if one.stricter]
    said = stricter[-1] if stricter else newest
    away = (since - said.at).total_seconds()
    near_words = f"{length(away)} before the promise was broken" if away > 0 else "while the promise was being broken"
    return Cause(
        code="contract_changed",
        verdict=Verdict.CAUSE if stricter else Verdict.UNKNOWN,
        sentence=f"Version {said.version} promises more since {clock(said.at, on.now)}"
        if stricter
        else f"Version {said.version} of the contract came {near_words}",
        detail=f"By {said.actor}: {said.words}." + ("" if stricter else " Whether it is the cause is not known."),
        evidence={
            "late_since": since, "versions": [one.version for one in near], "version": said.version, "at": said.at,
            "by": said.actor, "change": said.words,
        },
        since=said.at,
        next=Next(kind="contract", params={"type": on.name, "version": str(said.version)}),
        rank=CHANGE,
    )  # fmt: skip


def scheduled(facts: TypeFacts) -> Cause | None:
    """Jobs whose time has not come: they are not late."""
    n, at = facts.open.scheduled, facts.open.next_ready
    if not n or at is None:
        return None
    return Cause(
        code="scheduled",
        verdict=Verdict.NOT_A_CAUSE,
        sentence=f"{jobs(n, most=LOOK_AT_MOST)} {have(n)} for {have(n, 'its', 'their')} time, the first until"
        f" {when(at, facts.on.now)}",
        detail="Their clock starts then.",
        evidence={"scheduled": n, "scheduled_at_most": LOOK_AT_MOST, "next_ready_at": at},
        next=Next(kind="jobs", params={"type": facts.on.name, "state": "accepted"}),
    )


CHECKS: Final[tuple[Callable[[TypeFacts, bool], Cause | None], ...]] = (
    provider, runs_lost, backlog, slow_runs, retrying, awaiting, contract_changed,
)  # fmt: skip
"""What is looked at beside the stops. The second argument says whether a stop was found."""
