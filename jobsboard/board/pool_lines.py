"""A line for each queue and each worker of the page of queues: their figures, and what to make of them. No reading."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from queues import workers
from queues.outcomes.pools import Held, Process, RunNow
from queues.redaction import redact_text

SHORT_SECONDS: Final = 10
"""A job that waits for so long while all slots are busy: the queue is short of workers."""
GROWS: Final = 1.1
"""A queue grows when so many times as many jobs come as are begun for the first time."""
TYPES_WIDTH: Final = 28
"""Characters."""
Look = tuple[str, str, str]
"""The state whose look it has, its word, its icon."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Jobs in a minute: accepted, begun (every run counts), and of those begun again after a failure."""

    accepted: float = 0.0
    begun: float = 0.0
    again: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PoolLine:
    """One queue. `workers` consume it and are well; slots that they share with other queues count here and there.

    `waiting`: jobs that wait for a run, also those whose time has not come; `held` of them for a switch or a breaker.
    `due_seconds`: since when the first of the others is due. `hints`: messages in the broker, None is not known.
    """

    queue: str
    tier: int
    types: Sequence[str]
    workers: int = 0
    troubled: int = 0
    slots: int = 0
    busy: int = 0
    shared: Sequence[str] = ()
    waiting: int = 0
    held: int = 0
    behind: int = 0
    """Types behind a breaker that is not closed."""
    due_seconds: float | None = None
    wait_p95: float | None = None
    pace: Pace = Pace()
    hints: int | None = None
    holds: Sequence[Held] = ()

    @property
    def free(self) -> int:
        """Waiting jobs that nothing but workers, limits or their own time keeps waiting."""
        return max(self.waiting - self.held, 0)

    @property
    def jobs_query(self) -> str:
        """Return the query of the list of jobs that comes nearest to what waits in it."""
        return urlencode(
            {"state": "accepted"} | ({"type": self.types[0]} if len(self.types) == 1 else {"tier": self.tier})
        )

    @property
    def share(self) -> float:
        """Busy slots, of all."""
        return min(self.busy / self.slots, 1.0) if self.slots else 0.0

    @property
    def stopped(self) -> bool:
        """Every type of it is paused or deferred."""
        return bool(self.types) and len(self.holds) == len(self.types)

    @property
    def starved(self) -> bool:
        """Jobs wait, and no worker that is well takes them."""
        return not self.stopped and self.free > 0 and not self.workers

    @property
    def short(self) -> bool:
        """All slots are busy, and a job waits for longer than it should."""
        waits = self.due_seconds is not None and self.due_seconds >= SHORT_SECONDS
        return not self.stopped and self.workers > 0 and waits and self.busy >= self.slots

    @property
    def look(self) -> Look:
        """How it stands."""
        if self.stopped:
            return ("retrying", "Paused" if any(one.how == "paused" for one in self.holds) else "Deferred", "pause")
        if not self.workers:
            if self.troubled:
                return ("dead", "In trouble", "bad")
            return ("dead", "No worker", "bad") if self.free else ("cancelled", "No worker", "help")
        if self.short:
            return ("retrying", "Short", "warn")
        return ("processing", "Working", "processing") if self.busy else ("confirmed", "Idle", "ok")

    @property
    def drain_seconds(self) -> float | None:
        """How long what waits takes at the pace of the last minutes; None where that cannot be said."""
        return self.free / self.pace.begun * 60 if self.free and self.pace.begun else None

    @property
    def stuck(self) -> bool:
        """Something is due, and nothing was begun of late."""
        return self.due_seconds is not None and self.due_seconds >= SHORT_SECONDS and not self.pace.begun

    @property
    def grows(self) -> bool:
        """More comes than is begun, and more waits than comes in a minute."""
        return self.free > self.pace.accepted > GROWS * (self.pace.begun - self.pace.again)

    @property
    def hold_words(self) -> str:
        """By whom and why it does not go on, or some of its types do not."""
        if not self.holds:
            return ""
        first, alike = self.holds[0], len({(one.how, one.by, one.reason) for one in self.holds}) == 1
        n = "" if self.stopped else f"{len(self.holds)} of {len(self.types)} types {first.how if alike else 'held'}"
        if not alike:
            return n or "Its types are held for several reasons"
        who = f" by {first.by}" if first.by else ""
        why = reason_of(first.reason)
        until = f" until {first.until:%-d %b %H:%M} UTC" if first.until else ""
        return f"{n or first.how.capitalize()}{who}{until}{f': {why}' if why else ''}"

    @property
    def paused_here(self) -> bool:
        """Some of its types wait for this queue to be resumed."""
        return any(one.how == "paused" and one.reason.startswith(mark_of(self.queue)) for one in self.holds)

    @property
    def may_pause(self) -> bool:
        """Some of its types are not paused."""
        return len(self.types) > sum(one.how == "paused" for one in self.holds)

    @property
    def named(self) -> Sequence[str]:
        """The first of its types, as many as a line holds."""
        widths = itertools.accumulate(len(name) + 2 for name in self.types)
        return self.types[: max(sum(width <= TYPES_WIDTH for width in widths), 1)]

    @property
    def more(self) -> int:
        """How many of its types are not named."""
        return len(self.types) - len(self.named)


