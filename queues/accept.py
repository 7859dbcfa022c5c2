"""Accept jobs: validate, hash, pair repeats, insert, answer; the public `enqueue` and `enqueue_many`.

The statements are `lifecycle.accept`'s. Inside a transaction of the caller, PostgreSQL's 40001 and 40P01 are the
caller's to retry, as for any other statement of theirs.
"""

import contextlib
import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, overload
from uuid import UUID

from django.db import transaction

from queues import backlog, broker, canonical, contract_rules, contract_schema, contracts, lifecycle, overlap
from queues.contracts import Contract
from queues.faults import fault
from queues.lifecycle import NewJob
from queues.request import (
    DedupeConflict,
    EnqueueError,
    Item,
    KeyInvalid,
    Overloaded,
    PayloadInvalid,
    Receipt,
    TypeDisabled,
    UnknownJobType,
)
from queues.states import JobState

__all__ = [
    "DedupeConflict",
    "EnqueueError",
    "Item",
    "KeyInvalid",
    "Overloaded",
    "PayloadInvalid",
    "Receipt",
    "TypeDisabled",
    "UnknownJobType",
    "accept_probe",
    "enqueue",
    "enqueue_many",
]

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
PUBLISH_AT_MOST: Final = 8
"""A larger batch is published by the scheduler, in chunks."""
HORIZON: Final = dt.timedelta(days=366)
"""How far ahead a job may be put off: beyond the year 9999 nobody could read its row."""
ROUNDS: Final = 5
"""How often keys are tried whose holder goes away at that moment."""


def enqueue(
    type: str,  # noqa: A002 (the public name)
    payload: Any,
    *,
    dedupe_key: str | None = None,
    group: str | None = None,
    priority: int | None = None,
    run_at: dt.datetime | None = None,
    max_age: float | None = None,
) -> Receipt:
    """Accept one job, in the caller's transaction if there is one.

    Units: `max_age` in seconds from the time the job is ready.
    Raises: DedupeConflict, PayloadInvalid, UnknownJobType, TypeDisabled, KeyInvalid, Overloaded.
    """
    item = Item(
        type=type,
        payload=payload,
        dedupe_key=dedupe_key,
        group=group,
        priority=priority,
        run_at=run_at,
        max_age=max_age,
    )
    answer = enqueue_many([item], on_error="return")[0]
    if isinstance(answer, EnqueueError):
        raise answer
    return answer


@overload
def enqueue_many(items: Iterable[Item], *, on_error: Literal["raise"] = "raise") -> list[Receipt]: ...
@overload
def enqueue_many(items: Iterable[Item], *, on_error: Literal["return"]) -> list[Receipt | EnqueueError]: ...
def enqueue_many(
    items: Iterable[Item], *, on_error: Literal["raise", "return"] = "raise"
) -> list[Receipt] | list[Receipt | EnqueueError]:
    """Accept a batch in one statement. With "raise" all or nothing; with "return" each item has its own answer.

    Raises: the first item's error, its `position` set, after the savepoint was rolled back.
    """
    listed = list(items)
    # One item needs no savepoint: either its row is there or not.
    scope = transaction.atomic() if on_error == "raise" and len(listed) > 1 else contextlib.nullcontext()
    with scope:
        answers = _accept(listed)
        if on_error == "raise":
            for position, answer in enumerate(answers):
                if isinstance(answer, EnqueueError):
                    answer.position = position
                    raise answer
    return answers


def accept_probe(name: str, *, key: str) -> Receipt:
    """Accept a probe of a job type, under a key that no other job has: a job like any other, and marked.

    It lives as long as its promise, and no backlog refuses it: it tells what a customer's job would get.
    Raises: EnqueueError, contracts.UnknownContract.
    """
    contract = contracts.current(name)
    answer = _accept(
        [
            Item(
                type=name,
                payload=dict(contract.probe_payload),
                dedupe_key=key,
                # First in, first out holds in a group; a probe waits behind nobody's jobs and holds up none.
                group=key if contract.ordered else None,
                max_age=min(contract.window_seconds, contract.max_age_seconds),
            )
        ],
        probe=True,
    )[0]
    if isinstance(answer, EnqueueError):
        raise answer
    receipt: Receipt = answer
    return receipt


