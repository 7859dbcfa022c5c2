"""How long the stack took to come back from each fault, by the times in ledger, rows and clients' notes. Pure."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from benchmarks.chaos.faults import Done
from benchmarks.chaos.history import History
from benchmarks.chaos.leases import runs_of

FLUSHES: Final = ("flush", "valkey")
STOPS: Final = ("postgres", "web")
IN_FLIGHT_SECONDS: Final = 0.2
"""What was on its way when the fault happened does not count."""


def figures(faults: Sequence[Done], history: History, accepted_at: Iterable[float]) -> dict[str, str]:
    """Return every figure in words."""
    found = {**_again(faults, history), **_republished(faults, history), **_accepting(faults, accepted_at)}
    return {name: summary(values) for name, values in found.items()}


def _again(faults: Sequence[Done], history: History) -> dict[str, list[float]]:
    """From the kill of a process to the next body of each job whose body it ran."""
    killed: dict[int, list[Done]] = defaultdict(list)
    for fault in faults:
        for pid in fault.pids:
            killed[pid].append(fault)
    found: list[float] = []
    for job, runs in runs_of(history):
        for first, second in zip(runs, runs[1:], strict=False):
            lines = history.runs.get((job, first.fence), ())
            if first.began is None or first.ended is not None or second.began is None or not lines:
                continue
            # The kill came after the beginning, and there was no end.
            kills = [fault.at for fault in killed.get(lines[0]["pid"], ()) if first.began < fault.at < second.began]
            if kills:
                found.append(second.began - kills[-1])
    return {"killed to running again": found} if found else {}


def _republished(faults: Sequence[Done], history: History) -> dict[str, list[float]]:
    """From the loss of a job's hint to its first run."""
    first: dict[str, float] = {job: row["at"] for job, row in history.atomic.items()}
    for job, rows in history.transitions.items():
        claims = [row["at"] for row in rows if row["state"] == "processing"]
        if claims:
            first[job] = claims[0]
    found: dict[str, list[float]] = defaultdict(list)
    for fault in faults:
        if fault.kind in FLUSHES:
            name = f"{fault.kind} to republished: first run of jobs whose hints were lost"
            found[name] += [
                first[job] - fault.at for job in fault.jobs if first.get(job, 0.0) > fault.at + IN_FLIGHT_SECONDS
            ]
    return {name: values for name, values in found.items() if values}


def _accepting(faults: Iterable[Done], accepted_at: Iterable[float]) -> dict[str, list[float]]:
    """From the stop of PostgreSQL or web to the next accept that was answered with a 2xx."""
    times = sorted(accepted_at)
    found: dict[str, list[float]] = defaultdict(list)
    for fault in faults:
        later = bisect_right(times, fault.at + IN_FLIGHT_SECONDS)
        if fault.kind in STOPS and later < len(times):
            found[f"{fault.kind} stopped to accepting"].append(times[later] - fault.at)
    return found


def replaced(faults: Iterable[Done], ended_at: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Return how long workers whose wire was swallowed lived on; by the name of their process, when each ended."""
    values = [
        min(ends) - fault.at
        for fault in faults
        if fault.kind == "wire_swallow" and (ends := [at for at in ended_at.get(fault.victim, ()) if at > fault.at])
    ]
    return {"wire swallowed to worker replaced": summary(values)} if values else {}


def summary(values: list[float]) -> str:
    """Put a list of seconds into words."""
    ordered = sorted(values)
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99))
    return f"p50 {p50:.1f} s, p99 {p99:.1f} s ({len(ordered)})"
