"""Requests to addresses that people typed in: each is resolved once, checked, and connected to as it was checked.

Not here: what is sent and what an answer means (`http_target`, alert webhooks).
Source: the OWASP SSRF prevention sheet; requests-hardened, whose session and blocked ranges are used.

A connection is used for one request. A kept one could be closed by the other side just when the next request is
written, and nobody could tell whether that request arrived.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import urllib3
from django.conf import settings
from requests.adapters import HTTPAdapter
from requests_hardened import Config, HTTPSession
from requests_hardened.ip_filter import EXTRA_BLOCKED_NET_RANGES
from urllib3.connection import HTTPConnection, HTTPSConnection

CONNECT_SECONDS: Final = 5.0
TOTAL_SECONDS: Final = 15.0
MAX_BODY: Final = 65_536
_CHUNK: Final = 8_192

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]*)(?:\.[A-Za-z0-9_-]+)*\.?\Z")
# Whatever ends in a number is an IPv4 address to some resolver: 127.1, 0x7f000001, 017700000001.
_NUMBER: Final = re.compile(r"(?:[0-9]+|0[xX][0-9a-fA-F]*)\Z")


class OutboundError(Exception):
    """No usable answer. `may_have_arrived`: the other side may have the request all the same."""

    may_have_arrived = False


class TargetRefused(OutboundError):
    """The address is not one that we talk to; trying again cannot help."""


class TargetUnreachable(OutboundError):
    """No connection, or one that broke."""

    def __init__(self, message: str, *, may_have_arrived: bool = False) -> None:
        super().__init__(message)
        self.may_have_arrived = may_have_arrived


class TargetTimeout(OutboundError):
    """The time was up."""

    def __init__(self, message: str, *, may_have_arrived: bool) -> None:
        super().__init__(message)
        self.may_have_arrived = may_have_arrived


@dataclass(frozen=True)
class Answer:
    """What came back; at most MAX_BODY bytes of body, not unpacked. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


def post(url: str, *, body: bytes, headers: Mapping[str, str], seconds: float = TOTAL_SECONDS) -> Answer:
    """Send one POST and read its answer; redirects are answers, not followed.

    Units: seconds for everything from the name to the last byte.
    Raises: TargetRefused, TargetUnreachable, TargetTimeout.
    """
    return _send("POST", url, body=body, headers=headers, seconds=seconds)


def get(url: str, *, headers: Mapping[str, str], seconds: float = TOTAL_SECONDS) -> Answer:
    """Send one GET and read its answer, under the rules of `post`.

    Units: seconds for everything from the name to the last byte.
    Raises: TargetRefused, TargetUnreachable, TargetTimeout.
    """
    return _send("GET", url, body=None, headers=headers, seconds=seconds)


def request_target(url: str) -> str:
    """Return path and query of an address as they will stand in the request line, for a signature over them.

    Raises: TargetRefused.
    """
    _split(url)
    try:
        target: str = requests.Request("GET", url).prepare().path_url
    except (requests.RequestException, ValueError):
        raise TargetRefused("The request cannot be made from this address.") from None
    return target


def _send(method: str, url: str, *, body: bytes | None, headers: Mapping[str, str], seconds: float) -> Answer:
    host, port = _split(url)
    clock = _Deadline(seconds)
    addresses = checked_addresses(host, port, seconds=min(CONNECT_SECONDS, seconds))
    failure: OutboundError = TargetUnreachable(f"{host} has no address.")
    for address in addresses:
        try:
            return _attempt(method, url, address, clock, body=body, headers=headers)
        except OutboundError as error:
            failure = error
            if error.may_have_arrived or clock.remaining <= 0:
                break
    raise failure


