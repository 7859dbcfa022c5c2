"""Acting on one dead letter from the command line: replay, cancel, ignore. Many of them: `dlq.cli.planning`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlq import facts, replaying
from dlq.cli import choosing, printing
from dlq.cli.printing import Refused, Write
from dlq.replaying import Unsafe, VerdictChanged, Who
from queues import actions, edited_replay
from queues.accept import EnqueueError
from queues.canonical import JsonRefused
from queues.edited_replay import Edited
from queues.models import Job
from queues.states import JobState


def replay(options: dict[str, Any], write: Write, *, who: Who) -> None:
    """Print the checks, then replay one job if nothing speaks against it, or `--anyway`. Raises: Refused."""
    job = choosing.job(options["ids"][0])
    edited = _edited(job, options)
    found = replaying.look(job, edited=edited)
    if not options["json"]:
        printing.verdict(found, write)
    try:
        child = replaying.replay(job.id, who=who, verdict=found.fingerprint, anyway=options["anyway"], edited=edited)
    except VerdictChanged as changed:
        words = "; ".join(f"{one.title}: was {one.was}, now {one.now}: {one.evidence}" for one in changed.changes)
        raise Refused(f"Nothing was replayed: what is known has just changed. {words}") from None
    except Unsafe as unsafe:
        raise Refused(f"Nothing was replayed. {unsafe}. To do it all the same: --anyway") from None
    except actions.NotReplayable as refused:
        raise Refused(f"Nothing was replayed: {refused.detail}{_instead(job, refused)}") from None
    except actions.JobNotFound:
        raise Refused("Nothing was replayed: the job is gone") from None
    notes = list(edited.notes) if edited else []
    if options["json"]:
        printing.document({"id": str(child), "replay_of": str(job.id), "notes": notes,
                           "preflight": printing.verdict_json(found)}, write)  # fmt: skip
        return
    for note in notes:
        write(f"Note: {note}")
    write(f"Replayed as {child}")


def close(options: dict[str, Any], write: Write, *, who: Who) -> None:
    """Cancel or ignore one dead letter, or cancel a job that waits or runs. Raises: Refused."""
    job = choosing.job(options["ids"][0])
    why = {"actor": who.actor, "reason": who.reason, "source": who.source}
    try:
        if options["verb"] == "ignore":
            changed = actions.ignore_dead_letter(job.id, **why)
            words = "Ignored" if changed else "It was ignored before"
        elif job.state == JobState.DEAD:
            changed = actions.cancel_dead_letter(job.id, **why)
            words = "Cancelled; it stays dead" if changed else "It was cancelled before"
        else:
            done = actions.cancel_job(job.id, **why)
            words = "Asked the run to stop" if done.requested else "Cancelled"
            changed = done.changed
    except actions.NotCancellable as refused:
        raise Refused(f"Nothing was changed: {refused}") from None
    except actions.JobNotFound:
        raise Refused("Nothing was changed: the job is gone") from None
    if options["json"]:
        printing.document({"id": str(job.id), "changed": changed, "words": words}, write)
    else:
        write(words)


def _edited(job: Job, options: dict[str, Any]) -> Edited | None:
    """Return what is to be different. Raises: Refused."""
    if options["payload"] is None and options["key"] is None:
        return None
    try:
        text = None if options["payload"] is None else Path(options["payload"]).read_bytes()
        return edited_replay.prepare(job, payload=text, dedupe_key=options["key"])
    except OSError as error:
        raise Refused(f"{options['payload']}: {error.strerror}", code=2) from None
    except EnqueueError as error:
        raise Refused(f"Nothing was replayed: {error.detail} ({error.pointer or error.code})") from None
    except JsonRefused as error:
        raise Refused(f"{options['payload']}: {error.detail}", code=2) from None


def _instead(job: Job, refused: actions.NotReplayable) -> str:
    if refused.code != "key_moved_on":
        return ""
    holder = facts.holders([job]).get((job.type, job.dedupe_key or ""))
    return "" if holder is None or holder.id == job.id else f" ({holder.id})"
