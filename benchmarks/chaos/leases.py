"""Who held which lease, and whether anybody ran without one (I-08, I-10). Pure.

A run's lease lasts from its claim to the last time that the row promised while it was processing. A body's beginning
and end are known from the ledger; a body that was killed has no end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.chaos.history import ENDS, OPEN, History, Row, is_volume

CLOCK_SECONDS: Final = 0.05
"""How far the clock of the ledger, which is the kernel's, may be from the database's on the same machine."""


@dataclass
class Run:
    """One claim of a job. Units: Unix times; None where nothing is known."""

    job: str
    fence: int
    claimed: float
    leased_until: float
    left: float | None = None
    """When the row was no longer its own."""
    to: str = ""
    began: float | None = None
    ended: float | None = None
    last: float | None = None
    """When its body was last heard of."""


def runs_of(history: History) -> Iterator[tuple[str, list[Run]]]:
    """Yield each job with its runs in order, as rows and ledger tell of them."""
    for job, rows in history.transitions.items():
        runs: dict[int, Run] = {}
        for row in rows:
            _follow(runs, job, row)
        for fence, run in runs.items():
            for line in history.runs.get((job, fence), ()):
                if line["phase"] == "start":
                    run.began = line["at"] if run.began is None else run.began
                else:
                    run.ended = line["at"]
                run.last = max(run.last or line["at"], line["at"])
        yield job, list(runs.values())


def _follow(runs: dict[int, Run], job: str, row: Row) -> None:
    fence = row["fence"]
    if row["state"] == "processing":
        known = runs.get(fence)
        if known is None:
            runs[fence] = Run(job, fence, row["at"], row["due"])
        else:
            known.leased_until = row["due"]
    elif row["was"] == "processing" and fence in runs:
        runs[fence].left, runs[fence].to = row["at"], row["state"]


def judge(history: History) -> dict[str, list[Any]]:
    """Return what speaks against the promises about leases."""
    live: list[Any] = []
    robbed: list[Any] = []
    for _, runs in runs_of(history):
        robbed += [run for run in runs if _is_robbed(run)]
        live += [(first, second) for n, first in enumerate(runs) for second in runs[n + 1 :] if _overlap(first, second)]
    return {
        "two live leases of one job (I-08)": live,
        "runs given up while they lived (I-08)": robbed,
        "bodies that began twice, or without a claim": _unclaimed(history),
        "jobs settled other than once (I-10)": _settled(history),
    }


def _overlap(first: Run, second: Run) -> bool:
    """Say whether a second body began while the first one still ran under a valid lease."""
    if first.began is None or first.last is None or second.began is None:
        return False
    return first.began < second.began < min(first.last, first.leased_until) - CLOCK_SECONDS


def _is_robbed(run: Run) -> bool:
    """Say whether the row was taken from a run whose lease was valid and whose body lived on."""
    if run.left is None or run.last is None:
        return False
    return run.left < run.leased_until - CLOCK_SECONDS and run.last > run.left + CLOCK_SECONDS


def _unclaimed(history: History) -> list[Any]:
    """A body begins once for each claim, and only for one."""
    claimed = {
        (job, row["fence"]) for job, rows in history.transitions.items() for row in rows if row["state"] == "processing"
    }
    wrong = []
    for pair, lines in history.runs.items():
        if pair not in claimed or sum(line["phase"] == "start" for line in lines) != 1:
            wrong.append((pair, lines))
    return wrong


def _settled(history: History) -> list[Any]:
    """Each job that has an end came to it once, and no claim follows; each claim has a fence of its own."""
    wrong: list[Any] = []
    for job in history.jobs:
        if is_volume(job):
            continue
        rows = history.transitions.get(job["id"], [])
        ends = [n for n, row in enumerate(rows) if row["state"] in ENDS and row["was"] in OPEN]
        claims = [row["fence"] for row in rows if row["state"] == "processing" and row["was"] != "processing"]
        late = bool(ends) and any(row["state"] == "processing" for row in rows[ends[0] :])
        if len(ends) != (job["state"] in ENDS) or late or claims != sorted(set(claims)):
            wrong.append((job, rows))
    return wrong


def late_bodies(history: History) -> int:
    """Count runs whose body was heard of after the row was no longer theirs: what fencing is for."""
    return sum(
        run.left is not None and run.last is not None and run.last > run.left + CLOCK_SECONDS
        for _, runs in runs_of(history)
        for run in runs
    )
