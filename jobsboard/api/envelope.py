"""Bodies: size and type first, then the envelope, with every payload cut out unchanged; and writing an answer.

Not here: the payload itself, which `queues.accept` reads as strictly; what the fields mean (`jobsboard.api.jobs`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from jobsboard import slow_bodies
from jobsboard.api.keys import Key
from jobsboard.api.problems import Problem, request_id
from queues import canonical

ONE_MAX: Final = 1024 * 1024
BATCH_MAX: Final = 16 * 1024 * 1024
REASON_MAX: Final = 1000
_CHUNK: Final = 64 * 1024

_PLACE: Final = re.compile(r"(.*) - at `\$?(.*)`\Z", re.DOTALL)
_PATH: Final = re.compile(r"\.([^.\[]+)|\[(\d+)\]")

_T = TypeVar("_T", bound=msgspec.Struct)


class OneJob(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /jobs`, and one item of a batch."""

    type: str
    payload: msgspec.Raw
    dedupe_key: str | None = None
    group: str | None = None
    priority: int | None = None
    # Any: a number or an object here is a bad time, said so by the reader of times.
    run_at: Any = None
    delay_seconds: float | None = None
    max_age_seconds: float | None = None


class Batch(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /jobs/batch`; each item is read on its own, so that one bad one spoils no other."""

    jobs: list[msgspec.Raw]


class Cancel(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a cancel."""

    reason: str


class Replay(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a replay. `payload` and `dedupe_key` are what an edit changes; `verdict` is what was seen."""

    reason: str
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    dedupe_key: str | None = None
    verdict: str | None = None


class Confirmation(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a confirm, and of the callback that a token opens."""

    outcome: Literal["confirmed", "rejected"]
    ref: str | None = None
    detail: str | None = None
    retryable: bool = False
    run: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None


class ProviderCallback(Confirmation, forbid_unknown_fields=True):
    """The body of a provider's callback: it names the job by id, or by the reference that the provider gave."""

    job_id: str | None = None


def read_body(request: HttpRequest, *, limit: int) -> bytes:
    """Return the body. Raises: Problem 413 above the limit, 415 for what is not JSON, 411 where its end is unknown."""
    check_type(request)
    return read_bytes(request, limit=limit)


def check_type(request: HttpRequest) -> None:
    """Refuse what does not say that it is JSON. Raises: Problem 415."""
    if request.content_type != "application/json":
        raise Problem("unsupported_media_type", "Send application/json.", status=415)
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Problem("unsupported_media_type", "Send the body without a content encoding.", status=415)


def read_bytes(request: HttpRequest, *, limit: int) -> bytes:
    """Return the body as it came.

    Raises: Problem 413 above the limit, 411 where its end is unknown, 400 where it ends early, 408 where it is late.
    """
    announced = request.META.get("CONTENT_LENGTH") or "0"
    if announced.isdigit() and int(announced[:20]) > limit:
        raise _too_large(limit)
    stream: Any = request
    if "chunked" in request.headers.get("Transfer-Encoding", "").lower():
        # Django takes a missing Content-Length for an empty body; the server knows where a chunked one ends.
        if not request.META.get("wsgi.input_terminated"):
            raise Problem("length_required", "Send a Content-Length.", status=411)
        stream = request.META["wsgi.input"]
    pieces: list[bytes] = []
    size = 0
    while piece := _read_some(request, stream, min(_CHUNK, limit + 1 - size)):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
    if stream is request and size != int(announced):
        # What came may be whole JSON all the same, and not what the client meant to send.
        raise _cut_short(request)
    return b"".join(pieces)


def _read_some(request: HttpRequest, stream: Any, size: int) -> bytes:
    try:
        piece: bytes = stream.read(size)
    except Exception:  # each server has errors of its own for a client that went away, or for chunks that are none
        raise _cut_short(request) from None
    return piece


def _cut_short(request: HttpRequest) -> Problem:
    if slow_bodies.is_late(request):
        detail = f"The body did not come within {settings.REQUEST_BODY_SECONDS} seconds."
        return Problem("request_timeout", detail, status=408, headers={"Connection": "close"})
    return Problem("bad_request", "The body could not be read to its end.", status=400)


def read(body: bytes, shape: type[_T]) -> _T:
    """Read an envelope strictly: no unknown field, no field twice, nothing that `queues.canonical` refuses.

    Raises: Problem, JsonRefused.
    """
    try:
        found = msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        # The slow reader says what is wrong with the text, with line and column; else it is the shape.
        canonical.parse(body)
        raise _misshapen(error) from None
    canonical.parse(_skeleton(body, _raws(found)))
    return found


def read_why(request: HttpRequest, *, key: Key) -> dict[str, str]:
    """Read who acts and why. Raises: Problem."""
    return why(request, read(read_body(request, limit=ONE_MAX), Cancel).reason, key=key)


def read_replay(request: HttpRequest, *, key: Key) -> tuple[dict[str, str], Replay]:
    """Read who replays and why, and what is to be different. Raises: Problem."""
    found = read(read_body(request, limit=ONE_MAX), Replay)
    return why(request, found.reason, key=key), found


def why(request: HttpRequest, reason: str, *, key: Key) -> dict[str, str]:
    """Return who acts and why. Raises: Problem 422 without a reason, or with one that is too long."""
    if not reason.strip() or len(reason) > REASON_MAX:
        raise Problem("invalid_request", f"reason has 1 to {REASON_MAX} characters.", pointer="/reason")
    return {"actor": key.actor, "reason": reason, "source": "api", "request_id": request_id(request)}


def answer(value: Any, *, status: int = 200) -> HttpResponse:
    """Write an answer as JSON."""
    return HttpResponse(msgspec.json.encode(value), content_type="application/json", status=status)


def _skeleton(body: bytes, raws: Iterable[bytes]) -> bytes:
    """Return the body with each cut out value replaced by 0, so that only the envelope is read twice.

    An equal text before the true place may be cut instead. Then the true one stays and is read: slower, never
    less strict. Texts, numbers and words stay, since they could be found as a key or inside of one.
    """
    pieces: list[bytes] = []
    done = 0
    for raw in raws:
        if raw[:1] in (b"{", b"["):
            start = body.index(raw, done)
            pieces += [body[done:start], b"0"]
            done = start + len(raw)
    return b"".join([*pieces, body[done:]])


def _raws(found: msgspec.Struct) -> list[bytes]:
    if isinstance(found, Batch):
        return [bytes(raw) for raw in found.jobs]
    payload = getattr(found, "payload", None)
    return [bytes(payload)] if isinstance(payload, msgspec.Raw) else []


def _misshapen(error: Exception) -> Problem:
    text, _, place = str(error), "", ""
    found = _PLACE.fullmatch(text)
    if found:
        text, place = found[1], found[2]
    pointer = canonical.json_pointer([name or index for name, index in _PATH.findall(place)])
    return Problem("invalid_request", f"{text}.", pointer=pointer)


def _too_large(limit: int) -> Problem:
    return Problem("payload_too_large", f"The body may have {limit} bytes.", limit=limit)
