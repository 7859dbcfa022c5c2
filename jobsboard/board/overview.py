"""The overview: are we keeping our promises now; if not, who, since when, why?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from jobsboard.board import charts, shell, summary, verdict
from jobsboard.board.changes import NEWEST, recent
from jobsboard.board.params import Params
from jobsboard.board.refresh import answer, live
from jobsboard.demo.panel import panel
from jobsboard.roles import require
from queues import broker, outcomes
from queues.models import AuditEntry
from queues.outcomes import DEFAULT_RANGE, RANGES, Board, Processes
from queues.states import WAITING


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
    range_name = params.choice("range", RANGES) or DEFAULT_RANGE
    board = shell.board_of(request)
    numbers = summary.read(board, range_name)
    processes = outcomes.processes()
    types, tiers = summary.type_lines(numbers), summary.tier_lines(numbers, processes)
    found = verdict.concerns(types, tiers, numbers.lags, processes, broker=broker.ping(), now=board.now)
    context = {
        "title": "Overview",
        "ranges": list(RANGES),
        "range": range_name,
        "notes": params.notes,
        "demo": panel(),
        "verdict": verdict.sentence(tiers),
        "cause": verdict.cause(types, range_name=range_name),
        "tiers": tiers,
        "types": types,
        "concerns": found[: verdict.ATTENTION_MAX],
        "concerns_total": len(found),
        "changes": recent(AuditEntry.objects.order_by("-id")[:NEWEST], since=numbers.span.since),
        "pools": _pools(board, processes),
        "reasons": _reasons(numbers),
        **_charts(params, numbers, tiers),
    }
    return answer(request, "board/overview.html", context)


def _charts(params: Params, numbers: summary.Numbers, tiers: list[summary.TierLine]) -> dict[str, Any]:
    chosen = params.choice("lag", {str(tier.number) for tier in tiers}, word="tier")
    # The tier that is worst off; when all is well, the first that has something to show.
    worst = min(tiers, key=lambda t: (not t.breach, t.gap if t.breach else 0.0, t.lag.p95 is None, t.number))
    tier = next((tier for tier in tiers if str(tier.number) == chosen), worst)
    series = outcomes.lag_series(numbers.span, tier=tier.number)
    return {
        "lag_tier": tier.number,
        "lag_chart": charts.lag_chart(numbers.span, series, title=f"Outcome lag, tier {tier.number}", since=tier.since),
        "flow_chart": charts.flow_chart(numbers.span, numbers.flow.series()),
    }


def _reasons(numbers: summary.Numbers) -> list[dict[str, Any]]:
    merged: dict[tuple[str, str], int] = {}
    for (_, name), found in numbers.lags.dead.items():
        for reason, n in found.items():
            merged[reason, name] = merged.get((reason, name), 0) + n
    rows = sorted(merged.items(), key=lambda item: -item[1])[:6]
    top = max((n for _, n in rows), default=1)
    return [{"reason": reason, "type": name, "n": n, "share": n / top} for (reason, name), n in rows]


def _pools(board: Board, processes: Processes) -> list[PoolLine]:
    """List every queue that a type or a worker names; each tier at least."""
    queues = {f"tier{n}": n for n in board.tiers}
    queues |= {f"tier{t.tier}.{t.pool}": t.tier for t in board.types.values() if t.pool}
    queues |= {name: int(name[4]) for name in processes.pools if name[4:5] in {"1", "2", "3"}}
    waiting = dict.fromkeys(queues, 0)
    for (tier, name), found in board.counts.items():
        known = board.types.get(name)
        queue = f"tier{tier}.{known.pool}" if known and known.pool else f"tier{tier}"
        if queue in waiting:
            waiting[queue] += sum(found.get(state, 0) for state in WAITING)
    lines = []
    for queue, tier in sorted(queues.items()):
        pool = processes.pools.get(queue)
        busy, slots = (pool.busy, pool.slots) if pool else (0, 0)
        lines.append(PoolLine(queue=queue, tier=tier, slots=slots, busy=busy, waiting=waiting[queue]))
    return lines
