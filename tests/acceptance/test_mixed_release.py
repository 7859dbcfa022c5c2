"""The release before and this one side by side, and the way from one to the other under load (layer L6)."""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest
from celery import current_app, uuid
from psycopg import sql as pg

from jobsboard.local import ports
from queues import broker
from tests.acceptance import rolling_jobs
from tests.acceptance.conftest import ROOT, Stack, limbo
from tests.acceptance.fleet import Fleet, Producers, stop
from tests.acceptance.rolling_jobs import QUICK, WORK
from tests.factories import accept, make_type, sql

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

SLACK: Final = 60.0
END: Final = 30.0
ENOUGH: Final = 8
"""So many jobs of each pair of accepting and running release."""
MIGRATIONS: Final = ("queues/migrations", "dlq/migrations", "jobsboard/migrations")
_MIGRATION: Final = re.compile(r"\w+/migrations/\d{4}_\w+\.py")
LOCK_SECONDS: Final = 2
CONTRACTS: Final = "\n".join(
    f'[job_types."{name}"]\ntier = 2\nhandler = "python"\nsuccess = "reference"\nkey_required = true\n'
    for name in (QUICK, WORK)
)
SETTINGS: Final = f"""
from jobsboard.settings import *
DATABASES["default"]["OPTIONS"]["options"] += " -c lock_timeout={LOCK_SECONDS}s"
"""


def _git(*arguments: str) -> bytes:
    """Ask git about this checkout; skips the test, and says why, where it cannot answer."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)
    except OSError as error:
        pytest.skip(f"NOT TESTED, old and new release together: git does not run here ({error})")
    if done.returncode:
        pytest.skip(f"NOT TESTED, old and new release together: git {arguments[0]}: {done.stderr.decode().strip()}")
    return done.stdout


def _migrations(names: str) -> set[str]:
    return set(filter(_MIGRATION.fullmatch, names.split()))


def release_before() -> str:
    """Return the newest commit whose migrations are only a part of this tree's: what an upgrade comes from.

    That is the parent of the commit that added the newest migration. Commits in between, whose migrations were renamed
    before a release, are nobody's starting point.
    """
    here = _migrations(" ".join(str(path.relative_to(ROOT)) for d in MIGRATIONS for path in (ROOT / d).glob("*.py")))
    changes = _git("log", "--first-parent", "--no-merges", "--format=%H %P", "--", *MIGRATIONS).decode().splitlines()
    for commit in ["HEAD", *(parent for line in changes for parent in line.split()[1:2])]:
        if _migrations(_git("ls-tree", "-r", "--name-only", commit, "--", *MIGRATIONS).decode()) < here:
            return commit
    shallow = " (the clone is shallow)" if _git("rev-parse", "--is-shallow-repository").strip() == b"true" else ""
    pytest.skip(f"NOT TESTED, old and new release together: no commit before the newest migration is here{shallow}")


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the release before."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=BytesIO(_git("archive", release_before()))) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Upgrade:
    """A database that the old release made, and the processes of both releases on it."""

    def __init__(self, stack: Stack, old_tree: Path, database: psycopg.Connection[Any], url: str) -> None:
        folder = stack.folder / "both"
        folder.mkdir()
        (folder / "rolling_jobs.py").write_text(Path(rolling_jobs.__file__).read_text())
        (folder / "contracts.toml").write_text(CONTRACTS)
        (folder / "patient_settings.py").write_text(SETTINGS)
        env = {"DATABASE_URL": url, "JOBSBOARD_HANDLERS": "rolling_jobs", "PYTHONPATH": str(folder)}
        self.stack, self.database = stack, database
        self.old = Fleet(stack, tree=old_tree, env=env, ask=self.sql)
        self.new = Fleet(stack, env=env, ask=self.sql)
        self.migrating = Fleet(stack, env={**env, "DJANGO_SETTINGS_MODULE": "patient_settings"})
        self.manage(self.old, "migrate", "--verbosity", "0")
        self.manage(self.old, "contracts", "sync", str(folder / "contracts.toml"))
        self.api_key = self.manage(self.old, "api_key", "create", "--label", "producers").split()[-1]

    @staticmethod
    def manage(fleet: Fleet, *words: str) -> str:
        """Run a management command of one release and return what it said."""
        done = fleet.run("manage.py", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sql(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        return self.database.execute(pg.SQL(statement), params or None).fetchall()

    def bodies(self) -> dict[str, str]:
        """Return which tree's worker began each job."""
        return {line["id"]: line["tree"] for line in self.stack.runs("rolling.") if line["what"] == "start"}


@pytest.fixture
def upgrade(stack: Stack, old_tree: Path) -> Iterator[Upgrade]:
    """A database with the schema of the release before; another one than the other tests', which have this one's."""
    name = f"{urlsplit(stack.env['DATABASE_URL']).path[1:]}_old"
    url = urlsplit(stack.env["DATABASE_URL"])._replace(path=f"/{name}").geturl()
    sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    sql(f'CREATE DATABASE "{name}" TEMPLATE template0')
    try:
        with psycopg.connect(url, autocommit=True) as database:
            both = Upgrade(stack, old_tree, database, url)
            yield both
            both.new.end()
    finally:
        sql(f'DROP DATABASE "{name}" WITH (FORCE)')


