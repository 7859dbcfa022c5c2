"""Run one job's handler and say how the run ended. Claiming and writing ends is `chunk`'s."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus

from queues import contracts, handlers, http_target, lifecycle, outbound, retry
from queues.contracts import Contract
from queues.faults import fault
from queues.fingerprint import fingerprint
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext, RunSuperseded
from queues.lifecycle import End, Run, Verdict
from queues.runtime import calls, checks, limits, story
from queues.runtime.calls import Bounds
from queues.states import JobState, Reason

log = logging.getLogger(__name__)

NO_CONTRACT_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended. `written`: an atomic handler's end is in the database with its effects already."""

    end: End
    written: bool = False


class _Undo(Exception):
    """Rolls an atomic handler's writes back: it returned, but its run has failed."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end


def execute(run: Run, context: JobContext, *, begin: Callable[[float], None]) -> Ended:
    """Run the check, where one is due, and the body. Every exception of a handler becomes an End; nothing is raised.

    `begin` is told the hard limit in seconds (0: none) right before the first of them.
    """
    started = time.perf_counter()
    try:
        contract = contracts.of_version(run.type, run.contract_version)
        bounds = calls.bounds_of(contract)
    except Exception as error:  # without its contract a job cannot be judged; it costs this attempt only
        log.exception("job %s: its contract cannot be read", run.id)
        return Ended(end=_failed(run, error, None, started))
    connection = connections["default"]
    was_atomic = connection.in_atomic_block
    begin(float(contract.hard_limit_seconds))
    try:
        known = _ask_first(run, context, contract, started)
        if known is not None:
            return Ended(end=calls.not_run(known, contract))
        if _is_atomic(contract):
            return Ended(end=_run_atomic(run, context, contract, bounds, started), written=True)
        return Ended(end=_run_body(run, context, contract, bounds, started))
    except _Undo as undo:
        return Ended(end=undo.end)
    except BaseException as error:  # also asyncio's CancelledError: a body that ended has an end
        return Ended(end=calls.raised(_failed(run, error, contract, started), contract, error))
    finally:
        if not was_atomic and _left_open(connection):
            _discard(connection)


def _ask_first(run: Run, context: JobContext, contract: Contract, started: float) -> End | None:
    """Ask the world before a run that may repeat an effect. None: nothing is known, so run."""
    if not context.maybe_duplicate:
        return None
    check = checks.find(contract)
    if check is None and contract.success != "check":
        return None
    finding = checks.missing(context) if check is None else checks.ask(check, context, contract)
    seconds = time.perf_counter() - started
    if finding.outcome == "none":
        return None
    if finding.outcome == "confirmed":
        return End(
            id=run.id, fence=run.fence, verdict=Verdict.CONFIRMED, evidence=finding.evidence, result=finding.result,
            seconds=seconds,
        )  # fmt: skip
    told = finding.told
    if finding.outcome == "rejected":
        return End(
            id=run.id, fence=run.fence, verdict=Verdict.FAILED, reason=Reason.REJECTED.value, seconds=seconds,
            failure=told.failure if told else None, fingerprint=told.fingerprint if told else None,
        )  # fmt: skip
    first = run.check_failures == 0
    return End(
        id=run.id,
        fence=run.fence,
        verdict=Verdict.PUT_OFF,
        retry_in=checks.put_off_seconds(run.check_failures, finding, contract),
        failure=told.failure if told and first else None,
        fingerprint=told.fingerprint if told and first else None,
        seconds=seconds,
    )


def _is_atomic(contract: Contract) -> bool:
    return contract.handler != "http" and handlers.find(contract.name).atomic


def _run_atomic(run: Run, context: JobContext, contract: Contract, bounds: Bounds | None, started: float) -> End:
    """Commit what the handler wrote together with the end of its run, or neither.

    Raises: _Undo with the end of a run that failed without an exception; RunSuperseded; what the handler or the commit
    raised. If that commit arrived all the same, the end that follows from the exception finds the run ended.
    """
    with transaction.atomic():
        _allow_idle(contract.hard_limit_seconds)
        end = _run_body(run, context, contract, bounds, started)
        if end.verdict is Verdict.FAILED:
            raise _Undo(end)
        state = lifecycle.settle([end]).get((run.id, run.fence))
        if state is None:
            raise RunSuperseded(f"job {run.id}: run {run.fence} is no longer the job's; its writes are rolled back")
        if state not in (JobState.CONFIRMED, JobState.AWAITING_CONFIRMATION):
            # Cancelled or rejected meanwhile: the same end is written again, without the writes.
            raise _Undo(end)
    return end


def _run_body(run: Run, context: JobContext, contract: Contract, bounds: Bounds | None, started: float) -> End:
    began = time.perf_counter()
    outcome = _call(context, contract, bounds)
    seconds = time.perf_counter() - began
    return calls.returned(_judge(run, outcome, contract, started), contract, bounds, seconds=seconds)


def _allow_idle(hard_limit: int) -> None:
    """Let a handler that works outside the database keep its transaction as long as its contract lets it run."""
    if hard_limit:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT set_config('idle_in_transaction_session_timeout', %s, true)", [f"{hard_limit + 5}s"])


def _left_open(connection: BaseDatabaseWrapper) -> bool:
    """Say whether a handler left a transaction open, by Django's means or by a BEGIN of its own.

    The end of the run, and every later claim of this process, would be written into it and lost with it.
    """
    raw = connection.connection
    if raw is None:
        return connection.in_atomic_block
    if connection.in_atomic_block or not connection.autocommit:
        return True
    return bool(raw.info.transaction_status != TransactionStatus.IDLE)


def _discard(connection: BaseDatabaseWrapper) -> None:
    """Throw a connection away with its transaction; Django's close() would keep the wrapper inside the dead one."""
    log.warning("a handler left a transaction open; it is rolled back")
    raw, connection.connection = connection.connection, None
    connection.in_atomic_block = connection.needs_rollback = connection.closed_in_transaction = False
    connection.savepoint_ids, connection.atomic_blocks, connection.run_on_commit = [], [], []
    if raw is not None:
        raw.close()


