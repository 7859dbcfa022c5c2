"""The overview's sentences: which tier keeps its promise, what needs attention. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from jobsboard.board.summary import TierLine, TypeLine
from jobsboard.durations import duration
from queues.outcomes import ProbeNow, Processes, Times, TypeNow
from queues.redaction import redact_text

ATTENTION_MAX: Final = 7


@dataclass(frozen=True, kw_only=True)
class Concern:
    """One thing to look at, with one next step."""

    css: str
    text: str
    evidence: str
    since: datetime | None
    url: str
    action: str


def sentence(tiers: Sequence[TierLine]) -> str:
    """Say which tiers keep their promise."""
    broken = [tier.number for tier in tiers if tier.breach]
    kept = [tier.number for tier in tiers if tier.ratio is not None and not tier.breach]
    unknown = [tier.number for tier in tiers if tier.ratio is None]
    if not broken and not kept:
        return "No promise has come due yet."
    parts = []
    if broken:
        plural = len(broken) > 1
        parts.append(f"{_tiers(broken)} {'are' if plural else 'is'} outside {'their' if plural else 'its'} promise.")
    if kept and broken:
        parts.append(f"{_tiers(kept)} hold{'' if len(kept) > 1 else 's'}.")
    elif len(kept) == len(tiers):
        parts.append("All tiers keep their promise.")
    elif kept:
        parts.append(f"{_tiers(kept)} keep{'' if len(kept) > 1 else 's'} the promise.")
    if unknown:
        parts.append(f"{_tiers(unknown)} {'have' if len(unknown) > 1 else 'has'} no data.")
    return " ".join(parts)


def _tiers(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"Tier {numbers[0]}"
    return f"Tiers {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def cause(types: Sequence[TypeLine], *, range_words: str) -> str:
    """Say which types are late, since when, and how many jobs are dead."""
    late = [line for line in types if line.breach]
    parts = []
    if late:
        since = [line.since for line in late if line.since is not None]
        begun = f" since {min(since):%H:%M}" if since else ""
        names = late[0].name if len(late) == 1 else f"{len(late)} of {len(types)} job types"
        parts.append(f"{names} {'is' if len(late) == 1 else 'are'} late{begun}.")
    elif types:
        parts.append(f"No job type is late in the {range_words}.")
    parts.append(_dead_words(types))
    return " ".join(parts)


def _dead_words(types: Sequence[TypeLine]) -> str:
    dead, critical = sum(line.dead for line in types), sum(line.dead for line in types if line.tier == 1)
    if not dead:
        return "No dead letters."
    of_them = f", {critical:,} of them in tier 1" if critical and critical != dead else ""
    return f"{dead:,} dead letter{'' if dead == 1 else 's'}{of_them}."


def concerns(
    types: Sequence[TypeLine],
    tiers: Sequence[TierLine],
    times: Times,
    processes: Processes,
    *,
    broker: bool,
    now: datetime,
    probes: Sequence[ProbeNow] = (),
    breakers: Sequence[Concern] = (),
    deferred: Sequence[TypeNow] = (),
) -> list[Concern]:
    """List what needs attention, worst first."""
    late = [line for line in types if line.breach]
    return [
        *_machinery(tiers, processes, broker=broker, now=now),
        *breakers,
        *(_late(line) for line in late),
        *(_probe(one) for one in probes if one.failures and not one.paused),
        *(_dead(line, times) for line in sorted(types, key=lambda t: (t.tier, -t.dead)) if line.dead),
        *(_overdue(line) for line in types if _unexplained(line)),
        *(_paused(line) for line in types if line.paused and line.open),
        *_deferred(deferred, types),
    ]


def _unexplained(line: TypeLine) -> bool:
    """It has an old job, and nothing that is said anyway explains that."""
    return line.overdue and not line.breach and not (line.paused or line.deferred) and line.breaker == "closed"


def _machinery(tiers: Sequence[TierLine], processes: Processes, *, broker: bool, now: datetime) -> list[Concern]:
    found = []
    for tier in tiers:
        if tier.waiting and not tier.slots:
            found.append(
                Concern(
                    css="dead",
                    text=f"No worker on tier {tier.number}: {_jobs(tier.waiting)} wait",
                    evidence="They are stored and will run as soon as a worker consumes this tier",
                    since=None,
                    url="/jobs/?" + urlencode({"state": "accepted", "tier": tier.number}),
                    action="See jobs",
                )
            )
    found += [
        Concern(
            css="retrying", text="A worker is in trouble", evidence=text, since=None, url="/jobs/", action="See jobs"
        )
        for text in processes.trouble
    ]
    if not processes.scheduler_alive:
        seen = processes.scheduler_seen_at
        ago = f"last seen {duration((now - seen).total_seconds())} ago" if seen else "none was ever seen"
        found.append(
            Concern(
                css="dead",
                text="No scheduler is running",
                evidence=f"Retries, rescues and expiry wait, and these numbers stand still; {ago}",
                since=seen,
                url="/audit/",
                action="Audit log",
            )
        )
    if not broker:
        found.append(
            Concern(
                css="retrying",
                text="The broker does not answer",
                evidence="Jobs are accepted and kept; workers hear of them when it is back",
                since=None,
                url="/jobs/?state=accepted",
                action="See jobs",
            )
        )
    return found


def _late(line: TypeLine) -> Concern:
    waiting = dict(line.mix).get("retrying", 0)
    parts = [f"{line.open:,} open" if line.open else "none open"]
    if waiting:
        parts.append(f"{waiting:,} retrying")
    if line.dead:
        parts.append(f"{line.dead:,} dead")
    if line.lag.p95 is not None:
        parts.append(f"p95 {duration(line.lag.p95)}")
    if line.oldest_seconds is not None:
        parts.append(f"the oldest is ready for {duration(line.oldest_seconds)}")
    share = f"{int((line.ratio or 0) * 10_000) / 100:g}%"
    behind = {"open": "Behind the open breaker of ", "half_open": "Behind the half open breaker of "}
    promised = f"Promise {line.target * 100:g}%. {', '.join(parts).capitalize()}"
    return Concern(
        css="dead",
        text=f"{line.name} is late: {share} confirmed within {duration(line.window_seconds)}",
        evidence=f"{behind[line.breaker]}{line.dependency}. {promised}" if line.breaker in behind else promised,
        since=line.since,
        url=f"/types/{line.name}/",
        action="Why",
    )


def _probe(one: ProbeNow) -> Concern:
    often = f"{one.failures} in a row, the last one" if one.failures > 1 else "The last one"
    # Of a run that was skipped since nothing is said here: it told nothing.
    said = one.detail if one.outcome == "failed" else ""
    return Concern(
        css="dead",
        text=f"The probe of {one.type} fails",
        evidence=f"{often}: {redact_text(said)}"
        if said
        else f"{one.failures} in a row"
        if one.failures > 1
        else "Once",
        since=one.failing_since,
        url="/probes/",
        action="Open",
    )


def _overdue(line: TypeLine) -> Concern:
    return Concern(
        css="retrying",
        text=f"{line.name}: the oldest open job is past its window",
        evidence=f"Ready for {duration(line.oldest_seconds or 0)}, window {duration(line.window_seconds)};"
        f" {_jobs(line.open)} open",
        since=None,
        url="/jobs/?" + urlencode({"type": line.name}),
        action="See jobs",
    )


def _dead(line: TypeLine, times: Times) -> Concern:
    reasons: dict[str, int] = {}
    for (_, name), found in times.dead.items():
        if name == line.name:
            for reason, n in found.items():
                reasons[reason] = reasons.get(reason, 0) + n
    listed = ", ".join(f"{n:,} {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])[:3])
    return Concern(
        css="retrying",
        text=f"{line.dead:,} {line.name} job{' is' if line.dead == 1 else 's are'} dead",
        evidence=f"In this range: {listed}" if listed else "None died in this range",
        since=None,
        url="/dlq/?" + urlencode({"type": line.name}),
        action=f"Review {line.dead:,}",
    )


def _paused(line: TypeLine) -> Concern:
    return Concern(
        css="retrying",
        text=f"{line.name} is paused",
        evidence=f"{_jobs(line.open)} open; nothing is claimed until somebody resumes it",
        since=None,
        url=f"/types/{line.name}/",
        action="Open",
    )


def _deferred(deferred: Sequence[TypeNow], types: Sequence[TypeLine]) -> list[Concern]:
    """Say once what was deferred for one reason, however many types that are."""
    waiting = {line.name: line.open for line in types}
    groups: dict[tuple[str, str], list[TypeNow]] = {}
    for one in deferred:
        groups.setdefault((one.deferred_by, one.deferred_reason), []).append(one)
    found = []
    for (by, reason), held in groups.items():
        alone, since = len(held) == 1, [one.deferred_since for one in held if one.deferred_since is not None]
        why = redact_text(reason).rstrip(".") or "Nobody said why"
        n = sum(waiting.get(one.name, 0) for one in held)
        found.append(
            Concern(
                css="retrying",
                text=f"{held[0].name} is deferred" if alone else f"{len(held)} job types are deferred",
                evidence=f"{why}{f' (by {by})' if by else ''}; {_jobs(n)} open, nothing of them is started",
                since=min(since, default=None),
                url=f"/types/{held[0].name}/" if alone else "/types/?show=deferred",
                action="Open",
            )
        )
    return found


def _jobs(n: int) -> str:
    return f"{n:,} job{'' if n == 1 else 's'}"
