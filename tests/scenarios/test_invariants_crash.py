"""I-25: PostgreSQL is killed under load, and what was acknowledged before is there when it is back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.scenarios.conftest import until
from tests.scenarios.producer import TYPE
from tests.scenarios.servers import own_postgres

ROOT: Final = Path(__file__).resolve().parents[2]
CRASHES: Final = 2
BETWEEN: Final = 40
"""Accepts that are acknowledged between two crashes, at least."""

pytestmark = pytest.mark.acceptance


def _told(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split() for line in lines if len(line.split()) == 2)


def test_i_25_a_crash_of_postgresql_loses_no_acknowledged_accept(tmp_path: Path) -> None:
    """I-25, I-03, promise 1: four producers send one key after the other while PostgreSQL is stopped `immediate`
    times and recovers. Every acknowledged job is there, under its key and with its id; a key that was sent again,
    because its answer was lost with the crash, has one job."""
    path = tmp_path / "acknowledged"
    with own_postgres() as database:
        env = {**os.environ, "DATABASE_URL": database.url, "DJANGO_SETTINGS_MODULE": "jobsboard.settings"}
        migrate = [sys.executable, "manage.py", "migrate", "--no-input", "-v", "0"]
        subprocess.run(migrate, cwd=ROOT, env=env, check=True)
        command = [sys.executable, "-m", "tests.scenarios.producer", str(path)]
        with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE) as producer:
            try:
                for _ in range(CRASHES):
                    before = len(_told(path))
                    until(lambda n=before: len(_told(path)) >= n + BETWEEN, "nothing is accepted", seconds=60)  # type: ignore[misc]
                    database.crash()
                    assert producer.poll() is None
                    database.start()
                before = len(_told(path))
                until(lambda: len(_told(path)) >= before + BETWEEN, "nothing is accepted after the crash", seconds=60)
                producer.communicate(timeout=60)
            finally:
                producer.kill()
        assert producer.returncode == 0
        with psycopg.connect(database.url) as connection:
            jobs = connection.execute("SELECT dedupe_key, id::text FROM queues_job WHERE type = %s", [TYPE]).fetchall()
            keys = connection.execute("SELECT key, job_id::text FROM queues_dedupekey").fetchall()
    told = _told(path)
    assert len(told) >= (CRASHES + 1) * BETWEEN
    assert told.items() <= dict(jobs).items(), "an acknowledged job is not there"
    assert len(jobs) == len(dict(jobs)), "a key has two jobs"
    assert dict(jobs) == dict(keys)
