"""Runs and the dependency that their type names: what a run tells of it, and whether its breaker opened meanwhile.

A breaker is judged by what runs tell, and by nothing else. Writing it down is `lifecycle.settle`'s, which also knows
whether the run was a trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from django.db import Error, connection

from queues import contracts
from queues.contracts import Contract
from queues.handlers import NoHandler, RunSuperseded, SoftTimeLimitExceeded
from queues.http_target import SecretMissing, TargetFailed
from queues.lifecycle import End, Verdict
from queues.models import Breaker, Dependency
from queues.outbound import OutboundError, TargetRefused
from queues.states import Reason

OK: Final = "ok"
FAILED: Final = "failed"
SLOW: Final = "slow"
UNUSED: Final = "unused"

_ANSWERED: Final = frozenset({Reason.PERMANENT_ERROR, Reason.REJECTED, Reason.PAYLOAD_INVALID})
"""Why no other attempt may follow, where it is the job's fault: the dependency answered, and it said no."""
_NEVER_ASKED: Final = (NoHandler, SecretMissing, TargetRefused, RunSuperseded)
"""The worker, its configuration or the contract is at fault: one wrong type must not hold the others back."""
_NO_ANSWER: Final = (OSError, OutboundError, SoftTimeLimitExceeded, TargetFailed)
"""Failures also where a contract never retries them, since the effect may have happened."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Units: seconds. `slow` 0: a slow call is no failure."""

    timeout: float
    slow: float


_known: tuple[Mapping[str, Contract], Mapping[str, Bounds]] = ({}, {})


def bounds_of(contract: Contract) -> Bounds | None:
    """Return what its dependency's settings say of a call, as old as contracts are; None: it has none, or no row.

    Asked before the body: what the database answers afterwards must not make a failure of work that was done.
    """
    global _known
    if not contract.dependency:
        return None
    current = contracts.all_current()
    if _known[0] is not current:
        rows = Dependency.objects.values_list("name", "timeout_seconds", "slow_seconds")
        _known = (current, {row[0]: Bounds(timeout=row[1], slow=row[2]) for row in rows})
    return _known[1].get(contract.dependency)


def returned(end: End, contract: Contract, bounds: Bounds | None, *, seconds: float) -> End:
    """Return the end of a run whose body returned after so many seconds, with what it says of its dependency."""
    if not contract.dependency:
        return end
    slow = bounds is not None and 0 < bounds.slow < seconds
    return msgspec.structs.replace(end, called=SLOW if slow else OK)


def raised(end: End, contract: Contract, error: BaseException) -> End:
    """Return the end of a run whose body raised, with what it says of its dependency.

    An answer that no other attempt can help, such as 422, is an answer: the dependency works.
    """
    if not contract.dependency:
        return end
    if isinstance(error, _NEVER_ASKED):
        return msgspec.structs.replace(end, called=UNUSED)
    answered = end.reason in _ANSWERED and not isinstance(error, _NO_ANSWER)
    return msgspec.structs.replace(end, called=OK if answered else FAILED)


def not_run(end: End, contract: Contract) -> End:
    """Return the end of a run that a check decided before its body began: a trial of a breaker is given back.

    Not of one that was put off, since its check could not answer: each would make room for the next at once.
    """
    if not contract.dependency or end.verdict is Verdict.PUT_OFF:
        return end
    return msgspec.structs.replace(end, called=UNUSED)


def known_contracts() -> Mapping[str, Contract]:
    """Return the contracts as they are known here; none when the database does not answer."""
    try:
        return contracts.all_current()
    except Error:
        connection.close()
        return {}


def is_held(name: str, known: Mapping[str, Contract]) -> bool:
    """Say whether the breaker of a type opened since the contracts were known so.

    Those were read right after a claim: while they still count they may be older than it, and the claim knew better.
    """
    current = known_contracts()
    return current is not known and name in current and current[name].breaker == Breaker.OPEN
