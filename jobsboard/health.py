"""Whether this process lives and may get requests, and whom to tell about a hole; all three answer to anybody.

Not here: metrics; the health of workers and the scheduler. Nothing here names a host, a queue or an error.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe

from queues import broker

DATABASE_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)
# A frozen database holds this thread and no request; the checks after it time out and say so.
_prober = ThreadPoolExecutor(max_workers=1, thread_name_prefix="readyz")


@require_safe
def livez(request: HttpRequest) -> HttpResponse:
    """Say that the process answers; checks nothing, so that a database outage restarts no process."""
    return JsonResponse({"status": "ok"})


@require_safe
def readyz(request: HttpRequest) -> HttpResponse:
    """Say whether requests can be served: 503 without the database; without the broker jobs are only slower."""
    database, reached = _database_answers(), broker.ping()
    status = "unavailable" if not database else "ok" if reached else "degraded"
    return JsonResponse(
        {"status": status, "database": "up" if database else "down", "broker": "up" if reached else "down"},
        status=200 if database else 503,
    )


@require_safe
def security_txt(request: HttpRequest) -> HttpResponse:
    """Say whom to tell about a vulnerability (RFC 9116)."""
    host = urlsplit(settings.PUBLIC_URL).hostname or "localhost"
    contact = getattr(settings, "SECURITY_CONTACT", "") or f"mailto:security@{host}"
    # Renewed with every answer: who can deploy this page can still be reached.
    expires = (datetime.now(UTC) + timedelta(days=90)).strftime("%Y-%m-%dT00:00:00Z")
    lines = [
        f"Contact: {contact}",
        f"Expires: {expires}",
        "Preferred-Languages: en",
        f"Canonical: {settings.PUBLIC_URL}/.well-known/security.txt",
    ]
    return HttpResponse("\n".join(lines) + "\n", content_type="text/plain; charset=utf-8")


def _database_answers() -> bool:
    waiting: Future[bool] = _prober.submit(_ask_database)
    try:
        return waiting.result(timeout=DATABASE_SECONDS)
    except FutureTimeout:
        waiting.cancel()
        return False


def _ask_database() -> bool:
    """Ask on a connection of this thread's own, closed again: it never counts as one of the web's."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return bool(cursor.fetchone() == (1,))
    except (DatabaseError, InterfaceError) as error:
        _log.warning("The database does not answer: %s", type(error).__name__)
        return False
    finally:
        connection.close()