def _call(context: JobContext, contract: Contract, bounds: Bounds | None) -> Any:
    outcome: Any
    fault("body.before")
    with limits.soft_limit(contract.soft_limit_seconds):
        if contract.handler == "http":
            seconds = min(bounds.timeout, outbound.TOTAL_SECONDS) if bounds else None
            outcome = http_target.deliver(context, contract, seconds=seconds)
        else:
            outcome = handlers.find(context.type).function(context)
    fault("body.after")
    return outcome


def _judge(run: Run, outcome: Any, contract: Contract, started: float) -> End:
    """Hold what the handler returned against the contract's success condition (DESIGN.md section 5)."""
    seconds = time.perf_counter() - started
    ref = story.reference(outcome.ref) if isinstance(outcome, (Confirmed, AwaitingConfirmation)) else None
    result = story.json_result(run.id, outcome.result) if isinstance(outcome, Confirmed) else None
    if contract.success in ("callback", "check"):
        return _awaiting(run, contract, ref=ref, result=result, seconds=seconds)
    proven = isinstance(outcome, Confirmed) and ref is not None
    if contract.success == "reference" and not proven:
        if contract.on_unconfirmed == "check_again":
            return _awaiting(run, contract, ref=ref, result=result, seconds=seconds)
        return _unconfirmed(run, outcome, contract, seconds)
    return End(
        id=run.id,
        fence=run.fence,
        verdict=Verdict.CONFIRMED,
        evidence=story.evidence(contract.success, ref),
        result=result,
        seconds=seconds,
    )


