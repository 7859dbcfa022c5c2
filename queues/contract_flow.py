"""Rules and words for the fields of a contract that limit and order its work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_RATE_MOST: Final = 10_000
_RATE_LEAST: Final = 0.00001
_OVERLAP_MOST: Final = 86_400

_OVERLAP: Final = {
    "keep_last": "A new job takes the place of those of its group that wait.",
    "throttle": "A group begins one job in {seconds}; a new job takes the place of the one that waits for its turn.",
    "debounce": "A job waits {seconds} for a newer one of its group, which then takes its place, {longest} at most.",
    "replace": "A new job takes the place of those of its group that wait, and those that run are asked to stop.",
}
DEBOUNCE_MOST: Final = 10
"""A stream of jobs puts a debounced one off by so many times its seconds, and not for ever."""


def flow_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say what is wrong. Shape: (field, what)."""
    for name in ("rate_per_second", "group_rate_per_second"):
        if values[name] != 0 and not _RATE_LEAST <= values[name] <= _RATE_MOST:
            yield name, f"0 (no limit) or {_RATE_LEAST:.5f} to {_RATE_MOST:,} a second; 0.1 is one in ten seconds."
    if values["rate_burst"] and not values["rate_per_second"]:
        yield "rate_burst", "A burst needs a rate."
    if values["ordered"] and values["group_concurrency"] > 1:
        yield "group_concurrency", "An ordered group runs one job at a time: 0 or 1."
    if values.get("deferred") and not values["deferrable"]:
        yield "deferred", "Only what is deferrable can be deferred."
    yield from _overlap_problems(values)


def _overlap_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    timed = values["overlap"] in ("throttle", "debounce")
    if timed and not 1 <= values["overlap_seconds"] <= _OVERLAP_MOST:
        yield "overlap_seconds", f"{values['overlap'].capitalize()} needs 1 to {_OVERLAP_MOST:,} seconds."
    if not timed and values["overlap_seconds"]:
        yield "overlap_seconds", "Only throttle and debounce have seconds."
    if values["overlap"] != "none" and values["ordered"]:
        yield "overlap", "An ordered group runs every job; merging leaves some out."


def flow_warnings(values: Mapping[str, Any]) -> Iterator[str]:
    """Say what may not be what was meant."""
    if values["ordered"] and values["success"] in ("callback", "check"):
        yield "Ordered, and done means confirmed: a group waits for each job's confirmation before its next job."
    if 0 < values["concurrency"] < values["group_concurrency"]:
        yield "The limit of a group is above the limit of the type, so it never holds."
    yield from _overlap_warnings(values)


def _overlap_warnings(values: Mapping[str, Any]) -> Iterator[str]:
    if values["overlap"] == "none":
        return
    if values["key_required"] or values["key_template"]:
        yield (
            "Work is merged, and jobs have keys: one that repeats a key is a duplicate of its first, and takes no "
            "place of anything."
        )
    if values["overlap"] == "debounce" and values["overlap_seconds"] >= values["max_age_seconds"]:
        yield "A debounced job may wait longer than its maximum age."


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
    if words := _OVERLAP.get(values["overlap"]):
        seconds = values["overlap_seconds"]
        sentences.append(words.format(seconds=f"{seconds:,} s", longest=f"{seconds * DEBOUNCE_MOST:,} s"))
    return " ".join(sentences)
