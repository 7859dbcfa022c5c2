"""Ask the world: the check of a job type, before another run or while its proof is awaited.

Not here: when a check is due (`lifecycle.check`, the scheduler's `confirmations`) and what its answer does to the row.
"""

import random
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from queues import contracts, handlers, http_target, retry
from queues.contracts import Contract
from queues.handlers import Check, Confirmed, JobContext, NoCheck, Rejected, RetryLater
from queues.lifecycle import CheckEnd, DueCheck
from queues.runtime import limits, story
from queues.runtime.context import context_of

CHECK_SECONDS: Final = 30.0
"""A check may take no longer, whatever its contract allows the job."""
LESS_OFTEN: Final = 0.1
"""Past its deadline a check waits for this share of the time that it has waited already, at most LONGEST_WAIT."""
LONGEST_WAIT: Final = 3600.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check said. `none`: not so far; `failed`: it could not find out. Units: `wait` in seconds."""

    outcome: Literal["confirmed", "rejected", "none", "failed"]
    evidence: dict[str, Any] | None = None
    result: Any = None
    told: story.Story | None = None
    wait: float | None = None


def find(contract: Contract) -> Check | None:
    """Return the check of a type: the registered function, else the contract's address."""
    check = handlers.find_check(contract.name)
    if check is None and contract.check_url:
        return partial(http_target.ask, contract=contract)
    return check


def ask(check: Check, context: JobContext, contract: Contract, *, seconds: float = CHECK_SECONDS) -> Finding:
    """Ask, at most so many seconds, and turn whatever comes back into a finding; nothing is raised."""
    try:
        with limits.soft_limit(min(contract.soft_limit_seconds or seconds, seconds)):
            answer = check(context)
        if isinstance(answer, Rejected):
            raise answer
        if answer is None:
            return Finding(outcome="none")
        if not isinstance(answer, Confirmed):
            raise TypeError(f"a check returns Confirmed, Rejected or None, not {type(answer).__name__}")
    except Rejected as error:
        return Finding(outcome="rejected", told=story.of_error(error, type=context.type, reason="rejected"))
    except BaseException as error:  # a check that fails must end like one that answers
        wait = error.seconds if isinstance(error, RetryLater) else None
        return Finding(outcome="failed", told=story.of_error(error, type=context.type), wait=wait)
    ref = story.reference(answer.ref) or context.reference
    return Finding(
        outcome="confirmed",
        evidence=story.evidence("check", ref),
        result=story.json_result(context.id, answer.result),
    )


def poll(due: DueCheck) -> CheckEnd:
    """Ask a claimed check of an awaiting job, and say what follows."""
    try:
        contract = contracts.of_version(due.type, due.contract_version)
    except Exception as error:  # its contract cannot be read now; it is asked again
        told = story.of_error(error, type=due.type)
        return _end(due, Finding(outcome="failed", told=told), next_in=CHECK_SECONDS, otherwise="dead")
    check = find(contract)
    finding = missing(context_of(due)) if check is None else ask(check, context_of(due), contract)
    otherwise = "retry" if contract.on_unconfirmed == "retry" else "dead"
    return _end(due, finding, next_in=_next(due, finding, contract), otherwise=otherwise)


def missing(context: JobContext) -> Finding:
    """Say that this worker knows no check, though the contract wants one."""
    error = NoCheck(f"no check is registered for {context.type!r}, and its contract has no check_url")
    return Finding(outcome="failed", told=story.of_error(error, type=context.type))


def put_off_seconds(failures: int, finding: Finding, contract: Contract) -> float:
    """Return how long an attempt waits whose check could not answer."""
    return max(1.0, _backoff(failures + 1, contract) if finding.wait is None else finding.wait)


def _next(due: DueCheck, finding: Finding, contract: Contract) -> float:
    wait = float(contract.check_every_seconds)
    if due.waited > contract.confirm_within_seconds:
        wait = max(wait, min(due.waited * LESS_OFTEN, LONGEST_WAIT))
    if finding.outcome == "failed":
        wait = max(wait, finding.wait or _backoff(due.check_failures + 1, contract))
    return max(1.0, wait)


def _end(due: DueCheck, finding: Finding, *, next_in: float, otherwise: str) -> CheckEnd:
    # Of checks that fail in a row only the first is told: the list of failures is short.
    tell = finding.outcome == "rejected" or due.check_failures == 0
    told = finding.told if tell else None
    return CheckEnd(
        id=due.id,
        fence=due.fence,
        due_at=due.due_at,
        outcome=finding.outcome,
        evidence=finding.evidence,
        result=finding.result,
        failure=told.failure if told else None,
        fingerprint=told.fingerprint if told else None,
        next_in=next_in,
        otherwise=otherwise,
    )


def _backoff(number: int, contract: Contract) -> float:
    return retry.delay(
        number,
        backoff=contract.backoff,
        base=contract.backoff_base_seconds,
        cap=contract.backoff_cap_seconds,
        jitter=contract.jitter,
        draw=random.random,
    )
