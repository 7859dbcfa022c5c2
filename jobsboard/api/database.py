"""How the API waits for the database: never for long, and it knows which errors pass by themselves.

Not here: the answers (`jobsboard.api.problems`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction

STATEMENT_SECONDS: Final = 3

# Connection, shutdown and crash, serialization and deadlock, resources, lock not available, cancelled by a time-out.
_TRANSIENT: Final = ("08", "57P0", "40001", "40P01", "53", "55P03", "57014", "25P0")
"""SQLSTATE classes (I-40). Django's classes cannot decide: 54000, a too long value, is an OperationalError."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Run a transaction in which no statement, and no wait for a lock, takes longer than three seconds."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            # SET LOCAL, since a session's setting would leak through PgBouncer in transaction mode.
            cursor.execute(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'")
        yield


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of a database error, or an empty text when the server sent none."""
    return getattr(error.__cause__, "sqlstate", None) or ""


def is_transient(error: DatabaseError | InterfaceError) -> bool:
    """Tell whether the same request may succeed later; without a SQLSTATE the connection itself failed."""
    state = sqlstate(error)
    if not state:
        return isinstance(error, (OperationalError, InterfaceError))
    return state.startswith(_TRANSIENT)
