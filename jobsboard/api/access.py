"""The gate before every API route: a key, or for the OpenAPI document also a login.

Not here: what a key is (`jobsboard.api.keys`). A session never opens another route (S-11).
"""

from __future__ import annotations

import logging
from typing import Final

from django.http import HttpRequest, HttpResponse

from jobsboard.api import keys, problems
from jobsboard.api.keys import Key
from jobsboard.api.problems import Problem

PREFIX: Final = "/api/"
OPENAPI: Final = "/api/v1/openapi.json"
SIGNED: Final = ("/api/v1/callbacks/",)
"""Routes that answer to a token or a signature of their own instead of a key."""

_log = logging.getLogger(__name__)


def refuse(request: HttpRequest) -> HttpResponse | None:
    """Return the answer to a request that may not pass; else leave its key on the request."""
    if request.path.startswith(SIGNED):
        return None
    try:
        if "jb_live_" in request.META.get("QUERY_STRING", ""):
            _log.warning("A key was sent in a query string; it is in the logs of every proxy between and must go.")
            raise problems.unauthorized()
        key = keys.authenticate(request.META.get("HTTP_AUTHORIZATION"))
        if key is None and not (request.path == OPENAPI and request.user.is_authenticated):
            raise problems.unauthorized()
    except Exception as error:
        return problems.answer(request, problems.of_exception(error))
    request.api_key = key  # type: ignore[attr-defined]
    return None


def key_of(request: HttpRequest, *, scope: str) -> Key:
    """Return the key of a request that passed the gate. Raises: Problem 403 without the scope."""
    key: Key | None = getattr(request, "api_key", None)
    if key is None:
        raise problems.unauthorized()
    if scope not in key.scopes:
        raise Problem("missing_scope", f"This key does not have the scope {scope}.")
    return key
