"""What must be true before a process starts: hosts, keys, a database that keeps what it says, rights, the broker.

`manage.py check` looks at the environment, with `--deploy` at what web needs, with `--database default` at the servers.
Web, workers and the scheduler do so when they start; an error ends them with one line, a warning is logged and they go
on. Not here: variables that cannot be read at all (`jobsboard.env`); contracts (`queues.contract_rules`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import redis
from celery import signals
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, connection

from queues import secrets_box

LOAD_ERROR: Final = 4
"""What gunicorn takes for: the application cannot be loaded, do not try again."""
BROKER_SECONDS: Final = 1.0
BOOT_SECONDS: Final = 60.0
_KEYS_LOOKED_AT: Final = 200
_OURS: Final = (b"_kombu.", b"unacked", b"tier", b"canary.", b"celery", b"queues.")
"""How the names of what Celery and we keep in the broker begin."""

_RIGHTS: Final = (
    ("queues_job", ("SELECT", "INSERT", "UPDATE")),
    ("queues_dedupekey", ("SELECT", "INSERT", "UPDATE")),
    ("queues_outcomedelta", ("SELECT", "INSERT")),
    ("queues_suspectedduplicate", ("SELECT", "INSERT")),
    ("queues_auditentry", ("SELECT", "INSERT")),
)
"""What every process needs; without one of these it would fail later, in the middle of its work."""

_log = logging.getLogger(__name__)
# Django's name for it hides a builtin.
_Warning = Warning


def connect() -> None:
    """Register the checks, and let a worker make them before it forks; called once, when the application is ready."""
    register(environment)
    register(hosts, Tags.security, deploy=True)
    register(servers, Tags.database)
    signals.celeryd_init.connect(_before_a_worker, weak=False)


def refuse_to_start(process: str, *, code: int = 1, servers_too: bool = True) -> None:
    """Make the checks and end this process when one of them is an error; `servers_too`: also one of the servers'.

    Raises: SystemExit with `code`.
    """
    own = [*environment(), *(hosts() if process == "web" else ())]
    around = servers(databases=["default"])
    # Whoever forks now must not share the connection.
    connection.close()
    errors = [one for one in (*own, *(around if servers_too else ())) if one.is_serious() and not one.is_silenced()]
    for one in (*own, *around):
        if not one.is_silenced() and one not in errors:
            _log.log(logging.ERROR if one.is_serious() else logging.WARNING, "%s: %s", one.id, one.msg)
    if errors:
        end(process, [f"{one.id}: {one.msg}" for one in errors], code=code)


def starts_with_its_parent() -> bool:
    """Say whether the process that started this one is young: a master that boots, not one that replaces a worker.

    gunicorn ends altogether when one of its workers cannot be loaded. What is wrong with the servers at the first start
    should do that; a row that somebody writes later must not take a running web down with the first worker that ends.
    """
    try:
        ticks = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return True
    return up - ticks / os.sysconf("SC_CLK_TCK") < BOOT_SECONDS


def end(process: str, lines: Iterable[str], *, code: int = 1) -> None:
    """Say why this process does not start, a line for each reason, and end it. Raises: SystemExit."""
    for line in lines:
        sys.stderr.write(f"{process} does not start: {line}\n")
    sys.stderr.flush()
    raise SystemExit(code)


def environment(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Check what can be judged without asking anybody (E-05, E-06)."""
    found: list[CheckMessage] = []
    try:
        secrets_box.check_keys()
    except ImproperlyConfigured as error:
        found.append(Error(str(error), id="jobsboard.E002"))
    if settings.CELERY_BROKER_TRANSPORT_OPTIONS.get("ack_emulation") is not False:
        says = "ack_emulation is on: a hint that a worker holds for longer than visibility_timeout is delivered again."
        found.append(_Warning(says, hint="Jobs are claimed once all the same.", id="jobsboard.W001"))
    return found


