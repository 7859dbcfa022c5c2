"""A history that the rollups must tell exactly: random deeds through the public calls, and an independent account.

The account never reads a rollup or a delta. It looks at every row before and after a deed and writes down what changed,
and when; rows that were pruned are remembered as they were last seen.
"""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db import transaction

from queues import contracts, lifecycle
from queues.accept import Item, accept_probe, enqueue_many
from queues.histogram import bucket_of
from queues.lifecycle import CheckEnd, End, Proof, Run, Verdict
from queues.models import JobType
from queues.outcomes import Span
from queues.states import REASON_CODES, TERMINAL, JobState, Reason
from tests.factories import make_type, sql
from tests.model.actors import install_clock

S = JobState
MINUTE: Final = dt.timedelta(minutes=1)
KINDS: Final[dict[str, dict[str, Any]]] = {
    "a.reference": {"tier_id": 1, "success": "reference", "window_seconds": 60, "max_age_seconds": 7200},
    "b.callback": {"tier_id": 2, "success": "callback", "window_seconds": 1800, "max_age_seconds": 40_000},
    "d.slow": {"tier_id": 2, "success": "callback", "window_seconds": 432_000, "max_age_seconds": 500_000},
    "c.return": {"tier_id": 3, "window_seconds": 7200, "max_age_seconds": 90_000, "on_stale": "dead"},
}
_LOOK: Final = """
SELECT id, type, tier, state, reason, ready_at, accepted_at, settled_at, window_seconds, due_at, replay_of, probe
FROM queues_job
"""
_NAMES: Final = (
    "id", "type", "tier", "state", "reason", "ready_at", "accepted_at", "settled_at", "window", "due_at", "replay_of",
    "probe",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A row as it was seen."""

    id: UUID
    type: str
    tier: int
    state: str
    reason: str | None
    ready_at: dt.datetime
    accepted_at: dt.datetime
    settled_at: dt.datetime | None
    window: int
    due_at: dt.datetime | None
    replay_of: UUID | None
    probe: bool

    @property
    def cohort(self) -> bool:
        """It counts towards the promise."""
        return self.replay_of is None and not self.probe

    @property
    def in_time(self) -> bool:
        """It settled inside its window."""
        assert self.settled_at is not None
        return self.settled_at <= self.ready_at + dt.timedelta(seconds=self.window)


def minute(at: dt.datetime) -> dt.datetime:
    """Return the minute of a time."""
    return at.replace(second=0, microsecond=0)


class World:
    """Deeds, drawn at random, on a clock of its own; and the account."""

    def __init__(self, seed: int, *, start: dt.datetime) -> None:
        self.draw = random.Random(seed)
        self.now = start
        self.rows: dict[UUID, Seen] = {}
        self.entered: dict[UUID, dt.datetime] = {}
        self.facts: Counter[tuple[dt.datetime, str, int, str, int]] = Counter()
        """(minute, type, tier, measure, bucket or -1) → n, of what happened."""
        self.runs: list[Run] = []
        self.gone: set[UUID] = set()
        self.deeds: Counter[str] = Counter()
        install_clock(fake=True)
        self._tell_time()
        for name, fields in KINDS.items():
            make_type(name, **fields)

    # Time.

    def _tell_time(self) -> None:
        sql("SELECT set_config('model.now', %s, false)", self.now.isoformat())

    def pass_time(self, seconds: float) -> None:
        """Let the clock go on."""
        self.now += dt.timedelta(seconds=seconds)
        self._tell_time()

    # The account.

    def _note(self, row: Seen, measure: str, at: dt.datetime | None = None, bucket: int = -1, n: int = 1) -> None:
        if not row.probe:
            self.facts[minute(at or self.now), row.type, row.tier, measure, bucket] += n

    def look(self, deed: str) -> None:
        """Compare every row with how it was, and write down what happened in between."""
        before, self.rows = self.rows, {**self.rows}
        for values in sql(_LOOK):
            row = Seen(**dict(zip(_NAMES, values, strict=True)))
            was = before.get(row.id)
            if was is None:
                self._born(row)
            elif was.state != row.state:
                self._moved(was, row)
            self.rows[row.id] = row
        self.deeds[deed] += 1

    def _born(self, row: Seen) -> None:
        self.entered[row.id] = row.ready_at
        self._note(row, "replayed" if row.replay_of else "accepted", row.accepted_at)

    def _moved(self, was: Seen, row: Seen) -> None:
        since, self.entered[row.id] = self.entered[row.id], self.now
        spent = max((self.now - since).total_seconds(), 0.0)
        if row.state == S.PROCESSING:
            assert was.due_at is not None
            due = max(was.due_at, since)
            self._note(row, "runs")
            self._note(row, "wait", bucket=bucket_of((self.now - due).total_seconds()))
            if was.state == S.RETRYING:
                self._note(row, "retries")
                self._note(row, "backoff", bucket=bucket_of((due - since).total_seconds()))
        elif was.state != S.PROCESSING and self.now > since:
            measure = {S.ACCEPTED: "wait", S.RETRYING: "backoff"}.get(S(was.state), "await")
            self._note(row, measure, bucket=bucket_of(spent))
        if row.state in TERMINAL:
            self._note(row, row.state)
            if row.state == S.DEAD:
                self._note(row, "dead", bucket=REASON_CODES[Reason(row.reason or "")])
            if row.state == S.CONFIRMED:
                self._note(row, "lag", bucket=bucket_of((self.now - row.ready_at).total_seconds()))
                self._note(row, "late", n=not row.in_time)

    # Deeds.

    def step(self) -> None:
        """Do one deed."""
        deeds = (
            (self.accept, 5), (self.probe, 1), (self.claim, 5), (self.finish, 6), (self.lose, 1), (self.answer, 3),
            (self.sweep, 2),
            (self.cancel, 1), (self.replay, 1), (self.close, 1), (self.fold, 3), (self.broken_fold, 1),
            (self.change_contract, 1),
        )  # fmt: skip
        [deed] = self.draw.choices([d for d, _ in deeds], weights=[w for _, w in deeds])
        deed()
        self.look(deed.__name__)
        self.pass_time(self.draw.choice((0, 0.4, 3, 17, 61, 300, 1500)))

    def _some(self, *states: str, most: int = 4) -> list[UUID]:
        ids = [row.id for row in self.rows.values() if row.state in states and row.id not in self.gone]
        return self.draw.sample(ids, min(len(ids), self.draw.randint(1, most)))

    def accept(self) -> None:
        """Accept some jobs, some for later, some again."""
        kind = self.draw.choice(list(KINDS))
        n = self.draw.randint(1, 5)
        items = [
            Item(
                type=kind, payload={"n": self.draw.randint(1, 400)}, dedupe_key=f"k{self.draw.randint(1, 400)}",
                run_at=self.now + dt.timedelta(seconds=4000) if self.draw.random() < 0.2 else None,
            )
            for _ in range(n)
        ]  # fmt: skip
        tier = JobType.objects.values_list("tier__number", flat=True).get(name=kind)
        for answer in enqueue_many(items, on_error="return"):
            if getattr(answer, "duplicate", False):
                self.facts[minute(self.now), kind, tier, "duplicates", -1] += 1

    def probe(self) -> None:
        """Accept a probe: nothing that becomes of it is in the account."""
        accept_probe(self.draw.choice(list(KINDS)), key=f"probe-{self.deeds.total()}")

    def claim(self) -> None:
        """Claim what is due of some."""
        self.runs += lifecycle.claim(self._some(S.ACCEPTED, S.RETRYING, most=6), worker="w")

    def finish(self) -> None:
        """End some runs, some of which somebody else has ended already."""
        self.draw.shuffle(self.runs)
        ending, self.runs = self.runs[:4], self.runs[4:]
        ends = [self._end(run) for run in ending]
        held = {run: self.rows[run.id] for run in ending}
        done = lifecycle.settle(ends) if ends else {}
        for run, end in zip(ending, ends, strict=True):
            if (run.id, run.fence) not in done:
                continue
            if end.verdict is not Verdict.RELEASED:
                self._note(held[run], "run", bucket=bucket_of(end.seconds))
            if end.verdict is Verdict.FAILED:
                self._note(held[run], "failed")

    def _end(self, run: Run) -> End:
        chosen = self.draw.random()
        verdict = Verdict.AWAITING if run.type in ("b.callback", "d.slow") else Verdict.CONFIRMED
        end: dict[str, Any] = {"id": run.id, "fence": run.fence, "seconds": self.draw.lognormvariate(0, 2)}
        if chosen < 0.1:
            return End(**end, verdict=Verdict.RELEASED)
        if chosen < 0.4:
            reason = self.draw.choice((None, None, "permanent_error", "time_limit"))
            failure = {"error_class": "Boom", "message": "boom", "traceback": ""}
            return End(
                **end, verdict=Verdict.FAILED, retry_in=self.draw.choice((2.0, 600.0)), reason=reason, failure=failure
            )
        if verdict is Verdict.AWAITING:
            return End(**end, verdict=verdict, reference=f"r{run.id}", confirm_in=900.0, act_in=900.0)
        return End(**end, verdict=verdict, evidence={"kind": "reference", "ref": f"r{run.id}", "late": False})

    def lose(self) -> None:
        """Let a worker die."""
        running = [self.rows[job_id] for job_id in self._some(S.PROCESSING)]
        fences: dict[UUID, int] = dict(sql("SELECT id, fence FROM queues_job WHERE state = 'processing'"))
        gone = lifecycle.rescue([r.id for r in running], dead_runs=[(r.id, fences[r.id]) for r in running], blame=False)
        for row in running:
            if row.id in gone:
                self._note(row, "lost")
                self._note(row, "lost", bucket=bucket_of((self.now - self.entered[row.id]).total_seconds()))

    def answer(self) -> None:
        """Say yes or no about some job, whatever became of it."""
        for job_id in self._some(*S, most=2):
            positive = self.draw.random() < 0.7
            [said] = lifecycle.confirm(
                [Proof(id=job_id, positive=positive, kind="callback", ref=f"r{job_id}", retryable=True, retry_in=30.0)]
            )
            row = self.rows[job_id]
            if said.applied == "late" and not said.heard:
                self._note(row, "late_evidence")
            if said.applied == "contradiction" and not said.heard:
                self._note(row, "contradictions")

    def sweep(self) -> None:
        """Do what the scheduler's sweeps do."""
        lifecycle.expire(lifecycle.stale(limit=50))
        lifecycle.give_up_waiting(lifecycle.overdue(limit=50))
        due = lifecycle.due_checks([("b.callback", 5)])
        assert not due, "nothing is polled here"
        lifecycle.finish_checks([CheckEnd(id=i, fence=1, due_at=self.now, outcome="none") for i in self._some(S.DEAD)])

    def cancel(self) -> None:
        """Cancel some."""
        lifecycle.cancel(self._some(*S, most=2), reason=Reason.OPERATOR)

    def replay(self) -> None:
        """Replay some."""
        for job_id in self._some(S.DEAD, S.EXPIRED, S.CANCELLED, most=2):
            lifecycle.replay(job_id, by="me")

    def close(self) -> None:
        """Close a dead letter."""
        lifecycle.close_dead_letters(self._some(S.DEAD, most=1), resolution="cancelled", by="me")

    def fold(self) -> None:
        """Fold a part."""
        lifecycle.fold(limit=self.draw.choice((1, 7, 1000)))

    def broken_fold(self) -> None:
        """Fold, and die before the commit."""
        with transaction.atomic():
            lifecycle.fold(limit=50)
            transaction.set_rollback(True)

    def change_contract(self) -> None:
        """Give a type another window or tier."""
        kind = self.draw.choice(list(KINDS))
        JobType.objects.filter(name=kind).update(
            window_seconds=self.draw.choice((60, 240, 1800, 7200)), tier_id=self.draw.choice((1, 2, 3))
        )
        contracts.forget()

    def prune(self) -> None:
        """Remove what may go, by hand: the account remembers the rows."""
        ids = [row.id for row in self.rows.values() if row.state in (S.CONFIRMED, S.CANCELLED)]
        sql("DELETE FROM queues_job WHERE id = ANY(%s)", ids)
        self.gone |= set(ids)

    # The truth.

    def happened(self, span: Span) -> tuple[Counter[tuple[int, str, str]], Counter[tuple[int, str, str, int]]]:
        """Return what was counted in a span: (tier, type, measure) → n, and with its bucket."""
        end = span.until if span.until < span.now else span.until + MINUTE
        counts: Counter[tuple[int, str, str]] = Counter()
        buckets: Counter[tuple[int, str, str, int]] = Counter()
        for (at, kind, tier, measure, bucket), n in self.facts.items():
            if span.since <= at < end and bucket < 0:
                counts[tier, kind, measure] += n
            elif span.since <= at < end:
                buckets[tier, kind, measure, bucket] += n
        return counts, buckets

    def cohorts(self, span: Span, *, since: dt.datetime, until: dt.datetime) -> dict[tuple[int, str], list[int]]:
        """Return (ready, due, kept, open late) of what became ready in a stretch, judged as of the span's time.

        The windows of a minute have passed when the longest of them has.
        """
        minutes: dict[tuple[dt.datetime, int, str], list[Seen]] = {}
        for row in self.rows.values():
            if row.cohort and since <= minute(row.ready_at) < until:
                minutes.setdefault((minute(row.ready_at), row.tier, row.type), []).append(row)
        found: dict[tuple[int, str], list[int]] = {}
        for (at, tier, kind), rows in minutes.items():
            ready, due, kept, late = found.setdefault((tier, kind), [0, 0, 0, 0])
            ready += len(rows)
            if at + MINUTE + dt.timedelta(seconds=max(row.window for row in rows)) <= span.judged:
                due += sum(not (row.state == S.CANCELLED and row.in_time) for row in rows)
                kept += sum(row.state == S.CONFIRMED and row.in_time for row in rows)
                late += sum(row.state not in TERMINAL for row in rows)
            found[tier, kind] = [ready, due, kept, late]
        return found
