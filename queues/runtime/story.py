"""What is told of a run, its checks and its results: text and JSON that PostgreSQL takes, redacted and capped."""

import logging
import traceback
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import msgspec

from queues import redaction
from queues.fingerprint import fingerprint

log = logging.getLogger(__name__)

TRACEBACK_CHARACTERS: Final = 16_384
MESSAGE_CHARACTERS: Final = 2_000
RAW_CHARACTERS: Final = 65_536
"""What of an error is looked at at all; redaction of twenty megabytes would hold the worker for seconds."""
RESULT_BYTES: Final = 65_536
REF_CHARACTERS: Final = 1_000
_PLACES_OF_OTHERS: Final = ("site-packages", "/lib/python", "/queues/", "<frozen")


@dataclass(frozen=True, kw_only=True)
class Story:
    """An error as it is stored. `failure` is {error_class, message, traceback}."""

    failure: dict[str, Any]
    fingerprint: str


def of_error(error: BaseException, *, type: str, reason: str = "") -> Story:  # noqa: A002 (the job's type)
    """Tell an error without keeping it: exception objects hold their frames, and those hold locals."""
    name = error.__class__.__qualname__
    message = clean(redaction.redact_text(_words(error)))[:MESSAGE_CHARACTERS]
    text = "".join(traceback.format_exception(error, limit=-40))
    failure = {
        "error_class": clean(name)[:200],
        "message": message,
        "traceback": clean(redaction.redact_text(text[-RAW_CHARACTERS:]))[-TRACEBACK_CHARACTERS:],
    }
    frame = _application_frame(error)
    return Story(
        failure=failure,
        fingerprint=fingerprint(type, reason=reason, error_class=name, message=message, frame=frame),
    )


def _words(error: BaseException) -> str:
    try:
        return str(error)[:RAW_CHARACTERS]
    except Exception:  # a handler's exception class may be broken; its job needs an end all the same
        return "(this exception cannot be printed)"


def _application_frame(error: BaseException) -> str:
    """Return `module:function` of the innermost frame that is neither a library's nor ours."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        if not any(place in frame.f_code.co_filename for place in _PLACES_OF_OTHERS):
            return f"{frame.f_globals.get('__name__', '')}:{frame.f_code.co_name}"
    return ""


def json_result(job_id: UUID, result: Any) -> Any:
    """Return the result as plain JSON values, or None when it is not JSON: the outcome stands all the same."""
    if result is None:
        return None
    try:
        text = msgspec.json.encode(result)
        if len(text) > RESULT_BYTES:
            raise ValueError(f"{len(text)} bytes, {RESULT_BYTES} are kept")
        return clean_values(redaction.redact(msgspec.json.decode(text), pointers=()))
    except (TypeError, ValueError, UnicodeError, msgspec.MsgspecError, RecursionError) as error:
        log.warning("job %s: its result is not kept: %s", job_id, error)
        return None


def clean(text: str) -> str:
    """Return text that PostgreSQL takes: no NUL and no lone surrogates, written out instead."""
    text = text.replace("\x00", "\\x00")
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def clean_values(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): clean_values(child) for key, child in value.items()}
    if isinstance(value, list):
        return [clean_values(child) for child in value]
    return value


def evidence(kind: str, ref: str | None) -> dict[str, Any]:
    """Return evidence as it is stored, of a clean reference; the statement adds when, and of which run."""
    return {"kind": kind, "ref": ref, "late": False}


def reference(ref: Any) -> str | None:
    """Return a reference as it is stored, or None when there is none."""
    return clean(str(ref))[:REF_CHARACTERS] if ref else None