def _awaiting(run: Run, contract: Contract, *, ref: str | None, result: Any, seconds: float) -> End:
    """The handler's word is no proof: a callback or a check decides, until its deadline or, checked again, max age."""
    again = contract.on_unconfirmed == "check_again"
    polled = contract.success != "callback"
    return End(
        id=run.id,
        fence=run.fence,
        verdict=Verdict.AWAITING,
        result=result,
        reference=ref,
        confirm_in=None if again else float(contract.confirm_within_seconds),
        act_in=float(contract.check_every_seconds if polled else contract.confirm_within_seconds),
        polled=polled or again,
        # In case that a rejection waits in the row.
        retry_in=_delay(run, contract),
        seconds=seconds,
    )


def _unconfirmed(run: Run, outcome: Any, contract: Contract, seconds: float) -> End:
    """A run without its evidence is unconfirmed, not failed: what went out must not go out five times."""
    said = "handed over, no confirmation yet" if isinstance(outcome, AwaitingConfirmation) else "no reference"
    failure = {
        "error_class": "Unconfirmed",
        "message": f"the handler returned ({said}), and the contract wants a reference as evidence",
        "traceback": "",
    }
    again = contract.on_unconfirmed == "retry"
    return End(
        id=run.id,
        fence=run.fence,
        verdict=Verdict.FAILED,
        reason=None if again and run.attempt < contract.max_attempts else Reason.NO_EVIDENCE.value,
        retry_in=_delay(run, contract),
        failure=failure,
        fingerprint=fingerprint(run.type, reason="no_evidence", error_class="Unconfirmed", message="", frame=""),
        seconds=seconds,
        on_stale=contract.on_stale,
        unknown=True,
    )


def _delay(run: Run, contract: Contract) -> float:
    return retry.delay(
        run.attempt,
        backoff=contract.backoff,
        base=contract.backoff_base_seconds,
        cap=contract.backoff_cap_seconds,
        jitter=contract.jitter,
        draw=random.random,
    )


def _failed(run: Run, error: BaseException, contract: Contract | None, started: float) -> End:
    reason = _final_reason(run, error, contract)
    retry_in = _delay(run, contract) if contract is not None else NO_CONTRACT_SECONDS
    if isinstance(error, handlers.RetryLater):
        retry_in = error.seconds
    told = story.of_error(error, type=run.type, reason=reason or "")
    return End(
        id=run.id,
        fence=run.fence,
        verdict=Verdict.FAILED,
        reason=reason,
        retry_in=retry_in,
        failure=told.failure,
        fingerprint=told.fingerprint,
        seconds=time.perf_counter() - started,
        on_stale=contract.on_stale if contract is not None else "expire",
        unknown=isinstance(error, handlers.SoftTimeLimitExceeded) or getattr(error, "may_have_arrived", False) is True,
    )


def _final_reason(run: Run, error: BaseException, contract: Contract | None) -> str | None:
    """Return why no other attempt may follow, or None."""
    if isinstance(error, handlers.PermanentError):
        return Reason.PERMANENT_ERROR.value
    if isinstance(error, handlers.Rejected):
        return Reason.REJECTED.value
    if isinstance(error, handlers.StepInvalid):
        # Its step was done, perhaps: another attempt would do it again, and fail again.
        return Reason.PERMANENT_ERROR.value
    if contract is None:
        return None
    last = run.attempt >= contract.max_attempts
    if isinstance(error, handlers.SoftTimeLimitExceeded) and last:
        return Reason.TIME_LIMIT.value
    if isinstance(error, handlers.NoHandler):
        # A worker of the old release during a deploy: the retries give the new one its chance.
        return Reason.NO_HANDLER.value if last else None
    if any(kind.__name__ in contract.never_retry for kind in type(error).__mro__):
        return Reason.PERMANENT_ERROR.value
    return None


def released(run: Run) -> End:
    """Return the end of a run whose body never began."""
    return End(id=run.id, fence=run.fence, verdict=Verdict.RELEASED)
