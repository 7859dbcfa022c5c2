"""Draws the board's charts as SVG text, and the words that they share with the page.

Not here: HTTP, templates, the database. Pure functions of numbers and times, no Django, so each is tested alone.
Every value passes `el` or `text`, which escape; colours come from classes only, so a strict style-src CSP holds.
A plot box stretches (`preserveAspectRatio="none"`, `non-scaling-stroke`); text sits outside it, at `x="25%"`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from jobsboard.durations import duration

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
        f' {name.rstrip("_").replace("_", "-") if name not in KEEP else name}="{escape(attribute(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Svg(f"<{tag}{pairs}>{''.join(children)}</{tag}>")


KEEP = {"viewBox", "preserveAspectRatio"}


def attribute(value: object) -> str:
    """Write a number shortly."""
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


def box(*children: Svg, y: float, height: float) -> Svg:
    """The plot box: 100 × 100, stretched; lines keep their width, text does not belong here."""
    return el(
        "svg", *children, y=y, width="100%", height=height,
        viewBox="0 0 100 100", preserveAspectRatio="none", overflow="visible",
    )  # fmt: skip


def percent(fraction: float) -> str:
    """Write a share as a percentage for an attribute."""
    return f"{attribute(fraction * 100)}%"


def finite(value: object) -> float | None:
    """Return a number, or None for None, text, NaN and infinity: what is not known is never drawn as zero."""
    try:
        number = float(value)  # type: ignore[arg-type]  # the point is to accept anything
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


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


def runs_of(values: Values, axis: Axis) -> Iterator[list[Point]]:
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


def path(points: Sequence[Point]) -> str:
    """Draw straight lines through points."""
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
    above, below = ("".join(path(p) for p in parts[key] if len(p) > 1) for key in (False, True))
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
    for run in runs_of(values, axis):
        above, below = (path(run), "") if level is None else _split(run, level)
        marks += [el("path", class_=f"ln {css}", d=d) for css, d in (("s-neutral", above), ("s-bad", below)) if d]
    return frame(box(*marks, y=2, height=height - 4), width=width, height=height, label=label)


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


def share(value: float) -> str:
    """Say a share: 93%, 5.8%, <0.1%; a whole 100% only when it is."""
    if 0 < value < 0.001:
        return "<0.1%"
    tenths = int(value * 1000 + 1e-9)
    return f"{tenths // 10}%" if tenths >= 100 or tenths % 10 == 0 else f"{tenths / 10:g}%"


def shares(parts: Sequence[tuple[str, float]], *, label: str, height: int = 14) -> Svg:
    """Parts of a whole as one stretching bar. Shape: [(state, share)]; a part that is there is seen."""
    shown = [(state, max(part, 0.004)) for state, part in parts if part > 0]
    total = sum(part for _, part in shown)
    if not total:
        track = el("rect", class_="track", width="100%", height=height, rx=1.5)
        return frame(track, width="100%", height=height, label=label)
    x, bars = 0.0, []
    for state, part in shown:
        wide = part / total
        bar = el("rect", class_="so", x=percent(x), width=percent(max(wide - 0.003, 0.001)), height=height, rx=1.5)
        bars.append(el("g", bar, class_=f"is-{look(state).css}"))
        x += wide
    return frame(*bars, width="100%", height=height, label=label)


def meter(
    fraction: float | None, *, state: str = "processing", target: float | None = None, label: str = "", height: int = 6
) -> Svg:
    """A share of a whole; decorative unless labelled. `target` draws a tick."""
    share, goal = finite(fraction), finite(target)
    parts = [el("rect", class_="track", width="100%", height=height, rx=height / 2)]
    if share:
        wide = percent(min(max(share, 0.004), 1.0))
        parts.append(el("rect", class_="so", width=wide, height=height, rx=height / 2))
    if goal is not None:
        parts.append(el("rect", class_="tick", x=percent(goal), y=-1, width=1.5, height=height + 2))
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
