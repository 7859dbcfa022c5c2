"""The time chart: lines over time with labels at their ends, and the same numbers as a table.

Not here: escaping, scales and the small graphics (board/svg.py).
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from jobsboard.board.chart_marks import KINDS, Mark, legend, says, tags
from jobsboard.board.svg import (
    Axis,
    Svg,
    Values,
    box,
    el,
    finite,
    frame,
    join,
    linear_axis,
    path,
    percent,
    runs_of,
    text,
)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line. `css`: p50, p95, p99, l-acc, l-conf, s-neutral, s-ok or s-bad; `bad` writes its end label in red."""

    name: str
    values: Values
    css: str
    bad: bool = False


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Counts under a chart, on its time axis. Shape: a list of counts, one for each time of the chart, by name."""

    name: str
    counts: Mapping[str, Sequence[int]]

    @property
    def sums(self) -> list[int]:
        """The counts of each time, of all names."""
        return [sum(column) for column in zip(*self.counts.values(), strict=True)]


@dataclass(frozen=True, kw_only=True)
class TimeChart:
    """Everything a time chart shows. All series have one value per entry of `times`; None is a gap.

    `label` is the sentence that a screen reader gets. `gap` names the two series whose difference is shaded.
    `band` is a stretch of breach. Times are shown in UTC.
    """

    label: str
    times: Sequence[datetime]
    series: Sequence[Series]
    scale: Callable[[Sequence[float]], Axis] = linear_axis
    show: Callable[[float], str] = lambda value: f"{value:,.0f}"
    target: float | None = None
    target_label: str = ""
    band: tuple[datetime, datetime] | None = None
    marks: Sequence[Mark] = ()
    lane: Lane | None = None
    gap: tuple[str, str] | None = None
    height: int = 180
    left: int = 42
    right: int = 92

    @property
    def top(self) -> int:
        """Where the plot begins: below the letters of its marks, where it has some."""
        return 22 if self.marks else 8


BOTTOM: Final = 22
LANE: Final = 44
_NAMED: Final = 4
"""How many marks the sentence of a chart names; its table has all."""


def tchart(chart: TimeChart) -> Svg:
    """Draw a time chart: value labels in a left column, the stretching plot, line-end labels in a right column."""
    known = [v for s in chart.series for v in map(finite, s.values) if v is not None]
    if not known or len(chart.times) < 2:
        nothing = el("p", text(f"{chart.label}: no data in this range."), class_="mute nodata")
        return join(nothing, el("div", *_lane(chart), class_="tc")) if chart.lane and chart.times else nothing
    axis = chart.scale([*known, *([] if chart.target is None else [chart.target])])
    plot = chart.height - chart.top - BOTTOM

    def y(value: float) -> float:
        return chart.top + (1 - axis.at(value)) * plot

    left = [
        el("text", text(chart.show(tick)), x=chart.left - 8, y=y(tick) + 4, text_anchor="end")
        for tick in _apart(axis.ticks, y)
    ]
    middle = [*_grid(axis, y), *_events(chart, plot), _lines(chart, axis, plot), *_time_labels(chart)]
    drawn = el(
        "div",
        frame(*left, width=chart.left, height=chart.height),
        frame(*middle, width="100%", height=chart.height, label=sentence(chart)),
        frame(*_end_labels(chart, axis, y), width=chart.right, height=chart.height),
        *_lane(chart),
        class_="tc",
    )
    return join(drawn, legend(chart.marks))


def sentence(chart: TimeChart) -> str:
    """Return what a chart shows, and the newest of its marks, in words."""
    said = [f"{says(mark)} at {_hm(chart, mark.at)}" for mark in sorted(chart.marks, reverse=True)[:_NAMED]]
    more = len(chart.marks) - len(said)
    marked = f". Marked: {', '.join(said)}{f' and {more} more' if more else ''}" if said else ""
    return f"{chart.label}{marked}"


def _apart(ticks: Sequence[float], y: Callable[[float], float]) -> list[float]:
    """Leave out tick labels that would touch the one below."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or y(kept[-1]) - y(tick) >= 13:
            kept.append(tick)
    return kept


