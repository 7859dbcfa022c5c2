"""Draws what a circuit breaker did over a day as a strip: pure functions, no Django.

Each state has a height of its own beside its colour: open stands out, half open is lower, closed is a line.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Final

from jobsboard.board.svg import Svg, el, text

PARTS: Final = 48
WIDTH: Final = 2
HEIGHT: Final = 20
# Class, and (y, height).
_SHAPES: Final = {"closed": ("confirmed", (8, 4)), "half_open": ("retrying", (4, 12)), "open": ("dead", (0, 20))}
_WORDS: Final = {"closed": "closed", "half_open": "half open", "open": "open"}


def words(history: Sequence[str]) -> str:
    """Say what the strip shows; each part of it counts by its worst state."""
    minutes = 24 * 60 // len(history)
    told = [f"{_WORDS[state]} in {n}" for state in ("open", "half_open") if (n := history.count(state))]
    if not told:
        return "closed for the last 24 h" if set(history) == {"closed"} else ""
    return f"of the last 24 h, {len(history)} parts of {minutes} min: {', '.join(told)}"


def strip(history: Sequence[str], *, since: datetime, until: datetime, label: str) -> Svg:
    """Draw states, oldest first."""
    length = (until - since) / len(history)
    drawn, index = [], 0
    for state, same in groupby(history):
        n = len(list(same))
        css, (y, tall) = _SHAPES[state]
        said = f"{since + length * index:%H:%M} to {since + length * (index + n):%H:%M} UTC: {_WORDS[state]}"
        bar = el("rect", el("title", text(said)), class_="so", x=index * WIDTH, y=y, width=n * WIDTH, height=tall)
        drawn.append(el("g", bar, class_=f"is-{css}"))
        index += n
    wide = len(history) * WIDTH
    return el("svg", *drawn, class_="ch", width=wide, height=HEIGHT, role="img", aria_label=label)
