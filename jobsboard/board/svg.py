"""Draws the board's charts as SVG text, and the words and durations that they share with the page.

Not here: HTTP, templates, the database. Pure functions of numbers and times, no Django, so each is tested alone.
Every value passes `el` or `text`, which escape; colours come from classes only, so a strict style-src CSP holds.
A plot box stretches (`preserveAspectRatio="none"`, `non-scaling-stroke`); text sits outside it, at `x="25%"`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from typing import NamedTuple

Point = tuple[float, float]
Values = Sequence[float | None]


class Svg(str):
    """Markup whose every part from data went through `escape`: what `el`, `text` and `join` return."""

    __slots__ = ()


class Look(NamedTuple):
    """How a state is shown: the suffix of its `is-` class, its symbol in sprite.svg, its word."""

    css: str
    icon: str
    label: str


LOOKS = {
    "accepted": Look("accepted", "accepted", "Accepted"),
    "processing": Look("processing", "processing", "Processing"),
    "awaiting_confirmation": Look("awaiting", "awaiting", "Awaiting confirmation"),
    "confirmed": Look("confirmed", "confirmed", "Confirmed"),
    "retrying": Look("retrying", "retrying", "Retrying"),
    "dead": Look("dead", "deadst", "Dead"),
    "expired": Look("expired", "expired", "Expired"),
    "cancelled": Look("cancelled", "cancelled", "Cancelled"),
}


def look(state: str) -> Look:
    """Return the look of a state; an unknown one is grey and keeps its own word."""
    return LOOKS.get(state) or Look("cancelled", "help", state.replace("_", " ").capitalize() or "Not known")


# ---- building blocks


def text(value: object) -> Svg:
    """Escape one value."""
    return Svg(escape(str(value)))


def join(*parts: Svg) -> Svg:
    """Concatenate markup."""
    return Svg("".join(parts))


def el(tag: str, *children: Svg, **attributes: object) -> Svg:
    """Build one element. `text_anchor` becomes `text-anchor`, `class_` is `class`; None leaves an attribute out."""
    pairs = "".join(
        f' {name.rstrip("_").replace("_", "-") if name not in KEEP else name}="{escape(_attribute(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Svg(f"<{tag}{pairs}>{''.join(children)}</{tag}>")


KEEP = {"viewBox", "preserveAspectRatio"}


def _attribute(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def frame(*children: Svg, width: float | str, height: float, label: str = "", class_: str = "ch") -> Svg:
    """The outer <svg>: an image with a sentence, or hidden where the page says the same in words."""
    role, hidden = ("img", None) if label else (None, "true")
    return el(
        "svg",
        *children,
        class_=class_,
        width=width,
        height=height,
        role=role,
        aria_hidden=hidden,
        aria_label=label or None,
    )


def _box(*children: Svg, y: float, height: float) -> Svg:
    return el(
        "svg", *children, y=y, width="100%", height=height,
        viewBox="0 0 100 100", preserveAspectRatio="none", overflow="visible",
    )  # fmt: skip


def _share(fraction: float) -> str:
    return f"{_attribute(fraction * 100)}%"


def finite(value: object) -> float | None:
    """Return a number, or None for None, text, NaN and infinity: what is not known is never drawn as zero."""
    try:
        number = float(value)  # type: ignore[arg-type]  # the point is to accept anything
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def duration(seconds: float) -> str:
    """Say a duration in at most two units, cut off and never rounded up: 420ms, 9.4s, 6m 12s, 2h 05m, 3d 4h."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    milliseconds = int(round(seconds * 1000, 6))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds or not seconds else "<1ms"
    if milliseconds < 10_000:
        return f"{milliseconds // 100 / 10:g}s"
    whole = milliseconds // 1000
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return _two(whole, 60, "m", 1, "s")
    if whole < 86_400:
        return _two(whole, 3600, "h", 60, "m")
    return _two(whole, 86_400, "d", 3600, "h")