def _accept(items: Sequence[Item], *, probe: bool = False) -> list[Any]:
    answers: list[Receipt | EnqueueError | None] = [None] * len(items)
    new: list[NewJob] = []
    for position, item in enumerate(items):
        try:
            new.append(_prepare(item, position, probe=probe))
        except EnqueueError as error:
            answers[position] = error
    first, repeats = _pair_repeats(new)
    if 0 < len(first) <= PUBLISH_AT_MOST:
        first = [replace(job, publish=_at_once(contracts.current(job.type))) for job in first]
    if not probe and any(contracts.current(job.type).overlap != "none" for job in first):
        _insert_merging(first, answers)
    else:
        _insert(first, answers)
    _answer_repeats(repeats, answers)
    duplicates = Counter(
        items[p].type for p, answer in enumerate(answers) if isinstance(answer, Receipt) and answer.duplicate
    )
    if duplicates:
        lifecycle.count_duplicates(duplicates)
    return answers


def _insert_merging(jobs: Sequence[NewJob], answers: list[Receipt | EnqueueError | None]) -> None:
    """Insert jobs of which new ones take the place of others: all of it or nothing."""
    with transaction.atomic():
        jobs, merges = overlap.begin(jobs)
        _insert(jobs, answers)
        new = [
            (job, answer.job_id)
            for job in jobs
            if isinstance(answer := answers[job.position], Receipt) and not answer.duplicate
        ]
        fault("overlap.inserted")
        lost = overlap.end(merges, new)
    for position, answer in enumerate(answers):
        if isinstance(answer, Receipt) and answer.job_id in lost:
            answers[position] = replace(answer, state=JobState.CANCELLED)


def _at_once(contract: Contract) -> bool:
    """Say whether a new job is published at once; else the stage finds it."""
    # A claim would refuse it, and cost a worker just when workers are short.
    if contract.on_hold:
        return False
    # Behind others of a limited type, or an open breaker, it would only be refused.
    if contract.guarded and (contract.breaker == "open" or contract.name in backlog.waiting_types()):
        return False
    return broker.is_short(contract.queue)


def _pair_repeats(new: Sequence[NewJob]) -> tuple[list[NewJob], list[tuple[NewJob, NewJob]]]:
    """Split a batch into the jobs that name their key first and (repeat, its first) pairs."""
    leaders: dict[tuple[str, str], NewJob] = {}
    first: list[NewJob] = []
    repeats: list[tuple[NewJob, NewJob]] = []
    for job in new:
        leader = job if job.dedupe_key is None else leaders.setdefault((job.type, job.dedupe_key), job)
        if leader is job:
            first.append(job)
        else:
            repeats.append((job, leader))
    return first, repeats


def _answer_repeats(repeats: Sequence[tuple[NewJob, NewJob]], answers: list[Receipt | EnqueueError | None]) -> None:
    unsure: dict[int, NewJob] = {}
    for job, leader in repeats:
        answer = answers[leader.position]
        if isinstance(answer, DedupeConflict) and job.request_hash != leader.request_hash:
            # Its first was refused by an older holder, whose request this one may repeat all the same.
            unsure[job.position] = job
        else:
            answers[job.position] = _answer_repeat(job, leader, answer)
    if unsure:
        _answer_held(unsure, answers)
    for position, job in unsure.items():
        answers[position] = _changes_hands(job)


def _answer_repeat(job: NewJob, leader: NewJob, answer: Receipt | EnqueueError | None) -> Receipt | EnqueueError:
    if isinstance(answer, Receipt):
        if job.request_hash == leader.request_hash:
            return replace(answer, duplicate=True)
        return _conflict(job, answer.job_id)
    return answer or Overloaded("its first in the batch has no answer", pointer="/dedupe_key")