def _split(url: str) -> tuple[str, int]:
    """Return host and port of an address that every parser reads alike. Raises: TargetRefused."""
    if not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url):
        raise TargetRefused("The address holds characters that are not allowed in one.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise TargetRefused("The address cannot be read.") from None
    if parts.scheme not in ("http", "https"):
        raise TargetRefused("The address must start with https:// or http://.")
    if "@" in parts.netloc:
        raise TargetRefused("The address must not hold a user name or password.")
    if port == 0:
        raise TargetRefused("Port 0 is not a port.")
    _check_host(host)
    return host, port or (443 if parts.scheme == "https" else 80)


def _check_host(host: str) -> None:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise TargetRefused("The host is not an IPv6 address.") from None
        return
    if not _HOST.match(host):
        raise TargetRefused("The host is not a host name." if host else "The address has no host.")
    if _NUMBER.match(host.rstrip(".").rpartition(".")[2]):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise TargetRefused("The host is a number in a form that resolvers read differently.") from None


def checked_addresses(host: str, port: int, *, seconds: float = CONNECT_SECONDS) -> list[Address]:
    """Resolve a host once and return its addresses, all of which are allowed.

    Raises: TargetRefused when one of them is not, so that a name with a public and a private address never works
        by chance; TargetUnreachable; TargetTimeout.
    """
    addresses = list(dict.fromkeys(_lookup(host, port, seconds=seconds)))
    allowed = [ipaddress.ip_network(item) for item in settings.OUTBOUND_ALLOWED_CIDRS]
    for address in addresses:
        if not _is_public(address) and not any(address in network for network in allowed):
            # The address is not named: whoever sees this failure may not know the inside of the network.
            raise TargetRefused(
                f"{host} leads to an address that is not public. OUTBOUND_ALLOWED_CIDRS can allow a range."
            )
    return addresses


# Azure's host service, which hands out certificates and secrets of the machine, and the old site-local range.
_NOT_PUBLIC: Final = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("fec0::/10"))


def _is_public(address: Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in (*EXTRA_BLOCKED_NET_RANGES, *_NOT_PUBLIC))
    )


def _lookup(host: str, port: int, *, seconds: float) -> list[Address]:
    """Ask the resolver in a thread of its own, since it takes no time limit."""
    found: list[Address] = []
    failed: list[OSError] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend(_plain(str(answer[4][0])) for answer in answers)
        except (OSError, UnicodeError) as error:
            failed.append(OSError(str(error)))

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TargetTimeout(f"{host} was not resolved within {seconds:g} s.", may_have_arrived=False)
    if failed or not found:
        raise TargetUnreachable(f"{host} cannot be resolved.")
    return found


