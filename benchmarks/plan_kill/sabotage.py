"""Break every promise of a run that held, so that each verdict is seen to be able to fail."""

import copy
from collections.abc import Callable
from typing import Any, Final

from benchmarks.plan_kill import checker
from benchmarks.plan_kill.people import Pause
from benchmarks.plan_kill.seen import Row, Seen


def _item(seen: Seen, state: str = "done") -> Row:
    return next(item for item in seen.items if item["state"] == state and item["outcome"] in ("confirmed", ""))


def _child(seen: Seen) -> Row:
    return next(job for job in seen.jobs if job["id"] == _item(seen)["child"])


def _parent(seen: Seen) -> Row:
    return next(job for job in seen.jobs if job["id"] == _item(seen)["job"])


def _entry(seen: Seen, action: str) -> Row:
    return next(entry for entry in seen.entries if entry["action"] == action)


def _effect(seen: Seen, *, told: bool, first: bool) -> None:
    line = next(one for one in seen.effects if one["key"] == _parent(seen)["dedupe_key"])
    seen.effects.append({**line, "maybe_duplicate": told, "first": first})


def _no_effect(seen: Seen) -> None:
    seen.effects = [one for one in seen.effects if one["key"] != _parent(seen)["dedupe_key"]]


def _plan(seen: Seen) -> Row:
    return next(plan for plan in seen.plans if str(plan["id"]) == seen.plan)


BREAK: Final[dict[str, Callable[[Seen], Any]]] = {
    "dead letters without exactly one item": lambda seen: seen.items.append({**_item(seen), "number": 0}),
    "items without an end": lambda seen: _item(seen).update(outcome="open"),
    "items done without exactly one child": lambda seen: _child(seen).update(replay_of=None),
    "items whose outcome is not their child's end": lambda seen: _child(seen).update(state="dead"),
    "items ended otherwise than their fate": lambda seen: _item(seen, "skipped").update(code="gone"),
    "parents with two children": lambda seen: seen.jobs.append({**_child(seen), "id": "another"}),
    "children without an item": lambda seen: _item(seen).update(child=None),
    "parents that do not name their child, or name one that is not there": (
        lambda seen: _parent(seen).update(replayed_by=None)
    ),
    "dedupe keys that the newest of their lineage does not hold": (
        lambda seen: seen.holders.update({_child(seen)["dedupe_key"]: _parent(seen)["id"]})
    ),
    "keys without their effect": _no_effect,
    "keys with more effects than one, told": lambda seen: _effect(seen, told=True, first=True),
    "keys with more effects than one, not told": lambda seen: _effect(seen, told=False, first=True),
    "repeats that the provider was not told of": lambda seen: _effect(seen, told=False, first=False),
    "replays without an entry in the audit log": lambda seen: seen.entries.remove(_entry(seen, "job.replayed")),
    "replays with two entries, and entries without a replay": (
        lambda seen: seen.entries.append(_entry(seen, "job.replayed"))
    ),
    "entries about the plan that are not what was done to it": (
        lambda seen: seen.entries.append(_entry(seen, "replay_plan.finished"))
    ),
    "failure groups whose counts are not those of the jobs": lambda seen: seen.counts[0].update(open=-1),
    "counts that had to be put right": lambda seen: seen.recounts.append("1 counts were not right"),
    "failure groups left as being replayed": lambda seen: seen.groups[0].update(state="replaying"),
    "failures without a group": lambda seen: seen.groups.pop(),
    "plans of the one key other than one": lambda seen: seen.plans.append({**_plan(seen), "id": "another"}),
    "answers that name another plan": lambda seen: seen.told.plans.update(["another"]),
    "answers that nobody should get": lambda seen: seen.told.refused.append([500, None]),
    "items carried out while the plan was paused": lambda seen: seen.told.pauses.append(Pause(1, 2)),
    "plans that are not finished": lambda seen: _plan(seen).update(state="following"),
    "counts of the plan that are not those of its items": lambda seen: _plan(seen).update(done=-1),
}
"""Verdict → what makes it fail."""


def unseen(seen: Seen) -> list[str]:
    """Return the verdicts that do not fail when theirs is broken, in a copy of the run for each."""
    found = []
    for name in checker.judge(seen):
        broken = copy.deepcopy(seen)
        if name in BREAK:
            BREAK[name](broken)
        if not checker.judge(broken)[name]:
            found.append(name)
    return found
