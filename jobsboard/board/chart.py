"""The time chart: lines over time with labels at their ends, and the same numbers as a table.

Not here: escaping, scales and the small graphics (board/svg.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from jobsboard.board.svg import Axis, Svg, Values, box, el, finite, frame, linear_axis, path, percent, runs_of, text


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line. `css`: p50, p95, p99, l-acc, l-conf, s-neutral, s-ok or s-bad; `bad` writes its end label in red."""

    name: str
    values: Values
    css: str
    bad: bool = False


@dataclass(frozen=True, kw_only=True)
class TimeChart:
    """Everything a time chart shows. All series have one value per entry of `times`; None is a gap.

    `label` is the sentence that a screen reader gets. `gap` names the two series whose difference is shaded.
    `marks` are changes (time, short word); `band` is a stretch of breach. Times are shown in UTC.
    """

    label: str
    times: Sequence[datetime]
    series: Sequence[Series]
    scale: Callable[[Sequence[float]], Axis] = linear_axis
    show: Callable[[float], str] = lambda value: f"{value:,.0f}"
    target: float | None = None
    target_label: str = ""
    band: tuple[datetime, datetime] | None = None
    marks: Sequence[tuple[datetime, str]] = ()
    gap: tuple[str, str] | None = None
    height: int = 180
    left: int = 42
    right: int = 92


TOP, BOTTOM = 8, 22


def tchart(chart: TimeChart) -> Svg:
    """Draw a time chart: value labels in a left column, the stretching plot, line-end labels in a right column."""
    known = [v for s in chart.series for v in map(finite, s.values) if v is not None]
    if not known or len(chart.times) < 2:
        return el("p", text(f"{chart.label}: no data in this range."), class_="mute nodata")
    axis = chart.scale([*known, *([] if chart.target is None else [chart.target])])
    plot = chart.height - TOP - BOTTOM

    def y(value: float) -> float:
        return TOP + (1 - axis.at(value)) * plot

    left = [
        el("text", text(chart.show(tick)), x=chart.left - 8, y=y(tick) + 4, text_anchor="end")
        for tick in _apart(axis.ticks, y)
    ]
    middle = [*_grid(axis, y), *_events(chart, plot), _lines(chart, axis, plot), *_time_labels(chart)]
    return el(
        "div",
        frame(*left, width=chart.left, height=chart.height),
        frame(*middle, width="100%", height=chart.height, label=chart.label),
        frame(*_end_labels(chart, axis, y), width=chart.right, height=chart.height),
        class_="tc",
    )


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
            el("rect", class_="breachband", x=percent(start), width=percent(max(end - start, 0)), y=TOP, height=plot)
        )
    free = 0.0
    for at, word in sorted(chart.marks):
        x = _fraction(chart, at)
        parts.append(el("line", class_="mark", x1=percent(x), x2=percent(x), y1=TOP, y2=TOP + plot))
        if word and x >= free:  # a label that would touch the one before is left out; the page lists all changes
            anchor, dx = ("end", -5) if x > 0.8 else ("start", 5)
            parts.append(el("text", text(word), x=percent(x), dx=dx, y=TOP + 9, text_anchor=anchor))
            free = x + 0.2
    return parts


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
    return box(*parts, y=TOP, height=plot)


def _time_labels(chart: TimeChart) -> list[Svg]:
    span = chart.times[-1] - chart.times[0]
    form = "%H:%M:%S" if span < timedelta(minutes=10) else "%H:%M" if span <= timedelta(hours=26) else "%-d %b"
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
    places = spread([row[0] for row in rows], gap=14, low=TOP + 6, high=chart.height - BOTTOM + 4)
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
    head = [el("th", text(name), scope="col") for name in ("Time, UTC", *(s.name for s in chart.series))]
    body = [
        el(
            "tr",
            el("th", text(chart.times[i].astimezone(UTC).strftime("%Y-%m-%d %H:%M")), scope="row"),
            *(
                el("td", text("no data" if (v := finite(s.values[i])) is None else chart.show(v)), class_="num")
                for s in chart.series
            ),
        )
        for i in picked
    ]
    every = "" if step == 1 else f", every {step}th value"
    table = el(
        "table",
        el("caption", text(f"{chart.label}{every}"), class_="sr"),
        el("thead", el("tr", *head)),
        el("tbody", *body),
    )
    return el(
        "details", el("summary", text("Show data as a table")), el("div", table, class_="dtx", tabindex=0), class_="dt"
    )
