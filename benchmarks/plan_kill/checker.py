"""Judges a run: each promise with the evidence against it. Pure: nothing is read here."""

from collections import Counter, defaultdict
from typing import Any, Final

from benchmarks.plan_kill.handlers import BAD, CLOSED
from benchmarks.plan_kill.seen import Row, Seen

ENDED: Final = ("confirmed", "dead", "expired", "cancelled", "lost")
COLUMNS: Final = {
    "open": "open", "awaiting": "awaiting", "confirmed": "confirmed", "dead": "dead_again", "expired": "expired",
    "cancelled": "cancelled", "lost": "lost",
}  # fmt: skip
"""Outcome of an item → the plan's count of it."""

Broken = dict[str, list[Any]]


def judge(seen: Seen) -> Broken:
    """Return each promise with the evidence against it; all empty is what is promised."""
    broken: Broken = {}
    _items(broken, seen)
    _children(broken, seen)
    _effects(broken, seen)
    _entries(broken, seen)
    _counts(broken, seen)
    _plans(broken, seen)
    return broken


def _items(broken: Broken, seen: Seen) -> None:
    items = {item["job"]: item for item in seen.items}
    children = _children_of(seen)
    states = {job["id"]: job["state"] for job in seen.jobs}
    broken["dead letters without exactly one item"] = [
        job for job, n in Counter(item["job"] for item in seen.items).items() if n != 1
    ] + sorted(items.keys() ^ seen.fates.keys())
    broken["items without an end"] = [
        item
        for item in seen.items
        if item["state"] == "waiting" or (item["state"] == "done" and item["outcome"] not in ENDED)
    ]
    broken["items done without exactly one child"] = [
        (item, found)
        for item in seen.items
        if item["state"] == "done" and [item["child"]] != (found := [one["id"] for one in children[item["job"]]])
    ]
    broken["items whose outcome is not their child's end"] = [
        item for item in seen.items if item["child"] and item["outcome"] != states.get(item["child"], "lost")
    ]
    broken["items ended otherwise than their fate"] = [
        (fate, items[job]) for job, fate in seen.fates.items() if job in items and _end(items[job]) != _fated(fate)
    ]


def _end(item: Row) -> tuple[str, str, str]:
    return item["state"], item["code"], item["outcome"]


def _fated(fate: str) -> tuple[str, str, str]:
    if fate == CLOSED:
        return "skipped", "changed", ""
    return "done", "", "dead" if fate == BAD else "confirmed"


def _children_of(seen: Seen) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for job in seen.jobs:
        if job["replay_of"] is not None:
            found[job["replay_of"]].append(job)
    return found


def _children(broken: Broken, seen: Seen) -> None:
    children = _children_of(seen)
    known = {item["child"] for item in seen.items if item["child"]}
    broken["parents with two children"] = [(parent, many) for parent, many in children.items() if len(many) > 1]
    broken["children without an item"] = [
        child for many in children.values() for child in many if child["id"] not in known
    ]
    broken["parents that do not name their child, or name one that is not there"] = [
        job
        for job in seen.jobs
        if job["replayed_by"] != (children[job["id"]][0]["id"] if children[job["id"]] else None)
        or (job["resolution"] == "replayed") != bool(children[job["id"]])
    ]
    broken["dedupe keys that the newest of their lineage does not hold"] = [
        job for job in seen.jobs if job["replayed_by"] is None and seen.holders.get(job["dedupe_key"]) != job["id"]
    ]


def _effects(broken: Broken, seen: Seen) -> None:
    key_of = {job["id"]: job["dedupe_key"] for job in seen.jobs}
    wanted = {key_of.get(job, job): int(fate not in (BAD, CLOSED)) for job, fate in seen.fates.items()}
    had: dict[str, list[Row]] = defaultdict(list)
    asked: dict[str, list[Row]] = defaultdict(list)
    for line in seen.effects:
        asked[line["key"]].append(line)
        if line["first"]:
            had[line["key"]].append(line)
    more = {key: lines for key, lines in had.items() if len(lines) > wanted.get(key, 0)}
    broken["keys without their effect"] = [key for key, n in wanted.items() if len(had[key]) < n]
    broken["keys with more effects than one, told"] = [
        lines for lines in more.values() if all(line["maybe_duplicate"] for line in lines[1:])
    ]
    broken["keys with more effects than one, not told"] = [
        lines for lines in more.values() if not all(line["maybe_duplicate"] for line in lines[1:])
    ]
    broken["repeats that the provider was not told of"] = [
        line for lines in asked.values() for line in lines[1:] if not line["maybe_duplicate"]
    ]


