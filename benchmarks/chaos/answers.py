"""Whether what people and providers were answered is what became of it: cancels, replays, callbacks. Pure."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from benchmarks.chaos.handlers import CALLBACK, DYING
from benchmarks.chaos.history import History, Line, Row

TAKEN: Final = ("confirmed", "kept", "duplicate")
"""What a callback that brings the proof may do to a job that ends confirmed."""
NOTED: Final = ("late", "contradiction")


def judge(history: History) -> dict[str, list[Any]]:
    """Return what speaks against the answers."""
    jobs = {job["id"]: job for job in history.jobs}
    return {
        **_cancels(history, jobs),
        **_replays(history, jobs),
        **_callbacks(history),
    }


def _cancels(history: History, jobs: Mapping[str, Row]) -> dict[str, list[Any]]:
    """After "cancelled" nothing begins; without an effect possible nothing began; nobody else is cancelled (I-31)."""
    undone: list[Any] = []
    began: list[Any] = []
    bodies = {job for job, _ in history.runs}
    for one in history.cancels:
        job = jobs.get(one.job)
        is_cancelled = job is not None and job["state"] == "cancelled"
        if job is None or (one.status in (200, 409) and is_cancelled != (one.status == 200)):
            undone.append((vars(one), job))
        if one.status != 200 or job is None:
            continue
        rows = [row for row in history.transitions.get(one.job, ()) if row["was"] != "processing"]
        claims = [row for row in rows if row["state"] == "processing"]
        if (one.effect == "none" and one.job in bodies) or any(row["at"] > one.at for row in claims):
            began.append((vars(one), job, claims))
    return {
        "cancel answers that did not hold (I-31)": undone,
        "cancelled, and it ran (I-31)": began,
        "cancelled without being asked": [
            job for job in jobs.values() if job["state"] == "cancelled" and job["id"] not in history.cancel_asked
        ],
    }


def _replays(history: History, jobs: Mapping[str, Row]) -> dict[str, list[Any]]:
    """One dead letter has one child, the one that was answered; none is left over (I-30)."""
    children: dict[str, list[str]] = defaultdict(list)
    for job in jobs.values():
        if job["replay_of"] is not None:
            children[job["replay_of"]].append(job["id"])
    doubled: list[Any] = [(parent, found) for parent, found in children.items() if len(found) > 1]
    lost: list[Any] = []
    for told in history.replays:
        parent = jobs.get(told.parent)
        wanted = set(children.get(told.parent, ()))
        unknown = told.children - wanted or len(told.children) > 1
        if parent is None or unknown or (wanted and parent["replayed_by"] not in wanted):
            lost.append((vars(told), parent, sorted(wanted)))
        elif "409 already_replayed" in told.refused and not wanted:
            lost.append((vars(told), parent, []))
    return {
        "replays doubled (I-30)": doubled,
        "replay answers that did not hold (I-30)": lost,
        "dead letters left over": [
            job for job in jobs.values() if job["type"] == DYING and job["state"] == "dead" and not job["replayed_by"]
        ],
    }


def _callbacks(history: History) -> dict[str, list[Any]]:
    """What a callback was answered is what the row says at the end."""
    lost: list[Any] = []
    unproven: list[Any] = []
    for job in history.jobs:
        if job["type"] != CALLBACK:
            continue
        sent = history.callbacks.get(job["id"], [])
        lost += [(job, line) for line in sent if not _holds(line, job)]
        positive = {line["ref"] for line in sent if line["outcome"] == "confirmed"}
        negative = any(line["outcome"] == "rejected" for line in sent)
        ref = (job["evidence"] or {}).get("ref")
        if (job["state"] == "confirmed" and ref not in positive) or (job["state"] == "dead" and not negative):
            unproven.append((job, sent))
    return {
        "callback answers that did not hold": lost,
        "settled without the callback that would say so": unproven,
    }


def _holds(line: Line, job: Row) -> bool:
    """Say whether the row still says what a callback was answered. A status other than 200 is no answer to rely on."""
    result, positive = line["result"], line["outcome"] == "confirmed"
    if line["status"] != 200:
        return False
    if result in NOTED:
        note = {"outcome": line["outcome"], "ref": line["ref"]}
        kept = any(note.items() <= said.items() for said in job["late_evidence"] or ())
        return kept and (job["state"] == "confirmed") == (result == "contradiction")
    if positive:
        return result in TAKEN and job["state"] == "confirmed"
    if result == "rejected":
        return bool(job["state"] == "dead" and job["reason"] == "rejected")
    # Kept for a run that goes on, or about a run that is no longer the newest: the proof may win.
    return result in ("kept", "superseded", "duplicate")
