"""Which historical jobs are tried: dead ones up to a share, the rest spread over the time range.

Not here: payloads are read later, a few at a time. Every read walks the index (type, id), whose ids begin with their
time, and ends after a number of rows; no read looks at a whole type or a whole partition.
"""

from __future__ import annotations

import datetime as dt
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final
from uuid import UUID

from django.db.models import DateTimeField, Func

from queues.models import Job, JobType
from queues.states import JobState, Reason, Resolution

SLICES: Final = 64
DEAD_SHARE: Final = 0.3
"""How much of a sample dead letters take at most, while there are others."""
DEAD_LOOKED_AT: Final = 5_000
ROWS_PER_JOB: Final = 40
"""How many rows are looked at for one that is taken; a type that hardly ever settles ends the walk with fewer."""
NOT_TRIED: Final = frozenset({Reason.STALE.value})
"""Dead without a word of the handler: there is nothing to compare with."""
_TIMES: Final = ("accepted_at", "started_at", "expires_at")
_COLUMNS: Final = (
    "id", "state", "reason", "fingerprint", "evidence", "reference", "result", "failures", "idempotency_key", "group",
    "trace", *_TIMES,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One historical job: what it was and what became of it. Units: `age` and `left` in seconds at its last start."""

    id: UUID
    state: str
    reason: str | None
    fingerprint: str | None
    evidence: Mapping[str, Any] | None
    reference: str | None
    result: Any
    failures: Sequence[Mapping[str, Any]]
    idempotency_key: str
    group: str | None
    trace: Mapping[str, Any] | None
    age: float
    left: float


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A sample, ordered by id. `seen` rows were looked at; `erased` ones of them have no payload any more."""

    jobs: Sequence[Recorded]
    seen: int
    erased: int
    since: dt.datetime
    until: dt.datetime


class _Now(Func):
    function = "jobs_now"
    output_field = DateTimeField()


@dataclass(frozen=True)
class _Row:
    """What decides whether a job is taken."""

    id: UUID
    state: str
    reason: str | None
    fingerprint: str | None
    usable: bool
    erased: bool


def take(name: str, *, back: dt.timedelta, size: int, seed: int = 0) -> Sampled:
    """Choose jobs of a type; the same seed at the same time chooses the same. Raises: JobType.DoesNotExist."""
    until: dt.datetime = JobType.objects.annotate(now=_Now()).values_list("now", flat=True).get(name=name)
    since = until - back
    walk = _Walk(name, floor(since), floor(until + dt.timedelta(minutes=1)), random.Random(seed))  # noqa: S311 (no secret)
    dead = walk.open_dead()
    confirmed, others = walk.spread(size)
    known = {row.id for row in dead}
    dead = _by_failure([*dead, *(row for row in others if row.id not in known)])
    quota = max(round(size * DEAD_SHARE), size - len(confirmed))
    chosen = dead[:quota]
    chosen += confirmed[: size - len(chosen)]
    return Sampled(
        jobs=list(_recorded(sorted(row.id for row in chosen))),
        seen=len(walk.seen),
        erased=sum(row.erased for row in walk.seen.values()),
        since=since,
        until=until,
    )


def payloads(ids: Sequence[UUID]) -> dict[UUID, str]:
    """Return the payload texts that are there still."""
    rows = Job.objects.filter(id__in=list(ids), payload__isnull=False).values_list("id", "payload")
    return {job_id: text for job_id, text in rows if text is not None}


def floor(at: dt.datetime) -> UUID:
    """Return the smallest id of a moment (UUIDv7)."""
    return UUID(int=max(0, int(at.timestamp() * 1000)) << 80)


class _Walk:
    """The reads of one sample, each bounded."""

    def __init__(self, name: str, low: UUID, high: UUID, draw: random.Random) -> None:
        self._jobs = Job.objects.of_type(name)
        self._low, self._high, self._draw = low, high, draw
        self.seen: dict[UUID, _Row] = {}

    def open_dead(self) -> list[_Row]:
        """Return the newest dead letters that nobody resolved: their own partial index holds them."""
        rows = self._jobs.filter(
            state=JobState.DEAD.value, resolution=Resolution.OPEN.value, id__gte=self._low, id__lt=self._high
        )
        return [row for row in self._read(rows.order_by("-id"), DEAD_LOOKED_AT) if row.usable]

    def spread(self, size: int) -> tuple[list[_Row], list[_Row]]:
        """Return confirmed jobs, those of different slices of the time in turn, and the dead ones met on the way."""
        slices = [_Slice(segments) for segments in self._segments()]
        budget = size * ROWS_PER_JOB
        live = slices
        while live and budget > 0:
            missing = size - sum(len(one.confirmed) for one in slices)
            if missing <= 0:
                break
            each = max(4, -(-missing * 3 // (2 * len(live))))
            for one in live:
                budget -= self._advance(one, min(each, max(1, budget)))
            live = [one for one in live if one.segments]
        return _in_turn([one.confirmed for one in slices]), [row for one in slices for row in one.dead]

    def _segments(self) -> Iterator[deque[tuple[UUID, UUID]]]:
        """Cut the time into slices; each is walked from a point by chance to its end, then from its beginning."""
        low, high = self._low.int, self._high.int
        edges = [low + (high - low) * number // SLICES for number in range(SLICES + 1)]
        for start, end in zip(edges, edges[1:], strict=False):
            middle = UUID(int=self._draw.randrange(start, end))
            yield deque([(middle, UUID(int=end)), (UUID(int=start), middle)])

    def _advance(self, one: _Slice, most: int) -> int:
        """Read the next rows of a slice; returns how many."""
        start, end = one.segments.popleft()
        rows = self._read(self._jobs.filter(id__gte=start, id__lt=end).order_by("id"), most)
        if len(rows) == most:
            one.segments.appendleft((UUID(int=rows[-1].id.int + 1), end))
        for row in rows:
            if row.usable:
                (one.confirmed if row.state == JobState.CONFIRMED else one.dead).append(row)
        return max(1, len(rows))

    def _read(self, rows: Any, most: int) -> list[_Row]:
        columns = ("id", "state", "reason", "fingerprint", "probe", "canary", "erased_at")
        found = [_row(*values) for values in rows.values_list(*columns)[:most]]
        self.seen.update((row.id, row) for row in found)
        return found


class _Slice:
    def __init__(self, segments: deque[tuple[UUID, UUID]]) -> None:
        self.segments = segments
        self.confirmed: list[_Row] = []
        self.dead: list[_Row] = []


def _row(
    job_id: UUID, state: str, reason: str | None, fingerprint: str | None, probe: bool, canary: bool, erased_at: Any
) -> _Row:
    tried = state in (JobState.CONFIRMED, JobState.DEAD) and reason not in NOT_TRIED and not probe and not canary
    erased = tried and erased_at is not None
    return _Row(job_id, state, reason, fingerprint, tried and not erased, erased)


def _in_turn(lists: Sequence[Sequence[_Row]]) -> list[_Row]:
    """Take the first of each list, then the second of each."""
    return [row for rank in zip_longest(*lists) for row in rank if row is not None]


def _by_failure(rows: Sequence[_Row]) -> list[_Row]:
    """Let failures take turns, so that one storm does not hide the others."""
    groups: dict[tuple[str | None, str | None], list[_Row]] = {}
    for row in rows:
        groups.setdefault((row.reason, row.fingerprint), []).append(row)
    return _in_turn(list(groups.values()))


def _recorded(ids: Sequence[UUID]) -> Iterator[Recorded]:
    for values in Job.objects.filter(id__in=list(ids)).order_by("id").values(*_COLUMNS):
        accepted, started, expires = (values.pop(name) for name in _TIMES)
        began = started or accepted
        yield Recorded(
            **values, age=(began - accepted).total_seconds(), left=max(1.0, (expires - began).total_seconds())
        )
