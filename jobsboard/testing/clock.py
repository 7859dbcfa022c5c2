"""Let the database's clock run ahead for a while: every comparison and every stored time goes through two functions.

Only this session sees it. A rollback puts the functions back by itself; a test that commits gets them back at the end.
"""

import contextlib
import datetime as dt
from collections.abc import Iterator
from typing import Final

from django.db import Error, connection

from queues.lifecycle.sql import execute

_FUNCTIONS: Final = {"jobs_now": "STABLE", "jobs_clock": "VOLATILE"}
_AHEAD: Final = "jobsboard.ahead"


class Clock:
    """The clock of the database, which only goes forward."""

    def __init__(self) -> None:
        self._ahead = dt.timedelta()

    def now(self) -> dt.datetime:
        """Return what the database takes for now."""
        found: dt.datetime = execute("SELECT jobs_now()", [])[0][0]
        return found

    def move_to(self, time: dt.datetime) -> None:
        """Let it be that time, unless it is later already."""
        gap = time - self.now()
        if gap > dt.timedelta():
            self._ahead += gap
            execute("SELECT set_config(%s, %s, false)", [_AHEAD, str(self._ahead.total_seconds())])


@contextlib.contextmanager
def running_ahead() -> Iterator[Clock]:
    """Lend a clock that can be moved, and put the real one back."""
    with contextlib.ExitStack() as stack:
        for name, volatility in _FUNCTIONS.items():
            definition, body = execute(
                "SELECT pg_get_functiondef(oid), prosrc FROM pg_proc WHERE oid = %s::regproc", [name]
            )[0]
            # On top of whatever is there: a test may have replaced the clock already.
            execute(
                f"CREATE OR REPLACE FUNCTION {name}() RETURNS timestamptz LANGUAGE sql {volatility} PARALLEL SAFE AS"
                f" $ahead$SELECT ({body.rstrip().rstrip(';')}) + make_interval(secs =>"
                f" coalesce(nullif(current_setting('{_AHEAD}', true), ''), '0')::float8)$ahead$",
                [],
            )
            stack.callback(_put_back, definition)
        stack.callback(_put_back, f"SELECT set_config('{_AHEAD}', '', false)")
        yield Clock()


def _put_back(statement: str) -> None:
    if connection.needs_rollback:
        return
    # In a transaction that an error has broken its rollback does this.
    with contextlib.suppress(Error):
        execute(statement, [])
