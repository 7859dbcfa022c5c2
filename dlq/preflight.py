"""Is a replay safe? Eight checks, each passed, to note, failed or not known, with its evidence and time.

The worst answer decides, and what is not known is never safe. Judging reads nothing: facts come from `dlq.facts`.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from dlq import facts as reading
from dlq.facts import Dependency, Facts
from queues import accept, outside
from queues.breakers import Standing
from queues.lifecycle import Edit
from queues.models import Breaker, Job
from queues.redaction import redact_text
from queues.request import PayloadInvalid
from queues.states import REPLAYABLE, JobState, Reason, Resolution

Result = Literal["pass", "note", "fail", "unknown"]
Verdict = Literal["safe", "unknown", "unsafe"]

FAILING_SHARE: Final = 0.5
"""From this share of failed runs on a dependency is said to fail."""
SHAKY_SHARE: Final = 0.2
"""From this share on it is worth a note."""
_LETTERS: Final[Mapping[Result, str]] = {"pass": "p", "note": "n", "fail": "f", "unknown": "u"}
_RESULTS: Final[Mapping[str, Result]] = {letter: result for result, letter in _LETTERS.items()}
_FOR_GOOD: Final = {Reason.PERMANENT_ERROR, Reason.PAYLOAD_INVALID, Reason.NO_HANDLER, Reason.POISON}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question, its answer and the evidence. `name` is for programs and never changes.

    `at`: when the evidence was got. `final`: nobody can replay the job past this failure, an admin neither.
    """

    name: str
    title: str
    result: Result
    evidence: str
    at: dt.datetime
    final: bool = False


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """The answers about one job."""

    job_id: UUID
    checks: Sequence[Check]
    at: dt.datetime

    @property
    def verdict(self) -> Verdict:
        """Sum the answers up: what is not known is never safe."""
        results = {check.result for check in self.checks}
        if "fail" in results:
            return "unsafe"
        return "unknown" if "unknown" in results else "safe"

    @property
    def fingerprint(self) -> str:
        """Say what was answered in a few letters: who replays hands it back, and another one is a changed verdict."""
        return "1" + "".join(_LETTERS[check.result] for check in self.checks)

    @property
    def worst(self) -> Check:
        """Return the check that decides."""
        order: Sequence[Result] = ("fail", "unknown", "note", "pass")
        return min(self.checks, key=lambda check: (order.index(check.result), not check.final))

    @property
    def final(self) -> bool:
        """Whether nobody can replay it."""
        return any(check.result == "fail" and check.final for check in self.checks)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A check whose answer is another one than a moment ago."""

    name: str
    title: str
    was: Result
    now: Result
    evidence: str


NAMES: Final = (
    "open", "already_done", "idempotency_key", "superseded", "max_age", "dependency", "contract", "cause",
)  # fmt: skip


def look(job: Job, *, ask: bool = True, fresh: bool = False) -> Preflight:
    """Judge one job now. `ask`: have a worker ask the outside world first, and wait for that at most two seconds.

    Asking is not possible inside a transaction. `fresh`: contracts are read now.
    """
    if ask and needs_answer(job):
        outside.ask_and_wait([job.id])
    return judge(reading.gather([job], fresh=fresh)[job.id])


def needs_answer(job: Job) -> bool:
    """Whether only the outside world knows if the work of this job was done."""
    return job.state in REPLAYABLE and job.begun > 0 and job.erased_at is None and not late_evidence(job, "confirmed")


def judge(facts: Facts, *, edit: Edit | None = None) -> Preflight:
    """Answer every check, about the job as it is or as an edit would make it."""
    if edit is not None:
        facts = _edited(facts, edit)
    checks = [
        _open(facts), _done(facts), _key(facts), _superseded(facts), _max_age(facts),
        dependency(facts.dependency, now=facts.now),
        _contract(facts), _cause(facts),
    ]  # fmt: skip
    return Preflight(job_id=facts.job.id, checks=checks, at=facts.now)


def _edited(facts: Facts, edit: Edit) -> Facts:
    """Return the facts about the job that an edit makes: under another key it is one that nobody has ever run."""
    job = copy.copy(facts.job)
    if edit.payload is not None:
        job.payload = edit.payload
    if edit.dedupe_key is None:
        return dataclasses.replace(facts, job=job)
    job.dedupe_key, job.begun, job.late_evidence = edit.dedupe_key, 0, None
    holder = reading.holders([job]).get((job.type, edit.dedupe_key))
    return dataclasses.replace(facts, job=job, holder=holder, other_key=True)


def changes(fingerprint: str, found: Preflight) -> list[Change]:
    """Return what is another answer now than the fingerprint says; all of them when it is none of ours."""
    told = [_RESULTS.get(letter) for letter in fingerprint[1:]]
    if fingerprint[:1] != "1" or len(told) != len(found.checks):
        told = [None] * len(found.checks)
    return [
        Change(name=check.name, title=check.title, was=was or "unknown", now=check.result, evidence=check.evidence)
        for was, check in zip(told, found.checks, strict=True)
        if was != check.result
    ]


def late_evidence(job: Job, outcome: str) -> list[Mapping[str, Any]]:
    """Return what came of this outcome after the job had ended, oldest first."""
    return [one for one in job.late_evidence or [] if isinstance(one, dict) and one.get("outcome") == outcome]


def _open(facts: Facts) -> Check:
    job = facts.job

    def said(title: str, result: Result, words: str) -> Check:
        return Check(name="open", title=title, result=result, evidence=words, at=facts.now, final=True)

    if job.probe:
        return said("A probe", "fail", "Probes are not replayed; the next one is sent by itself")
    if job.state not in REPLAYABLE:
        return said("Not ended", "fail", f"The job is {job.state.replace('_', ' ')}")
    if job.replayed_by is not None:
        return said("Already replayed", "fail", f"It was replayed as {job.replayed_by}")
    if job.resolution != Resolution.OPEN:
        return said("Already resolved", "fail", f"It was {job.resolution} by {job.resolved_by}")
    if job.erased_at is not None:
        return said("Payload gone", "fail", "Its payload was erased")
    return said("Not yet resolved", "pass", "Nobody replayed or cancelled it")


def _done(facts: Facts) -> Check:
    job, answer = facts.job, facts.answer

    def said(title: str, result: Result, words: str, at: dt.datetime | None = None) -> Check:
        return Check(name="already_done", title=title, result=result, evidence=words, at=at or facts.now)

    unknown = "Not known whether it is done"
    if late_evidence(job, "confirmed"):
        return said("Already done", "fail", "It was confirmed late, after this end")
    if not job.begun:
        return said("Not already done", "pass", "No attempt ever began")
    # Work that was done stays done: no age turns this into "not known".
    if answer is not None and answer.outcome == "confirmed":
        ref = f": {redact_text(answer.reference)[:100]}" if answer.reference else ""
        return said("Already done", "fail", f"The check found the work done{ref}", answer.at)
    if answer is None or not answer.fresh:
        return said(unknown, "unknown", _unasked(facts))
    if answer.outcome == "none":
        return said("Not already done", "pass", "The check did not find the work done", answer.at)
    if answer.outcome == "rejected":
        return said("Not already done", "pass", "The check says that the work was refused", answer.at)
    if answer.outcome == "no_check":
        return said(unknown, "unknown", "The contract of this type has no check, so nobody can ask", answer.at)
    return said(unknown, "unknown", f"The check could not answer: {answer.detail or 'no reason given'}", answer.at)


def _unasked(facts: Facts) -> str:
    if facts.answer is not None:
        return f"The last answer is {span(facts.now - facts.answer.at)} old; nobody has answered since"
    if late_evidence(facts.job, "rejected"):
        return "The outside world rejected it late; whether another attempt had an effect, nobody asked"
    return "An attempt began, and no worker has told what the outside world knows of it"


def _key(facts: Facts) -> Check:
    job = facts.job

    def said(title: str, result: Result, words: str) -> Check:
        return Check(name="idempotency_key", title=title, result=result, evidence=words, at=facts.now)

    if not job.begun:
        return said("Idempotency key still honoured", "pass", "The key was never sent")
    ttl = facts.contract.provider_key_ttl_seconds if facts.contract else 0
    if not ttl:
        return said("Idempotency key", "unknown", "The contract does not say how long the provider keeps it")
    # The provider saw it first with the first job of the lineage, whose id holds when that was accepted.
    left = id_time(job.root) + dt.timedelta(seconds=ttl) - facts.now
    if left <= dt.timedelta(0):
        words = f"The provider may have forgotten it {span(-left)} ago: the work could be done twice"
        return said("Idempotency key expired", "fail", words)
    words = f"Sent with every attempt; the provider keeps it for another {span(left)}"
    return said("Idempotency key still honoured", "pass", words)


def _superseded(facts: Facts) -> Check:
    job, holder = facts.job, facts.holder

    def said(title: str, result: Result, words: str) -> Check:
        return Check(name="superseded", title=title, result=result, evidence=words, at=facts.now, final=True)

    merged = None
    if job.reason == Reason.SUPERSEDED:
        words = "A newer job of its group took its place: done now, its older work comes after the newer"
        merged = Check(name="superseded", title="Older work", result="unknown", evidence=words, at=facts.now)
    if job.dedupe_key is None:
        return merged or said("Not superseded", "note", "Sent without a dedupe key, so nobody can tell")
    if facts.other_key and holder is None:
        return said("A different job", "note", "Under this key it is another job, and no job has had this key")
    if holder is None:
        return said("Key let go", "fail", "Its dedupe key was let go: the producer may have sent the work again")
    if holder.id != job.id:
        state = f", which is {holder.state.replace('_', ' ')}" if holder.state else ""
        return said("Superseded", "fail", f"The job {holder.id}{state}, holds this key now")
    return merged or said("Not superseded", "pass", "No other job with this key was confirmed or is open")


def _max_age(facts: Facts) -> Check:
    left = facts.job.expires_at - facts.now
    passed = left <= dt.timedelta(0)
    allowed = span(facts.job.expires_at - facts.job.ready_at)
    return Check(
        name="max_age",
        title="Past max age" if passed else "Inside max age",
        result="fail" if passed else "pass",
        evidence=f"Its contract allows {allowed}; "
        + (f"that was over {span(-left)} ago" if passed else f"{span(left)} left"),
        at=facts.now,
    )


def dependency(found: Dependency, *, now: dt.datetime) -> Check:
    """Judge what jobs depend on: by its circuit breaker, else by the newest runs of all that depend on it."""
    if found.breaker is not None and (told := _by_breaker(found, found.breaker)) is not None:
        title, result, words = told
        return Check(name="dependency", title=title, result=result, evidence=words, at=now)
    whom = found.name or "What it calls"
    healthy, failing = f"{whom} is healthy", f"{whom} fails"

    def said(title: str, result: Result, words: str) -> Check:
        return Check(name="dependency", title=title, result=result, evidence=words, at=now)

    share = found.failed / found.runs if found.runs else 0.0
    counted = f"{found.failed:,} of the newest {_runs(found)} failed, since {_clock(found.since)}"
    probed = found.probe_ok is not None and found.until is not None and found.probe_ok > found.until
    if found.probe_failing is not None:
        return said(failing, "fail", f"Its probe fails since {_clock(found.probe_failing)}")
    if found.runs and share >= SHAKY_SHARE and probed:
        return said(
            f"{whom} failed until a moment ago", "note", f"{counted}; its probe passed at {_clock(found.probe_ok)}"
        )
    if found.runs and share >= FAILING_SHARE:
        return said(failing, "fail", counted)
    if found.runs and share >= SHAKY_SHARE:
        return said(f"{whom} fails now and then", "note", counted)
    if found.runs:
        return said(healthy, "pass", counted)
    if found.probe_ok is not None:
        return said(healthy, "pass", f"Its probe passed at {_clock(found.probe_ok)}; nothing else ran")
    words = f"Nothing that depends on it ran in the last {reading.RECENT_MINUTES} min, and no probe passed"
    return said(f"Whether {found.name or 'what it calls'} works is not known", "unknown", words)


def _by_breaker(found: Dependency, breaker: Standing) -> tuple[str, Result, str] | None:
    """Return what a breaker says, as title, result and evidence; None where it is closed and has seen too little.

    A probe that fails went the whole way: few failed calls do not outweigh it.
    """
    since = f"Since {_clock(breaker.since)}"
    if breaker.state == Breaker.OPEN:
        later = f"; next trials at {_clock(breaker.retry_at)}" if breaker.retry_at and not breaker.forced else ""
        why = _plain(breaker.why).rstrip(".")
        return f"The circuit breaker of {found.name} is open", "fail", f"{since}{f': {why}' if why else ''}{later}"
    if breaker.state == Breaker.HALF_OPEN:
        words = f"{since} it lets {breaker.trial_jobs} jobs through as trials; others wait for how they go"
        return f"The circuit breaker of {found.name} tries again", "note", words
    if found.probe_failing is not None or not _tells(breaker):
        return None
    bad = f"{breaker.failed + breaker.slow:,} of {breaker.calls:,} calls in {breaker.window_seconds} s failed"
    slow = " or were slow" if breaker.slow else ""
    return f"{found.name} is healthy", "pass", f"{bad}{slow}; its circuit breaker is closed"


def _tells(breaker: Standing) -> bool:
    """Tell whether a closed breaker has seen enough calls, and few enough that failed, to say that all is well."""
    return breaker.calls >= breaker.minimum_calls and breaker.ratio is not None and breaker.ratio < SHAKY_SHARE


def _runs(found: Dependency) -> str:
    return f"{found.runs:,} run{'' if found.runs == 1 else 's'}" + (
        f" of {len(found.types)} types" if len(found.types) > 1 else ""
    )


def _contract(facts: Facts) -> Check:
    job, known = facts.job, facts.contract

    def said(title: str, result: Result, words: str, *, final: bool = False) -> Check:
        return Check(name="contract", title=title, result=result, evidence=words, at=facts.now, final=final)

    if known is None or not known.enabled:
        return said("Type takes no jobs", "fail", "The job type is disabled or was deleted", final=True)
    if known.paused:
        return said("Type is paused", "fail", "The job type is paused: a replay would wait until somebody resumes it")
    if job.payload is not None:
        try:
            accept.read_payload(job.payload, known)
        except PayloadInvalid as invalid:
            return said("Needs an edit", "fail", f"Its payload breaks today's contract: {_plain(str(invalid))}")
    if known.deferred:
        return said("Type is deferred", "note", "A replay waits until the job type is no longer deferred")
    if known.version != job.contract_version:
        words = f"Accepted under v{job.contract_version}, runs under v{known.version}"
        return said("Contract changed since acceptance", "note", words)
    return said("Same contract", "pass", f"Still v{known.version}; a replay gets a new max age")


def _cause(facts: Facts) -> Check:
    job = facts.job
    last = job.failures[-1] if job.failures and isinstance(job.failures[-1], dict) else {}
    error = str(last.get("error_class") or "")

    words = f"{(job.reason or 'dead').replace('_', ' ').capitalize()}{f', {error}' if error else ''}"

    def said(title: str, result: Result, words: str) -> Check:
        return Check(name="cause", title=title, result=result, evidence=words, at=facts.now)

    if job.reason in _FOR_GOOD:
        return said("Failed for good", "note", f"{words}: the same code with the same payload fails again")
    if job.state != JobState.DEAD:
        return said("Ended without failing", "pass", f"It is {job.state}: {(job.reason or '').replace('_', ' ')}")
    return said("Not a failure for good", "pass", words)


def id_time(job_id: UUID) -> dt.datetime:
    """Return when an id was made: a UUIDv7 begins with its milliseconds."""
    return dt.datetime.fromtimestamp((job_id.int >> 80) / 1000, dt.UTC)


_UNITS: Final = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def span(length: dt.timedelta) -> str:
    """Say a length of time in its largest unit, cut off: 3 days, 59 minutes."""
    seconds = length.total_seconds()
    size, word = next((unit for unit in _UNITS if seconds >= unit[0]), (1, "second"))
    n = int(seconds // size)
    return f"{n} {word}{'' if n == 1 else 's'}"


def _clock(at: dt.datetime | None) -> str:
    return f"{at:%H:%M} UTC" if at else "a time not known"


def _plain(words: str) -> str:
    return redact_text(words)[:300]