def _two(whole: int, big: int, big_unit: str, small: int, small_unit: str) -> str:
    rest = whole % big // small
    tail = f"{rest}{small_unit}" if big_unit == "d" else f"{rest:02d}{small_unit}"
    return f"{whole // big}{big_unit} {tail}" if rest else f"{whole // big}{big_unit}"


# ---- scales


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps a value to 0 (bottom) .. 1 (top); clamps what is outside. `ticks` rise strictly."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        if self.log:
            return math.log(inside / self.low) / math.log(self.high / self.low)
        return (inside - self.low) / (self.high - self.low)


LADDER = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36_000.0, 86_400.0, 864_000.0, 8_640_000.0)


def log_axis(values: Sequence[float]) -> Axis:
    """Round durations in seconds out to the steps that people say: 1ms … 1s, 10s, 1m, 10m, 1h, 10h, 1d, 10d."""
    positive = [v for v in values if v > 0] or [1.0]
    first = max((i for i, step in enumerate(LADDER) if step <= min(positive)), default=0)
    last = min((i for i, step in enumerate(LADDER) if step >= max(positive)), default=len(LADDER) - 1)
    if last <= first:
        first, last = (first, first + 1) if first + 1 < len(LADDER) else (first - 1, first)
    ticks = LADDER[first : last + 1]
    return Axis(low=ticks[0], high=ticks[-1], ticks=ticks, log=True)


def linear_axis(values: Sequence[float], *, steps: int = 4) -> Axis:
    """From zero to a round number with about `steps` equal steps of 1, 2 or 5 times a power of ten."""
    top = max([v for v in values if v > 0], default=0.0) or 1.0
    power = 10.0 ** math.floor(math.log10(top / steps))
    step = next(power * k for k in (1, 2, 5, 10) if power * k * steps >= top * 0.999999)
    count = math.ceil(top / step - 1e-9)
    return Axis(low=0.0, high=step * count, ticks=tuple(step * i for i in range(count + 1)))


def ratio_axis(values: Sequence[float]) -> Axis:
    """From a round share just below the lowest value up to 1."""
    gap = 1 - min([min(max(v, 0.0), 1.0) for v in values], default=1.0)
    step = next(s for s in (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25) if s * 4 >= gap - 1e-9)
    return Axis(low=1 - step * 4, high=1.0, ticks=tuple(1 - step * i for i in range(4, -1, -1)))


def _runs(values: Values, axis: Axis) -> Iterator[list[Point]]:
    """Points in the 100 × 100 box, one list for each stretch without a gap. A lone point becomes a short dash."""
    width = 100 / max(len(values) - 1, 1)
    run: list[Point] = []
    for index, raw in enumerate([*values, None]):
        value = finite(raw)
        if value is not None:
            run.append((index * width, 100 - axis.at(value) * 100))
        elif run:
            yield run if len(run) > 1 else [run[0], (min(run[0][0] + 1, 101), run[0][1])]
            run = []


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _split(points: Sequence[Point], level: float) -> tuple[str, str]:
    """Cut a line where it crosses `level`: the path of its parts on or above, and the path of its parts below."""
    parts: dict[bool, list[list[Point]]] = {False: [], True: []}
    side = points[0][1] > level
    parts[side].append([points[0]])
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if (y1 > level) != side:
            crossing = (x0 + (x1 - x0) * (level - y0) / (y1 - y0), level)
            parts[side][-1].append(crossing)
            side = not side
            parts[side].append([crossing])
        parts[side][-1].append((x1, y1))
    above, below = ("".join(_path(p) for p in parts[key] if len(p) > 1) for key in (False, True))
    return above, below


# ---- small graphics for table cells and cards


