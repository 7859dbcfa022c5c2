"""What is answered to bytes that never became a request: gunicorn's own errors as problem documents instead of HTML.

Not here: requests that Django sees (`jobsboard.api.problems`, which this cannot import: it is there before the models).
"""

from __future__ import annotations

import json
import uuid
from http import HTTPStatus
from typing import Any, Final

from gunicorn import util

_SAYS: Final = {
    400: "This is not an HTTP request that can be read.",
    414: "The request line has at most 4094 bytes.",
    417: "An expectation of this kind cannot be met.",
    431: "The headers are too many or too long.",
    501: "A transfer coding of this kind is not known.",
}


def use_problems() -> None:
    """Let gunicorn write problem documents. There is no setting for it: it writes its HTML by a function of `util`."""
    util.write_error = _write_error


def _write_error(connection: Any, status: int, reason: str, detail: str) -> None:
    # What gunicorn says repeats what was sent: not here.
    phrase = HTTPStatus(status).phrase
    code = "bad_request" if status == 400 else phrase.lower().replace(" ", "_").replace("-", "_")
    request_id = uuid.uuid4().hex
    document = {
        "type": f"urn:jobsboard:problem:{code}",
        "title": phrase,
        "status": status,
        "detail": _SAYS.get(status, f"{phrase}."),
        "code": code,
        "pointer": "",
        "request_id": request_id,
    }
    body = json.dumps(document).encode()
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nX-Request-Id: {request_id}\r\nX-Content-Type-Options: nosniff\r\n\r\n"
    )
    util.write_nonblock(connection, head.encode() + body)
