"""The database of a sandbox: one transaction for each payload that cannot commit, and no other connection.

PostgreSQL itself does the refusing. The transaction holds a broken deferred constraint, so a COMMIT by whatever way
rolls it back; every other transaction of the session is read only. A client gets around that only on purpose: this is
a guard against mistakes, not a jail. Inside, Django's wrapper behaves as in a worker: outside of `atomic` each
statement stands for itself, an `atomic` block is a savepoint, and functions that wait for a commit never run.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from unittest import mock

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import Connection
from psycopg import Error as PsycopgError
from psycopg.pq import TransactionStatus

from dlq.replay_test.touches import Touches

_READ_ONLY_STATE: Final = "25006"
_OPTIONS: Final = " -c default_transaction_read_only=on"
_POISON: Final = (
    "CREATE TEMPORARY TABLE replay_test_guard (n integer CONSTRAINT replay_test_never_commits"
    " UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP",
    "INSERT INTO replay_test_guard VALUES (1), (1)",
)
_ANTIDOTE: Final = "DELETE FROM pg_temp.replay_test_guard"


class SandboxFailed(Exception):
    """The walls could not be built; nothing was run."""


class Databases:
    """The connections of this process, all of them in a sandbox."""

    def __init__(self, touches: Touches, *, read_only: bool) -> None:
        self._touches = touches
        self._read_only = read_only
        self._all: list[_Sandboxed] = []

    def open(self) -> None:
        """Connect to every alias; after that nothing connects any more. Raises: SandboxFailed, django.db.Error."""
        for alias in connections:
            wrapper = connections[alias]
            if wrapper.vendor == "postgresql":
                self._all.append(_Sandboxed(wrapper, self._touches, read_only=self._read_only))
            elif alias == DEFAULT_DB_ALIAS:
                raise SandboxFailed("the default database is not PostgreSQL")
            else:
                mock.patch.object(wrapper, "connect", self._refuse).start()
        mock.patch("psycopg._connection_base.BaseConnection._connect_gen", self._refuse).start()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise self._touches.refuse("database", "another connection than those of Django on the main thread")

    def begin(self, *, seconds: float) -> None:
        """Open the transactions of one payload. Units: `seconds` is how long it may run."""
        for one in self._all:
            one.begin(seconds=seconds)

    def commit_checks(self) -> None:
        """Let the server check what it would check at a commit. Raises: django.db.Error."""
        for one in self._all:
            one.commit_checks()

    def hooks(self) -> int:
        """Return how many functions waited for a commit."""
        return sum(one.hooks for one in self._all)

    def roll_back(self) -> bool:
        """End all; returns whether the sessions are as they were. If not, this process is not to be used again."""
        whole = [one.roll_back() for one in self._all]
        return all(whole)


def _watching(base: Any, touches: Touches) -> Any:
    """Return a class of cursors that note what the server refused, and an end of the transaction.

    The code may keep such an error to itself; and it may speak to the driver past Django.
    """

    class Watching(base):  # type: ignore[misc]
        def execute(self, *args: Any, **kwargs: Any) -> Any:
            return self._watched(super().execute, args, kwargs)

        def executemany(self, *args: Any, **kwargs: Any) -> Any:
            return self._watched(super().executemany, args, kwargs)

        def _watched(self, execute: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            try:
                return execute(*args, **kwargs)
            except PsycopgError as error:
                if error.sqlstate == _READ_ONLY_STATE:
                    touches.add("write")
                raise
            finally:
                if self.connection.info.transaction_status == TransactionStatus.IDLE:
                    touches.add("transaction")

    return Watching


class _Sandboxed:
    """One connection. Its wrapper believes in autocommit; what it does is always inside one open transaction."""

    def __init__(self, wrapper: BaseDatabaseWrapper, touches: Touches, *, read_only: bool) -> None:
        self._wrapper = wrapper
        self._touches = touches
        self._began: datetime | None = None
        self.hooks = 0
        options = wrapper.settings_dict["OPTIONS"] = {**wrapper.settings_dict["OPTIONS"]}
        options.pop("pool", None)
        options["options"] = options.get("options", "") + _OPTIONS
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT current_setting('default_transaction_read_only'), pg_is_in_recovery()")
            default, standby = cursor.fetchone()
        if default != "on":
            raise SandboxFailed(
                "the server did not take a setting of the session: a pooler stands between. Let DATABASE_URL name"
                " PostgreSQL itself, best a copy or a standby"
            )
        self._only_read = bool(standby) or read_only
        self._raw: Connection[Any] = wrapper.connection
        self._raw.autocommit = False
        self._stand_in()

    def _stand_in(self) -> None:
        """Take the place of what begins, ends and closes."""
        for name, stand_in in (
            ("_set_autocommit", self._set_autocommit),
            ("_commit", self._commit),
            ("_rollback", self._rollback),
            ("on_commit", self._on_commit),
            ("close", lambda: None),
        ):
            mock.patch.object(self._wrapper, name, stand_in).start()
        for name in ("commit", "rollback", "close"):
            mock.patch.object(self._raw, name, self._refuse).start()
        self._raw.cursor_factory = _watching(self._raw.cursor_factory, self._touches)
        self._wrapper.close_at = None
        self._wrapper.execute_wrappers.append(self._one_statement)

    def _refuse(self) -> None:
        raise self._touches.refuse("transaction", "the driver's connection is not the candidate's to end")

    def _on_commit(self, function: Callable[[], object], robust: bool = False) -> None:
        self.hooks += 1

    # What Django does to begin and end a transaction, on savepoints.

    def _set_autocommit(self, autocommit: bool) -> None:
        if autocommit != self._wrapper.autocommit:
            self._raw.execute("RELEASE SAVEPOINT replay_test" if autocommit else "SAVEPOINT replay_test")

    def _commit(self) -> None:
        # What PostgreSQL makes of the COMMIT of a transaction that has failed.
        failed = self._status() == TransactionStatus.INERROR
        with self._wrapper.wrap_database_errors:
            self._raw.execute("ROLLBACK TO SAVEPOINT replay_test" if failed else "RELEASE SAVEPOINT replay_test")
            if not failed:
                self._raw.execute("SAVEPOINT replay_test")

    def _rollback(self) -> None:
        self._raw.execute("ROLLBACK TO SAVEPOINT replay_test")

    def _one_statement(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Let a statement outside of `atomic` fail alone, as it would with autocommit."""
        alone = self._wrapper.autocommit and self._status() == TransactionStatus.INTRANS
        if alone:
            self._raw.execute("SAVEPOINT replay_test_one")
        try:
            return execute(sql, params, many, context)
        except Exception:
            if alone and self._status() == TransactionStatus.INERROR:
                self._raw.execute("ROLLBACK TO SAVEPOINT replay_test_one")
            raise
        finally:
            if alone and self._status() == TransactionStatus.INTRANS:
                self._raw.execute("RELEASE SAVEPOINT replay_test_one")

    def _status(self) -> TransactionStatus:
        return self._raw.info.transaction_status

    # One payload.

    def begin(self, *, seconds: float) -> None:
        self.hooks = 0
        statements = ["SET TRANSACTION READ WRITE", *_POISON] if not self._only_read else []
        for statement in statements:
            self._raw.execute(statement)
        self._raw.execute("SELECT set_config('idle_in_transaction_session_timeout', %s, true)", [f"{seconds + 5:.0f}s"])
        self._began = self._now()

    def commit_checks(self) -> None:
        if self._status() == TransactionStatus.INTRANS and self._now() == self._began:
            with self._wrapper.wrap_database_errors:
                if not self._only_read:
                    self._raw.execute(_ANTIDOTE)
                self._raw.execute("SET CONSTRAINTS ALL IMMEDIATE")

    def roll_back(self) -> bool:
        if self._raw.closed:
            self._touches.add("transaction")
            return False
        status = self._status()
        ours = status == TransactionStatus.INERROR or (
            status == TransactionStatus.INTRANS and self._now() == self._began
        )
        if not ours:
            self._touches.add("transaction")
        Connection.rollback(self._raw)
        wrapper = self._wrapper
        wrapper.autocommit, wrapper.in_atomic_block = True, False
        wrapper.needs_rollback = wrapper.closed_in_transaction = wrapper.errors_occurred = False
        wrapper.savepoint_ids, wrapper.atomic_blocks, wrapper.run_on_commit = [], [], []
        return ours

    def _now(self) -> datetime | None:
        """Return when the open transaction began: another one began at another time."""
        row = self._raw.execute("SELECT transaction_timestamp()").fetchone()
        return row[0] if row else None
