"""`up` and `demo`: the servers, the application's processes, and the line that says that everything serves.

Not here: which processes these are (`processes.py`), and how they are kept alive (`supervise.py`).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from jobsboard.local import layout, leftovers, logs, ports, processes, stack
from jobsboard.local.errors import LocalStackError, StopRequested, UsageError
from jobsboard.local.layout import Layout
from jobsboard.local.processes import DemoPorts
from jobsboard.local.supervise import Child, Supervisor, describe, say

READY_SECONDS = 120.0
#: What has no words of its own for "I serve" has survived its start.
SURVIVED_SECONDS = 2.0


def serve(*, demo: bool, traffic: bool) -> int:
    """Run everything until a signal ends it; returns the exit code.

    Raises: UsageError when this checkout's stack runs already or the port is taken; LocalStackError.
    """
    home = layout.of_checkout()
    held = home.lock()
    if held is None:
        running = home.read_note() or {}
        where = f" at {running['url']} (process {running['pids']['supervisor']})" if running else ""
        raise UsageError(f"the local stack of this checkout runs already{where}")
    home.remove_note()
    # A web process of a killed run holds its port for a moment longer.
    leftovers.end_processes(home)
    supervisor = Supervisor()
    try:
        with ports.listen_for_web() as web, supervisor.signals():
            with contextlib.suppress(StopRequested):
                _serve(supervisor, home, web, demo=demo, traffic=traffic)
            home.remove_note()
            say("stopping")
    finally:
        home.remove_note()
        os.close(held)
    return 0


def _serve(supervisor: Supervisor, home: Layout, web: socket.socket, *, demo: bool, traffic: bool) -> None:
    begun = time.monotonic()
    port = web.getsockname()[1]
    url = f"http://{ports.LOOPBACK}:{port}"
    logs.begin(home.logs / "setup.log")
    secrets = home.secrets()
    servers = stack.start_servers(supervisor, home, secrets)
    env = stack.environment(servers, secrets, stack=home, url=url)
    held = _demo_sockets(home) if demo else None
    if held is not None:
        env |= processes.demo_environment(env, secrets, stack=home)
    say(f"servers up after {time.monotonic() - begun:.1f} s; logs in {home.logs}")
    ports_of = None if held is None else DemoPorts(*(one.getsockname()[1] for one in held))
    for argv in processes.preparations(credentials=home.credentials, demo=ports_of):
        stack.run_step(supervisor, argv, stack=home, env=env)
    supervisor.on_change = lambda: home.write_note(stack.note(env, url=url, supervisor=supervisor))
    sockets = None if held is None else DemoPorts(*(one.fileno() for one in held))
    entries = processes.table(web_socket=web.fileno(), demo=sockets, traffic=traffic)
    children = _start_all(supervisor, home, env, entries)
    # Commands may join as soon as the database is ready for them; they need not wait for the web.
    supervisor.on_change()
    _wait_until_ready(supervisor, children, port=port)
    with contextlib.suppress(OSError):
        print(_ready_line(home, url), flush=True)
    say(f"everything serves after {time.monotonic() - begun:.1f} s; Ctrl-C ends it; logs in {home.logs}")
    while True:
        supervisor.wait(lambda: False, seconds=60.0)


def _demo_sockets(home: Layout) -> list[socket.socket]:
    """Bind the ports of the demo's servers, those of the last start if they are free: they stand in its database.

    The supervisor holds them as long as it lives, so that a server that is restarted refuses nobody.
    """
    home.demo.mkdir(mode=0o700, exist_ok=True)
    return [_kept_socket(home.demo / f"{name}_port") for name in DemoPorts._fields]


def _kept_socket(kept: Path) -> socket.socket:
    rather: int | None = None
    with contextlib.suppress(FileNotFoundError, ValueError):
        rather = int(kept.read_text(encoding="utf-8"))
    bound = ports.listen(rather=rather)
    kept.write_text(str(bound.getsockname()[1]), encoding="utf-8")
    return bound


def _start_all(
    supervisor: Supervisor, home: Layout, env: Mapping[str, str], entries: Iterable[processes.Entry]
) -> list[Child]:
    children = []
    for entry in entries:
        spec = entry.spec(stack=home, env=env)
        if spec.log is not None:
            logs.begin(spec.log)
        children.append(supervisor.start(spec))
    return children


def _wait_until_ready(supervisor: Supervisor, children: list[Child], *, port: int) -> None:
    """Raises: LocalStackError naming what does not come up, with the end of its log."""
    if supervisor.wait(lambda: all(_is_up(child) for child in children) and _web_is_ready(port), seconds=READY_SECONDS):
        return
    missing = [child for child in children if not _is_up(child)]
    if not missing:
        missing = [child for child in children if child.spec.name == "web"]
    child = missing[0]
    state = "alive" if child.alive else describe(child.exit_code)
    raise LocalStackError(
        f"not ready after {READY_SECONDS:.0f} s: {', '.join(one.spec.name for one in missing)}; "
        f"{child.spec.name} is {state}, its log is {child.spec.log}:\n{logs.tail(child.spec.log)}"
    )


def _is_up(child: Child) -> bool:
    if not child.alive:
        return False
    if not child.spec.ready_words:
        return time.monotonic() - child.started_at >= SURVIVED_SECONDS
    return logs.contains(child.spec.log, child.spec.ready_words, offset=child.log_offset)


def _web_is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(ports.LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _ready_line(home: Layout, url: str) -> str:
    found = json.loads(home.credentials.read_text(encoding="utf-8"))
    return f"JOBSBOARD_READY url={url} user={found['user']} password={found['password']} api_key={found['api_key']}"