def _grid(axis: Axis, y: Callable[[float], float]) -> list[Svg]:
    return [
        el(
            "line",
            class_="base" if tick == axis.low else "grid",
            x1=0,
            x2="100%",
            y1=round(y(tick)) + 0.5,
            y2=round(y(tick)) + 0.5,
        )
        for tick in _apart(axis.ticks, y)
    ]


def _fraction(chart: TimeChart, at: datetime) -> float:
    return min(max((at - chart.times[0]) / ((chart.times[-1] - chart.times[0]) or timedelta(seconds=1)), 0.0), 1.0)


def _events(chart: TimeChart, plot: int) -> list[Svg]:
    parts = []
    if chart.band:
        start, end = (_fraction(chart, at) for at in chart.band)
        parts.append(
            el(
                "rect",
                class_="breachband",
                x=percent(start),
                width=percent(max(end - start, 0)),
                y=chart.top,
                height=plot,
            )
        )
    for x, kind in sorted({(round(_fraction(chart, mark.at), 3), mark.kind) for mark in chart.marks}):
        css = f"mark {KINDS[kind].css}".rstrip() if kind in KINDS else "mark"
        parts.append(el("line", class_=css, x1=percent(x), x2=percent(x), y1=chart.top - 4, y2=chart.top + plot))
    return [*parts, *tags([(_fraction(chart, mark.at), mark) for mark in chart.marks], y=chart.top - 7)]


def _lane(chart: TimeChart) -> list[Svg]:
    """Draw the counts below, in the same three columns; nothing without a lane."""
    if chart.lane is None:
        return []
    sums = chart.lane.sums
    top, slot = max(sums, default=0) or 1, 1 / max(len(sums) - 1, 1)
    bars = [
        el("rect", class_="a-neutral", x=percent(max(i * slot - slot * 0.35, 0.0)), width=percent(slot * 0.7),
           y=LANE - 2 - tall, height=tall)
        for i, n in enumerate(sums) if (tall := max(2.0, n / top * (LANE - 10)) if n > 0 else 0.0)
    ]  # fmt: skip
    base = el("line", class_="base", x1=0, x2="100%", y1=LANE - 1.5, y2=LANE - 1.5)
    total = f"{chart.lane.name} {sum(sums):,}"
    return [
        frame(el("text", text(f"{top:,}"), x=chart.left - 8, y=14, text_anchor="end"), width=chart.left, height=LANE),
        frame(*bars, base, width="100%", height=LANE, label=f"{total}, at most {top:,} at a time"),
        frame(el("text", text(total), class_="lab", x=7, y=LANE - 6), width=chart.right, height=LANE),
    ]


def _lines(chart: TimeChart, axis: Axis, plot: int) -> Svg:
    parts = []
    if chart.target is not None:
        level = 100 - axis.at(chart.target) * 100
        parts.append(el("line", class_="tgt", x1=0, x2=100, y1=level, y2=level))
    if chart.gap:
        named = {s.name: s.values for s in chart.series}
        pairs = zip(named[chart.gap[0]], named[chart.gap[1]], strict=True)
        both = [(a, b) if finite(a) is not None and finite(b) is not None else (None, None) for a, b in pairs]
        for upper, lower in zip(runs_of([a for a, _ in both], axis), runs_of([b for _, b in both], axis), strict=True):
            parts.append(el("path", class_="area a-gap", d=f"{path(upper)}L{path(lower[::-1])[1:]}Z"))
    for series in chart.series:
        parts += [el("path", class_=f"ln {series.css}", d=path(run)) for run in runs_of(series.values, axis)]
    return box(*parts, y=chart.top, height=plot)