@dataclass(frozen=True, kw_only=True)
class WorkerLine:
    """One worker and its runs, the longest first; `seconds`: how long that one goes on."""

    now: Process
    runs: Sequence[RunNow] = ()
    seconds: float | None = None
    unknown: bool = False
    """It is busy, and which of the runs on its host are its own is not known."""

    @property
    def rank(self) -> int:
        """What needs a look comes first."""
        return 0 if self.now.trouble and not self.now.silent else 1 if self.now.silent else 2 + (not self.now.draining)

    @property
    def look(self) -> Look:
        """How it stands."""
        if self.now.silent:
            return ("retrying", "Silent", "warn")
        if self.now.trouble:
            return ("dead", "In trouble", "bad")
        if self.now.draining:
            return ("cancelled", "Draining", "out")
        return ("processing", "Working", "processing") if self.now.busy else ("confirmed", "Idle", "ok")

    @property
    def trouble(self) -> str:
        """What is wrong with it, in its own words."""
        return redact_text(self.now.trouble)

    @property
    def age(self) -> str:
        """How its release stands to that of this page; empty where it is the same."""
        if self.now.release == workers.RELEASE:
            return ""
        return "older" if self.now.release < workers.RELEASE else "newer"


def mark_of(queue: str) -> str:
    """Return how the reason begins with which types are paused together; by it they are resumed together."""
    return f"Pool {queue}: "


def reason_of(text: str) -> str:
    """Return why, without the mark."""
    head, found, rest = text.partition(": ")
    return redact_text(rest if found and head.startswith("Pool tier") else text)


def heading(lines: Sequence[PoolLine], *, live: int, broker: bool = True) -> str:
    """Answer the page's question in one sentence: is work waiting, or are workers short? `broker`: it answers."""
    free = sum(line.free for line in lines)
    if not live:
        return "No worker is running" + (f": {_jobs(free)}" if free else "")
    starved = [line for line in lines if line.starved]
    if starved:
        n = sum(line.free for line in starved)
        have = "has no worker that is well" if len(starved) == 1 else "have no worker that is well"
        return f"{_listed(starved)} {have}: {_jobs(n)}"
    if not broker:
        return "The broker does not answer: workers hear of no new work"
    short = sorted((line for line in lines if line.short), key=lambda line: -(line.due_seconds or 0))
    if short:
        return f"Workers are short in {_listed(short)}: {_jobs(sum(line.free for line in short))}"
    stopped = [line for line in lines if line.stopped and line.waiting]
    if stopped:
        held = sum(line.waiting for line in stopped)
        return f"{_listed(stopped)} {'is' if len(stopped) == 1 else 'are'} on hold: {_jobs(held)}"
    if any(line.due_seconds is not None and line.due_seconds >= SHORT_SECONDS for line in lines):
        return "Jobs wait, and workers are free"
    return "Workers keep up" + (f": {_jobs(free)}, none for long" if free else ": no job waits")


def _listed(lines: Sequence[PoolLine]) -> str:
    names = [line.queue for line in lines]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _jobs(n: int) -> str:
    return f"{n:,} job{' waits' if n == 1 else 's wait'}"


def shared_with(queue: str, consumers: Sequence[Process]) -> list[str]:
    """Return the other queues that some of its workers consume."""
    return sorted({name for one in consumers for name in one.queues} - {queue})


def oldest(due: Mapping[tuple[int, str], datetime], pairs: Sequence[tuple[int, str]], *, now: datetime) -> float | None:
    """Return since how many seconds the first of some (tier, type) is due."""
    found = [due[pair] for pair in pairs if pair in due]
    return max((now - min(found)).total_seconds(), 0.0) if found else None
