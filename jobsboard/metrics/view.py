"""`GET /metrics`: who may read it, how often the database is asked, and what is said when it does not answer."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from jobsboard.metrics import directory, families, requests

CACHE_SECONDS: Final = 5.0
STATEMENT_SECONDS: Final = 2
WAIT_SECONDS: Final = 3.0
"""How long a scrape waits for another one that is asking the database."""
DOWN: Final = b"# The database did not answer: nothing is known.\n# TYPE jobsboard_up gauge\njobsboard_up 0.0\n"

_FILE: Final = "jobs.txt"

_log = logging.getLogger(__name__)
_thread = threading.Lock()
_kept: list[tuple[float, bytes]] = []


class _Jobs(Collector):
    """The metrics of jobs, read from the database."""

    def describe(self) -> Iterable[Metric]:
        """Name nothing: registering must not ask the database."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Ask the database."""
        # Also in the caller's own transaction, as tests have one: what is set here ends with it.
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'")
            seen = families.read()
        return families.families(seen)


@csrf_exempt
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer a scrape: 401 without the token, 503 when the database cannot be read; old numbers are never said."""
    return _refusal(request) or _answer(request)


@require_safe
def _answer(request: HttpRequest) -> HttpResponse:
    try:
        page = _page_of_jobs() + _text(requests.RequestCollector())
    except (DatabaseError, InterfaceError, directory.Busy) as error:
        _log.warning("metrics cannot be read: %s", type(error).__name__)
        return HttpResponse(DOWN, status=503, content_type=CONTENT_TYPE_LATEST)
    return HttpResponse(page, content_type=CONTENT_TYPE_LATEST)


def forget() -> None:
    """Ask the database at the next scrape."""
    _kept.clear()
    folder = directory.current()
    if folder is not None:
        (folder / _FILE).unlink(missing_ok=True)


def _refusal(request: HttpRequest) -> HttpResponse | None:
    token = settings.METRICS_TOKEN
    if not token:
        return None if _is_private(request) else _said("Not found.", 404)
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
        return None
    refused = _said("This needs METRICS_TOKEN as a bearer token.", 401)
    refused["WWW-Authenticate"] = 'Bearer realm="metrics"'
    return refused


def _is_private(request: HttpRequest) -> bool:
    """Say whether only this machine can be asking: nothing listens, is named or is proxied beyond loopback.

    What a client can write opens nothing. The peer alone proves nothing: behind a proxy on this machine it is always
    loopback; there the names that the site answers to are others, and most proxies say that they are one.
    """
    named = [*settings.ALLOWED_HOSTS, urlsplit(settings.PUBLIC_URL).hostname or ""]
    addresses = (request.META.get("REMOTE_ADDR", ""), request.META.get("SERVER_NAME", ""))
    return (
        all(_is_loopback(address) for address in addresses)
        and all(name == "localhost" or _is_loopback(name.strip("[]")) for name in named)
        and not settings.TRUSTED_PROXIES
        and not getattr(request, "was_forwarded", True)
    )


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def _said(text: str, status: int) -> HttpResponse:
    return HttpResponse(f"{text}\n", status=status, content_type="text/plain; charset=utf-8")


def _page_of_jobs() -> bytes:
    """Return the metrics of jobs, at most CACHE_SECONDS old. Raises: DatabaseError, directory.Busy.

    All processes of a server share what one has read: if each had an age of its own, counters would seem to fall from
    one scrape to the next, and Prometheus would take that for a restart.
    """
    with _alone():
        kept = _read_kept()
        if kept is not None:
            return kept
        # Before it is asked: what it says is at least as new as this.
        begun = time.monotonic()
        page = _text(_Jobs())
        _keep(begun, page)
        return page


@contextmanager
def _alone() -> Iterator[None]:
    folder = directory.current()
    if folder is not None and folder.is_dir():
        with directory.locked(folder, "jobs", seconds=WAIT_SECONDS):
            yield
        return
    if not _thread.acquire(timeout=WAIT_SECONDS):
        raise directory.Busy("jobs")
    try:
        yield
    finally:
        _thread.release()


def _read_kept() -> bytes | None:
    folder = directory.current()
    if folder is None:
        begun, page = _kept[0] if _kept else (float("-inf"), b"")
    else:
        try:
            first, _, page = (folder / _FILE).read_bytes().partition(b"\n")
            begun = float(first)
        except (OSError, ValueError):
            return None
    # The clock counts from the machine's start, so it is the same in all of its processes.
    return page if 0 <= time.monotonic() - begun < CACHE_SECONDS else None


def _keep(begun: float, page: bytes) -> None:
    folder = directory.current()
    if folder is None:
        _kept[:] = [(begun, page)]
        return
    fresh = folder / "jobs.new"
    # Without it each scrape asks the database: more work, and still an answer.
    with suppress(OSError):
        fresh.write_bytes(b"%r\n%b" % (begun, page))
        fresh.replace(folder / _FILE)


def _text(collector: Collector) -> bytes:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)
