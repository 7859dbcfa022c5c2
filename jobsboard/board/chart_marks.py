"""Marks on a time axis: what kinds there are, how they are told apart without colour, where their letters fit.

Not here: the chart that they stand in (board/chart.py), reading them (board/marks.py).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from jobsboard.board.svg import Svg, el, percent, text


class Mark(NamedTuple):
    """Something that happened at a time: its kind (one of KINDS) and a few words, which may come from anywhere."""

    at: datetime
    word: str
    kind: str = ""


class Kind(NamedTuple):
    """How marks of a kind are told apart: a letter before the words, what the letter means, the line's class."""

    letter: str
    means: str
    css: str = ""


KINDS: Final[Mapping[str, Kind]] = {
    "incident": Kind("I", "incident", "mk-i"),
    "deploy": Kind("D", "deploy", "mk-d"),
    "version": Kind("C", "contract"),
    "paused": Kind("P", "paused"),
    "resumed": Kind("R", "resumed"),
    "deferred": Kind("F", "deferred"),
    "undeferred": Kind("U", "no longer deferred"),
    "disabled": Kind("X", "disabled"),
    "enabled": Kind("E", "enabled"),
}
"""Kinds of marks, the one that matters most first."""

# Plots are 200 px wide or more; words show (class alt) where they are 260 px or more. 6.3 px is a wide letter.
_LETTER: Final = 6.3 / 200
_WORD: Final = 6.3 / 260
_EDGE: Final = 0.8
_WORD_MAX: Final = 14


def says(mark: Mark) -> str:
    """Return a mark in words."""
    kind = KINDS.get(mark.kind)
    word = mark.word if len(mark.word) <= 80 else f"{mark.word[:79]}…"
    return f"{kind.means} {word}".rstrip() if kind else word


def tags(placed: Sequence[tuple[float, Mark]], *, y: float) -> list[Svg]:
    """Write letters beside lines, and words where there is room; those that would touch are left out.

    Shape: each mark with its place in the plot, from 0 to 1.
    """
    groups = _grouped(placed)
    parts: list[Svg] = []
    free = 0.0
    for index, group in enumerate(groups):
        begins, after = (groups[index + 1].x, groups[index + 1].letters) if index + 1 < len(groups) else (1.0, "")
        # A tag at the end of the chart reaches back over its line.
        backwards = group.x > _EDGE
        room = group.x - free if backwards else begins - group.x - (_width(after) if begins > _EDGE else 0.0)
        word = group.word if group.word and _width(group.letters, group.word) <= room else ""
        wide = max(_width(group.letters), _width(group.letters, word))
        if not (group.letters or word) or (group.x - wide if backwards else group.x) < free:
            continue
        free = group.x if backwards else group.x + wide
        inner = [text(group.letters), *([el("tspan", text(f" {word}"), class_="alt")] if word else [])]
        css = "labbad" if group.letters.startswith("I") else "lab"
        anchor, dx = ("end", -4) if backwards else ("start", 4)
        parts.append(el("text", *inner, class_=css, x=percent(group.x), dx=dx, y=y, text_anchor=anchor))
    return parts


class _Group(NamedTuple):
    """Marks that are too near to be told apart: their place, their letters, and the words of one that stands alone."""

    x: float
    letters: str
    word: str


def _grouped(placed: Sequence[tuple[float, Mark]]) -> list[_Group]:
    near: list[tuple[float, list[Mark]]] = []
    for x, mark in sorted(placed):
        if near and x - near[-1][0] < 2 * _LETTER:
            near[-1][1].append(mark)
        else:
            near.append((x, [mark]))
    return [_Group(x, _letters(marks), _short(marks[0].word) if len(marks) == 1 else "") for x, marks in near]


def _width(letters: str, word: str = "") -> float:
    """Return the share of the plot that a tag takes at most."""
    return 0.03 + ((len(letters) + 1 + len(word)) * _WORD if word else len(letters) * _LETTER)


def _short(word: str) -> str:
    return word if len(word) <= _WORD_MAX else f"{word[: _WORD_MAX - 1]}…"


def _letters(marks: Sequence[Mark]) -> str:
    """Return the letter of the kind that matters most, and how many other marks stand there."""
    first = next((kind.letter for name, kind in KINDS.items() if any(mark.kind == name for mark in marks)), "")
    return f"{first}+{len(marks) - 1}" if len(marks) > 1 else first


def legend(marks: Sequence[Mark]) -> Svg:
    """Say what the letters mean that stand in the chart."""
    used = [kind for name, kind in KINDS.items() if any(mark.kind == name for mark in marks)]
    words = ", ".join(f"{kind.letter} {kind.means}" for kind in used)
    return el("p", text(words), class_="mute xs mt") if used else Svg("")
