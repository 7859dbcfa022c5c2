"""The charts of the pages, from numbers to what `chart.tchart` draws, with the sentence that says the same."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from jobsboard.board.chart import Lane, Series, TimeChart
from jobsboard.board.chart_marks import Mark
from jobsboard.board.svg import log_axis, ratio_axis
from jobsboard.durations import duration
from queues.outcomes import Counts, Percentiles, Span


def lag_chart(
    span: Span,
    series: Sequence[Percentiles],
    *,
    title: str,
    window: float | None = None,
    since: datetime | None = None,
    marks: Sequence[Mark] = (),
    lane: Lane | None = None,
) -> TimeChart:
    """Lag percentiles on a log scale, the window dashed, red where the promise is not kept."""
    last = next((one for one in reversed(series) if one.p95 is not None), Percentiles())
    words = f"{title}: p95 {duration(last.p95)}, p50 {duration(last.p50 or 0)}" if last.p95 is not None else title
    if window is not None:
        words += f", window {duration(window)}"

    def late(value: float | None) -> bool:
        return window is not None and value is not None and value > window

    return TimeChart(
        label=words,
        times=span.slots,
        series=[
            Series(name="p99", values=[one.p99 for one in series], css="p99", bad=late(last.p99)),
            Series(name="p95", values=[one.p95 for one in series], css="p95", bad=late(last.p95)),
            Series(name="p50", values=[one.p50 for one in series], css="p50", bad=late(last.p50)),
        ],
        scale=log_axis,
        show=duration,
        target=window,
        target_label=f"window {duration(window)}" if window is not None else "",
        band=(since, span.slots[-1]) if since is not None else None,
        marks=marks,
        lane=lane,
    )


def flow_chart(span: Span, series: Sequence[Counts], *, marks: Sequence[Mark] = ()) -> TimeChart:
    """Accepted against confirmed per minute, the gap shaded."""
    accepted = [one.accepted / span.minutes_of(i) for i, one in enumerate(series)]
    confirmed = [one.confirmed / span.minutes_of(i) for i, one in enumerate(series)]
    # The newest slot has just begun: a rate over a few seconds says nothing.
    if span.minutes_of(len(series) - 1) * 60 < span.slot_seconds / 2:
        accepted, confirmed = accepted[:-1], confirmed[:-1]
    show = _rate if max([*accepted, *confirmed], default=0.0) < 10 else _whole
    return TimeChart(
        label=f"Accepted {show(accepted[-1])} and confirmed {show(confirmed[-1])} per minute",
        times=span.slots[: len(accepted)],
        series=[
            Series(name="accepted", values=accepted, css="l-acc"),
            Series(name="confirmed", values=confirmed, css="l-conf"),
        ],
        show=show,
        gap=("accepted", "confirmed"),
        marks=marks,
        right=104,
    )


def ratio_chart(
    span: Span, series: Sequence[Counts], *, target: float, since: datetime | None, marks: Sequence[Mark] = ()
) -> TimeChart:
    """The share confirmed in its window over the time when jobs became ready."""
    values = [one.ratio for one in series]
    last = next((value for value in reversed(values) if value is not None), None)
    words = "Confirmed within window" if last is None else f"Confirmed within window, last {_percent(last)}"
    return TimeChart(
        label=words,
        times=span.slots,
        series=[Series(name="", values=values, css="l-conf", bad=last is not None and last < target)],
        scale=ratio_axis,
        show=_percent,
        target=target,
        target_label=f"promise {target * 100:g}%",
        band=(since, span.slots[-1]) if since is not None else None,
        marks=marks,
        left=50,
    )


def _percent(value: float) -> str:
    return f"{int(value * 10_000 + 1e-6) / 100:g}%"


def _rate(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _whole(value: float) -> str:
    return f"{value:,.0f}"