def spark(values: Values, *, target: float | None, width: float | str = 76, height: int = 22, label: str = "") -> Svg:
    """A ratio over time: grey line, dashed promise, and only what is below the promise in red. Gaps stay gaps."""
    known = [v for v in map(finite, values) if v is not None]
    if not known:
        return frame(el("line", class_="grid", x1=0, x2="100%", y1=height / 2, y2=height / 2),
                     width=width, height=height, label=f"{label}: no data".removeprefix(": "))  # fmt: skip
    # At least twice the share that may miss, so that the promise is in the middle and noise stays small.
    scale = [*known, 1.0, *([] if target is None else [2 * target - 1])]
    margin = (max(scale) - min(scale)) * 0.06 or 0.001
    axis = Axis(low=min(scale) - margin, high=max(scale) + margin, ticks=())
    level = None if target is None else 100 - axis.at(target) * 100
    marks = [] if level is None else [el("line", class_="tgt", x1=0, x2=100, y1=level, y2=level)]
    for run in _runs(values, axis):
        above, below = (_path(run), "") if level is None else _split(run, level)
        marks += [el("path", class_=f"ln {css}", d=d) for css, d in (("s-neutral", above), ("s-bad", below)) if d]
    return frame(_box(*marks, y=2, height=height - 4), width=width, height=height, label=label)


def lagbar(p50: float | None, p95: float | None, p99: float | None, window: float | None, *, width: int = 112) -> Svg:
    """Lag against the window, log scale, the window at the same x in every row: what is right of the line is late."""
    height, line, middle = 34, 78, 17.0
    known = [v for v in (finite(p50), finite(p95), finite(p99)) if v is not None]
    limit = finite(window)
    base = [
        el("line", class_="grid", x1=3, x2=width - 3, y1=middle + 0.5, y2=middle + 0.5),
        el("line", class_="base", x1=line + 0.5, x2=line + 0.5, y1=0, y2=height),
    ]
    if len(known) < 3 or not limit or limit < 0:
        return frame(*base, width=width, height=height, label="no confirmed jobs")

    def x(seconds: float) -> float:
        return max(5.0, min(width - 5.0, line + 22 * math.log10(max(seconds / limit, 1e-9))))

    first, last = x(known[0]), x(known[2])
    late = known[2] > limit
    parts = [el("rect", class_="breachband", x=line, y=0, width=width - line, height=height)] if late else []
    for css, left, right in (("processing", first, min(last, line)), ("dead", max(first, line), last)):
        if right > left:
            bar = el("rect", class_="so lo", x=left, y=middle - 1.5, width=right - left, height=4, rx=2)
            parts.append(el("g", bar, class_=f"is-{css}"))
    dots = [
        el(
            "g",
            el("circle", class_=f"so{dim}", cx=x(v), cy=middle + 0.5, r=r),
            class_="is-dead" if v > limit else "is-processing",
        )
        for v, r, dim in ((known[2], 2.5, " hi"), (known[1], 3.5, ""), (known[0], 2.5, " hi"))
    ]
    words = ", ".join(f"{name} {duration(v)}" for name, v in zip(("p50", "p95", "p99"), known, strict=True))
    return frame(*base, *parts, *dots, width=width, height=height, label=f"{words}; window {duration(limit)}")


def mix(parts: Sequence[tuple[str, int]], *, width: int = 112, height: int = 8) -> Svg:
    """Open jobs by state, one bar with 1 px gaps. Shape: [(state, count)]."""
    shown = [(state, count) for state, count in parts if count > 0]
    total = sum(count for _, count in shown)
    if not total:
        return frame(
            el("rect", class_="track", width=width, height=height, rx=1), width=width, height=height, label="none open"
        )
    spare = width - 2 * len(shown)  # each part is at least 2 px wide, so one job among thousands is still seen
    x, bars = 0.0, []
    for state, count in shown:
        wide = 2 + count / total * spare
        bar = el("rect", class_="so", x=x, y=0, width=max(1.0, wide - 1), height=height, rx=1)
        bars.append(el("g", bar, class_=f"is-{look(state).css}"))
        x += wide
    words = ", ".join(f"{look(state).label} {count:,}" for state, count in shown)
    return frame(*bars, width=width, height=height, label=words)


