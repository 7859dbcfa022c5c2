"""The matrix that is checked in, and the routes that it speaks of. Not here: asking them (`test_matrix`, `world`)."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from django.urls import URLPattern, URLResolver, get_resolver

from jobsboard.board.asking import Deed

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
VERB: Final = "<slug:verb>"
_FILE: Final = Path(__file__).with_name("matrix.toml")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of routes: which, with which verbs, and who gets what. `cells`: (method, who) → answer."""

    pattern: str
    verbs: tuple[str, ...]
    kind: str
    name: str
    cells: Mapping[tuple[str, str], str]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One route of the project. `deeds`: the sets of verbs that its view's module knows."""

    text: str
    deeds: tuple[frozenset[str], ...]


@functools.cache
def people() -> Mapping[str, tuple[str, ...]]:
    """Return who asks, for each kind of route."""
    return {kind: tuple(names.split()) for kind, names in _read()["people"].items()}


@functools.cache
def lines() -> Sequence[Line]:
    """Return every line. Raises: ValueError where a class leaves a cell out, or names one twice."""
    found = []
    for kind, names in people().items():
        for name, section in _read()[kind].items():
            said = {methods: row for methods, row in section.items() if methods != "routes"}
            cells = _cells(f"{kind}.{name}", said, names)
            for text in section["routes"].split("\n"):
                pattern, _, verbs = text.strip().partition(": ")
                found += [
                    Line(pattern=one, verbs=tuple(verbs.split()), kind=kind, name=name, cells=cells)
                    for one in (_spelled_out(pattern) if pattern else ())
                ]
    return found


@functools.cache
def routes() -> Sequence[Route]:
    """Return every route, once each: a second one of the same text is never reached."""
    found: dict[str, Route] = {}
    for text, view in _walk(get_resolver()):
        known = vars(sys.modules[inspect.unwrap(view).__module__]) if text.endswith(f"{VERB}/") else {}
        deeds = [frozenset(one) for one in known.values() if _are_deeds(one)]
        found.setdefault(text, Route(text=text, deeds=tuple(deeds)))
    return list(found.values())


def lines_of(route: str) -> list[Line]:
    """Return the lines that speak of a route: those that name it, else those whose stars fit it."""
    exact = [line for line in lines() if line.pattern == (route or "-")]
    return exact or [line for line in lines() if "*/" in line.pattern and _fits(line.pattern, route)]


def _fits(pattern: str, route: str) -> bool:
    return re.fullmatch("[^/]*".join(re.escape(part) for part in pattern.split("*")), route) is not None


def _cells(where: str, rows: Mapping[str, str], names: Sequence[str]) -> dict[tuple[str, str], str]:
    cells: dict[tuple[str, str], str] = {}
    for methods, row in rows.items():
        answers = row.split()
        if len(answers) != len(names):
            raise ValueError(f"{where}: {methods} has {len(answers)} answers for {len(names)} people")
        for method, (who, answer) in itertools.product(methods.split(), zip(names, answers, strict=True)):
            if (method, who) in cells:
                raise ValueError(f"{where}: {method} is said twice")
            cells[method, who] = answer
    missing = {method for method in METHODS if (method, names[0]) not in cells}
    if missing or len(cells) != len(METHODS) * len(names):
        raise ValueError(f"{where}: nothing is said of {', '.join(sorted(missing)) or 'known methods only'}")
    return cells


def _spelled_out(pattern: str) -> list[str]:
    """Return the patterns that one with {a,b} in it stands for."""
    parts = [part.split(",") if i % 2 else [part] for i, part in enumerate(re.split(r"\{([^}]*)\}", pattern))]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def _walk(node: URLResolver, prefix: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    for entry in node.url_patterns:
        route = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from _walk(entry, route)
        elif isinstance(entry, URLPattern):
            yield route, entry.callback


def _are_deeds(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(one, Deed) for one in value.values())


@functools.cache
def _read() -> dict[str, dict[str, Any]]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))
