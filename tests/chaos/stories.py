"""Small histories of a chaos run in which every promise holds; tests then change one thing.

Times are seconds after a moment that means nothing.
"""

from __future__ import annotations

from typing import Any

from benchmarks.chaos.clients import Told
from benchmarks.chaos.handlers import ATOMIC, CALLBACK, CANCELLED, CHECKED, DYING, PLAIN
from benchmarks.chaos.history import History
from benchmarks.chaos.repairs import CancelTold, ReplayTold

LEASE = 5.0


def row(job: str, kind: str = PLAIN, **values: Any) -> dict[str, Any]:
    """Return a job's row: confirmed by its first run, with a key that is the job's name and a k."""
    key = values.get("dedupe_key", f"{job}k")
    fence = values.get("fence", 1)
    return {
        "id": job,
        "type": kind,
        "state": "confirmed",
        "reason": None,
        "dedupe_key": key,
        "fence": fence,
        "begun": fence,
        "attempt": 1,
        "crashes": 0,
        "evidence": {"ref": f"{key}/{fence}", "run": fence},
        "late_evidence": None,
        "failures": [],
        "replay_of": None,
        "replayed_by": None,
        "root": job,
        **values,
    }


def step(was: str, state: str, fence: int, at: float, due: float | None = None) -> dict[str, Any]:
    """Return one transition."""
    return {"was": was, "state": state, "fence": fence, "at": at, "due": due}


def run(at: float, fence: int = 1, *, seconds: float = 1.0, was: str = "accepted", to: str = "confirmed") -> Any:
    """Return the transitions of one run."""
    return [step(was, "processing", fence, at, at + LEASE), step("processing", to, fence, at + seconds)]


def body(job: str, at: float, fence: int = 1, *, seconds: float = 0.8, pid: int = 7) -> Any:
    """Return the ledger's lines of a body; without an end when `seconds` is 0."""
    line = {"what": "run", "job": job, "run": fence, "key": f"{job}k", "pid": pid}
    lines = [{**line, "phase": "start", "at": at + 0.1}]
    if seconds:
        lines.append({**line, "phase": "end", "at": at + seconds})
    return lines


def effect(job: str, fence: int = 1, *, key: str | None = None, maybe: bool = False) -> dict[str, Any]:
    """Return the ledger's line of an effect."""
    key = key or f"{job}k"
    return {"key": key, "run": fence, "job": job, "maybe_duplicate": maybe, "ref": f"{key}/{fence}", "at": 0.0}


def callback(job: str, outcome: str = "confirmed", result: str = "confirmed", **values: Any) -> dict[str, Any]:
    """Return the ledger's line of a callback that web answered."""
    line = {"job": job, "key": f"{job}k", "run": 1, "ref": f"{job}k/1", "outcome": outcome, "result": result}
    return {**line, "status": 200, "state": None, **values}


def good() -> History:
    """Return a history with one of everything: a plain job that was lost once, one that a check confirmed, an atomic
    one, one confirmed by callback, one cancelled, one that died and was replayed."""
    plain = row("plain", fence=2)
    died = row("died", DYING, state="dead", reason="permanent_error", evidence=None, replayed_by="child")
    jobs = [
        plain,
        row("checked", CHECKED, fence=2, evidence={"ref": "checkedk/1", "run": 2}),
        row("atomic", ATOMIC),
        row("called", CALLBACK),
        row("rejected", CALLBACK, state="dead", reason="rejected", evidence=None),
        row("stopped", CANCELLED, state="cancelled", reason="producer", evidence=None, fence=0),
        died,
        row("child", DYING, dedupe_key="diedk", replay_of="died", root="died", begun=2),
    ]
    lost = [step("accepted", "processing", 1, 0.0, LEASE), step("processing", "retrying", 1, LEASE + 1.0)]
    awaits = run(0.0, to="awaiting_confirmation")
    return History(
        told={job["dedupe_key"]: Told(job["type"], ids={job["id"]}, ok=1) for job in jobs if job["id"] != "child"},
        jobs=jobs,
        effects={
            "plaink": [effect("plain", 1), effect("plain", 2, maybe=True)],
            "checkedk": [effect("checked", 1)],
            "calledk": [effect("called")],
            "rejectedk": [effect("rejected")],
            "diedk": [effect("child", key="diedk", maybe=True)],
        },
        runs={
            # Lost with its process, as is the first one of the checked job.
            ("plain", 1): body("plain", 0.0, seconds=0),
            ("plain", 2): body("plain", 7.0, 2),
            ("checked", 1): body("checked", 0.0, seconds=0),
            ("called", 1): body("called", 0.0),
            ("rejected", 1): body("rejected", 0.0),
            ("died", 1): body("died", 0.0),
            ("child", 1): body("child", 4.0),
        },
        callbacks={
            "called": [callback("called"), callback("called", "rejected", "contradiction")],
            "rejected": [callback("rejected", "rejected", "rejected")],
        },
        transitions={
            "plain": [*lost, *run(7.0, 2, was="retrying")],
            "checked": [*lost, *run(7.0, 2, was="retrying")],
            "called": [*awaits, step("awaiting_confirmation", "confirmed", 1, 2.0)],
            "rejected": [*awaits, step("awaiting_confirmation", "dead", 1, 2.0)],
            "stopped": [step("accepted", "cancelled", 0, 1.0)],
            "died": run(0.0, to="dead"),
            "child": run(4.0),
        },
        atomic={"atomic": {"id": "atomic", "n": 1, "at": 1.0}},
        counted={PLAIN: {"accepted": 1, "confirmed": 1, "superseded": 3}},
        counted_truth={PLAIN: {"accepted": 1, "confirmed": 1}},
        cancels=[CancelTold("stopped", 200, "cancelled", "none", at=1.1)],
        cancel_asked={"stopped"},
        replays=[ReplayTold("died", children={"child"}, refused=["409 already_replayed"])],
    )


def noted(history: History) -> History:
    """Let the row keep the contradiction that its callback was told of."""
    _job(history, "called")["late_evidence"] = [{"outcome": "rejected", "ref": "calledk/1", "at": "", "run": 1}]
    return history


def _job(history: History, name: str) -> dict[str, Any]:
    return next(job for job in history.jobs if job["id"] == name)
