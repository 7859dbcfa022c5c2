"""The life of one job as a line: waiting, attempts, outcome, and where its window passed.

Not here: the attempts table, which is the accessible form (templates/board/_attempts.html).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from jobsboard.board.svg import Svg, el, frame, look, percent, text
from jobsboard.durations import duration


@dataclass(frozen=True, kw_only=True)
class Run:
    """One attempt. `ended` None: it runs now. `awaited`: until when its proof was awaited after that."""

    number: int
    started: datetime
    ended: datetime | None
    awaited: datetime | None = None


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
        parts.append(el("text", text(word), class_="lab", x=percent(x(end) if late else x(start)), y=86.5, **anchor))
    parts += _attempts(life, x)
    dot = el("g", el("circle", class_="so", cx=-5, r=5), class_=f"is-{look(life.state).css}")
    parts.append(el("svg", dot, x="100%", y=36, overflow="visible"))
    return frame(*parts, width="100%", height=floor + 24, label=_timeline_words(life))


def _piece(state: str, start: float, end: float, *, y: int, height: int, css: str) -> Svg:
    bar = el("rect", class_=css, x=percent(start), width=percent(max(end - start, 0.0)), y=y, height=height, rx=2)
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
                el("text", text(run.number), class_="lab", x=percent(min(start, 1.0)), y=58, text_anchor=anchor)
            )
            free = start + 0.02 + 0.008 * len(str(run.number))
        at, waiting = end, "retrying"
        if run.awaited is not None and x(run.awaited) > end:
            at = x(run.awaited)
            parts.append(_piece("awaiting_confirmation", end, at, y=34, height=4, css="so"))
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
        parts.append(el("line", class_="grid", x1=percent(fraction), x2=percent(fraction), y1=4, y2=floor))
        parts.append(el("text", text(at), x=percent(fraction), y=floor + 16, text_anchor=anchor, class_=css))
    return parts


def _window(life: Timeline, x: Callable[[datetime], float], floor: int) -> list[Svg]:
    if life.window_at is None or not life.accepted <= life.window_at < life.until:
        return []
    at = x(life.window_at)
    anchor, dx = ("end", -5) if at > 0.7 else ("start", 5)
    return [
        el("rect", class_="breachband", x=percent(at), y=4, width=percent(1 - at), height=floor - 4),
        el("line", class_="mark", x1=percent(at), x2=percent(at), y1=4, y2=floor),
        el("text", text(f"{life.window_label} passed"), class_="lab", x=percent(at), dx=dx, y=14, text_anchor=anchor),
    ]


def _timeline_words(life: Timeline) -> str:
    start, end = (at.astimezone(UTC).strftime("%H:%M:%S") for at in (life.accepted, life.until))
    count = len(life.runs)
    runs = "no attempt" if not count else "1 attempt" if count == 1 else f"{count} attempts"
    waited = [run.awaited - run.ended for run in life.runs if run.awaited and run.ended]
    if waited:
        runs += f", {duration(sum(one.total_seconds() for one in waited))} awaiting the proof"
    late = ", late" if life.window_at and life.window_at < life.until else ""
    took = duration((life.until - life.accepted).total_seconds())
    return f"Timeline: accepted {start}, {runs}, {look(life.state).label.lower()} at {end}, {took} later{late}"