def meter(
    fraction: float | None, *, state: str = "processing", target: float | None = None, label: str = "", height: int = 6
) -> Svg:
    """A share of a whole; decorative unless labelled. `target` draws a tick."""
    share, goal = finite(fraction), finite(target)
    parts = [el("rect", class_="track", width="100%", height=height, rx=height / 2)]
    if share:
        wide = _share(min(max(share, 0.004), 1.0))
        parts.append(el("rect", class_="so", width=wide, height=height, rx=height / 2))
    if goal is not None:
        parts.append(el("rect", class_="tick", x=_share(goal), y=-1, width=1.5, height=height + 2))
    return frame(*parts, width="100%", height=height, label=label, class_=f"ch is-{look(state).css}")


def bars(counts: Sequence[int], *, state: str = "dead", width: int = 84, height: int = 22, label: str = "") -> Svg:
    """A count per equal slice of time."""
    top, slot = max(counts, default=0) or 1, width / max(len(counts), 1)
    drawn = [
        el("rect", class_="so", x=i * slot, width=max(1.0, slot - 1.5), y=height - 2 - tall, height=tall, rx=0.8)
        for i, count in enumerate(counts)
        if (tall := max(1.5, count / top * (height - 4)) if count > 0 else 0.0)
    ]
    base = el("line", class_="base", x1=0, x2=width, y1=height - 1.5, y2=height - 1.5)
    css = f"ch is-{look(state).css}"
    words = f"{label}, peak {max(counts, default=0):,}".removeprefix(", ")
    return frame(*drawn, base, width=width, height=height, label=words, class_=css)


# ---- the time chart


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
            el("rect", class_="breachband", x=_share(start), width=_share(max(end - start, 0)), y=TOP, height=plot)
        )
    free = 0.0
    for at, word in sorted(chart.marks):
        x = _fraction(chart, at)
        parts.append(el("line", class_="mark", x1=_share(x), x2=_share(x), y1=TOP, y2=TOP + plot))
        if word and x >= free:  # a label that would touch the one before is left out; the page lists all changes
            anchor, dx = ("end", -5) if x > 0.8 else ("start", 5)
            parts.append(el("text", text(word), x=_share(x), dx=dx, y=TOP + 9, text_anchor=anchor))
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
        for upper, lower in zip(_runs([a for a, _ in both], axis), _runs([b for _, b in both], axis), strict=True):
            parts.append(el("path", class_="area a-gap", d=f"{_path(upper)}L{_path(lower[::-1])[1:]}Z"))
    for series in chart.series:
        parts += [el("path", class_=f"ln {series.css}", d=_path(run)) for run in _runs(series.values, axis)]
    return _box(*parts, y=TOP, height=plot)


def _time_labels(chart: TimeChart) -> list[Svg]:
    span = chart.times[-1] - chart.times[0]
    form = "%H:%M:%S" if span < timedelta(minutes=10) else "%H:%M" if span <= timedelta(hours=26) else "%-d %b"
    labels = []
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = {0.0: "start", 1.0: "end"}.get(fraction, "middle")
        words = (chart.times[0] + span * fraction).astimezone(UTC).strftime(form)
        css = "alt" if fraction in (0.25, 0.75) else None
        labels.append(el("text", text(words), x=_share(fraction), y=chart.height - 5, text_anchor=anchor, class_=css))
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


# ---- the life of one job


@dataclass(frozen=True, kw_only=True)
class Run:
    """One attempt. `ended` None: it runs now."""

    number: int
    started: datetime
    ended: datetime | None


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """A job's life. `until`: when it settled, or now; `state`: its state then; `window_at`: when its window passes."""

    accepted: datetime
    until: datetime
    state: str
    runs: Sequence[Run] = ()
    window_at: datetime | None = None
    window_label: str = "window"
    lanes: Sequence[tuple[datetime, datetime, str]] = ()