def hosts(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Check what only web needs (E-02)."""
    if settings.DEBUG or (settings.ALLOWED_HOSTS and "*" not in settings.ALLOWED_HOSTS):
        return []
    return [Error("ALLOWED_HOSTS must name the hosts that web answers to, and not *.", id="jobsboard.E001")]


def servers(app_configs: Any = None, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Check the database and the broker as this process would use them, where it is asked to (`--database`)."""
    if not databases or "default" not in databases:
        return []
    return [*_database(), *_broker()]


def _database() -> list[CheckMessage]:
    parts: tuple[Callable[[], list[CheckMessage]], ...] = (_durability, _secrets, _rights)
    try:
        return [message for part in parts for message in part()]
    except (DatabaseError, InterfaceError) as error:
        # Not an error: every process waits for its database, and web says so in /readyz.
        says = f"The database could not be asked ({type(error).__name__}); it was not checked."
        return [_Warning(says, id="jobsboard.W002")]


def _durability() -> list[CheckMessage]:
    """I-04: a 2xx means stored. Where commits are not waited for, a crash takes back what was acknowledged."""
    off = [
        name
        for (name,) in _rows(
            "SELECT name FROM pg_settings WHERE name IN ('synchronous_commit', 'fsync', 'full_page_writes')"
            " AND setting = 'off' ORDER BY name"
        )
    ]
    if not off:
        return []
    says = f"PostgreSQL has {', '.join(off)} off, so a crash can lose jobs that were accepted."
    if settings.ALLOW_NONDURABLE_DATABASE:
        return [_Warning(f"{says} ALLOW_NONDURABLE_DATABASE accepts that.", id="jobsboard.W003")]
    return [Error(f"{says} Turn it on, or set ALLOW_NONDURABLE_DATABASE=1 for data of no worth.", id="jobsboard.E003")]


def _secrets() -> list[CheckMessage]:
    """Open what is stored: a key that was taken away too early shows at the start, not in a provider's callback."""
    if _rows("SELECT to_regclass('queues_jobtype')") == [(None,)]:
        return []
    closed = 0
    for sealed in _rows(
        "SELECT target_secret, callback_secret,"
        " CASE WHEN callback_secret_old_until > statement_timestamp() THEN callback_secret_old END FROM queues_jobtype"
        " WHERE enabled AND (target_secret IS NOT NULL OR callback_secret IS NOT NULL"
        " OR callback_secret_old IS NOT NULL)"
    ):
        closed += sum(not _opens(one) for one in sealed if one is not None)
    if _rows("SELECT to_regclass('jobsboard_webhookendpoint')") != [(None,)]:
        closed += sum(not _opens(one) for keeper in secrets_box.keepers() for one in keeper.sealed())
    if not closed:
        return []
    noun = "secret" if closed == 1 else "secrets"
    says = f"{closed} stored {noun} cannot be decrypted with ENCRYPTION_KEYS. Put the key before the newest back."
    return [Error(says, id="jobsboard.E004")]


def _opens(sealed: bytes | memoryview) -> bool:
    try:
        secrets_box.open(sealed)
    except (secrets_box.CannotOpen, ImproperlyConfigured):
        return False
    return True


def _rights() -> list[CheckMessage]:
    wanted = [(table, right) for table, rights in _RIGHTS for right in rights]
    missing = _rows(
        "SELECT w.t, string_agg(w.r, ', ') FROM unnest(%s::text[], %s::text[]) AS w (t, r)"
        " WHERE to_regclass(w.t) IS NOT NULL AND NOT has_any_column_privilege(to_regclass(w.t), w.r) GROUP BY w.t"
        " ORDER BY w.t",
        [table for table, _ in wanted],
        [right for _, right in wanted],
    )
    return [
        Error(f"The database role may not {rights} on {table}, which every process needs.", id="jobsboard.E005")
        for table, rights in missing
    ]


def _rows(statement: str, *params: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, params or None)
        return list(cursor.fetchall())


def _broker() -> list[CheckMessage]:
    """Look at the broker. Never an error: without it jobs are accepted and start later (E-03)."""
    if not settings.BROKER_URL.startswith(("redis://", "rediss://", "redis+socket://")):
        return []
    url = settings.BROKER_URL.replace("redis+socket://", "unix://", 1)
    try:
        # Without `retry` a dead broker would be asked several times.
        client = redis.Redis.from_url(
            url, socket_timeout=BROKER_SECONDS, socket_connect_timeout=BROKER_SECONDS, retry=None
        )
    except (redis.RedisError, ValueError, TypeError) as error:
        return [_no_broker(type(error).__name__)]
    with client:
        try:
            return [*_eviction(client), *_strangers(client)]
        except (redis.RedisError, OSError, ValueError) as error:
            return [_no_broker(type(error).__name__)]


def _no_broker(why: str) -> CheckMessage:
    says = f"The broker does not answer ({why}): jobs are accepted, and start later or not before it is back."
    return _Warning(says, id="jobsboard.W004")


def _eviction(client: redis.Redis) -> list[CheckMessage]:
    # INFO, since CONFIG is closed in most hosted ones.
    policy = client.info("memory").get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return []
    says = f"The broker has maxmemory-policy {policy}: it may drop hints, and jobs then start later. Use noeviction."
    return [_Warning(says, id="jobsboard.W005")]


def _strangers(client: redis.Redis) -> list[CheckMessage]:
    names = [name if isinstance(name, bytes) else name.encode() for name in client.scan(count=_KEYS_LOOKED_AT)[1]]
    strange = sum(not name.startswith(_OURS) for name in names)
    if not strange:
        return []
    says = f"The broker's database is shared: {strange} of {len(names)} keys are not Celery's. Give it one of its own."
    return [_Warning(says, hint="Who empties the cache would empty the queues as well.", id="jobsboard.W006")]


def _before_a_worker(**_: Any) -> None:
    refuse_to_start("worker")