def test_the_release_before_is_upgraded_under_load(upgrade: Upgrade) -> None:
    """I-24, I-43: while clients post, the schema is migrated under the old release, then each of its parts works beside
    each of this release's: whoever accepted a job, and whoever ran it, it is confirmed and has run once."""
    stack, old, new = upgrade.stack, upgrade.old, upgrade.new
    before, after = ports.free(), ports.free()
    with old.together():
        _, old_worker, old_scheduler = old.web(before), old.worker(), old.scheduler()
    producers = Producers([before], upgrade.api_key, rate=8)
    stack.until(lambda: len(upgrade.bodies()) >= ENOUGH, seconds=SLACK)

    # Somebody's report is open: a migration that wants the jobs for itself gives up before an accept does.
    with psycopg.connect(upgrade.database.info.dsn, password=upgrade.database.info.password or None) as report:
        report.execute("SELECT count(*) FROM queues_job")
        tried = upgrade.migrating.run("manage.py", "migrate", "--verbosity", "0")
        assert tried.returncode == 0 or "lock timeout" in tried.stderr
        report.rollback()
    done = upgrade.migrating.run("manage.py", "migrate", "--verbosity", "0")
    assert done.returncode == 0, done.stderr
    assert producers.refused == []
    assert producers.slowest < LOCK_SECONDS + 5

    with new.together():
        new.web(after)
        new.scheduler()
    producers.web = [before, after]
    _until_each_pair(upgrade, producers, {before: old.tree, after: old.tree})
    new_worker = new.worker()
    assert stop(old_worker, seconds=END) == 0
    _until_each_pair(upgrade, producers, {before: new.tree, after: new.tree})
    assert stop(old_scheduler, seconds=END) == 0
    producers.stop()

    assert producers.refused == []
    stack.until(lambda: upgrade.sql("SELECT DISTINCT state FROM queues_job") == [("confirmed",)], seconds=SLACK)
    assert {str(i) for (i,) in upgrade.sql("SELECT id FROM queues_job")} == producers.ids
    lines = Counter((line["id"], line["what"]) for line in stack.runs("rolling."))
    assert lines == {(job, what): 1 for job in producers.ids for what in ("start", "end")}
    assert upgrade.sql("SELECT DISTINCT attempt, begun, crashes, failures::text FROM queues_job") == [(1, 1, 0, "[]")]
    assert stop(new_worker, seconds=END) == 0


def _until_each_pair(upgrade: Upgrade, producers: Producers, pairs: dict[int, Path]) -> None:
    """Wait until enough jobs that each web process took from now on were run by that tree's worker."""
    known = set(producers.taken_by)

    def seen() -> bool:
        ran = Counter((producers.taken_by.get(job), tree) for job, tree in upgrade.bodies().items() if job not in known)
        return all(ran[port, str(tree)] >= ENOUGH for port, tree in pairs.items())

    upgrade.stack.until(seen, seconds=SLACK)


Send = Callable[[list[UUID]], tuple[str, tuple[Any, ...], dict[str, Any]]]
STRANGE: Final[dict[str, Send]] = {
    "another argument": lambda ids: (broker.TASK, (_text(ids), "tier2"), {}),
    "another keyword": lambda ids: (broker.TASK, (_text(ids),), {"trace": "00-1"}),
    "no argument": lambda ids: (broker.TASK, (), {}),
    "all by keyword": lambda ids: (broker.TASK, (), {"ids": _text(ids), "attempt": 2}),
    "no list": lambda ids: (broker.TASK, ({"ids": _text(ids)},), {}),
    "an unknown task": lambda ids: ("queues.run_v9", (_text(ids),), {}),
    "a check with more": lambda ids: (broker.CHECK_TASK, (_text(ids), 1), {}),
}


def _text(ids: list[UUID]) -> list[str]:
    return [str(job_id) for job_id in ids]


def test_hints_of_another_release_lose_no_job(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-24: hints with more, fewer or other arguments, and of tasks that this release does not know: the worker lives,
    and each job runs once, by this hint or by the next one."""
    stack.env["JOBSBOARD_HANDLERS"] = "tests.acceptance.rolling_jobs"
    make_type(QUICK, success="reference")
    fleet = Fleet(stack)
    worker = fleet.worker(concurrency=1)
    pool = stack.pool(worker)
    # So that no hint but the strange ones is sent before the scheduler's.
    monkeypatch.setattr(broker, "is_short", lambda name: False)
    ids = {kind: accept(kind=QUICK) for kind in STRANGE}
    with current_app.connection_for_write() as connection, connection.Producer() as producer:
        for kind, make in STRANGE.items():
            task, args, kwargs = make(ids[kind])
            headers, properties, body, _ = current_app.amqp.as_task_v2(uuid(), task, args=args, kwargs=kwargs)
            producer.publish(
                body, exchange="", routing_key="tier2", serializer="json", headers=headers | {"release": "9"},
                **properties,
            )  # fmt: skip
    stack.until(lambda: stack.broker.llen("tier2") == 0, seconds=SLACK)
    fleet.scheduler()
    stack.all_confirmed(len(STRANGE), seconds=SLACK)
    assert (worker.poll(), stack.pool(worker)) == (None, pool)
    assert Counter(line["id"] for line in stack.runs(QUICK) if line["what"] == "start") == {
        str(job): 1 for [job] in ids.values()
    }
    assert sql("SELECT DISTINCT attempt, begun, crashes FROM queues_job") == [(1, 1, 0)]
    assert limbo() == []
    fleet.end()
