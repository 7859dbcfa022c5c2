"""What happens to every request: an id, security headers, and a closed door.

Not here: the API's own gate (`jobsboard.api.access`), roles (`jobsboard.roles`).
"""

from __future__ import annotations

import functools
import ipaddress
import re
import secrets
from collections.abc import Callable
from typing import Any, Final

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from jobsboard.api import access, problems

CSP: Final = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
)
PERMISSIONS: Final = "camera=(), geolocation=(), microphone=(), payment=(), usb=(), browsing-topics=()"

OPEN_ROUTES: Final = frozenset({"login", "livez", "readyz", "security_txt", "metrics"})
"""Names of the routes that answer without a login; `metrics` has a token of its own. All else is closed (promise 9)."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FORWARDED: Final = (
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PORT",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_FORWARDED",
    "HTTP_X_REAL_IP",
    "HTTP_X_REQUEST_ID",
)
_SAYS_IT_IS_A_PROXY: Final = (*_FORWARDED[:-1], "HTTP_VIA")

_GetResponse = Callable[[HttpRequest], HttpResponseBase]


class RequestIdMiddleware:
    """Gives each request an id and answers with it; believes forwarded headers of trusted proxies only.

    Outermost, so that what any other layer answers below /api/ leaves as a problem in JSON.
    """

    def __init__(self, get_response: _GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        trusted = _is_trusted(request.META.get("REMOTE_ADDR", ""))
        given = request.META.get("HTTP_X_REQUEST_ID", "") if trusted else ""
        # For what must not open to a proxy's clients. It closes; nothing opens by a header.
        request.was_forwarded = any(name in request.META for name in _SAYS_IT_IS_A_PROXY)  # type: ignore[attr-defined]
        if not trusted:
            # Also Django's own readers (scheme, host) must not see what anybody could have written.
            for name in _FORWARDED:
                request.META.pop(name, None)
        request.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)  # type: ignore[attr-defined]
        response = self.get_response(request)
        if _is_foreign_to_api(request, response):
            response = problems.answer(request, problems.of_response(response))
        response["X-Request-Id"] = request.request_id  # type: ignore[attr-defined]
        return response


class SecurityHeadersMiddleware:
    """Adds the headers that Django's SecurityMiddleware does not know, on error pages too."""

    def __init__(self, get_response: _GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        response.setdefault("Content-Security-Policy", CSP)
        response.setdefault("Permissions-Policy", PERMISSIONS)
        response.setdefault("X-Content-Type-Options", "nosniff")
        if not request.path.startswith(settings.STATIC_URL):
            response.setdefault("Cache-Control", "no-store")
        return response


class DenyByDefaultMiddleware:
    """Lets nobody in without a login or a key, whatever the view forgot."""

    def __init__(self, get_response: _GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]
    ) -> HttpResponseBase | None:
        """Answer instead of the view where it may not run."""
        if request.path.startswith(access.PREFIX):
            return access.refuse(request)
        match = request.resolver_match
        if (match is not None and match.view_name in OPEN_ROUTES) or request.user.is_authenticated:
            return None
        return ask_to_log_in(request)


def ask_to_log_in(request: HttpRequest) -> HttpResponse:
    """Send a person to the login page; tell a script 401, since it would follow the redirect and show that page."""
    mode = request.headers.get("Sec-Fetch-Mode", "navigate")
    if "HX-Request" in request.headers or mode != "navigate":
        return HttpResponse("Signed out.", status=401, content_type="text/plain; charset=utf-8")
    # What was posted is gone; the way back is the start page.
    return redirect_to_login(request.get_full_path() if request.method in ("GET", "HEAD") else "/")


def client_address(request: HttpRequest) -> str:
    """Return the address of the client, behind proxies that are trusted and no others."""
    address: str = request.META.get("REMOTE_ADDR", "")
    if _is_trusted(address):
        for hop in reversed(request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")):
            if hop.strip():
                address = hop.strip()
            if not _is_trusted(address):
                break
    return address[:64]


def _is_foreign_to_api(request: HttpRequest, response: HttpResponseBase) -> bool:
    if not request.path.startswith(access.PREFIX) or response.status_code < 300:
        return False
    # 304 has no body to be wrong; nothing else below 400 is answered by the API.
    return response.status_code != 304 and response.headers.get("Content-Type") != problems.CONTENT_TYPE


def _is_trusted(address: str) -> bool:
    try:
        peer = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(peer in network for network in _networks(tuple(settings.TRUSTED_PROXIES)))


@functools.lru_cache(maxsize=8)
def _networks(texts: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)
