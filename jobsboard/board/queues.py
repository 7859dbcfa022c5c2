"""Queues and tiers: is work waiting or are workers short? Every queue with its workers, every worker with its job.

Not here: pausing and resuming a queue (`queue_acting`), what to make of the figures (`pool_lines`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_safe

from jobsboard.board import shell
from jobsboard.board.params import Params
from jobsboard.board.pool_lines import Pace, PoolLine, WorkerLine, heading, oldest, shared_with
from jobsboard.board.refresh import answer, live
from jobsboard.board.verdict import Concern
from jobsboard.durations import duration
from jobsboard.roles import can, require
from queues import broker, outcomes, workers
from queues.outcomes import Board, Flow, Span, Times, pools
from queues.outcomes.pools import Held, Placed, Process
from queues.outcomes.ranges import STANDS_STILL
from queues.redaction import redact_text
from queues.states import WAITING

Pair = tuple[int, str]

RANGE: Final = "15m"
RANGE_WORDS: Final = "15 min"
"""Over which the wait and the pace are told."""
WORKERS_SHOWN: Final = 50
TROUBLES_SHOWN: Final = 3
HINTS_SECONDS: Final = 0.3
"""The broker is asked for so long; what it has not told by then is not known."""
HINTS_AGE: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was read for the page."""

    board: Board
    flow: Flow
    times: Times
    processes: Sequence[Process]
    placed: Placed
    held: Mapping[str, Held]

    @property
    def workers(self) -> list[Process]:
        """Those that run jobs, the silent ones too."""
        return [one for one in self.processes if one.kind == "worker"]

    @property
    def live(self) -> list[Process]:
        """Workers that reported themselves of late."""
        return [one for one in self.workers if not one.silent]

    @property
    def schedulers(self) -> list[Process]:
        """Those that live."""
        return [one for one in self.processes if one.kind == "scheduler" and not one.silent]


@require("view")
@require_safe
@live
def queues(request: HttpRequest) -> HttpResponse:
    """Show all queues and workers."""
    return queues_page(request)


def queues_page(request: HttpRequest, *, toast: Mapping[str, str] | None = None) -> HttpResponse:
    """Render the page: six statements beside those of every page."""
    board, params = shell.board_of(request), Params(request)
    seen = read(board)
    lines = pool_lines(seen, hints=hints_of(pools.queue_names(board, consumed=_consumed(seen))))
    queue = params.choice("queue", {line.queue for line in lines})
    host = params.choice("host", {one.hostname for one in seen.workers})
    found = [one for one in worker_lines(seen) if host in (None, one.now.hostname)]
    found = [one for one in found if queue is None or queue in one.now.queues or one.now.draining]
    context: dict[str, Any] = {
        "title": "Queues and tiers",
        "heading": heading(lines, live=len(seen.live), broker=_answers(lines)),
        "totals": totals(seen),
        "concerns": concerns(seen, lines),
        "lines": lines,
        "range_words": RANGE_WORDS,
        "workers": found[:WORKERS_SHOWN],
        "workers_found": len(found),
        "workers_total": len(seen.workers),
        "schedulers": seen.schedulers,
        "gone_seconds": workers.GONE_SECONDS,
        "filters": _filters(seen, lines, queue=queue, host=host),
        "notes": params.notes,
        "may_act": can(request.user, "act"),
        "toast": toast,
    }
    return answer(request, "board/queues.html", context)


def read(board: Board) -> Seen:
    """Read how queues and workers stand, in five statements."""
    span = Span.of(RANGE, now=board.now, folded_at=board.folded_at)
    processes = pools.fleet(gone_seconds=workers.GONE_SECONDS)
    return Seen(
        board=board,
        flow=outcomes.flow(span),
        times=outcomes.times(span, names=board.types, measures=("wait",)),
        processes=processes,
        placed=pools.place(pools.runs(), processes, board=board),
        held=pools.holds(),
    )


def _consumed(seen: Seen) -> set[str]:
    return {name for one in seen.workers for name in one.queues}


def hints_of(names: Iterable[str]) -> dict[str, int | None]:
    """Ask the broker how many messages wait in each queue, for a bounded time; None is not known."""
    until, found = time.monotonic() + HINTS_SECONDS, {}
    for name in names:
        found[name] = broker.depth(name, max_age=HINTS_AGE) if time.monotonic() < until else None
    return found


def pool_lines(seen: Seen, *, hints: Mapping[str, int | None]) -> list[PoolLine]:
    """Return a line for each queue, in order. One statement."""
    board = seen.board
    waiting = {pair: n for pair, found in board.counts.items() if (n := sum(found.get(state, 0) for state in WAITING))}
    stopped = {name for name, known in board.types.items() if name in seen.held or known.breaker != "closed"}
    due = pools.due_since(pair for pair in waiting if pair[1] not in stopped)
    pairs: dict[str, list[Pair]] = {}
    for tier, name in {*waiting, *seen.flow.pairs, *seen.times.histograms}:
        pairs.setdefault(pools.queue_of(board, tier=tier, name=name), []).append((tier, name))
    names = pools.queue_names(board, consumed=_consumed(seen))
    minutes = (seen.flow.span.until - seen.flow.span.since).total_seconds() / 60
    lines = []
    for queue, tier in names.items():
        own = pairs.get(queue, [])
        types = [name for name in board.types if pools.queue_of(board, tier=tier, name=name) == queue]
        consumers = [one for one in seen.live if queue in one.queues]
        well = [one for one in consumers if one.well]
        lines.append(
            PoolLine(
                queue=queue,
                tier=tier,
                types=types,
                workers=len(well),
                troubled=len(consumers) - len(well),
                slots=sum(one.slots for one in well),
                busy=sum(one.busy for one in well),
                shared=shared_with(queue, well),
                waiting=sum(waiting.get(pair, 0) for pair in own),
                held=sum(waiting.get(pair, 0) for pair in own if pair[1] in stopped),
                behind=sum(board.types[name].breaker != "closed" for name in types),
                due_seconds=oldest(due, own, now=board.now),
                wait_p95=_wait_p95(seen.times, own),
                pace=_pace(seen.flow, own, minutes=minutes),
                hints=hints.get(queue),
                holds=[seen.held[name] for name in types if name in seen.held],
            )
        )
    return lines


