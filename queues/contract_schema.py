"""The JSON schema inside a contract: is it sound, is it safe to run, do a key template and a payload fit it.

Refusing a job whose payload does not is `accept`'s.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from queues import canonical

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_MAX_CHARS: Final = 65_536
_MAX_DEPTH: Final = 64
_VIOLATIONS_MOST: Final = 20
# A repeated group that repeats inside, as in (a+)+, may need longer than the universe lasts for a text of 100 letters.
_NESTED_REPEAT: Final = re.compile(r"\((?:[^()\\]|\\.)*[*+}](?:[^()\\]|\\.)*\)[*+{]")


def problems(schema: Mapping[str, Any]) -> list[str]:
    """List what is wrong with a schema; an empty one accepts everything."""
    if not schema:
        return []
    try:
        if _depth(schema) > _MAX_DEPTH or len(json.dumps(schema)) > _MAX_CHARS:
            return [f"The schema is too large: at most {_MAX_DEPTH} levels and {_MAX_CHARS} characters."]
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        place = "/".join(map(str, error.absolute_path))
        return [f"Not a JSON Schema (2020-12): {error.message[:200]}" + (f", at /{place}" if place else "")]
    except RecursionError:
        return ["The schema is nested too deeply."]
    return [*_reference_problems(schema), *_pattern_problems(schema)]


def _depth(value: Any) -> int:
    """Count levels without recursion, and no further than needed."""
    level, depth = [value], 0
    while level and depth <= _MAX_DEPTH:
        level = [child for node in level for child in _children(node)]
        depth += 1
    return depth


def _children(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node.values())
    return list(node) if isinstance(node, list) else []


def _walk(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        yield from node.items()
    for child in _children(node):
        yield from _walk(child)


def _reference_problems(schema: Mapping[str, Any]) -> Iterator[str]:
    if schema.get("$schema", _DIALECT) != _DIALECT:
        yield f"$schema must be {_DIALECT} or left out."
    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    for key, value in _walk(schema):
        if key == "$id" and isinstance(value, str):
            yield "$id is not taken: a contract's schema stands alone."
        elif key in ("$ref", "$dynamicRef") and isinstance(value, str):
            if not value.startswith("#"):
                yield f"$ref {value[:80]!r} points outside the schema; nothing else is loaded. Use #/$defs/..."
                continue
            try:
                resolver.lookup(value)
            except Unresolvable:
                yield f"$ref {value[:80]!r} points to nothing."


def _pattern_problems(schema: Mapping[str, Any]) -> Iterator[str]:
    for key, value in _walk(schema):
        patterns = [value] if key == "pattern" else list(value) if key == "patternProperties" else []
        for pattern in patterns:
            if not isinstance(pattern, str):
                continue
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError):
                yield f"The pattern {pattern[:80]!r} is not a regular expression."
                continue
            if _NESTED_REPEAT.search(pattern):
                yield f"The pattern {pattern[:80]!r} repeats a group that repeats inside: it could run for ever."


def violations(schema: Mapping[str, Any], value: Any) -> list[tuple[list[Any], str]]:
    """List where a value breaks a schema that is sound, each place with what is wrong there."""
    validator = _validator(json.dumps(schema, sort_keys=True))
    if validator.is_valid(value):
        return []
    errors = zip(validator.iter_errors(value), range(_VIOLATIONS_MOST), strict=False)
    return [(list(error.absolute_path), error.message[:300]) for error, _ in errors]


@functools.lru_cache(maxsize=512)
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(schema))


def payload_problems(payload: Any, *, schema: Mapping[str, Any], most_bytes: int) -> list[str]:
    """List why accept would refuse a payload that a contract holds; its schema is sound."""
    try:
        text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        value = canonical.parse(text).value
        found = violations(schema, value) if schema else []
    except (TypeError, ValueError) as error:
        return [f"Not JSON: {error}."]
    except canonical.JsonRefused as refused:
        return [f"Not taken: {refused.detail}."]
    except RecursionError:
        return ["The schema refers to itself without end, or the payload is nested too deeply."]
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > most_bytes:
        return [f"It has {size} bytes, this job type takes {most_bytes} (max_payload_bytes)."]
    return [f"Breaks the schema{_place(path)}: {message}" for path, message in found]


def _place(path: Sequence[Any]) -> str:
    return f" at {canonical.json_pointer(list(path))}" if path else ""


def template_problems(paths: Sequence[tuple[str, ...]], schema: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Compare the fields of a key template with the schema of the payload.

    Shape: (errors, warnings).
    """
    errors: list[str] = []
    warnings: list[str] = []
    for path in paths:
        _compare(path, schema, errors, warnings)
    return errors, warnings


def _compare(path: tuple[str, ...], schema: Mapping[str, Any], errors: list[str], warnings: list[str]) -> None:
    named, node = "{" + ".".join(path) + "}", _follow(schema, schema)
    required = True
    for part in path:
        known = node.get("properties")
        if not isinstance(known, Mapping):
            # The schema says nothing about fields here.
            return
        if part not in known:
            example = next((name for name, below in known.items() if _names_a_thing(below, schema)), None)
            errors.append(
                f"{named} is not in the schema." + (f" Example: {{{_join(path, part, example)}}}" if example else "")
            )
            return
        required = required and part in (node.get("required") or ())
        node = _follow(known[part], schema)
    problem = _type_problem(node)
    if problem:
        errors.append(f"{named} {problem}. Use text or a whole number, such as an order number.")
    elif schema and not required:
        warnings.append(f"{named} is not required by the schema: a job without it and without a key is refused.")


def _join(path: tuple[str, ...], part: str, example: str) -> str:
    return ".".join((*path[: path.index(part)], example))


def _names_a_thing(node: Any, schema: Mapping[str, Any]) -> bool:
    return isinstance(node, Mapping) and not _type_problem(_follow(node, schema))


def _type_problem(node: Mapping[str, Any]) -> str:
    kinds = node.get("type", ())
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind in ("object", "array", "number", "boolean"):
            article = "an" if kind[0] in "ao" else "a"
            hint = " (1, 1.0 and 1e0 would give different keys)" if kind == "number" else ""
            return f"is {article} {kind}{hint}"
    if node.get("format") in ("date-time", "time"):
        return "is a point in time by its format: it may differ when the producer tries again"
    return ""


def _follow(node: Any, schema: Mapping[str, Any], *, hops: int = 8) -> Mapping[str, Any]:
    """Follow references inside the schema; what cannot be followed says nothing."""
    while isinstance(node, Mapping) and isinstance(node.get("$ref"), str) and hops:
        hops -= 1
        target: Any = schema
        for part in node["$ref"].split("/")[1:]:
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        node = target
    return node if isinstance(node, Mapping) else {}