def _insert(jobs: Sequence[NewJob], answers: list[Receipt | EnqueueError | None]) -> None:
    """Fill the answers of jobs that are valid: new, duplicate, conflict or disabled."""
    waiting = {job.position: job for job in jobs}
    for _ in range(ROUNDS):
        if not waiting:
            return
        accepted = lifecycle.insert(list(waiting.values()))
        ready = [(waiting[a.position].type, a.id) for a in accepted if a.ready and waiting[a.position].publish]
        hints = [(contracts.current(name).queue, [job_id]) for name, job_id in ready]
        if hints:
            # Robust: after the commit nothing may look like a failed accept. A function: Django logs its __qualname__.
            transaction.on_commit(_publishing(hints), robust=True)
        for one in accepted:
            answers[one.position] = Receipt(job_id=one.id, state=JobState.ACCEPTED)
            del waiting[one.position]
        for position in [p for p, job in waiting.items() if job.dedupe_key is None]:
            answers[position] = _disabled(waiting.pop(position))
        if waiting:
            _answer_held(waiting, answers)
    for position, job in waiting.items():
        # Its holder came and went ROUNDS times; nothing was stored.
        answers[position] = _changes_hands(job)


def _answer_held(waiting: dict[int, NewJob], answers: list[Receipt | EnqueueError | None]) -> None:
    """Answer jobs whose key is held; leave those in `waiting` whose key has become free."""
    released: list[tuple[str, str, UUID]] = []
    for holder in lifecycle.holders(list(waiting.values())):
        job = waiting[holder.position]
        if holder.id is None:
            # No holder: the type is disabled, or the holder's transaction was rolled back meanwhile.
            contracts.forget()
            if not _enabled(job.type):
                answers[holder.position] = _disabled(waiting.pop(holder.position))
            continue
        if holder.let_go and job.dedupe_key is not None:
            released.append((job.type, job.dedupe_key, holder.id))
            continue
        if holder.same_request:
            answers[holder.position] = Receipt(
                job_id=holder.id,
                state=JobState(holder.state or JobState.EXPIRED),
                duplicate=True,
                evidence=holder.evidence,
                result=holder.result,
            )
        else:
            answers[holder.position] = _conflict(job, holder.id)
        del waiting[holder.position]
    if released:
        lifecycle.let_go(sorted(released))


def _enabled(name: str) -> bool:
    contract = contracts.all_current().get(name)
    return contract is not None and contract.enabled


def _disabled(job: NewJob) -> EnqueueError:
    return TypeDisabled(f"job type {job.type!r} is disabled and takes no jobs", pointer="/type")


def _changes_hands(job: NewJob) -> EnqueueError:
    return Overloaded(f"the key {job.dedupe_key!r} changes hands too fast, try again", pointer="/dedupe_key")


def _conflict(job: NewJob, holder: UUID) -> DedupeConflict:
    return DedupeConflict(
        f"the key {job.dedupe_key!r} was accepted before with another payload or group",
        job_id=holder,
        pointer="/dedupe_key",
    )


def _publishing(hints: Sequence[tuple[str, Sequence[UUID]]]) -> Callable[[], object]:
    def publish() -> None:
        fault("publish.before")
        broker.publish(hints)

    return publish


def _prepare(item: Item, position: int, *, probe: bool = False) -> NewJob:
    """Turn a request into a row. Raises: EnqueueError."""
    try:
        contract = contracts.current(item.type)
    except contracts.UnknownContract:
        raise UnknownJobType(f"there is no job type {item.type!r}", pointer="/type") from None
    if not contract.enabled:
        raise TypeDisabled(f"job type {item.type!r} is disabled and takes no jobs", pointer="/type")
    if not probe and contract.tier in backlog.full_tiers():
        raise Overloaded(f"tier {contract.tier} is over its backlog limit; nothing was stored")
    text, value = read_payload(item.payload, contract)
    _check_numbers(item)
    key = _key(item, contract, value)
    return NewJob(
        position=position,
        type=contract.name,
        contract_version=contract.version,
        tier=contract.tier,
        priority=contract.priority_default if item.priority is None else item.priority,
        payload=text,
        request_hash=canonical.request_hash(value, item.group).hex(),
        dedupe_key=key,
        dedupe_window_seconds=contract.dedupe_window_seconds,
        group=item.group,
        attempt_limit=contract.max_attempts,
        window_seconds=contract.window_seconds,
        max_age_seconds=float(item.max_age if item.max_age is not None else contract.max_age_seconds),
        run_at=item.run_at,
        delay_seconds=None if item.delay_seconds is None else float(item.delay_seconds),
        publish=False,
        trace=None,
        probe=probe,
    )


