"""Holds a dashboard against Grafana's own types: the classes that Grafana Labs generates from its schema.

The classes take what they know and drop the rest, and do not look at values. So: what comes out of them must have
everything that went in, and each of their attributes must be what its annotation says.
"""

from __future__ import annotations

import enum
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.cog.runtime import UnknownDataquery
from grafana_foundation_sdk.models.dashboard import Dashboard

register_default_plugins()


def mistakes(dashboard: Mapping[str, Any]) -> list[str]:
    """Return what Grafana's types do not know or want otherwise, each with its place."""
    try:
        read = Dashboard.from_json(dict(dashboard))
        written = _plain(read)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return [f"cannot be read: {type(error).__name__}: {error}"]
    return [*_lost(dashboard, written, "dashboard"), *_of(read, type(read), "dashboard")]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, cls=JSONEncoder))


def _lost(given: Any, written: Any, where: str) -> Iterator[str]:
    """Yield what went in and did not come out: a field that its class does not have."""
    if isinstance(given, Mapping) and isinstance(written, Mapping):
        for name, value in given.items():
            # What is null is left out when it is written.
            if name not in written and value is not None:
                yield f"{where}.{name}: no such field"
            elif name in written:
                yield from _lost(value, written[name], f"{where}.{name}")
    elif isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        for i, (one, other) in enumerate(zip(given, written, strict=True)):
            yield from _lost(one, other, f"{where}[{i}]")
    elif given != written:
        yield f"{where}: {given!r} became {written!r}"


def _of(value: Any, wanted: Any, where: str) -> Iterator[str]:
    """Yield where a value is not of the annotated type."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted in (object, Any):
        # Options of a panel: their class is the value's own.
        if hasattr(value, "to_json"):
            yield from _attributes(value, where)
    elif origin in (typing.Union, types.UnionType):
        yield from _of_one(value, arguments, where)
    elif origin is typing.Literal:
        if value not in arguments:
            yield f"{where}: {value!r} is none of {arguments}"
    elif origin is list:
        yield from _each(value, list, arguments[0], where)
    elif origin is dict:
        yield from _each(value, dict, arguments[1], where)
    else:
        yield from _of_class(value, wanted, where)


def _of_one(value: Any, several: Iterable[Any], where: str) -> Iterator[str]:
    """Yield what is wrong with a value that is of none of several types, by the type that it is nearest to."""
    tried = [list(_of(value, wanted, where)) for wanted in several]
    if all(tried):
        yield from min(tried, key=lambda found: (f"{where}: " in found[0], len(found)))


def _each(value: Any, kind: type[Any], wanted: Any, where: str) -> Iterator[str]:
    if not isinstance(value, kind):
        yield f"{where}: {value!r} is no {kind.__name__}"
        return
    named: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
    for name, one in named:
        yield from _of(one, wanted, f"{where}[{name}]")


def _of_class(value: Any, wanted: Any, where: str) -> Iterator[str]:
    if issubclass(wanted, enum.Enum):
        if not isinstance(value, wanted) and value not in [one.value for one in wanted]:
            yield f"{where}: {value!r} is none of {[one.value for one in wanted]}"
    elif hasattr(wanted, "from_json") and isinstance(value, dict):
        # Some parts are passed on unread.
        read = wanted.from_json(value)
        yield from _lost(value, _plain(read), where)
        yield from _attributes(read, where)
    elif isinstance(value, UnknownDataquery):
        yield f"{where}: a query of no known data source"
    elif wanted is float and type(value) is int:
        return
    elif not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        yield f"{where}: {value!r} is no {wanted.__name__}"
    elif hasattr(value, "to_json"):
        yield from _attributes(value, where)


def _attributes(value: Any, where: str) -> Iterator[str]:
    for name, wanted in typing.get_type_hints(type(value)).items():
        if hasattr(value, name):
            yield from _of(getattr(value, name), wanted, f"{where}.{name}")