def _plain(text: str) -> Address:
    """Read an address as what it reaches: ::ffff:127.0.0.1 is 127.0.0.1."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


class _Deadline:
    """When a request must be over; cuts its connection then, whatever a slow peer still sends."""

    def __init__(self, seconds: float) -> None:
        self.started = time.monotonic()
        self.seconds = seconds
        self.connected = False
        self.passed = False

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def remaining(self) -> float:
        return self.seconds - self.elapsed

    def watch(self, sock: socket.socket) -> None:
        self.connected = True
        # A second descriptor of the same connection: cutting it wakes a reader of the first, TLS or not.
        self._sock = socket.socket(fileno=os.dup(sock.fileno()))
        self._timer = threading.Timer(max(self.remaining, 0.0), self._cut)
        self._timer.daemon = True
        self._timer.start()

    def _cut(self) -> None:
        self.passed = True
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The peer closed it first.
            return

    def release(self) -> None:
        if self.connected:
            self._timer.cancel()
            self._timer.join()
            self._sock.close()


class _Pinned(HTTPAdapter):
    """Connects to one checked address, keeping the name for Host, SNI and the certificate."""

    def __init__(self, address: Address, *, clock: _Deadline) -> None:
        self._address = address
        self._clock = clock
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        clock = self._clock

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                clock.watch(self.sock)

        class Secure(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                clock.watch(self.sock)

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        attributes: tuple[Any, Any] = super().build_connection_pool_key_attributes(request, verify, cert)
        parts, extra = attributes
        name = str(parts["host"])
        bracketed = f"[{name}]" if ":" in name else name
        request.headers["Host"] = bracketed if parts["port"] is None else f"{bracketed}:{parts['port']}"
        if parts["scheme"] == "https":
            extra = {**extra, "assert_hostname": name, "server_hostname": name}
        pinned = f"[{self._address}]" if self._address.version == 6 else str(self._address)
        return {**parts, "host": pinned}, extra


@contextmanager
def _session(address: Address, *, clock: _Deadline) -> Iterator[Any]:
    # The library's own filter looks at the first address only and knows no ranges; ours replaces its adapters.
    config = Config(
        ip_filter_enable=True,
        ip_filter_allow_loopback_ips=False,
        never_redirect=True,
        default_timeout=(CONNECT_SECONDS, TOTAL_SECONDS),
        user_agent_override="Jobsboard",
    )
    with HTTPSession(config) as session:
        # No proxy, no netrc, no CA bundle from the environment: a proxy would resolve names for us.
        session.trust_env = False
        adapter = _Pinned(address, clock=clock)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        yield session


def _attempt(
    method: str, url: str, address: Address, clock: _Deadline, *, body: bytes | None, headers: Mapping[str, str]
) -> Answer:
    remaining = max(clock.remaining, 0.001)
    try:
        with _session(address, clock=clock) as session:
            response = session.request(
                method,
                url,
                data=body,
                headers={**headers, "Accept-Encoding": "identity", "Connection": "close"},
                timeout=(min(CONNECT_SECONDS, remaining), remaining),
                stream=True,
            )
            content = _read(response, clock)
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader, requests.exceptions.InvalidSchema):
        raise TargetRefused("The request cannot be made from this address and these headers.") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise _failure(error, clock) from None
    finally:
        clock.release()
    lowered = {str(name).lower(): str(value) for name, value in response.headers.items()}
    return Answer(status=response.status_code, headers=lowered, body=content, seconds=clock.elapsed)


def _read(response: requests.Response, clock: _Deadline) -> bytes:
    """Read the start of the body as it came: an unpacked body has no size that one could limit beforehand."""
    pieces: list[bytes] = []
    missing = MAX_BODY
    try:
        while missing and (piece := response.raw.read1(min(_CHUNK, missing), decode_content=False)):
            pieces.append(piece)
            missing -= len(piece)
    except (urllib3.exceptions.HTTPError, OSError):
        # A refusal is known by its status; a success whose reference is cut off is not.
        if 200 <= response.status_code < 300:
            raise
    if clock.passed and 200 <= response.status_code < 300:
        raise TimeoutError
    return b"".join(pieces)


def _failure(error: Exception, clock: _Deadline) -> OutboundError:
    late = clock.passed or isinstance(error, TimeoutError | requests.Timeout | urllib3.exceptions.TimeoutError)
    if late and clock.connected:
        return TargetTimeout(f"No complete answer within {clock.seconds:g} s.", may_have_arrived=True)
    if late:
        return TargetTimeout(f"No connection within {min(CONNECT_SECONDS, clock.seconds):g} s.", may_have_arrived=False)
    if clock.connected:
        return TargetUnreachable(
            f"The connection broke before a complete answer ({_cause(error)}).", may_have_arrived=True
        )
    return TargetUnreachable(f"No connection ({_cause(error)}).")


def _cause(error: BaseException) -> str:
    """Name the innermost cause: the class says enough, and its text may hold addresses."""
    seen: Sequence[BaseException] = [error]
    while (inner := seen[-1].__cause__ or seen[-1].__context__ or _wrapped(seen[-1])) and len(seen) < 10:
        seen = [*seen, inner]
    return type(seen[-1]).__name__


def _wrapped(error: BaseException) -> BaseException | None:
    first = error.args[0] if error.args else None
    reason = getattr(first, "reason", first)
    return reason if isinstance(reason, BaseException) else None
