"""What tests of every folder share: fresh caches, a clock that can be moved, a database that really commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from django.db import connection, connections
from pytest_django import DjangoDbBlocker

from queues import backlog, contracts
from queues.models import JobType


@pytest.fixture(autouse=True)
def _fresh_contracts() -> Iterator[None]:
    """Let no test see the contracts of the one before."""
    contracts.forget()
    backlog.forget_cached()
    yield
    contracts.forget()
    backlog.forget_cached()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """End the sessions of daemon threads (each `Runner` has one) before the database is dropped."""
    yield
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


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


def _empty() -> None:
    name = connection.settings_dict["NAME"]
    assert name.startswith("test_"), f"{name} is not a test database"
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT string_agg(oid::regclass::text, ', ') FROM pg_class WHERE relkind IN ('r', 'p')"
            " AND relnamespace = 'public'::regnamespace AND NOT relispartition AND relname <> ALL (%s)",
            [list(_KEPT)],
        )
        tables = cursor.fetchone()[0]
        cursor.execute("ALTER TABLE queues_auditentry DISABLE TRIGGER USER")
        cursor.execute(f"TRUNCATE {tables}")
        cursor.execute("ALTER TABLE queues_auditentry ENABLE TRIGGER USER")
