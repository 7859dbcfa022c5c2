"""RELIABILITY C7 and I-04: real processes with a bad environment or bad servers refuse to start, or say what is wrong.

One clear line, exit code not 0, no secret printed. Not here: the local stack, which sets everything itself.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import redis
from cryptography.fernet import Fernet
from django.core.checks import Error
from django.db import connection
from pytest_django.fixtures import Settings

from jobsboard import checks
from jobsboard.api import keys
from jobsboard.local import layout, postgres, stack
from jobsboard.local.supervise import Supervisor
from jobsboard.models import SCOPES
from queues import contract_rules, secrets_box
from queues.models import JobType
from tests.acceptance.conftest import BROKER_DATABASE, ROOT, own_servers
from tests.acceptance.wire import Web, until
from tests.factories import make_type, sql

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("transactional_db")]

SECRET: Final = "hidden-" + secrets.token_hex(8)
"""Part of every bad value: it must never be printed."""
CHECK = ("manage.py", "check")
SERVERS = ("manage.py", "check", "--database", "default")
WEB = ("-m", "gunicorn", "jobsboard.wsgi", "--bind", "127.0.0.1:0", "--threads", "2", "--no-control-socket")
WORKER = ("-m", "celery", "-A", "jobsboard", "worker", "-c", "1", "-Q", "tier3", "--without-gossip", "--without-mingle")
SCHEDULER = ("manage.py", "scheduler")

Environment = Mapping[str, str | None]


@pytest.fixture(scope="module")
def transactional_db(committed: None) -> None:
    """One database for all tests of this module."""


def start(command: tuple[str, ...], env: Environment, seconds: float = 90) -> subprocess.CompletedProcess[str]:
    """Run a process to its end with this beside its environment; None takes a variable away."""
    merged = {**os.environ, **own_servers(), **env}
    given = {name: value for name, value in merged.items() if value is not None}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=given, capture_output=True, text=True, timeout=seconds
    )


def refused(done: subprocess.CompletedProcess[str], says: str, *, lines: int = 1) -> None:
    """Insist that a process said why in so many lines, without a traceback or a secret, and did not start."""
    said = done.stdout + done.stderr
    assert done.returncode not in (0, None), said
    found = [line for line in said.splitlines() if says in line]
    assert len(found) == lines, said
    assert "Traceback" not in said
    assert SECRET not in said


MISTAKES: list[tuple[str, tuple[str, ...], Environment, str]] = [
    ("E-01 no key", CHECK, {"SECRET_KEY": None}, "SECRET_KEY is not set"),
    ("E-01 empty key", CHECK, {"SECRET_KEY": ""}, "SECRET_KEY is not set"),
    ("E-01 changeme", CHECK, {"SECRET_KEY": "changeme"}, "SECRET_KEY must have"),
    ("E-01 ten characters", CHECK, {"SECRET_KEY": SECRET[:10]}, "SECRET_KEY must have"),
    ("E-01 one character", CHECK, {"SECRET_KEY": "a" * 64}, "SECRET_KEY must have"),
    ("E-01 of an example", CHECK, {"SECRET_KEY": f"django-insecure-{SECRET}{SECRET}"}, "SECRET_KEY must have"),
    ("E-01 to be replaced", CHECK, {"SECRET_KEY": f"please-Change-Me-{SECRET}-{SECRET}"}, "SECRET_KEY must have"),
    ("E-01 web", WEB, {"SECRET_KEY": f"changeme-{SECRET}-{SECRET}"}, "SECRET_KEY must have"),
    ("E-01 worker", WORKER, {"SECRET_KEY": f"changeme-{SECRET}-{SECRET}"}, "SECRET_KEY must have"),
    ("E-01 scheduler", SCHEDULER, {"SECRET_KEY": f"changeme-{SECRET}-{SECRET}"}, "SECRET_KEY must have"),
    ("no database", WORKER, {"DATABASE_URL": None}, "DATABASE_URL is not set"),
    ("not PostgreSQL", CHECK, {"DATABASE_URL": f"mysql://u:{SECRET}@localhost/x"}, "DATABASE_URL must look like"),
    ("no name", CHECK, {"DATABASE_URL": f"postgresql://u:{SECRET}@localhost"}, "DATABASE_URL must look like"),
    ("bad port", CHECK, {"DATABASE_URL": f"postgresql://u:{SECRET}@h:x/n"}, "DATABASE_URL has a port"),
    ("no broker", WEB, {"BROKER_URL": None}, "BROKER_URL is not set"),
    ("E-03 no such broker", CHECK, {"BROKER_URL": f"kafka://:{SECRET}@localhost"}, "BROKER_URL must start with"),
    ("E-04 below 0", CHECK, {"WORKER_DEAF_SECONDS": "-1"}, "WORKER_DEAF_SECONDS must be"),
    ("E-04 a unit", CHECK, {"WORKER_DEAF_SECONDS": "60s"}, "WORKER_DEAF_SECONDS must be"),
    ("E-04 an exponent", CHECK, {"WORKER_DEAF_SECONDS": "1e3"}, "WORKER_DEAF_SECONDS must be"),
    ("E-04 too many digits", CHECK, {"WORKER_DEAF_SECONDS": "9" * 30}, "WORKER_DEAF_SECONDS must be"),
    ("a body never late", CHECK, {"REQUEST_BODY_SECONDS": "0"}, "REQUEST_BODY_SECONDS must be"),
    ("debug perhaps", CHECK, {"DEBUG": "maybe"}, "DEBUG must be"),
    ("no network", CHECK, {"TRUSTED_PROXIES": "10.0.0.1/8"}, "TRUSTED_PROXIES has an item"),
    ("E-02 any host, web", WEB, {"ALLOWED_HOSTS": "shop.example,*"}, "ALLOWED_HOSTS must name"),
    ("E-02 no host, web", WEB, {"ALLOWED_HOSTS": ""}, "ALLOWED_HOSTS must name"),
    ("E-06 no key at all", CHECK, {"ENCRYPTION_KEYS": SECRET}, "ENCRYPTION_KEYS has an item that is not a key"),
]  # fmt: skip


@pytest.fixture(scope="module")
def ended() -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """Start all of them, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        # Here, since the threads may not ask for the database's name.
        servers = own_servers()
        yield {name: pool.submit(start, command, {**servers, **env}) for name, command, env, _ in MISTAKES}


