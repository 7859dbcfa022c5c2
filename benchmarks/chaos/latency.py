"""How long the stack took to come back from each fault, by the times in ledger, rows and clients' notes."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from benchmarks.chaos.faults import Done

KILLS = ("worker", "worker_not_heart", "worker_child")


def accepting(faults: Iterable[Done], accepted_at: list[float]) -> dict[str, str]:
    """Say how long after PostgreSQL or web was stopped the next accept was answered with a 2xx."""
    times = sorted(accepted_at)
    found: dict[str, list[float]] = defaultdict(list)
    for fault in faults:
        # What was on its way when the fault happened does not count.
        later = bisect_right(times, fault.at + 0.2)
        if fault.kind in ("postgres", "web") and later < len(times):
            found[f"{fault.kind} stopped to accepting"].append(times[later] - fault.at)
    return {name: summary(values) for name, values in found.items()}


def acting(
    faults: Iterable[Done], jobs: list[dict[str, Any]], effects: dict[str, list[dict[str, Any]]]
) -> dict[str, str]:
    """Say how long killed runs took to act again, and jobs that waited when the broker was emptied to act at all."""
    kills = sorted(fault.at for fault in faults if fault.kind in KILLS)
    emptied = [(fault.at, fault.kind) for fault in faults if fault.kind in ("flush", "valkey")]
    found: dict[str, list[float]] = defaultdict(list)
    for job in jobs:
        at = sorted(effect["at"] for effect in effects.get(job["dedupe_key"], []))
        for first, second in zip(at, at[1:], strict=False):
            before = bisect_right(kills, second) - 1
            if before >= 0 and kills[before] > first:
                found["killed to acting again"].append(second - kills[before])
        for fault_at, kind in emptied:
            if at and job["accepted"] < fault_at < at[0]:
                found[f"{kind} to acting, jobs that waited"].append(at[0] - fault_at)
    return {name: summary(values) for name, values in found.items()}


def summary(values: list[float]) -> str:
    """Put a list of seconds into words."""
    ordered = sorted(values)
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99))
    return f"p50 {p50:.1f} s, p99 {p99:.1f} s ({len(ordered)})"
