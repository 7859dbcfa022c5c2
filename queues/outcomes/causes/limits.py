"""What limits, rates, groups and order hold back: of a job its place among them, of a type which of them are full.

Numbers are of the moment of the look. Not here: what claims do with them (`lifecycle.claim_limited`).
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from queues.lifecycle.claim_limited import GROUP_TOKENS
from queues.models import Job
from queues.outcomes.causes.facts import LOOK_AT_MOST, in_index_order
from queues.outcomes.causes.found import SHARE, STOP, Cause, Next, Verdict
from queues.outcomes.causes.type_facts import TypeFacts
from queues.outcomes.causes.words import have, jobs, length, when
from queues.outcomes.limits import COLUMNS, GROUPS_MOST, Limits, bucket_size
from queues.states import JobState

CODES: Final = ("order", "group_concurrency", "group_rate", "concurrency", "rate")
"""Causes of this module, the one that decides first in front."""
OF_TYPE: Final = ("concurrency", "rate")
"""Those that hold all jobs of a type."""
_RANK: Final = STOP + 1
"""After what stops everything."""
_SHORT_ID: Final = 12

# Index job_waiting_group for what is ahead of a job, job_order for what is before it. What a job without a group, or
# without a place in its order, cannot need is left out: planning each part for a month of partitions costs most of it.
_IN_GROUP: Final = f"""CASE WHEN c.group_concurrency > 0 THEN jobs_running_in_group(c.name, %(group)s::text) END,
  (SELECT {GROUP_TOKENS} FROM (VALUES (1)) AS one LEFT JOIN queues_flowstate f
    ON f.type = c.name AND f."group" = %(group)s::text),
  CASE WHEN c.group_concurrency > 0 OR c.group_rate_per_second > 0 THEN
    (SELECT count(*) FROM (SELECT 1 FROM queues_job WHERE state IN ('accepted', 'retrying') AND type = %(type)s
      AND "group" = %(group)s::text AND priority > %(priority)s AND due_at <= jobs_now()
      ORDER BY priority DESC, due_at LIMIT %(most)s) AS higher)
    + (SELECT count(*) FILTER (WHERE due_at < %(due_at)s OR id < %(id)s)
      FROM (SELECT id, due_at FROM queues_job WHERE state IN ('accepted', 'retrying') AND type = %(type)s
        AND "group" = %(group)s::text AND priority = %(priority)s AND due_at <= %(due_at)s
        ORDER BY priority DESC, due_at LIMIT %(most)s) AS earlier) END"""
_IN_ORDER: Final = """CASE WHEN c.ordered THEN (SELECT count(*) FROM (SELECT 1 FROM queues_job
    WHERE seq IS NOT NULL AND (state IN ('accepted', 'processing', 'awaiting_confirmation', 'retrying')
      OR state = 'dead' AND resolution = 'open') AND (state <> 'dead' OR c.ordered_on_failure = 'block')
      AND type = %(type)s AND "group" = %(group)s::text AND seq < %(seq)s::bigint
    ORDER BY seq LIMIT %(most)s) AS before) END, h.id, h.state, h.due_at"""
# A query of its own for the state: PostgreSQL 15 joins by reading all jobs where it believes that there is one.
_HEAD: Final = """LEFT JOIN LATERAL (
  SELECT first.id, (SELECT j.state FROM queues_job j WHERE j.id = first.id) AS state, first.due_at
  FROM jobs_head_of_group(c.name, %(group)s::text, c.ordered_on_failure = 'block') AS first
  WHERE c.ordered AND first.seq < %(seq)s::bigint
) AS h ON true"""
_PLACE: Final = f"""
SELECT {COLUMNS}, jobs_now(), {{in_group}}, {{in_order}}
FROM queues_jobtype c LEFT JOIN queues_flowstate f ON f.type = c.name AND f."group" = '' {{head}}
WHERE c.name = %(type)s
"""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The first job of an ordered group, where it is another one."""

    id: UUID
    state: str
    due_at: dt.datetime | None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a job stands among the limits of its type, now.

    `ahead`: jobs of its group that a claim would take before it, None where groups have no limits or it has none;
    `before`: jobs of its ordered group that have to settle first. Both are counted up to LOOK_AT_MOST.
    """

    limits: Limits
    now: dt.datetime
    group: str | None = None
    has_place: bool = False
    running_in_group: int | None = None
    group_tokens: float | None = None
    ahead: int | None = None
    before: int = 0
    head: Head | None = None

    @property
    def ahead_in_group(self) -> int | None:
        """Jobs that go before it by its group; None: its group decides nothing."""
        return self.before if self.limits.ordered and self.has_place else self.ahead

    def starts_in(self, ahead: int) -> float:
        """Return how many seconds it takes at least, by the rates, with so many ahead of it; 0 without a rate."""
        one = self.limits
        rates = [(one.rate_per_second, one.tokens)]
        if self.group is not None:
            rates.append((one.group_rate_per_second, self.group_tokens))
        return max(tokens_in(ahead + 1, tokens, rate) for rate, tokens in rates)


def tokens_in(n: int, tokens: float | None, rate: float) -> float:
    """Return after how many seconds a bucket that has so many tokens has given n."""
    return max(0.0, (n - (tokens or 0.0)) / rate) if rate > 0 else 0.0


def place_of(job: Job) -> Place | None:
    """Read where a waiting job stands; None when there is no such type. One statement."""
    params = {
        "type": job.type, "group": job.group, "seq": job.seq, "priority": job.priority, "due_at": job.due_at,
        "id": job.id, "most": LOOK_AT_MOST,
    }  # fmt: skip
    has_place = job.group is not None and job.seq is not None
    sql = _PLACE.format(
        in_group="NULL, NULL, NULL" if job.group is None else _IN_GROUP,
        in_order=_IN_ORDER if has_place else "NULL, NULL, NULL, NULL",
        head=_HEAD if has_place else "",
    )
    row = in_index_order(sql, params)
    if row is None:
        return None
    *of_type, now, running, tokens, ahead, before, head, state, due_at = row
    return Place(
        limits=Limits.of_row(of_type),
        now=now,
        group=job.group,
        has_place=has_place,
        running_in_group=running,
        group_tokens=tokens,
        ahead=None if ahead is None else min(ahead, LOOK_AT_MOST),
        before=before or 0,
        head=None if head is None else Head(id=head, state=state, due_at=due_at),
    )


def of_place(place: Place, *, ahead: int) -> list[Cause]:
    """Return what limits say of a due job with so many ahead of it, what decides first in front."""
    order = _order(place) if place.limits.ordered else None
    if order is not None and order.verdict == Verdict.CAUSE:
        # The limits hold the first of its group, and that is told there.
        return [order]
    own = [] if place.group is None else [*_group(place, ahead)]
    return [*([order] if order else []), *own, *_type(place, ahead)]


def _order(place: Place) -> Cause:
    head, evidence = place.head, {"group": place.group, "before": place.before}
    if head is None:
        why = "It has no group." if place.group is None else "It was accepted before its type was ordered."
        return Cause(
            code="order",
            verdict=Verdict.NOT_A_CAUSE,
            sentence="It is the first of its group" if place.has_place else "It waits for no other job of a group",
            detail="" if place.has_place else why,
            evidence=evidence,
        )
    dead = head.state == JobState.DEAD
    parts = ["Replay, cancel or ignore it: the group goes on."] if dead else []
    parts.append(
        f"{jobs(place.before, most=LOOK_AT_MOST)} of its group {have(place.before, 'goes', 'go')} before it, one after"
        " the other."
    )
    return Cause(
        code="order",
        verdict=Verdict.CAUSE,
        sentence=f"Behind job {str(head.id)[-_SHORT_ID:]} of its group, which {_head_words(head, place.now)}",
        detail=" ".join(parts),
        evidence={**evidence, "job_id": str(head.id), "state": head.state, "due_at": head.due_at, "blocked": dead},
        next=Next(kind="dead_letter" if dead else "job", params={"id": str(head.id)}),
        rank=_RANK,
    )


def _head_words(head: Head, now: dt.datetime) -> str:
    later = when(head.due_at, now) if head.due_at is not None and head.due_at > now else ""
    words = {
        JobState.ACCEPTED: f"waits for its time, {later}" if later else "waits to be started",
        JobState.RETRYING: f"waits for its next attempt, {later}" if later else "is due for its next attempt",
        JobState.PROCESSING: "runs",
        JobState.AWAITING_CONFIRMATION: "waits for its proof",
        JobState.DEAD: "is a dead letter and holds the group up until somebody decides",
    }
    return words.get(JobState(head.state), f"is {head.state}")


def _group(place: Place, ahead: int) -> Iterator[Cause]:
    most, running = place.limits.group_concurrency, place.running_in_group
    if most and running is not None:
        yield _leases("group_concurrency", running, most, of="its group", evidence={"group": place.group})
    if rate := place.limits.group_rate_per_second:
        yield _rate("group_rate", rate, place.group_tokens, bucket_size(rate), ahead, of="its group")


def _type(place: Place, ahead: int) -> Iterator[Cause]:
    one = place.limits
    if one.concurrency:
        yield _leases("concurrency", one.running, one.concurrency, of=one.name, evidence={})
    if one.rate_per_second:
        yield _rate("rate", one.rate_per_second, one.tokens, one.burst, ahead, of=one.name)


def lease_words(running: int, most: int, *, of: str) -> str:
    """Say how many runs there are under a limit; a limit that was lowered may have more for a while."""
    if running > most:
        return f"{running:,} runs of {of} hold a lease, and the limit is {most:,}"
    return f"{running:,} of {jobs(most, what='run')} of {of} {have(running, 'holds', 'hold')} a lease"


def _leases(code: str, running: int, most: int, *, of: str, evidence: dict[str, Any]) -> Cause:
    full, words = running >= most, lease_words(running, most, of=of)
    wait = "it waits until fewer do" if running > most else "it waits for one to end"
    return Cause(
        code=code,
        verdict=Verdict.CAUSE if full else Verdict.NOT_A_CAUSE,
        sentence=f"{words}: {wait if full else 'there is room'}",
        evidence={"running": running, "limit": most, **evidence},
        rank=_RANK,
    )


def is_spent(tokens: float | None, burst: int, ahead: int) -> bool:
    """Tell whether a rate holds work back: no token, or more jobs than tokens while the bucket does not fill.

    Claims leave a token or two between two looks of the stage; a bucket stays full while workers are what is short.
    """
    left = tokens or 0.0
    return left < 1 or (left < burst / 2 and left < ahead + 1)


def rate_words(rate: float, tokens: float | None, ahead: int) -> str:
    """Say when the next may begin: 10 a second begin; the next token comes in about 0.4 s."""
    least = max(tokens_in(ahead + 1, tokens, rate), 0.1)
    if ahead:
        return f"with {jobs(ahead, most=LOOK_AT_MOST)} ahead of it not before about {length(least)}"
    return f"the next token comes in about {length(least)}"


def _rate(code: str, rate: float, tokens: float | None, burst: int, ahead: int, *, of: str) -> Cause:
    spent, left = is_spent(tokens, burst, ahead), int(tokens or 0)
    room = f"{jobs(left, what='token')} {have(left, 'is', 'are')} left"
    return Cause(
        code=code,
        verdict=Verdict.CAUSE if spent else Verdict.NOT_A_CAUSE,
        sentence=f"{rate:g} a second of {of} begin: {rate_words(rate, tokens, ahead) if spent else room}",
        detail=f"Its bucket holds {jobs(burst, what='token')}." if spent else "",
        evidence={
            "rate_per_second": rate, "burst": burst, "tokens": tokens, "ahead": ahead,
            "next_in_seconds": tokens_in(ahead + 1, tokens, rate),
        },
        rank=_RANK,
    )  # fmt: skip


def of_type(facts: TypeFacts) -> list[Cause]:
    """Return what limits say of a type: the one that holds its waiting jobs, and groups that are full or held up."""
    one = facts.limits
    if one is None:
        return []
    waiting = facts.open.of("accepted").due + facts.open.of("retrying").due
    found = [*held_groups(facts), *_full_groups(facts, one)]
    if one.concurrency:
        words = lease_words(one.running, one.concurrency, of=one.name)
        said = f"{words}: {_waiting(waiting)} for one to end"
        found.append(_of_type("concurrency", facts, one.at_concurrency, waiting, said, f"{words}: there is room", {
            "running": one.running, "limit": one.concurrency,
        }))  # fmt: skip
    if rate := one.rate_per_second:
        last = tokens_in(waiting, one.tokens, rate)
        left = int(one.tokens or 0)
        said = f"{rate:g} a second of {one.name} begin: {_waiting(waiting)} for a token"
        room = f"{rate:g} a second of {one.name} begin: {jobs(left, what='token')} {have(left, 'is', 'are')} left"
        cause = _of_type("rate", facts, is_spent(one.tokens, one.burst, waiting), waiting, said, room, {
            "rate_per_second": rate, "burst": one.burst, "tokens": one.tokens, "last_in_seconds": last,
        })  # fmt: skip
        found.append(cause)
    return found


def _waiting(n: int) -> str:
    return f"{jobs(n, most=LOOK_AT_MOST)} {have(n)}"


def _of_type(
    code: str, facts: TypeFacts, full: bool, waiting: int, said: str, room: str, evidence: dict[str, Any]
) -> Cause:
    """Return a limit of the whole type: what waits while it is full waits for it, at least."""
    holds = full and waiting > 0 and facts.is_cause("waiting", "accepted", "retrying")
    least = evidence.get("last_in_seconds", 0.0)
    more = waiting >= LOOK_AT_MOST
    return Cause(
        code=code,
        verdict=Verdict.CAUSE if holds else Verdict.NOT_A_CAUSE,
        sentence=said if holds else room if not full else said.partition(":")[0],
        detail=f"The last of them begins in {length(least)}{' or later' if more else ' at the earliest'}."
        if holds and least >= 1
        else "",
        evidence={**evidence, "waiting": waiting, "waiting_at_most": LOOK_AT_MOST},
        share=facts.explains("waiting", "accepted", "retrying") if holds else None,
        next=Next(kind="jobs", params={"type": facts.on.name, "state": "processing"}) if holds else None,
        rank=SHARE,
    )


def drained_in(facts: TypeFacts, waiting: int) -> float:
    """Return how many seconds the rate of a type needs at least for so many jobs; 0 without a rate."""
    one = facts.limits
    return tokens_in(waiting, one.tokens, one.rate_per_second) if one is not None else 0.0


def held_groups(facts: TypeFacts) -> Iterator[Cause]:
    """Say which groups a dead letter holds up; nothing of a type whose groups go on without it."""
    one = facts.limits
    if one is None or not one.ordered or one.ordered_on_failure != "block":
        return
    held = one.held
    if not held.n:
        yield Cause(
            code="order",
            verdict=Verdict.NOT_A_CAUSE,
            sentence="No group is held up by a dead letter",
            evidence={"groups_held": 0, "jobs": 0, "at_least": held.at_least},
        )
        return
    share = min(1.0, held.late / facts.open.late) if facts.open.late else None
    least = "At least " if held.at_least else ""
    groups = f"{jobs(held.n, what='group')} {have(held.n, 'is', 'are')} held up by a dead letter"
    behind = f"{'at least ' if held.at_least else ''}{jobs(held.jobs)}"
    yield Cause(
        code="order",
        verdict=Verdict.CAUSE,
        sentence=f"{least}{groups}",
        detail=f"Behind {have(held.n, 'it', 'them')} {have(held.jobs)} {behind}. Replay, cancel or ignore"
        f" {have(held.n, 'it', 'them')}: {have(held.n, 'the group goes', 'the groups go')} on.",
        evidence={
            "groups_held": held.n, "jobs": held.jobs, "jobs_past_window": held.late, "at_least": held.at_least,
            "job_id": str(held.first) if held.first else None,
        },
        share=share,
        next=Next(kind="dead_letters", params={"type": one.name}),
        rank=STOP if share is None or share >= _STOP_SHARE else SHARE,
    )  # fmt: skip


_STOP_SHARE: Final = 0.1
"""What holds less of the late jobs is no first cause."""


def _full_groups(facts: TypeFacts, one: Limits) -> Iterator[Cause]:
    if not one.group_limited:
        return
    full = one.full
    evidence = {"groups_looked_at": full.looked, "groups_full": full.busy, "groups_without_token": full.spent,
                "looks_at_most": GROUPS_MOST, "group_concurrency": one.group_concurrency or None,
                "group_rate_per_second": one.group_rate_per_second or None}  # fmt: skip
    looked = f"{'the first ' if full.at_least else ''}{jobs(full.looked, what='group')} with waiting jobs"
    if not full.busy and not full.spent:
        yield Cause(
            code="group_concurrency" if one.group_concurrency else "group_rate",
            verdict=Verdict.NOT_A_CAUSE,
            sentence="No group is at its limit",
            detail=f"Of {looked}.",
            evidence=evidence,
        )
        return
    by_runs = full.busy >= full.spent
    n = full.busy if by_runs else full.spent
    theirs = have(n, "its", "their")
    why = f"all {one.group_concurrency:,} runs taken" if one.group_concurrency > 1 else f"{theirs} one run taken"
    why = why if by_runs else f"no token left of {one.group_rate_per_second:g} a second"
    holds = facts.is_cause("waiting", "accepted", "retrying")
    yield Cause(
        code="group_concurrency" if by_runs else "group_rate",
        verdict=Verdict.CAUSE if holds else Verdict.NOT_A_CAUSE,
        sentence=f"{n:,} of {looked} {have(n, 'has', 'have')} {why}",
        detail="Their other jobs wait for them; jobs of other groups go on.",
        evidence=evidence,
        next=Next(kind="jobs", params={"type": one.name, "state": "processing"}),
        rank=SHARE,
    )
