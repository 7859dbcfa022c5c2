"""A stack's servers, brought up and joined: PostgreSQL, Valkey, and the environment that points a process at them.

Not here: the application's processes (`processes.py`, `serve.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobsboard.local import leftovers, logs, ports, postgres, valkey
from jobsboard.local.errors import LocalStackError
from jobsboard.local.layout import CHECKOUT, MARKER, Layout, Secrets
from jobsboard.local.supervise import Child, ProcessSpec, Supervisor, require_success

#: A port can be taken between our look and the server's bind.
PORT_TRIES = 5
START_SECONDS = 60.0
#: What a joined command takes over from the running stack.
SHARED_NAMES = (
    "DATABASE_URL",
    "BROKER_URL",
    "SECRET_KEY",
    "ENCRYPTION_KEYS",
    "ALLOWED_HOSTS",
    "PUBLIC_URL",
    "OUTBOUND_ALLOWED_CIDRS",
    "JOBSBOARD_HANDLERS",
    "JOBSBOARD_DEMO_DIR",
    "CRM_SECRET",
    "CRM_CALLBACK_SECRET",
    "PAGER_SECRET",
    "WEBHOOK_ALLOW_HTTP",
    "WEBHOOK_ALLOWED_PORTS",
)
#: Settings of the user's own that tests and measurements must not see.
FOREIGN_NAMES = (
    *SHARED_NAMES,
    "DEBUG",
    "TRUSTED_PROXIES",
    "CSRF_TRUSTED_ORIGINS",
    "METRICS_TOKEN",
    "PROMETHEUS_MULTIPROC_DIR",
    "STATIC_ROOT",
    "JOBSBOARD_ENVIRONMENT",
    "JOBSBOARD_STACK_DIR",
    "PORT",
)


@dataclass(frozen=True)
class Servers:
    """Where the servers of a running stack are."""

    database_url: str
    broker_url: str


def inherited_environment() -> dict[str, str]:
    """Return our environment with this interpreter's programs first: `python` and `celery` mean those of .venv."""
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env["PYTHONUNBUFFERED"] = "1"
    return env


def environment(servers: Servers, secrets: Secrets, *, stack: Layout, url: str, foreign: bool = True) -> dict[str, str]:
    """Build the environment of a process of this stack; `foreign=False` leaves the user's own settings out."""
    env = {name: value for name, value in inherited_environment().items() if foreign or name not in FOREIGN_NAMES}
    env |= {
        "DATABASE_URL": servers.database_url,
        "BROKER_URL": servers.broker_url,
        "SECRET_KEY": secrets.secret_key,
        "ENCRYPTION_KEYS": secrets.encryption_keys,
        MARKER: str(stack.root),
    }
    env.setdefault("ALLOWED_HOSTS", "127.0.0.1,localhost")
    env.setdefault("PUBLIC_URL", url)
    return env


def start_servers(
    supervisor: Supervisor,
    stack: Layout,
    secrets: Secrets,
    *,
    programs: Path | None = None,
    throwaway: bool = False,
    fsync: bool = True,
    database_url: str = "",
    broker_url: str = "",
) -> Servers:
    """Start the servers that no URL is given for, side by side, and wait until they serve.

    Raises: LocalStackError, StopRequested.
    """
    leftovers.end_processes(stack)
    marker = {MARKER: str(stack.root)}
    if not broker_url:
        broker = valkey.Valkey(stack=stack, password=secrets.broker_password)
        port = _start(
            supervisor,
            describe=lambda port: broker.spec(port=port, env=marker),
            serves=lambda _child, port: broker.serves(port=port),
        )
        broker_url = broker.url(port=port)
    if not database_url:
        database = postgres.of_stack(
            stack, password=secrets.database_password, programs=programs, throwaway=throwaway, fsync=fsync
        )
        database.initialise()
        port = _start(
            supervisor,
            describe=lambda port: database.spec(port=port, env=marker),
            serves=lambda child, _port: database.serves(child),
        )
        database.create_database(port=port)
        database_url = database.url(port=port)
    return Servers(database_url=database_url, broker_url=broker_url)


def _start(
    supervisor: Supervisor,
    *,
    describe: Callable[[int], ProcessSpec],
    serves: Callable[[Child, int], bool],
) -> int:
    """Start a server on a free port, trying another when it ends at once; returns the port."""
    for attempt in range(PORT_TRIES):
        port = ports.free()
        spec = describe(port)
        if spec.log is not None and attempt == 0:
            logs.begin(spec.log)
        child = supervisor.start(spec)
        supervisor.wait(partial(_settled, child, port, serves), seconds=START_SECONDS)
        if child.alive and serves(child, port):
            # From here on it is restarted, on its port: the URLs are out.
            child.restart = True
            return port
        supervisor.stop(child)
        if "ddress already in use" not in logs.tail(spec.log):
            break
    raise LocalStackError(f"{spec.name} does not start; its log is {spec.log}:\n{logs.tail(spec.log)}")


def _settled(child: Child, port: int, serves: Callable[[Child, int], bool]) -> bool:
    return not child.alive or serves(child, port)


def run_step(supervisor: Supervisor, argv: Sequence[str], *, stack: Layout, env: Mapping[str, str]) -> None:
    """Run a preparing command to its end.

    Raises: LocalStackError with what it said when it fails.
    """
    log = stack.logs / "setup.log"
    spec = ProcessSpec(name="setup", argv=tuple(argv), env=env, cwd=CHECKOUT, log=log, stage=2, restart=False)
    require_success(supervisor.run(spec), what=" ".join(argv[1:4]), log=log)


def note(env: Mapping[str, str], *, url: str, supervisor: Supervisor) -> dict[str, Any]:
    """Write down what a command needs to join."""
    return {
        **{name: env[name] for name in SHARED_NAMES if name in env},
        "url": url,
        "pids": {
            "supervisor": os.getpid(),
            **{child.spec.name: child.popen.pid for child in supervisor.children if child.alive},
        },
    }


def joined_environment(found: Mapping[str, Any]) -> dict[str, str]:
    """Build the environment of a command that joins a running stack."""
    return inherited_environment() | {name: str(found[name]) for name in SHARED_NAMES if name in found}
