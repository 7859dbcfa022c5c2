"""The checker of `make plan-kill`: it finds nothing in a good run, and each broken promise in a bad one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.plan_kill import checker, sabotage
from benchmarks.plan_kill.handlers import BAD, CLOSED, DONE, PLAIN
from benchmarks.plan_kill.people import Pause, Told
from benchmarks.plan_kill.seen import Row, Seen

FATES = {"p1": PLAIN, "p2": DONE, "p3": BAD, "p4": CLOSED}
OUTCOMES = {"p1": "confirmed", "p2": "confirmed", "p3": "dead", "p4": ""}


def _jobs() -> list[Row]:
    found = []
    for parent, outcome in OUTCOMES.items():
        child = f"{parent}c" if outcome else None
        key = {"dedupe_key": f"{parent}k", "idempotency_key": f"jb_{parent}", "reason": None}
        resolution = "replayed" if child else "ignored"
        found.append(
            {**key, "id": parent, "state": "dead", "replay_of": None, "replayed_by": child, "resolution": resolution}
        )
        if child:
            open_again = "open" if outcome == "dead" else None
            found.append(
                {**key, "id": child, "state": outcome, "replay_of": parent, "replayed_by": None,
                 "resolution": open_again}
            )  # fmt: skip
    return found


def _entry(action: str, kind: str, about: str, child: str | None = None) -> Row:
    return {"action": action, "object_type": kind, "object_id": about, "child": child, "plan": "plan"}


def good() -> Seen:
    """Return a run in which every promise holds: one of each fate."""
    plan: dict[str, Any] = {
        "id": "plan", "idempotency_key": "key", "state": "finished", "total": 4, "left_out": 0, "done": 3, "skipped": 1,
        "failed": 0, "why": {"changed": 1}, "open": 0, "failing": 0, "awaiting": 0, "confirmed": 2, "dead_again": 1,
        "expired": 0, "cancelled": 0, "lost": 0,
    }  # fmt: skip
    count = {"type": "plan.work", "reason": "permanent_error", "fingerprint": "a"}
    verbs = ("created", "paused", "resumed", "finished")
    return Seen(
        plan="plan",
        key="key",
        fates=dict(FATES),
        told=Told(plans=Counter(plan=3), pauses=[Pause(1, 1)]),
        items=[
            {"number": n, "job": parent, "outcome": outcome, "failing": False, "tries": 1,
             "state": "done" if outcome else "skipped", "code": "" if outcome else "changed",
             "child": f"{parent}c" if outcome else None}
            for n, (parent, outcome) in enumerate(OUTCOMES.items(), start=1)
        ],
        jobs=_jobs(),
        holders={f"{parent}k": f"{parent}c" if outcome else parent for parent, outcome in OUTCOMES.items()},
        entries=[_entry("job.replayed", "job", p, f"{p}c") for p, outcome in OUTCOMES.items() if outcome]
        + [_entry(f"replay_plan.{verb}", "replay_plan", "plan") for verb in verbs],
        counts=[{**count, "died": 5, "open": 1}],
        true_counts=[{**count, "died": 5, "open": 1}],
        groups=[{**count, "id": 1, "state": "open", "plan": None}],
        plans=[plan],
        effects=[
            {"key": f"{parent}k", "job": job, "run": 1, "first": True, "maybe_duplicate": job != parent}
            for parent, job in (("p1", "p1c"), ("p2", "p2"))
        ],
    )  # fmt: skip


def test_a_good_run_breaks_nothing() -> None:
    """Otherwise every other test here would prove nothing."""
    assert not any(checker.judge(good()).values())


@pytest.mark.parametrize("name", checker.judge(good()))
def test_each_promise_is_seen_to_be_broken(name: str) -> None:
    """Each verdict has a way to be broken, and is red then."""
    broken = good()
    sabotage.BREAK[name](broken)
    assert checker.judge(broken)[name], name


def test_sabotage_names_verdicts_that_cannot_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sabotage.unseen(good()) == []
    monkeypatch.delitem(sabotage.BREAK, "parents with two children")
    assert sabotage.unseen(good()) == ["parents with two children"]