def _wait_p95(times: Times, pairs: Sequence[Pair]) -> float | None:
    own = Times(histograms={pair: times.histograms[pair] for pair in pairs if pair in times.histograms})
    return own.of("wait").p95


def _pace(flow: Flow, pairs: Sequence[Pair], *, minutes: float) -> Pace:
    total = outcomes.add(one for pair in pairs for one in flow.pairs.get(pair, {}).values())
    return Pace(accepted=total.accepted / minutes, begun=total.runs / minutes, again=total.retries / minutes)


def worker_lines(seen: Seen) -> list[WorkerLine]:
    """Return a line for each worker, those that need a look first; what is well stays in its place."""
    puzzling = {run.host for run in seen.placed.unplaced}
    lines = [
        WorkerLine(
            now=one,
            runs=(runs := seen.placed.by_process.get(one.id, ())),
            seconds=max((seen.board.now - runs[0].started_at).total_seconds(), 0.0) if runs else None,
            unknown=not runs and one.busy > 0 and (one.hostname in puzzling or seen.placed.cut_off),
        )
        for one in seen.workers
    ]
    return sorted(lines, key=lambda line: (line.rank, line.now.queues, line.now.hostname, line.now.pid))


def totals(seen: Seen) -> str:
    """Say how many workers there are and what they do."""
    n, slots, busy = len(seen.live), sum(one.slots for one in seen.live), sum(one.busy for one in seen.live)
    parts = [f"{n:,} worker{'' if n == 1 else 's'}", f"{busy:,} of {slots:,} slots busy"]
    for words, many in (
        ("in trouble", sum(bool(one.trouble) for one in seen.live)),
        ("draining", sum(one.draining for one in seen.live)),
        ("silent", len(seen.workers) - n),
    ):
        if many:
            parts.append(f"{many:,} {words}")
    return ", ".join(parts)


def concerns(seen: Seen, lines: Sequence[PoolLine]) -> list[Concern]:
    """List what is wrong with workers, the broker or the scheduler, worst first."""
    now = seen.board.now
    found = _of_workers(seen)
    stale = now - seen.board.folded_at
    if not seen.schedulers or stale > STANDS_STILL:
        found.append(
            Concern(
                css="dead",
                text="These numbers stand still" if seen.schedulers else "No scheduler is running",
                evidence="Waiting jobs, waits and rates are as of "
                f"{duration(stale.total_seconds())} ago; retries, rescues and what waits for its time are not started",
                since=seen.board.folded_at,
                url=reverse("alerts"),
                action="Alerts",
            )
        )
    if not _answers(lines):
        found.append(
            Concern(
                css="retrying",
                text="The broker does not answer",
                evidence="Jobs are accepted and kept; workers hear of them when it is back. How many hints wait is not"
                " known",
                since=None,
                url=f"{reverse('jobs')}?state=accepted",
                action="See jobs",
            )
        )
    return sorted(found, key=lambda one: one.css != "dead")


def _answers(lines: Sequence[PoolLine]) -> bool:
    return any(line.hints is not None for line in lines)


def _of_workers(seen: Seen) -> list[Concern]:
    troubled = [one for one in seen.live if one.trouble]
    found = [
        Concern(
            css="dead",
            text=f"{one.id} is in trouble",
            evidence=redact_text(one.trouble),
            since=None,
            url=f"#worker-{one.id}",
            action="See it",
        )
        for one in troubled[:TROUBLES_SHOWN]
    ]
    silent = [one for one in seen.workers if one.silent]
    if silent:
        newest = max(silent, key=lambda one: one.seen_at)
        has = "worker is" if len(silent) == 1 else "workers are"
        names = newest.id if len(silent) == 1 else f"the last of them {newest.id}"
        found.append(
            Concern(
                css="retrying",
                text=f"{len(silent):,} {has} silent: {names}",
                evidence="Its runs are given up when their leases end. A worker that stops in good order signs off;"
                " one that is silent is forgotten after an hour",
                since=newest.seen_at,
                url=f"#worker-{newest.id}",
                action="See it",
            )
        )
    if astray := seen.placed.astray:
        first = astray[0]
        found.append(
            Concern(
                css="retrying",
                text=f"{len(astray):,} run{' is' if len(astray) == 1 else 's are'} held by a worker that is gone",
                evidence=f"{first.type} on {first.host or 'a host without a name'}; given up when the lease ends",
                since=first.started_at,
                url=f"{reverse('jobs')}?state=processing",
                action="See jobs",
            )
        )
    return found


def _filters(seen: Seen, lines: Sequence[PoolLine], *, queue: str | None, host: str | None) -> list[dict[str, Any]]:
    """Return the filters of the list of workers; none for a list that is short anyway."""
    hosts = sorted({one.hostname for one in seen.workers})
    if len(seen.workers) <= 1:
        return []
    return [
        {"name": "queue", "label": "Queue", "value": queue or "", "options": [(one.queue,) * 2 for one in lines]},
        {"name": "host", "label": "Host", "value": host or "", "options": [(name, name) for name in hosts]},
    ]
