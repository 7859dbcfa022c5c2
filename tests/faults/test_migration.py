"""A `migrate` that dies in the middle of a migration is simply run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest

pytestmark = pytest.mark.acceptance

DYING = """
import os, signal, sys
import django
django.setup()
from django.core.management import call_command
from django.db import connection
def strike(execute, sql, params, many, context):
    done = execute(sql, params, many, context)
    if sys.argv[1] in str(sql):
        os.kill(os.getpid(), signal.SIGKILL)
    return done
with connection.execute_wrapper(strike):
    call_command("migrate", verbosity=0)
"""
SHAPE = """
SELECT c.relkind::text, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'public'::regnamespace
UNION ALL SELECT 'f', proname, md5(prosrc), '', false FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL SELECT 't', tgname, pg_get_triggerdef(oid), '', false FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'c', conname, pg_get_constraintdef(oid), '', false FROM pg_constraint
  WHERE connamespace = 'public'::regnamespace
ORDER BY 1, 2, 3, 4, 5
"""


@pytest.fixture
def scratch() -> Iterator[tuple[str, str]]:
    """Two empty databases on the test's server."""
    url = urlsplit(os.environ["DATABASE_URL"])
    names = (f"scratch_{os.getpid()}_a", f"scratch_{os.getpid()}_b")
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        for name in names:
            connection.execute(f"CREATE DATABASE {name}")
        try:
            yield url._replace(path=f"/{names[0]}").geturl(), url._replace(path=f"/{names[1]}").geturl()
        finally:
            for name in names:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _migrate(url: str, dying: str = "") -> int:
    env = {**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "jobsboard.settings"}
    argv = ["-c", DYING, dying] if dying else ["manage.py", "migrate", "-v", "0"]
    return subprocess.run([sys.executable, *argv], env=env, timeout=100).returncode


def _shape(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(SHAPE).fetchall()


def test_a_migration_that_is_killed_is_run_again(scratch: tuple[str, str]) -> None:
    """I-16: killed in the middle of four migrations, the schema ends up as if nothing had happened."""
    killed, whole = scratch
    for words in ('CREATE TABLE "queues_jobtype"', "PARTITION BY", 'CREATE TABLE "queues_callback"', "jobs_prune_swap"):
        assert _migrate(killed, words) == -signal.SIGKILL, f"it never came to {words}"
    assert _migrate(killed) == 0
    assert _migrate(whole) == 0
    assert _shape(killed) == _shape(whole)