def _entries(broken: Broken, seen: Seen) -> None:
    """One entry for each replayed job, in the transaction that replayed it; and one for each thing done to the plan."""
    replayed = {(job["replay_of"], job["id"]): job for job in seen.jobs if job["replay_of"] is not None}
    told = Counter(
        (entry["object_id"], entry["child"])
        for entry in seen.entries
        if entry["action"] == "job.replayed" and entry["plan"] == seen.plan
    )
    stray = [entry for entry in seen.entries if entry["action"] == "job.replayed" and entry["plan"] != seen.plan]
    broken["replays without an entry in the audit log"] = [pair for pair in replayed if not told[pair]]
    broken["replays with two entries, and entries without a replay"] = [
        pair for pair, n in told.items() if n > 1 or pair not in replayed
    ] + stray
    verbs = Counter(
        entry["action"].partition(".")[2]
        for entry in seen.entries
        if entry["object_type"] == "replay_plan" and entry["object_id"] == seen.plan
    )
    wanted = Counter(created=1, finished=1, paused=len(seen.told.pauses), resumed=len(seen.told.pauses))
    broken["entries about the plan that are not what was done to it"] = [
        (verb, {"entries": verbs[verb], "done": wanted[verb]})
        for verb in sorted(verbs.keys() | wanted.keys())
        if verbs[verb] != wanted[verb]
    ]


def _counts(broken: Broken, seen: Seen) -> None:
    counted = {_failure(row): (row["died"], row["open"]) for row in seen.counts}
    truth = {_failure(row): (row["died"], row["open"]) for row in seen.true_counts}
    broken["failure groups whose counts are not those of the jobs"] = [
        (name, {"counted": counted.get(name, (0, 0)), "jobs": truth.get(name, (0, 0))})
        for name in sorted(counted.keys() | truth.keys())
        if counted.get(name, (0, 0)) != truth.get(name, (0, 0))
    ]
    broken["counts that had to be put right"] = list(seen.recounts)
    broken["failure groups left as being replayed"] = [
        group for group in seen.groups if group["state"] == "replaying" or group["plan"] is not None
    ]
    groups = {_failure(group) for group in seen.groups}
    broken["failures without a group"] = [name for name in truth if name not in groups]


def _failure(row: Row) -> tuple[str, str, str]:
    return row["type"], row["reason"], row["fingerprint"]


def _plans(broken: Broken, seen: Seen) -> None:
    mine = [plan for plan in seen.plans if plan["idempotency_key"] == seen.key]
    broken["plans of the one key other than one"] = (
        [] if [str(plan["id"]) for plan in mine] == [seen.plan] else [str(plan["id"]) for plan in mine] or ["none"]
    )
    broken["answers that name another plan"] = [plan for plan in seen.told.plans if plan != seen.plan]
    broken["answers that nobody should get"] = list(seen.told.refused)
    broken["items carried out while the plan was paused"] = [
        pause for pause in seen.told.pauses if pause.done != pause.done_later
    ]
    found = next((plan for plan in mine if str(plan["id"]) == seen.plan), {})
    broken["plans that are not finished"] = [] if found.get("state") == "finished" else [found.get("state")]
    states, outcomes = Counter(i["state"] for i in seen.items), Counter(i["outcome"] for i in seen.items)
    wanted: dict[str, Any] = {"total": len(seen.items), "left_out": 0, "failing": 0}
    wanted |= {name: states[name] for name in ("done", "skipped", "failed")}
    wanted |= {column: outcomes[outcome] for outcome, column in COLUMNS.items()}
    wanted["why"] = dict(Counter(item["code"] for item in seen.items if item["code"]))
    broken["counts of the plan that are not those of its items"] = [
        (name, {"plan": found.get(name), "items": value}) for name, value in wanted.items() if found.get(name) != value
    ]