@pytest.mark.parametrize(("name", "says"), [(name, says) for name, _, _, says in MISTAKES], ids=lambda text: text[:24])
def test_a_mistake_is_one_line(
    name: str, says: str, ended: dict[str, Future[subprocess.CompletedProcess[str]]]
) -> None:
    """E-01 to E-04, E-06: no process starts with a variable that cannot be what was meant."""
    refused(ended[name].result(), says)


HOSTS = [([], False, True), (["*"], False, True), (["a.example"], False, False), (["a.example", "*"], False, True),
         ([], True, False)]  # fmt: skip


@pytest.mark.parametrize(("hosts", "debug", "bad"), HOSTS)
def test_hosts(hosts: list[str], debug: bool, bad: bool, settings: Settings) -> None:
    """E-02: an error of web and of `manage.py check --deploy`, unless DEBUG is on; others answer to no host."""
    settings.ALLOWED_HOSTS, settings.DEBUG = hosts, debug
    assert checks.environment() == []
    assert [one.id for one in checks.hosts()] == (["jobsboard.E001"] if bad else [])


@pytest.mark.parametrize(("servers_too", "ends"), [(True, True), (False, False)])
def test_what_turns_up_in_the_servers_later_ends_no_running_web(
    servers_too: bool, ends: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """gunicorn's master ends when one worker cannot be loaded: one bad row must not do that to a running web."""
    monkeypatch.setattr(checks, "servers", lambda **_: [Error("a secret", id="jobsboard.E004")])
    monkeypatch.setattr(checks, "hosts", list)
    if ends:
        with pytest.raises(SystemExit):
            checks.refuse_to_start("web", servers_too=servers_too)
    else:
        checks.refuse_to_start("web", servers_too=servers_too)
        assert "jobsboard.E004" in caplog.text


def test_a_process_knows_whether_its_parent_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BOOT_SECONDS", 1e9)
    assert checks.starts_with_its_parent()
    monkeypatch.setattr(checks, "BOOT_SECONDS", 0.0)
    assert not checks.starts_with_its_parent()


def test_hints_that_come_again_are_said(settings: Settings) -> None:
    """E-05: with the transport's own emulation of acknowledgements a long run's hint comes again: a warning."""
    assert [one.id for one in checks.environment()] == []
    settings.CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 30}
    assert [one.id for one in checks.environment()] == ["jobsboard.W001"]


@pytest.mark.parametrize("lease", [0, -1, "60s", "1e3", None, 1.5, 10**9])
def test_leases(lease: Any) -> None:
    """E-04: a lease is a field of the contract (DESIGN.md 6); one that cannot be is refused by its name."""
    assert list(contract_rules.check({"lease_seconds": lease}).errors) == ["lease_seconds"]


@pytest.fixture
def unsafe_database() -> Iterator[str]:
    """A server of its own with everything off that makes a commit last; yields its URL."""
    with layout.private() as home, pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            patch.setitem(postgres.SETTINGS, name, "off")
        supervisor = Supervisor()
        try:
            yield stack.start_servers(
                supervisor, home, layout.draw_secrets(), throwaway=True, broker_url=os.environ["BROKER_URL"]
            ).database_url
        finally:
            # Not stop_all: it ends every child of this process, those that `ended` is starting meanwhile too.
            supervisor.stop(*supervisor.children)


def test_a_database_that_forgets(unsafe_database: str) -> None:
    """I-04: `check --database` names what is off, and its exit code is not 0."""
    done = start(SERVERS, {"DATABASE_URL": unsafe_database})
    refused(done, "jobsboard.E003")
    assert "fsync, full_page_writes, synchronous_commit off" in done.stderr


