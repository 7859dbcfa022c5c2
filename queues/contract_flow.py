"""Rules and words for the fields of a contract that limit and order its work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_RATE_MOST: Final = 10_000
_RATE_LEAST: Final = 0.00001


def flow_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say what is wrong. Shape: (field, what)."""
    for name in ("rate_per_second", "group_rate_per_second"):
        if values[name] != 0 and not _RATE_LEAST <= values[name] <= _RATE_MOST:
            yield name, f"0 (no limit) or {_RATE_LEAST:.5f} to {_RATE_MOST:,} a second; 0.1 is one in ten seconds."
    if values["rate_burst"] and not values["rate_per_second"]:
        yield "rate_burst", "A burst needs a rate."
    if values["ordered"] and values["group_concurrency"] > 1:
        yield "group_concurrency", "An ordered group runs one job at a time: 0 or 1."


def flow_warnings(values: Mapping[str, Any]) -> Iterator[str]:
    """Say what may not be what was meant."""
    if values["ordered"] and values["success"] in ("callback", "check"):
        yield "Ordered, and done means confirmed: a group waits for each job's confirmation before its next job."
    if 0 < values["concurrency"] < values["group_concurrency"]:
        yield "The limit of a group is above the limit of the type, so it never holds."


def flow_words(values: Mapping[str, Any]) -> str:
    """Say in plain words what holds work back; empty when nothing does."""
    sentences = []
    if most := values["concurrency"]:
        sentences.append(f"At most {most:,} run at the same time.")
    if most := values["group_concurrency"]:
        sentences.append(f"Of one group at most {most:,} run at the same time.")
    if rate := values["rate_per_second"]:
        burst = values["rate_burst"]
        sentences.append(f"At most {rate:g} a second begin{f', {burst:,} at once' if burst else ''}.")
    if rate := values["group_rate_per_second"]:
        sentences.append(f"Of one group at most {rate:g} a second begin.")
    if values["ordered"]:
        dead = {
            "block": "a dead letter holds its group up until somebody decides",
            "step_aside": "after a dead letter its group goes on",
        }[values["ordered_on_failure"]]
        sentences.append(f"A group's jobs run one after the other, as they were accepted; {dead}.")
    return " ".join(sentences)
