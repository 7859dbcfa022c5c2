"""The overview: are we keeping our promises now; if not, who, since when, why?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from jobsboard.board import charts, dependencies, marks, replays, schedules, shell, signals, summary, verdict
from jobsboard.board.changes import entries_of, recent
from jobsboard.board.params import Params, chosen_range
from jobsboard.board.refresh import answer, live
from jobsboard.demo.panel import panel
from jobsboard.roles import require
from queues import broker, outcomes
from queues.outcomes import Board, Processes, pools
from queues.outcomes.breakers import newest_flips
from queues.states import WAITING

FLIPS: Final = 20
"""Changes of breakers that "What changed" looks at."""


@dataclass(frozen=True, kw_only=True)
class PoolLine:
    """One queue: its workers and what waits for them."""

    queue: str
    tier: int
    slots: int
    busy: int
    waiting: int

    @property
    def share(self) -> float:
        """Busy slots, of all."""
        return min(self.busy / self.slots, 1.0) if self.slots else 0.0


@require("view")
@require_safe
@live
def overview(request: HttpRequest) -> HttpResponse:
    """Show the overview."""
    params = Params(request)
    board = shell.board_of(request)
    chosen = chosen_range(params, now=board.now, folded_at=board.folded_at)
    numbers = summary.read(board, chosen.span)
    happened = marks.read(chosen.span)
    processes = outcomes.processes()
    held = dependencies.lines_of(board) if any(known.dependency for known in board.types.values()) else []
    types, tiers = summary.type_lines(numbers), summary.tier_lines(numbers, processes)
    found = [
        *signals.concerns(signals.of(request)),
        *replays.concerns(request),
        *schedules.concerns(request),
        *verdict.concerns(
            types,
            tiers,
            numbers.times,
            processes,
            broker=broker.ping(),
            now=board.now,
            probes=outcomes.probes() if board.probes_failing else (),
            breakers=dependencies.concerns(held),
            deferred=[known for known in board.types.values() if known.deferred],
        ),  # fmt: skip
    ]
    context = {
        "title": "Overview",
        **chosen.context(),
        "notes": params.notes,
        "demo": panel(),
        "verdict": verdict.sentence(tiers),
        "cause": verdict.cause(types, range_words=chosen.words)
        + ("" if chosen.name else f" Seen over the {chosen.words}."),
        "tiers": tiers,
        "types": types,
        "concerns": found[: verdict.ATTENTION_MAX],
        "concerns_total": len(found),
        "changes": recent(
            entries_of(chosen.span, now=board.now),
            span=chosen.span,
            happened=happened,
            flips=newest_flips(since=chosen.span.since, until=chosen.span.until, limit=FLIPS) if held else (),
        ),
        "breakers": held,
        "pools": _pools(board, processes),
        "reasons": _reasons(numbers),
        **_charts(params, numbers, tiers, happened),
    }
    return answer(request, "board/overview.html", context)


def _charts(
    params: Params, numbers: summary.Numbers, tiers: list[summary.TierLine], happened: marks.Happened
) -> dict[str, Any]:
    chosen = params.choice("lag", {str(tier.number) for tier in tiers}, word="tier")
    # The tier that is worst off; when all is well, the first that has something to show.
    worst = min(tiers, key=lambda t: (not t.breach, t.gap if t.breach else 0.0, t.lag.p95 is None, t.number))
    tier = next((tier for tier in tiers if str(tier.number) == chosen), worst)
    series = outcomes.lag_series(numbers.span, tier=tier.number)
    types = numbers.board.types
    of_tier = happened.marks(types={name for name, known in types.items() if known.tier == tier.number}, named=True)
    return {
        "lag_tier": tier.number,
        "lag_chart": charts.lag_chart(
            numbers.span, series, title=f"Outcome lag, tier {tier.number}", since=tier.since, marks=of_tier
        ),
        "flow_chart": charts.flow_chart(
            numbers.span, numbers.flow.series(), marks=happened.marks(types=types, named=True)
        ),
    }


def _reasons(numbers: summary.Numbers) -> list[dict[str, Any]]:
    merged: dict[tuple[str, str], int] = {}
    for (_, name), found in numbers.times.dead.items():
        for reason, n in found.items():
            merged[reason, name] = merged.get((reason, name), 0) + n
    rows = sorted(merged.items(), key=lambda item: -item[1])[:6]
    top = max((n for _, n in rows), default=1)
    return [{"reason": reason, "type": name, "n": n, "share": n / top} for (reason, name), n in rows]


def _pools(board: Board, processes: Processes) -> list[PoolLine]:
    """List every queue that a type or a worker names; each tier at least."""
    queues = pools.queue_names(board, consumed=processes.pools)
    waiting = dict.fromkeys(queues, 0)
    for (tier, name), found in board.counts.items():
        waiting[pools.queue_of(board, tier=tier, name=name)] += sum(found.get(state, 0) for state in WAITING)
    lines = []
    for queue, tier in queues.items():
        pool = processes.pools.get(queue)
        busy, slots = (pool.busy, pool.slots) if pool else (0, 0)
        lines.append(PoolLine(queue=queue, tier=tier, slots=slots, busy=busy, waiting=waiting[queue]))
    return lines