def timeline(life: Timeline) -> Svg:
    """Attempts as bars, waiting as a thin line between, what the job does now as the last piece, the window marked."""
    span = max((life.until - life.accepted).total_seconds(), 0.001)
    floor = 94 if life.lanes else 66

    def x(at: datetime) -> float:
        return min(max((at - life.accepted).total_seconds() / span, 0.0), 1.0)

    parts = [*_clock_lines(life, span, floor), *_window(life, x, floor)]
    for start, end, word in life.lanes:
        parts.append(_piece("dead", x(start), x(end), y=76, height=14, css="so lane"))
        late = x(start) > 0.4
        anchor = {"text_anchor": "end", "dx": -6} if late else {"dx": 6}
        parts.append(el("text", text(word), class_="lab", x=_share(x(end) if late else x(start)), y=86.5, **anchor))
    parts += _attempts(life, x)
    dot = el("g", el("circle", class_="so", cx=-5, r=5), class_=f"is-{look(life.state).css}")
    parts.append(el("svg", dot, x="100%", y=36, overflow="visible"))
    return frame(*parts, width="100%", height=floor + 24, label=_timeline_words(life))


def _piece(state: str, start: float, end: float, *, y: int, height: int, css: str) -> Svg:
    bar = el("rect", class_=css, x=_share(start), width=_share(max(end - start, 0.0)), y=y, height=height, rx=2)
    return el("g", bar, class_=f"is-{look(state).css}")


def _attempts(life: Timeline, x: Callable[[datetime], float]) -> list[Svg]:
    parts, at, free, waiting = [], 0.0, 0.0, "accepted"
    for run in life.runs:
        start, end = x(run.started), x(run.ended or life.until)
        if start > at:
            parts.append(_piece(waiting, at, start, y=34, height=4, css="so wait"))
        end = min(max(end, start + 0.006), 1.0)
        parts.append(_piece("processing", min(start, 0.994), end, y=28, height=16, css="so"))
        if start >= free:  # numbers that would touch are left out; the attempts table has them all
            anchor = "end" if start > 0.98 else "start"
            parts.append(
                el("text", text(run.number), class_="lab", x=_share(min(start, 1.0)), y=58, text_anchor=anchor)
            )
            free = start + 0.02 + 0.008 * len(str(run.number))
        at, waiting = end, "retrying"
    if at < 1:
        parts.append(
            _piece(
                life.state, at, 1.0, y=34, height=4, css="so wait" if life.state in ("accepted", "retrying") else "so"
            )
        )
    return parts


def _clock_lines(life: Timeline, span: float, floor: int) -> list[Svg]:
    form = "%H:%M:%S" if span < 86_400 else "%-d %b %H:%M"
    parts = []
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = {0.0: "start", 1.0: "end"}.get(fraction, "middle")
        at = (life.accepted + (life.until - life.accepted) * fraction).astimezone(UTC).strftime(form)
        css = "alt" if fraction in (0.25, 0.75) else None
        parts.append(el("line", class_="grid", x1=_share(fraction), x2=_share(fraction), y1=4, y2=floor))
        parts.append(el("text", text(at), x=_share(fraction), y=floor + 16, text_anchor=anchor, class_=css))
    return parts


def _window(life: Timeline, x: Callable[[datetime], float], floor: int) -> list[Svg]:
    if life.window_at is None or not life.accepted <= life.window_at < life.until:
        return []
    at = x(life.window_at)
    anchor, dx = ("end", -5) if at > 0.7 else ("start", 5)
    return [
        el("rect", class_="breachband", x=_share(at), y=4, width=_share(1 - at), height=floor - 4),
        el("line", class_="mark", x1=_share(at), x2=_share(at), y1=4, y2=floor),
        el("text", text(f"{life.window_label} passed"), class_="lab", x=_share(at), dx=dx, y=14, text_anchor=anchor),
    ]


def _timeline_words(life: Timeline) -> str:
    start, end = (at.astimezone(UTC).strftime("%H:%M:%S") for at in (life.accepted, life.until))
    count = len(life.runs)
    runs = "no attempt" if not count else "1 attempt" if count == 1 else f"{count} attempts"
    late = ", late" if life.window_at and life.window_at < life.until else ""
    took = duration((life.until - life.accepted).total_seconds())
    return f"Timeline: accepted {start}, {runs}, {look(life.state).label.lower()} at {end}, {took} later{late}"