def _time_labels(chart: TimeChart) -> list[Svg]:
    span = chart.times[-1] - chart.times[0]
    form = "%H:%M:%S" if span < timedelta(minutes=10) else "%H:%M" if span <= timedelta(hours=26) else "%-d %b"
    if timedelta(hours=26) < span < timedelta(days=4):
        form = "%-d %b %H:%M"
    labels = []
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = {0.0: "start", 1.0: "end"}.get(fraction, "middle")
        words = (chart.times[0] + span * fraction).astimezone(UTC).strftime(form)
        css = "alt" if fraction in (0.25, 0.75) else None
        labels.append(el("text", text(words), x=percent(fraction), y=chart.height - 5, text_anchor=anchor, class_=css))
    return labels


def _end_labels(chart: TimeChart, axis: Axis, y: Callable[[float], float]) -> list[Svg]:
    """Label each line at its end, moved apart so that no two touch and none leaves the chart."""
    rows: list[tuple[float, str, str]] = []
    for series in chart.series:
        last = next((v for v in reversed([finite(v) for v in series.values]) if v is not None), None)
        if last is not None:
            rows.append((y(last) + 4, f"{series.name} {chart.show(last)}", "labbad" if series.bad else "lab"))
    if chart.target is not None and chart.target_label:
        rows.append((y(chart.target) + 4, chart.target_label, "tlab"))
    rows.sort()
    places = spread([row[0] for row in rows], gap=14, low=chart.top + 6, high=chart.height - BOTTOM + 4)
    return [el("text", text(word), class_=css, x=7, y=at) for at, (_, word, css) in zip(places, rows, strict=True)]


def spread(places: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Move sorted places at least `gap` apart, as little as a push down and a push back up allow."""
    out: list[float] = []
    for place in places:
        out.append(max(place, out[-1] + gap if out else low))
    ceiling = high
    for index in range(len(out) - 1, -1, -1):
        out[index] = min(out[index], ceiling)
        ceiling = out[index] - gap
    return out


def data_table(chart: TimeChart, *, rows: int = 60) -> Svg:
    """The same numbers as text, at most `rows` of them evenly spaced, newest last: the chart's accessible form."""
    step = max(1, math.ceil(len(chart.times) / rows))
    picked = range((len(chart.times) - 1) % step, len(chart.times), step)
    lane = chart.lane.counts if chart.lane else {}
    marked = _by_row(chart, picked)
    names = ("Time, UTC", *(s.name for s in chart.series), *lane, *(("What happened",) if marked else ()))
    head = [el("th", text(name), scope="col") for name in names]
    body = [
        el(
            "tr",
            el("th", text(chart.times[i].astimezone(UTC).strftime("%Y-%m-%d %H:%M")), scope="row"),
            *(
                el("td", text("no data" if (v := finite(s.values[i])) is None else chart.show(v)), class_="num")
                for s in chart.series
            ),
            *(
                el("td", text(f"{sum(counts[max(i - step + 1, 0) : i + 1]):,}"), class_="num")
                for counts in lane.values()
            ),
            *((el("td", text("; ".join(marked.get(i, ())))),) if marked else ()),
        )
        for i in picked
    ]
    every = "" if step == 1 else f", every {step}th value"
    table = el(
        "table",
        el("caption", text(f"{sentence(chart)}{every}"), class_="sr"),
        el("thead", el("tr", *head)),
        el("tbody", *body),
    )
    return el(
        "details", el("summary", text("Show data as a table")), el("div", table, class_="dtx", tabindex=0), class_="dt"
    )


def _by_row(chart: TimeChart, picked: range) -> dict[int, list[str]]:
    """Say what happened beside the row of its time, or the next one that is shown."""
    found: dict[int, list[str]] = {}
    for mark in sorted(chart.marks) if picked else ():
        index = max(bisect_right(chart.times, mark.at) - 1, 0)
        row = picked[min(max(0, math.ceil((index - picked.start) / picked.step)), len(picked) - 1)]
        found.setdefault(row, []).append(f"{says(mark)} at {_hm(chart, mark.at)}")
    return found


def _hm(chart: TimeChart, at: datetime) -> str:
    """Return the time of a mark, with its day where the chart has several."""
    several = chart.times[-1] - chart.times[0] > timedelta(hours=24) if chart.times else True
    return at.astimezone(UTC).strftime("%-d %b %H:%M" if several else "%H:%M")
