"""Replay with another payload or key: hold it against today's contract, put hidden values back, say what changed.

The replay itself, with its audit entry, is `actions.replay_job`'s.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from queues import accept, canonical, contract_rules, contracts
from queues.lifecycle import Edit
from queues.models import Job, StepResult
from queues.redaction import REDACTED, redact
from queues.request import PayloadInvalid, UnknownJobType

CHANGES_KEPT: Final = 100
_MISSING: Final = object()
_STARS: Final = re.compile(r"\*{3,}")


@dataclass(frozen=True, kw_only=True)
class Edited:
    """An edit that may be replayed. `diff` is pointer → [before, after], redacted; `notes` are for whoever replays."""

    edit: Edit
    diff: dict[str, list[Any]]
    notes: tuple[str, ...]


def prepare(job: Job, *, payload: Any = None, dedupe_key: str | None = None) -> Edited:
    """Check an edit of a job. `payload` is JSON as text, bytes or values; None keeps the old one.

    What stands unchanged where the old payload had a hidden value (`[redacted]`, or a text with that in it) gets that
    value back. A placeholder or stars that stand for nothing are refused: they must never become a value.
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
    seen = redact(old, pointers=pointers)
    diff = dict(_changes(old, value, seen, redact(value, pointers=pointers), at=""))
    if key is not None:
        diff["dedupe_key"] = [job.dedupe_key, key]
    notes = []
    if text is not None and key is None and not _same(value, old):
        notes.append("The provider gets the same idempotency key with another body; some refuse that.")
        notes += _other_key(job, contract.key_template, old, value)
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


def _other_key(job: Job, template: str, old: Any, value: Any) -> list[str]:
    """Say which key the contract's template makes of the new payload, where the job's own key is the template's."""
    if not template or job.dedupe_key is None or not isinstance(old, dict) or not isinstance(value, dict):
        return []
    try:
        before = contract_rules.key_from_template(template, old)
        after = contract_rules.key_from_template(template, value)
    except contract_rules.KeyTemplateError:
        return []
    if before != job.dedupe_key or after == before:
        return []
    return [f"By the contract’s template the key of this payload is {after}; it stays the job of {before}."]


def _restored(given: Any, old: Any, hidden: Any, *, at: str) -> Any:
    """Put back what the editor could not see. Raises: PayloadInvalid for a placeholder that hides nothing."""
    if isinstance(given, dict):
        return _restored_object(given, old, hidden, at=at)
    if isinstance(given, list):
        return _restored_list(given, old, hidden, at=at)
    if not isinstance(given, str) or given == old == hidden:
        return given
    if REDACTED in given and given == hidden:
        return old
    if REDACTED in given or _STARS.fullmatch(given):
        words = "stars are no value" if REDACTED not in given else f"{REDACTED} stands where it hides no value"
        raise PayloadInvalid(
            f"{words}: leave what is hidden as it is shown, or write the new value",
            code="redacted_value_submitted",
            pointer=at,
        )
    return given


def _restored_object(given: dict[str, Any], old: Any, hidden: Any, *, at: str) -> dict[str, Any]:
    # A name may be hidden as well, so it is found by how it is shown.
    known = {label: (name, was, seen) for name, (label, was, seen) in (_children(old, hidden) or {}).items()}
    found = {}
    for shown, child in given.items():
        name, was, seen = known.get(shown, (shown, None, None))
        if shown not in known and REDACTED in shown:
            raise PayloadInvalid(
                f"{REDACTED} is part of a name that hides nothing", code="redacted_value_submitted", pointer=at
            )
        found[name] = _restored(child, was, seen, at=f"{at}/{_escaped(shown)}")
    return found


def _restored_list(given: list[Any], old: Any, hidden: Any, *, at: str) -> list[Any]:
    was: list[Any] = old if isinstance(old, list) else []
    seen: list[Any] = hidden if isinstance(hidden, list) else []
    pairs = _paired(given, seen)
    found = []
    for index, (child, match) in enumerate(zip(given, pairs, strict=True)):
        pointer = f"{at}/{index}"
        if match is None:
            found.append(_restored(child, None, None, at=pointer))
        else:
            found.append(_restored(child, was[match], seen[match], at=pointer))
    return found


def _paired(given: Sequence[Any], seen: Sequence[Any]) -> list[int | None]:
    """Return which old item each item of a list is: a hidden value must not move to another item.

    The same item at the same place; else the only item that looks the same; else, in a list as long as before, what was
    at its place. Whatever is none of these is new.
    """
    same = len(given) == len(seen)
    pairs: list[int | None] = [index if same and child == seen[index] else None for index, child in enumerate(given)]
    taken = {index for index in pairs if index is not None}
    alike: dict[str, list[int]] = {}
    for index, item in enumerate(seen):
        if index not in taken and _hides(item):
            alike.setdefault(json.dumps(item, sort_keys=True), []).append(index)
    for index, child in enumerate(given):
        if pairs[index] is None and _hides(child):
            found = alike.get(json.dumps(child, sort_keys=True), [])
            if len(found) == 1:
                pairs[index] = found.pop()
    taken = {index for index in pairs if index is not None}
    return [index if pair is None and same and index not in taken else pair for index, pair in enumerate(pairs)]


def _hides(value: Any) -> bool:
    return any(REDACTED in text for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, child in value.items():
            yield name
            yield from _texts(child)
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child)


def _changes(old: Any, new: Any, seen: Any, seen_new: Any, *, at: str) -> list[tuple[str, list[Any]]]:
    """Return what differs as (pointer, [before, after]), leaf by leaf; what is missing on one side is null.

    Values are compared as they are and told as they are seen: a hidden one that changed is told as hidden twice.
    """
    before, after = _children(old, seen), _children(new, seen_new)
    if before is None or after is None:
        return [] if _same(old, new) else [(at or "/", [seen, seen_new])]
    nothing = ("", _MISSING, None)
    found = []
    for name in [*before, *(name for name in after if name not in before)]:
        label, was, shown = before.get(name, nothing)
        label_new, now, shown_new = after.get(name, nothing)
        found += _changes(was, now, shown, shown_new, at=f"{at}/{_escaped(label or label_new)}")
    return found


def _same(old: Any, new: Any) -> bool:
    """Compare as JSON, in which 1, 1.0 and true are three values; what is missing is none of them."""
    if old is _MISSING or new is _MISSING:
        return False
    return old == new and json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)


def _children(value: Any, seen: Any) -> dict[str, tuple[str, Any, Any]] | None:
    """Return name → (name as it is seen, value, value as it is seen) of an object; None for anything else."""
    if not isinstance(value, dict) or not isinstance(seen, dict):
        return None
    both = zip(value.items(), seen.items(), strict=True)
    return {name: (label, child, shown) for (name, child), (label, shown) in both}


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
