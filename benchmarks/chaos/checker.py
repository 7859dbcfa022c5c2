"""Judges a run by its histories: each promise with the evidence against it. Pure: nothing is read here.

Not here: who held which lease (`leases.py`), what cancels, replays and callbacks were answered (`answers.py`), how
long things took (`latency.py`).
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.chaos import answers, leases
from benchmarks.chaos.exhaust import BOUND_SECONDS
from benchmarks.chaos.handlers import ATOMIC, CALLBACK, CANCELLED, CHECKED, DYING, PLAIN
from benchmarks.chaos.history import ENDS, OPEN, History, Line, Row, is_volume

ALLOWED: Final[dict[str, set[tuple[str, str | None]]]] = {
    PLAIN: {("confirmed", None)},
    CHECKED: {("confirmed", None)},
    ATOMIC: {("confirmed", None)},
    CALLBACK: {("confirmed", None), ("dead", "rejected")},
    CANCELLED: {("confirmed", None), ("cancelled", "producer")},
    DYING: {("confirmed", None), ("dead", "permanent_error")},
}
"""How a job of each type may end."""


@dataclass
class Verdicts:
    """Each promise with the evidence against it; all empty is what is promised."""

    broken: dict[str, list[Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def hold(self) -> bool:
        return not any(self.broken.values())


def judge(history: History) -> Verdicts:
    """Compare the histories."""
    found = Verdicts()
    _accepts(found, history)
    _effects(found, history)
    found.broken |= leases.judge(history) | answers.judge(history)
    _evidence(found, history)
    _atomic(found, history)
    _exhausted(found, history)
    found.broken["limbo rows"] = list(history.limbo)
    found.broken["jobs not settled"] = [job for job in history.jobs if job["state"] in OPEN]
    found.broken["jobs ended otherwise than their type may"] = [
        job
        for job in history.jobs
        if job["state"] in ENDS and (job["state"], job["reason"]) not in ALLOWED[job["type"]]
    ]
    found.broken["counts that are not those of the rows"] = _counts(history)
    found.broken["workers that take no messages at the end"] = list(history.deaf)
    _tell(found, history)
    return found


def _accepts(found: Verdicts, history: History) -> None:
    by_key: dict[str, list[Row]] = defaultdict(list)
    for job in history.jobs:
        # A replay is a job of its own, by a person's wish.
        if job["replay_of"] is None:
            by_key[job["dedupe_key"]].append(job)
    ids = {job["id"] for job in history.jobs}
    told = history.told
    found.broken["acknowledged accepts lost (I-01, I-25)"] = [
        (key, sorted(one.ids - ids)) for key, one in told.items() if one.ids - ids or (one.ok and key not in by_key)
    ]
    key_of = {job["id"]: job["dedupe_key"] for job in history.jobs}
    found.broken["keys accepted twice"] = [(key, rows) for key, rows in by_key.items() if len(rows) > 1] + [
        (key, sorted(one.ids)) for key, one in told.items() if any(key_of.get(job, key) != key for job in one.ids)
    ]
    probes = {probe.key for probe in history.probes}
    found.broken["keys never accepted after healing"] = [
        key for key, one in told.items() if not one.ok and key not in probes
    ]
    found.facts["keys"] = len(told)


def _effects(found: Verdicts, history: History) -> None:
    without, unmarked, same_run, past = [], [], [], []
    twice = checked_twice = 0
    lineages: dict[str, list[Row]] = defaultdict(list)
    for job in history.jobs:
        if not is_volume(job):
            lineages[job["dedupe_key"]].append(job)
    for key, jobs in lineages.items():
        place = {job["id"]: n for n, job in enumerate(jobs)}
        mine = sorted(history.effects.get(key, []), key=lambda one: (place.get(one["job"], -1), one["run"]))
        newest, fences = jobs[-1], {job["id"]: job["fence"] for job in jobs}
        refs = {one["ref"] for one in mine}
        if any(job["state"] == "confirmed" and (job["evidence"] or {}).get("ref") not in refs for job in jobs):
            without.append((newest, mine))
        if len({(one["job"], one["run"]) for one in mine}) < len(mine):
            same_run.append((newest, mine))
        if any(one["run"] > fences.get(one["job"], 0) for one in mine):
            past.append((newest, mine))
        if len(mine) > 1:
            twice += 1
            checked_twice += newest["type"] == CHECKED
            if not all(one["maybe_duplicate"] for one in mine[1:]):
                unmarked.append((newest, mine))
    found.broken["confirmed without an effect"] = without
    found.broken["second effects that were not told (I-12)"] = unmarked
    found.broken["runs that acted twice"] = same_run
    found.broken["effects of a run that the row does not know"] = past
    found.facts |= {"keys with a second effect, told": twice - len(unmarked), "of these with a check": checked_twice}


def _evidence(found: Verdicts, history: History) -> None:
    """Evidence that a run brought itself is of the run that held the lease; nothing else may have landed (I-09)."""
    landed = []
    for job in history.jobs:
        if job["state"] != "confirmed" or job["type"] == CALLBACK:
            continue
        proof = job["evidence"] or {}
        refs = {f"{job['dedupe_key']}/{job['fence']}"}
        if job["type"] == CHECKED:
            # A check finds what an earlier run left.
            refs |= {one["ref"] for one in history.effects.get(job["dedupe_key"], [])}
        if proof.get("run") != job["fence"] or proof.get("ref") not in refs:
            landed.append((job, history.effects.get(job["dedupe_key"], [])))
    found.broken["stale writes that landed (I-09)"] = landed


def _atomic(found: Verdicts, history: History) -> None:
    found.broken["atomic: confirmed without exactly one row, or a row without"] = [
        (job, rows)
        for job in history.jobs
        if is_volume(job)
        and (rows := int(history.atomic.get(job["id"], {"n": 0})["n"])) != (job["state"] == "confirmed")
    ]
    found.facts["atomic rows"] = sum(int(row["n"]) for row in history.atomic.values())


def _exhausted(found: Verdicts, history: History) -> None:
    """While nobody has a connection to spare, web says so in time and stores nothing (I-39)."""
    starved = [probe for probe in history.probes if probe.starved]
    there = {job["dedupe_key"] for job in history.jobs}
    found.broken["without a connection: not refused with 503 in time (I-39)"] = [
        vars(probe) for probe in starved if probe.status != 503 or not probe.retryable or probe.seconds > BOUND_SECONDS
    ]
    found.broken["without a connection: stored all the same (I-39)"] = [
        vars(probe) for probe in starved if probe.key in there
    ]
    found.facts["requests while no connection was free"] = len(starved)


def _counts(history: History) -> list[Any]:
    """Rollups are exact (I-35), which also says that no job was counted as settled twice."""
    wrong = []
    for name in sorted(history.counted_truth.keys() | history.counted.keys()):
        told, truth = dict(history.counted.get(name, {})), history.counted_truth.get(name, {})
        told.pop("superseded", None)
        wrong += [
            (name, what, {"counted": told.get(what, 0), "rows": truth.get(what, 0)})
            for what in sorted(told.keys() | truth.keys())
            if told.get(what, 0) != truth.get(what, 0)
        ]
    return wrong


def _tell(found: Verdicts, history: History) -> None:
    states = Counter(job["state"] + (f" {job['reason']}" if job["reason"] else "") for job in history.jobs)
    classes = Counter(failure.get("error_class") for job in history.jobs for failure in job["failures"] or ())
    lines: list[Line] = [line for sent in history.callbacks.values() for line in sent]
    found.facts |= {
        "jobs": dict(states),
        "executions": sum(job["begun"] for job in history.jobs if job["replay_of"] is None)
        + sum(job["begun"] - 1 for job in history.jobs if job["replay_of"] is not None),
        "lost runs that were alone in their chunk": sum(job["crashes"] for job in history.jobs),
        "jobs run more than once": sum(job["begun"] > 1 for job in history.jobs if job["replay_of"] is None),
        "runs that failed or were lost, by class": dict(classes.most_common(8)),
        "most attempts of a job": max((job["attempt"] for job in history.jobs), default=0),
        "effects": sum(map(len, history.effects.values())),
        "callbacks answered, by what they did": dict(Counter(str(line["result"]) for line in lines)),
        "cancels answered": dict(Counter(f"{one.status} {one.said}" for one in history.cancels)),
        "dead letters replayed": sum(bool(one.children) for one in history.replays),
        "ends that came too late, as counted": sum(row.get("superseded", 0) for row in history.counted.values()),
        "bodies that went on after their run was given up": leases.late_bodies(history),
    }
