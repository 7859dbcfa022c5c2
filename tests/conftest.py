"""What tests of every folder share: fresh caches, a clock that can be moved, a database that really commits."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from django.conf import settings
from django.db import connection, connections
from django.test import SimpleTestCase, override_settings
from pytest_django import DjangoDbBlocker
from whitenoise.middleware import WhiteNoiseMiddleware  # type: ignore[import-untyped]

from queues import backlog, contracts
from queues.models import JobType


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what CI asks for on another PostgreSQL."""
    parser.addoption("--with-database", action="store_true", help="leave out tests that use no database")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what PostgreSQL cannot change. Who asks for no database gets none: pytest-django sees to it."""
    if config.getoption("--with-database"):
        chosen = [item for item in items if _may_use_database(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


def _may_use_database(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or item.get_closest_marker("django_db"):
        return True
    if item.cls is not None and issubclass(item.cls, SimpleTestCase):
        return True
    # Whoever has the request may ask for any fixture while the test runs.
    fixtures = (one for found in item._fixtureinfo.name2fixturedefs.values() for one in found)
    asks = any("request" in one.argnames and one.func.__module__.startswith("tests.") for one in fixtures)
    return asks or "request" in item._fixtureinfo.argnames or bool({"db", "django_db_setup"} & set(item.fixturenames))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass by what was loaded so far: it stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _static_files_are_listed_once() -> Iterator[None]:
    """Each test client loads the middleware anew, and WhiteNoise looks at every static file; they stay the same."""
    look = WhiteNoiseMiddleware.add_files_from_finders
    known: dict[tuple[object, ...], dict[str, Any]] = {}

    def once(self: WhiteNoiseMiddleware) -> None:
        chosen = (self.static_prefix, self.max_age, self.charset, *settings.STATICFILES_DIRS)
        if chosen not in known:
            look(self)
            known[chosen] = dict(self.files)
        self.files.update(known[chosen])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WhiteNoiseMiddleware, "add_files_from_finders", once)
        yield


@pytest.fixture(scope="session", autouse=True)
def _passwords_are_hashed_fast() -> Iterator[None]:
    """Django's own takes a third of a second on purpose. Here all of them are known."""
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"]):
        yield


@pytest.fixture(autouse=True)
def _fresh_contracts() -> Iterator[None]:
    """Let no test see the contracts of the one before."""
    contracts.forget()
    backlog.forget_cached()
    yield
    contracts.forget()
    backlog.forget_cached()


@pytest.fixture(scope="session")
def django_db_setup(
    django_db_setup: None, django_db_blocker: DjangoDbBlocker, django_db_keepdb: bool
) -> Iterator[None]:
    """Keep few days of jobs; end the sessions of daemon threads (each `Runner` has one) at the end."""
    with django_db_blocker.unblock():
        _drop_days_to_come(migrated=not django_db_keepdb)
    yield
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def _drop_days_to_come(*, migrated: bool) -> None:
    """Keep the partitions up to tomorrow's: planning a statement takes longer with each, and they stay empty."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT jobs_make_partitions(1)")
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'queues_job'::regclass"
            " AND right(inhrelid::regclass::text, 8)::date > (clock_timestamp() AT TIME ZONE 'UTC')::date + 1"
        )
        to_come = cursor.fetchall()
        # One less when midnight passes in between.
        assert not migrated or len(to_come) in (12, 13), "migrations make the partitions of two weeks"
        for (part,) in to_come:
            cursor.execute(f"DROP TABLE {part}")


@pytest.fixture
def two_weeks(db: None) -> None:
    """All partitions that a migrated database has, for tests of them; the test's rollback drops them again."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT jobs_make_partitions(14)")


_CLOCK = {
    "jobs_now": ("STABLE", "statement_timestamp()"),
    "jobs_clock": ("VOLATILE", "clock_timestamp()"),
}


@pytest.fixture
def shift_clock(db: None) -> Callable[[str], None]:
    """Return a function that moves the database's clock by an interval; the test's rollback moves it back."""
    with connection.cursor() as cursor:
        for name, (kind, now) in _CLOCK.items():
            cursor.execute(
                f"CREATE OR REPLACE FUNCTION {name}() RETURNS timestamptz LANGUAGE sql {kind} PARALLEL SAFE AS"
                f" $$SELECT {now} + coalesce(nullif(current_setting('jobs.shift', true), ''), '0')::interval$$"
            )

    def shift(interval: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('jobs.shift', %s, true)", [interval])

    return shift


_KEPT = (
    "django_migrations", "django_content_type", "auth_permission", "auth_group", "auth_group_permissions",
    "queues_tier", "queues_boardversion",
)  # fmt: skip
"""Rows that migrations made."""


@pytest.fixture
def transactional_db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Let a test commit for real, and empty the tables afterwards.

    It stands in for pytest-django's: that one's flush takes the rows that migrations made, does not know the unmanaged
    jobs table, and the audit log refuses TRUNCATE. Without the `django_db` marker, which would ask for that flush.
    """
    with django_db_blocker.unblock():
        if JobType.objects.exists():
            # A run with --reuse-db was killed.
            _empty()
        try:
            yield
        finally:
            _empty()
            connections.close_all()


_FILLED: Final = """
WITH RECURSIVE filled AS (
  SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> ALL (%s)
    AND pg_relation_size(oid) > 0
  UNION
  SELECT c.conrelid FROM filled f JOIN pg_constraint c ON c.confrelid = f.oid AND c.contype = 'f'
)
SELECT string_agg(oid::regclass::text, ', ') FROM filled
"""
"""Tables that something was written to, and those that refer to them: of each day of jobs its partition."""


def _empty() -> None:
    name = connection.settings_dict["NAME"]
    assert name.startswith("test_"), f"{name} is not a test database"
    with connection.cursor() as cursor:
        # TRUNCATE makes new files for each table and each of its indexes: most tests fill few.
        cursor.execute(_FILLED, [list(_KEPT)])
        tables = cursor.fetchone()[0]
        if tables is None:
            return
        cursor.execute("ALTER TABLE queues_auditentry DISABLE TRIGGER USER")
        cursor.execute(f"TRUNCATE {tables}")
        cursor.execute("ALTER TABLE queues_auditentry ENABLE TRIGGER USER")
