"""Polling: the page or its region alone, and 304 while nothing could look different.

Source: the ptag protocol of htmx (extension hx-ptag, django_htmx.http.ptag). One statement decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, Final, ParamSpec

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.utils.cache import patch_vary_headers
from django_htmx.http import ptag

from jobsboard.board import shell
from jobsboard.roles import role_of

AGE_SLOT_SECONDS: Final = 15
"""Ages and ratios move with the clock: a page is drawn again after so long, whatever happened."""

_P = ParamSpec("_P")
_View = Callable[Concatenate[HttpRequest, _P], HttpResponseBase]


def tag_of(request: HttpRequest, *args: object, **kwargs: object) -> str:
    """Return what changes when the page could look different for this user."""
    board = shell.board_of(request)
    slot = int(board.now.timestamp()) // AGE_SLOT_SECONDS
    seen = f"{request.get_full_path()} {request.user.pk} {role_of(request.user).name}"
    return f"{board.version}-{slot}-{hashlib.sha256(seen.encode()).hexdigest()[:12]}"


def live(view: _View[_P]) -> _View[_P]:
    """Answer a poll that would change nothing with 304 and no body, before the view runs."""
    tagged: _View[_P] = ptag(tag_of)(view)
    return tagged


def answer(
    request: HttpRequest, region: str, context: Mapping[str, Any], *, poll: int = 5, status: int = 200
) -> HttpResponse:
    """Render a page, or its polled region alone when htmx asks for it.

    `region` is a template with one root, `#region`; `context` holds `title`. `here` is where the region polls.
    """
    # A history restore asks through htmx for the whole page.
    alone = bool(request.headers.get("HX-Request") == "true") and "HX-History-Restore-Request" not in request.headers
    tag = tag_of(request)
    filled = {
        "here": request.get_full_path(),
        **context,
        "region": region,
        "poll": poll,
        "ptag": tag,
        "now": shell.board_of(request).now,
    }
    response = render(request, "board/_alone.html" if alone else "board/page.html", filled, status=status)
    patch_vary_headers(response, ("HX-Request",))
    return response
