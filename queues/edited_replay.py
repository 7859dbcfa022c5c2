"""Replay with another payload or key: hold it against today's contract, put hidden values back, say what changed.

The replay itself, with its audit entry, is `actions.replay_job`'s.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from queues import accept, canonical, contracts
from queues.lifecycle import Edit
from queues.models import Job, StepResult
from queues.redaction import REDACTED, redact
from queues.request import PayloadInvalid, UnknownJobType

CHANGES_KEPT: Final = 100


@dataclass(frozen=True, kw_only=True)
class Edited:
    """An edit that may be replayed. `diff` is pointer → [before, after], redacted; `notes` are for whoever replays."""

    edit: Edit
    diff: dict[str, list[Any]]
    notes: tuple[str, ...]


def prepare(job: Job, *, payload: Any = None, dedupe_key: str | None = None) -> Edited:
    """Check an edit of a job. `payload` is JSON as text, bytes or values; None keeps the old one.

    What stands as `[redacted]` where the old payload had a hidden value gets that value back.
    Raises: PayloadInvalid, KeyInvalid, UnknownJobType.
    """
    try:
        contract = contracts.current(job.type)
    except contracts.UnknownContract:
        raise UnknownJobType(f"there is no job type {job.type!r} any more", pointer="/type") from None
    old = json.loads(job.payload) if job.payload is not None else None
    pointers = contracts.of_version(job.type, job.contract_version).redact
    text, value = None, old
    if payload is not None:
        _, given = accept.read_payload(payload, contract)
        value = _restored(given, old, redact(old, pointers=pointers), at="/payload")
        text, value = accept.read_payload(value, contract) if value != given else accept.read_payload(payload, contract)
    key = None if dedupe_key in (None, job.dedupe_key) else accept.check_key(str(dedupe_key))
    diff = dict(_changes(redact(old, pointers=pointers), redact(value, pointers=pointers), at=""))
    if key is not None:
        diff["dedupe_key"] = [job.dedupe_key, key]
    notes = []
    if text is not None and key is None and value != old:
        notes.append("The provider gets the same idempotency key with another body; some refuse that.")
        done = list(StepResult.objects.filter(root=job.root).order_by("at").values_list("name", flat=True)[:10])
        if done:
            notes.append(f"Steps that were done with the old payload are not done again: {', '.join(done)}.")
    if key is not None:
        notes.append("Another key makes this another job: nothing that the first one did is known to it.")
    request_hash = canonical.request_hash(value, job.group).hex()
    return Edited(
        edit=Edit(payload=text, request_hash=request_hash, dedupe_key=key),
        diff=dict(list(diff.items())[:CHANGES_KEPT]),
        notes=tuple(notes),
    )


def _restored(given: Any, old: Any, hidden: Any, *, at: str) -> Any:
    """Put back what the editor could not see. Raises: PayloadInvalid for a placeholder that hides nothing."""
    if given == REDACTED:
        if hidden == REDACTED:
            return old
        raise PayloadInvalid(f"{REDACTED} stands where the payload hid nothing", code="redacted_value", pointer=at)
    if isinstance(given, dict):
        known = old if isinstance(old, dict) and isinstance(hidden, dict) else {}
        return {
            name: _restored(child, known.get(name), hidden.get(name) if known else None, at=f"{at}/{_escaped(name)}")
            for name, child in given.items()
        }
    if isinstance(given, list):
        pairs = list(zip(old, hidden, strict=False)) if isinstance(old, list) and isinstance(hidden, list) else []
        pairs += [(None, None)] * (len(given) - len(pairs))
        return [
            _restored(child, was, seen, at=f"{at}/{index}")
            for index, (child, (was, seen)) in enumerate(zip(given, pairs, strict=False))
        ]
    return given


def _changes(old: Any, new: Any, *, at: str) -> list[tuple[str, list[Any]]]:
    """Return what differs as (pointer, [before, after]), leaf by leaf; what is missing on one side is null."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            change for name in names for change in _changes(old.get(name), new.get(name), at=f"{at}/{_escaped(name)}")
        ]
    return [] if old == new else [(at or "/", [old, new])]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