@pytest.fixture
def forgets_commits() -> Iterator[None]:
    """Let new sessions of the test's database not wait for their commits."""
    name = connection.settings_dict["NAME"]
    sql(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    yield
    sql(f'ALTER DATABASE "{name}" RESET synchronous_commit')
    connection.close()


def test_no_process_starts_on_it(forgets_commits: None, settings: Settings) -> None:
    """I-04: worker, scheduler and web refuse; ALLOW_NONDURABLE_DATABASE lets them start, with a warning."""
    servers = own_servers()
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda command: start(command, servers), (WORKER, SCHEDULER, WEB)):
            refused(done, "PostgreSQL has synchronous_commit off")
    # This process's own session is older than the setting.
    connection.close()
    assert found() == {"jobsboard.E003"}
    settings.ALLOW_NONDURABLE_DATABASE = True
    assert found() == {"jobsboard.W003"}


def found() -> set[str]:
    """Return what this process's own checks find at the servers."""
    return {one.id or "" for one in checks.servers(databases=["default"])}


def test_a_key_that_was_taken_away(settings: Settings) -> None:
    """E-06: nothing starts while stored secrets cannot be opened, and nothing is overwritten."""
    make_type("set.sealed", success="callback")
    make_type("set.other")
    rows = JobType.objects.filter(name="set.sealed")
    rows.update(callback_secret=secrets_box.seal("one"), target_secret=secrets_box.seal("two"))
    before = rows.values_list("callback_secret", "target_secret").get()
    try:
        new = f"{Fernet.generate_key().decode()},{Fernet.generate_key().decode()}"
        refused(start(WEB, {"ENCRYPTION_KEYS": new}), "2 stored secrets cannot be decrypted")
        assert rows.values_list("callback_secret", "target_secret").get() == before
        assert found() == set()
        good = settings.ENCRYPTION_KEYS
        for one, bad in (([], True), (new.split(","), True), ([*new.split(","), *good], False)):
            settings.ENCRYPTION_KEYS = one
            assert found() == ({"jobsboard.E004"} if bad else set())
    finally:
        rows.delete()


def test_a_role_without_rights() -> None:
    """E-07: a role that may not write the audit log is an error that names the table."""
    role = f"poor_{secrets.token_hex(4)}"
    sql(f"CREATE ROLE {role}")
    try:
        sql(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}")
        sql(f"SET ROLE {role}")
        assert found() == set()
        sql("RESET ROLE")
        sql(f"REVOKE INSERT ON queues_auditentry FROM {role}")
        sql(f"SET ROLE {role}")
        [one] = checks.servers(databases=["default"])
        assert (one.id, "may not INSERT on queues_auditentry" in one.msg) == ("jobsboard.E005", True)
    finally:
        sql("RESET ROLE")
        sql(f"DROP OWNED BY {role}")
        sql(f"DROP ROLE {role}")


def test_a_broker_that_loses_hints(settings: Settings) -> None:
    """E-03: eviction and a database shared with a cache are warnings, and no more: hints may get lost."""
    settings.BROKER_URL = own_servers()["BROKER_URL"]
    with redis.Redis.from_url(settings.BROKER_URL) as client:
        client.flushdb()
        client.lpush("tier1", "a hint")
        assert found() == set()
        try:
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.mset({f":1:page-{n}": "x" for n in range(5)})
            said = {one.id: one for one in checks.servers(databases=["default"])}
            assert set(said) == {"jobsboard.W005", "jobsboard.W006"}
            assert "allkeys-lru" in said["jobsboard.W005"].msg
            assert "5 of 6 keys" in said["jobsboard.W006"].msg
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.flushdb()


def test_a_broker_that_is_not_there(tmp_path: Path) -> None:
    """E-03: TLS that the broker does not speak, or nobody at its address: the web starts, says so, and takes jobs."""
    broker = urlsplit(os.environ["BROKER_URL"])
    url = broker._replace(scheme="rediss", path=f"/{BROKER_DATABASE}").geturl()
    make_type("set.plain")
    env = {**os.environ, **own_servers(), "BROKER_URL": url}
    with socket.create_server(("127.0.0.1", 0)) as listening, open(tmp_path / "web.log", "ab") as log:
        command = [sys.executable, *WEB[:3], "--bind", f"fd://{listening.fileno()}", *WEB[5:]]
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=log, stderr=log, pass_fds=(listening.fileno(),), start_new_session=True
        )
        try:
            said = tmp_path / "web.log"
            assert until(lambda: "jobsboard.W004" in said.read_text(), seconds=60), said.read_text()
            assert broker.password and broker.password not in said.read_text()
            web = Web(address=listening.getsockname(), key=keys.issue_key(label="set", scopes=SCOPES)[1])
            assert web.raw(web.head("GET", "/readyz"), method="GET", seconds=60).json()["status"] == "degraded"
            assert web.post("/jobs", {"type": "set.plain", "payload": {}}).status == 201
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
