"""Run one job's handler and say how the run ended. Claiming and writing ends is `chunk`'s."""

import logging
import random
import time
import traceback
from typing import Any, Final

import msgspec
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus

from queues import contracts, handlers, http_target, redaction, retry
from queues.contracts import Contract
from queues.fingerprint import fingerprint
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext
from queues.lifecycle import End, Run, Verdict
from queues.states import Reason

log = logging.getLogger(__name__)

TRACEBACK_CHARACTERS: Final = 16_384
MESSAGE_CHARACTERS: Final = 2_000
RAW_CHARACTERS: Final = 65_536
"""What of an error is looked at at all; redaction of twenty megabytes would hold the worker for seconds."""
RESULT_BYTES: Final = 65_536
REF_CHARACTERS: Final = 1_000
_PLACES_OF_OTHERS: Final = ("site-packages", "/lib/python", "/queues/", "<frozen")


def execute(run: Run, context: JobContext) -> End:
    """Run the body. Every exception of a handler becomes an End; nothing is raised."""
    started = time.perf_counter()
    try:
        contract = contracts.of_version(run.type, run.contract_version)
    except Exception as error:  # without its contract a job cannot be judged; it costs this attempt only
        log.exception("job %s: its contract cannot be read", run.id)
        return _failed(run, error, None, started)
    connection = connections["default"]
    was_atomic = connection.in_atomic_block
    try:
        return _judge(run, _call(context, contract), contract, started)
    except BaseException as error:  # also asyncio's CancelledError: a body that ended has an end
        return _failed(run, error, contract, started)
    finally:
        if not was_atomic and _left_open(connection):
            _discard(connection)


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


def _call(context: JobContext, contract: Contract) -> Any:
    if contract.handler == "http":
        return http_target.deliver(context, contract)
    return handlers.find(context.type)(context)


def _judge(run: Run, outcome: Any, contract: Contract, started: float) -> End:
    """Hold what the handler returned against the contract's success condition (DESIGN.md section 5)."""
    seconds = time.perf_counter() - started
    ref = outcome.ref if isinstance(outcome, Confirmed) else None
    result = _json_result(run, outcome.result) if isinstance(outcome, Confirmed) else None
    if contract.success == "return":
        evidence = {"kind": "return", "ref": clean(str(ref))[:REF_CHARACTERS] if ref else None, "late": False}
    elif ref:
        evidence = {"kind": "reference", "ref": clean(str(ref))[:REF_CHARACTERS], "late": False}
    else:
        return _unconfirmed(run, outcome, contract, seconds)
    return End(id=run.id, fence=run.fence, verdict=Verdict.CONFIRMED, evidence=evidence, result=result, seconds=seconds)


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
    retry_in = _delay(run, contract) if contract is not None else 5.0
    if isinstance(error, handlers.RetryLater):
        retry_in = error.seconds
    name = type(error).__qualname__
    message = clean(redaction.redact_text(_words(error)))[:MESSAGE_CHARACTERS]
    frame = _application_frame(error)
    # Exception objects keep their frames and those keep locals; only text leaves this function.
    text = "".join(traceback.format_exception(error, limit=-40))
    return End(
        id=run.id,
        fence=run.fence,
        verdict=Verdict.FAILED,
        reason=reason,
        retry_in=retry_in,
        failure={
            "error_class": clean(name)[:200],
            "message": message,
            "traceback": clean(redaction.redact_text(text[-RAW_CHARACTERS:]))[-TRACEBACK_CHARACTERS:],
        },
        fingerprint=fingerprint(run.type, reason=reason or "", error_class=name, message=message, frame=frame),
        seconds=time.perf_counter() - started,
        on_stale=contract.on_stale if contract is not None else "expire",
    )


def _words(error: BaseException) -> str:
    try:
        return str(error)[:RAW_CHARACTERS]
    except Exception:  # a handler's exception class may be broken; its job needs an end all the same
        return "(this exception cannot be printed)"


def _final_reason(run: Run, error: BaseException, contract: Contract | None) -> str | None:
    """Return why no other attempt may follow, or None."""
    if isinstance(error, handlers.PermanentError):
        return Reason.PERMANENT_ERROR.value
    if isinstance(error, handlers.Rejected):
        return Reason.REJECTED.value
    if contract is None:
        return None
    if isinstance(error, handlers.NoHandler):
        # A worker of the old release during a deploy: the retries give the new one its chance.
        return Reason.NO_HANDLER.value if run.attempt >= contract.max_attempts else None
    if any(kind.__name__ in contract.never_retry for kind in type(error).__mro__):
        return Reason.PERMANENT_ERROR.value
    return None


def _application_frame(error: BaseException) -> str:
    """Return `module:function` of the innermost frame that is neither a library's nor ours."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        if not any(place in frame.f_code.co_filename for place in _PLACES_OF_OTHERS):
            return f"{frame.f_globals.get('__name__', '')}:{frame.f_code.co_name}"
    return ""


def _json_result(run: Run, result: Any) -> Any:
    """Return the result as plain JSON values, or None when it is not JSON: the outcome stands all the same."""
    if result is None:
        return None
    try:
        text = msgspec.json.encode(result)
        if len(text) > RESULT_BYTES:
            raise ValueError(f"{len(text)} bytes, {RESULT_BYTES} are kept")
        return _clean_values(redaction.redact(msgspec.json.decode(text), pointers=()))
    except (TypeError, ValueError, UnicodeError, msgspec.MsgspecError, RecursionError) as error:
        log.warning("job %s: its result is not kept: %s", run.id, error)
        return None


def clean(text: str) -> str:
    """Return text that PostgreSQL takes: no NUL and no lone surrogates, written out instead."""
    text = text.replace("\x00", "\\x00")
    return text.encode("utf-8", "backslashreplace").decode()


def _clean_values(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): _clean_values(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_clean_values(child) for child in value]
    return value


def released(run: Run) -> End:
    """Return the end of a run whose body never began."""
    return End(id=run.id, fence=run.fence, verdict=Verdict.RELEASED)
