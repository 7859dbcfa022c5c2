"""The connection as a worker gives it to a handler, inside the transaction of a test.

A worker's body finds autocommit: each statement stands alone, what it commits is committed, `on_commit` runs, and a
step (`JobContext.once`) may be stored. Inside a test's transaction none of that is so. Here savepoints stand in for
transactions, below Django: its own machinery then behaves as in a worker, and the test's rollback takes it all back.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus

_TRANSACTION: Final = "jobsboard_transaction"
_STATEMENT: Final = "jobsboard_statement"
_OUTSIDE_ANY_TRANSACTION: Final[dict[str, Callable[[], Any]]] = {
    "in_atomic_block": bool,
    "commit_on_exit": lambda: True,
    "needs_rollback": bool,
    "rollback_exc": lambda: None,
    "closed_in_transaction": bool,
    "savepoint_ids": list,
    "atomic_blocks": list,
    "run_on_commit": list,
    "run_commit_hooks_on_set_autocommit_on": bool,
    "autocommit": lambda: True,
}
"""What Django's wrapper knows about its transaction, as it is right after connecting."""


class _Info:
    """psycopg's `connection.info`, with the status of the transaction that savepoints stand in for."""

    def __init__(self, session: "_Session") -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session.real.info, name)

    @property
    def transaction_status(self) -> TransactionStatus:
        return TransactionStatus.IDLE if self._session.autocommit else TransactionStatus.INTRANS


class _Session:
    """A psycopg connection in autocommit, made of savepoints in one that is inside a transaction."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self._autocommit = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    @property
    def info(self) -> _Info:
        return _Info(self)

    @property
    def autocommit(self) -> bool:
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        if self._autocommit and not value:
            self.real.execute(f"SAVEPOINT {_TRANSACTION}")
        elif value and not self._autocommit:
            self.real.execute(f"RELEASE SAVEPOINT {_TRANSACTION}")
        self._autocommit = value

    def commit(self) -> None:
        # One transaction ends and the next begins, as psycopg has it; without autocommit there always is one.
        if not self._autocommit:
            self.real.execute(f"RELEASE SAVEPOINT {_TRANSACTION}; SAVEPOINT {_TRANSACTION}")

    def rollback(self) -> None:
        if not self._autocommit:
            self.real.execute(f"ROLLBACK TO SAVEPOINT {_TRANSACTION}")

    def close(self) -> None:
        """End as a closed connection does: what was not committed is gone."""
        self.rollback()
        self.autocommit = True

    def alone(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Run one statement as autocommit does: one that is refused leaves no broken transaction behind."""
        if not self._autocommit:
            return execute(sql, params, many, context)
        self.real.execute(f"SAVEPOINT {_STATEMENT}")
        try:
            found = execute(sql, params, many, context)
        except BaseException:
            self.real.execute(f"ROLLBACK TO SAVEPOINT {_STATEMENT}; RELEASE SAVEPOINT {_STATEMENT}")
            raise
        self.real.execute(f"RELEASE SAVEPOINT {_STATEMENT}")
        return found


@contextlib.contextmanager
def session(using: str = DEFAULT_DB_ALIAS) -> Iterator[None]:
    """Let the block see the connection outside any transaction, in autocommit. Outside a transaction it is so already.

    What the block leaves open is rolled back, as it is with the connection of a worker that ends.
    """
    connection = connections[using]
    if not connection.in_atomic_block:
        yield
        return
    ours = _Session(connection.connection)
    before = {name: getattr(connection, name) for name in _OUTSIDE_ANY_TRANSACTION}
    for name, fresh in _OUTSIDE_ANY_TRANSACTION.items():
        setattr(connection, name, fresh())
    try:
        with connection.execute_wrapper(ours.alone), _connecting_to(connection, ours):
            yield
    finally:
        try:
            ours.close()
        finally:
            for name, value in before.items():
                setattr(connection, name, value)


@contextlib.contextmanager
def _connecting_to(connection: BaseDatabaseWrapper, ours: _Session) -> Iterator[None]:
    """A body may close its connection; the next one it opens must see the test's rows as well."""
    connection.connection = ours
    replaced = {"get_new_connection": lambda params: ours, "_close": ours.close}
    with contextlib.ExitStack() as stack:
        for name, function in replaced.items():
            setattr(connection, name, function)
            stack.callback(delattr, connection, name)
        try:
            yield
        finally:
            connection.connection = ours.real
