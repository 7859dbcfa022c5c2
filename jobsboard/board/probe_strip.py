"""Draws the last runs of a probe, or ticks of a schedule, as a strip of ticks: pure functions, no Django.

Each outcome has a height of its own beside its colour, and each tick its words and the way to its job. Ticks are not in
the order of Tab: there may be hundreds on a page, and the jobs that matter are linked in words beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jobsboard.board.svg import Svg, el, text

WIDTH: Final = 4
HEIGHT: Final = 20
_BAR: Final = 3
# Class, and (y, height) of its bars: failed ones stand out, skipped ones are short, a running one is broken. Of what
# became no job the middle is left out.
_SHAPES: Final = {
    "passed": ("confirmed", ((5, 10),)),
    "failed": ("dead", ((0, 20),)),
    "skipped": ("cancelled", ((8, 4),)),
    "running": ("processing", ((3, 5), (12, 5))),
    "gone": ("cancelled", ((5, 10),)),
    "missed": ("retrying", ((0, 6), (14, 6))),
    "refused": ("dead", ((0, 8), (12, 8))),
}


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One run: its outcome, what is said of it, and where its job is; no `url` where there is none."""

    outcome: str
    words: str
    url: str = ""


def strip(ticks: Sequence[Tick], *, size: int, label: str) -> Svg:
    """Draw runs, oldest first, the newest at the right end of a strip for `size` of them."""
    shown = ticks[-size:]
    drawn = [_tick(one, x=(size - len(shown) + index) * WIDTH) for index, one in enumerate(shown)]
    wide = size * WIDTH
    base = el("line", class_="base", x1=0, x2=wide, y1=HEIGHT / 2, y2=HEIGHT / 2)
    return el("svg", base, *drawn, class_="ch", width=wide, height=HEIGHT, role="group", aria_label=label)


def _tick(one: Tick, *, x: int) -> Svg:
    css, bars = _SHAPES.get(one.outcome, _SHAPES["skipped"])
    parts = [
        el("title", text(one.words)),
        el("rect", x=x, y=0, width=WIDTH, height=HEIGHT, fill="transparent"),
        *(el("rect", class_="so", x=x, y=y, width=_BAR, height=tall) for y, tall in bars),
    ]
    if not one.url:
        return el("g", *parts, class_=f"is-{css}")
    return el("a", *parts, class_=f"is-{css}", href=one.url, tabindex="-1")
