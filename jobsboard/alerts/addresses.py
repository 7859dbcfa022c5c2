"""Which addresses an endpoint may have: https on port 443, unless a setting names more; never inside our own network.

Asked when an address is typed in and before every try. What the name leads to is looked at when we connect
(`queues.outbound`), and connected to as it was looked at.
Not here: sealing addresses (`endpoints`).
"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import SplitResult, urlsplit

from django.conf import settings

from queues import outbound

LONGEST: Final = 2_000
"""Characters."""
_DEFAULT: Final = {"http": 80, "https": 443}


class AddressRefused(ValueError):
    """No endpoint may have this address; the text names what is wrong with it, and not the address."""


def check_url(url: str, *, resolve: bool = False) -> None:
    """Hold an address against the rules; with `resolve` also what its name leads to now, if it leads anywhere.

    Raises: AddressRefused.
    """
    if len(url) > LONGEST:
        raise AddressRefused(f"The address has more than {LONGEST:,} characters.")
    if not url.isascii():
        raise AddressRefused(
            "The address holds characters that are not ASCII, which programs read differently. Write an international"
            " name as xn--…, and other characters percent-encoded."
        )
    try:
        # Everything that parsers read differently: numbers as hosts, user names, control characters, other schemes.
        outbound.request_target(url)
    except outbound.TargetRefused as refused:
        raise AddressRefused(str(refused)) from None
    parts = urlsplit(url)
    _check_parts(parts)
    _check_host(parts, resolve=resolve)


def shown(url: str) -> str:
    """Return what may be shown of an address: scheme, host and port, and a sign that there is more."""
    parts = urlsplit(url)
    more = "/…" if parts.path.strip("/") or parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{more}"[:300]


def _check_parts(parts: SplitResult) -> None:
    if "%" in parts.netloc:
        raise AddressRefused("The host must not have a zone or escaped characters (%…).")
    if parts.fragment:
        raise AddressRefused("The address must not have a fragment (#…): it is never sent.")
    if parts.scheme != "https" and not settings.WEBHOOK_ALLOW_HTTP:
        raise AddressRefused("The address must start with https://. WEBHOOK_ALLOW_HTTP=1 allows http:// as well.")
    allowed, port = settings.WEBHOOK_ALLOWED_PORTS, parts.port or _DEFAULT[parts.scheme]
    if allowed is not None and port not in allowed:
        raise AddressRefused(
            f"Port {port} is not allowed, only {', '.join(map(str, sorted(allowed)))}. WEBHOOK_ALLOWED_PORTS can name"
            " more."
        )


def _check_host(parts: SplitResult, *, resolve: bool) -> None:
    host = parts.hostname or ""
    if not resolve and not _is_address(host):
        return
    try:
        outbound.checked_addresses(host, parts.port or _DEFAULT[parts.scheme])
    except outbound.TargetRefused as refused:
        raise AddressRefused(str(refused)) from None
    except outbound.OutboundError:
        # A name that leads nowhere now may do so later, or only from where messages are sent.
        return


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
