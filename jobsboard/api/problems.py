"""Every error of the API as `application/problem+json` (RFC 9457), in one place.

Not here: which error belongs to which call (`jobsboard.api.jobs`).
"""

from __future__ import annotations

import json
import logging
import traceback
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import DatabaseError, InterfaceError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, UnreadablePostError

from jobsboard.api.database import is_transient
from queues.accept import DedupeConflict, EnqueueError, PayloadInvalid
from queues.canonical import JsonRefused
from queues.redaction import redact_text

CONTENT_TYPE: Final = "application/problem+json"
RETRY_AFTER_SECONDS: Final = 5

_log = logging.getLogger(__name__)

_STATUS: Final[dict[str, int]] = {
    "invalid_json": 400,
    "invalid_encoding": 400,
    "dedupe_key_invalid": 400,
    "idempotency_key_mismatch": 400,
    "webhook_id_invalid": 400,
    "unauthorized": 401,
    "signature_invalid": 401,
    "timestamp_out_of_tolerance": 401,
    "missing_scope": 403,
    "unknown_job_type": 404,
    "type_disabled": 409,
    "contradiction": 409,
    "run_superseded": 409,
    "not_retrying": 409,
    "verdict_changed": 409,
    "unsafe_replay": 409,
    "count_changed": 409,
    "not_possible": 409,
    "payload_too_large": 413,
    "overloaded": 429,
    "rate_limited": 429,
}
"""Status by code; every other code that an input can cause is 422."""

_TITLES: Final[dict[str, str]] = {
    "unauthorized": "A valid API key is required",
    "missing_scope": "The key lacks a scope",
    "signature_invalid": "The signature is missing or wrong",
    "timestamp_out_of_tolerance": "The timestamp is missing, wrong or too far from now",
    "unknown_job_type": "Unknown job type",
    "type_disabled": "The job type is disabled",
    "contradiction": "The opposite is known already",
    "run_superseded": "A newer run of the job has begun",
    "not_retrying": "The job does not wait for another attempt",
    "verdict_changed": "What is known about the job has changed",
    "unsafe_replay": "Something speaks against the replay",
    "count_changed": "Another number of jobs is selected now",
    "nothing_selected": "No job is selected",
    "too_many_selected": "Too many jobs are selected",
    "not_possible": "The plan is in another state",
    "dedupe_conflict": "The key was used with another payload",
    "contract_violation": "The payload breaks the contract",
    "dedupe_key_invalid": "The dedupe key is not usable",
    "payload_too_large": "Too large",
    "overloaded": "Too much work is waiting",
    "rate_limited": "The key is over its rate",
    "unavailable": "The database does not answer now",
    "internal_error": "An error on our side",
}


class Problem(Exception):
    """An answer that is an error: code and detail, the place in the request, further members and headers."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        pointer: str = "",
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = status or _STATUS.get(code, 422)
        self.pointer = pointer
        self.headers = dict(headers or {})
        self.members = members

    def as_json(self, request_id: str) -> dict[str, Any]:
        """Return the members of the problem document."""
        return {
            # Not a URL that may rot: a name that never changes.
            "type": f"urn:jobsboard:problem:{self.code}",
            "title": _TITLES.get(self.code) or HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "pointer": self.pointer,
            "request_id": request_id,
            **self.members,
        }


def answer(request: HttpRequest, problem: Problem) -> HttpResponse:
    """Write a problem as the response."""
    body = json.dumps(problem.as_json(request_id(request)), default=str, ensure_ascii=False)
    # A refused text may hold half a character; what cannot be written is written as `?`.
    response = HttpResponse(body.encode(errors="replace"), content_type=CONTENT_TYPE, status=problem.status)
    for name, value in problem.headers.items():
        response[name] = value
    return response


def unauthorized() -> Problem:
    """Return the one answer to every wrong, missing, revoked or expired key."""
    return Problem(
        "unauthorized",
        "Send a valid key in the header: Authorization: Bearer jb_live_…",
        headers={"WWW-Authenticate": 'Bearer realm="jobsboard"'},
    )


def unknown_job_type() -> Problem:
    """Return the one answer for a type that does not exist and for one that the key may not use."""
    return Problem("unknown_job_type", "There is no job type of this name.", pointer="/type")


def unknown_job() -> Problem:
    """Return the one answer for a job that does not exist, one that is closed to the key, and a token of none."""
    return Problem("unknown_job", "There is no job of this id.", status=404)


def of_exception(error: BaseException) -> Problem:
    """Translate whatever a view raised."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, EnqueueError):
        return _of_enqueue_error(error)
    if isinstance(error, JsonRefused):
        return Problem(error.code, error.detail, pointer=error.pointer)
    if isinstance(error, (DatabaseError, InterfaceError)):
        return _of_database_error(error)
    if isinstance(error, Http404):
        return Problem("not_found", "There is nothing at this address.", status=404)
    if isinstance(error, PermissionDenied):
        return Problem("forbidden", "This is not allowed.", status=403)
    if isinstance(error, (SuspiciousOperation, UnreadablePostError)):
        return Problem("bad_request", "The request could not be read.", status=400)
    _log.error("The API failed: %s", _redacted(error))
    return Problem("internal_error", "The request id names the error in our log.", status=500)


def of_response(response: HttpResponseBase) -> Problem:
    """Translate an error, or a redirect, that something beneath the API's views answered."""
    status = response.status_code
    if status < 400:
        # A client would send a redirected POST again as GET: the job would be lost with a 2xx (H-21).
        return Problem("https_required", "The API does not redirect. Use the https address.", status=400)
    headers = {name: response[name] for name in ("Allow", "Retry-After") if response.has_header(name)}
    if status == 405:
        return Problem("method_not_allowed", "This address does not take this method.", status=405, headers=headers)
    phrase = HTTPStatus(status).phrase
    return Problem(phrase.lower().replace(" ", "_"), f"{phrase}.", status=status, headers=headers)


def request_id(request: HttpRequest) -> str:
    """Return the id of the request, also where the middleware did not come to give one."""
    given: str = getattr(request, "request_id", "")
    return given or uuid.uuid4().hex


def _redacted(error: BaseException) -> str:
    """Return a traceback without what PostgreSQL tells of the row: `DETAIL` would put payloads into the log."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return redact_text("\n".join(line for line in lines if not line.startswith(("DETAIL:", "CONTEXT:"))))


def _of_enqueue_error(error: EnqueueError) -> Problem:
    if error.code == "unknown_job_type":
        return unknown_job_type()
    if isinstance(error, PayloadInvalid) and error.violations:
        return Problem(error.code, error.detail, pointer=error.pointer, violations=error.violations)
    if isinstance(error, DedupeConflict) and error.job_id is not None:
        return Problem(error.code, error.detail, pointer=error.pointer, job_id=str(error.job_id))
    if error.code == "overloaded":
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return Problem(error.code, error.detail, pointer=error.pointer, headers=headers, retryable=True)
    return Problem(error.code, error.detail, pointer=error.pointer)


def _of_database_error(error: DatabaseError | InterfaceError) -> Problem:
    if is_transient(error):
        _log.warning("The database did not take a request: %s", type(error).__name__)
        return Problem(
            "unavailable",
            "The database does not take this now. Send it again with the same key.",
            status=503,
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            retryable=True,
        )
    _log.error("The database refused a statement: %s", _redacted(error))
    return Problem("internal_error", "The request id names the error in our log.", status=500, retryable=False)
