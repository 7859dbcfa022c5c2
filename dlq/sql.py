"""How this application asks the database: one statement's rows, and its clock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from django.db import connection


def rows(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


def clock() -> dt.datetime:
    """Return the database's time: that of this very moment."""
    at: dt.datetime = rows("SELECT jobs_clock()", {})[0][0]
    return at
