"""Error pages: a request id and nothing else; JSON below /api/, the login for who is not logged in.

Not here: what the API answers (`jobsboard.api.problems`). No page here needs the database.
"""

from __future__ import annotations

from typing import Final

from django.http import HttpRequest, HttpResponse
from django.template import TemplateDoesNotExist, loader

from jobsboard.api import access, problems
from jobsboard.api.problems import Problem
from jobsboard.middleware import ask_to_log_in

_SAYS: Final = {
    400: "This request could not be read.",
    403: "You may not do this.",
    404: "There is no such page.",
    500: "Something failed on our side.",
}
_CODES: Final = {400: "bad_request", 403: "forbidden", 404: "not_found", 500: "internal_error"}


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer 400."""
    return _page(request, 400)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer 403."""
    return _page(request, 403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer 404; without a login nobody is told which pages exist."""
    user = getattr(request, "user", None)
    if not request.path.startswith(access.PREFIX) and (user is None or not user.is_authenticated):
        return ask_to_log_in(request)
    return _page(request, 404)


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer 500."""
    return _page(request, 500)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer 403 to a form that did not come from one of our pages, or that waited past a new login."""
    return _page(request, 403)


def _page(request: HttpRequest, status: int) -> HttpResponse:
    if request.path.startswith(access.PREFIX):
        return problems.answer(request, Problem(_CODES[status], _SAYS[status], status=status))
    request_id = problems.request_id(request)
    try:
        # Not the request itself: no context processor may fail inside an error page, or ask the database.
        text = loader.get_template(f"{status}.html").render({"request": {"request_id": request_id}})
        return HttpResponse(text, status=status)
    except TemplateDoesNotExist:
        text = f"{_SAYS[status]}\nRequest {request_id}\n"
        return HttpResponse(text, status=status, content_type="text/plain; charset=utf-8")