def read_payload(payload: Any, contract: Contract) -> tuple[str, Any]:
    """Return the text to store and its value, held against the contract. Raises: PayloadInvalid."""
    if not isinstance(payload, (bytes, str)):
        try:
            payload = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise PayloadInvalid(f"the payload is not JSON: {error}", code="invalid_json", pointer="/payload") from None
    size = len(payload) if isinstance(payload, bytes) else len(payload.encode("utf-8", "surrogatepass"))
    if size > contract.max_payload_bytes:
        raise PayloadInvalid(
            f"the payload has {size} bytes, this job type takes {contract.max_payload_bytes}",
            code="payload_too_large",
            pointer="/payload",
        )
    try:
        parsed = canonical.parse(payload)
    except canonical.JsonRefused as refused:
        raise PayloadInvalid(refused.detail, code=refused.code, pointer="/payload" + refused.pointer) from None
    if contract.schema:
        _check_schema(contract, parsed.value)
    return parsed.text, parsed.value


def _check_schema(contract: Contract, value: Any) -> None:
    violations = [
        {"pointer": canonical.json_pointer(["payload", *path]), "message": message}
        for path, message in contract_schema.violations(contract.schema, value)
    ]
    if not violations:
        return
    raise PayloadInvalid(
        f"the payload breaks the contract of {contract.name!r}: {violations[0]['message']}",
        violations=violations,
        pointer=violations[0]["pointer"],
    )


def _check_numbers(item: Item) -> None:
    if item.priority is not None and not -100 <= item.priority <= 100:
        raise PayloadInvalid("priority is from -100 to 100", code="invalid_priority", pointer="/priority")
    if item.max_age is not None and not 0 < item.max_age <= 365 * 86400:
        raise PayloadInvalid(
            "max_age is more than 0 and at most 365 days", code="invalid_max_age", pointer="/max_age_seconds"
        )
    if item.delay_seconds is not None and not 0 <= item.delay_seconds <= HORIZON.total_seconds():
        raise PayloadInvalid(
            f"delay_seconds is from 0 to {HORIZON.total_seconds():.0f}", code="invalid_delay", pointer="/delay_seconds"
        )
    if item.run_at is not None and (item.run_at.tzinfo is None or item.delay_seconds is not None):
        raise PayloadInvalid(
            "run_at needs a time zone and excludes delay_seconds", code="invalid_datetime", pointer="/run_at"
        )
    # A bound of days, not a decision about a job: the process's clock will do.
    if item.run_at is not None and item.run_at > dt.datetime.now(dt.UTC) + HORIZON:
        raise PayloadInvalid(
            f"a job may be put off by {HORIZON.days} days at most", code="invalid_datetime", pointer="/run_at"
        )
    if item.group is not None and not _KEY.fullmatch(item.group):
        raise PayloadInvalid("group is 1 to 255 visible ASCII characters", code="invalid_group", pointer="/group")


def _key(item: Item, contract: Contract, value: Any) -> str | None:
    key = item.dedupe_key
    if key is None and contract.key_template:
        try:
            key = contract_rules.key_from_template(contract.key_template, value)
        except contract_rules.KeyTemplateError as error:
            raise KeyInvalid(str(error), pointer="/payload" + error.pointer) from None
    if key is None:
        if contract.key_required:
            raise KeyInvalid(f"job type {contract.name!r} needs a dedupe key", pointer="/dedupe_key")
        return None
    return check_key(key)


def check_key(key: str) -> str:
    """Return a dedupe key that may be stored. Raises: KeyInvalid."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise KeyInvalid("a dedupe key is 1 to 255 visible ASCII characters", pointer="/dedupe_key")
    return key
