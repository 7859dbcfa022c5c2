"""Two databases side by side on one server, each with a web server of its own; how one asks them something."""

import contextlib
import http.client
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client

from benchmarks.chaos.processes import ROOT, Processes, until
from jobsboard.api import keys
from jobsboard.env import database


@contextlib.contextmanager
def using(url: str) -> Iterator[None]:
    """Let Django's connection be one to another database for the time of a block."""
    before = connections["default"]
    variable, os.environ["DATABASE_URL"] = os.environ["DATABASE_URL"], url
    try:
        connections["default"] = type(before)({**before.settings_dict, **database()}, "default")
        yield
    finally:
        connections["default"].close()
        connections["default"] = before
        os.environ["DATABASE_URL"] = variable


def make_database(name: str) -> tuple[str, bool]:
    """Make a database beside the one that we have, with all tables; returns its URL, and whether it was there."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT FROM pg_database WHERE datname = %s", [name])
        found = cursor.rowcount > 0
        if not found:
            cursor.execute(f'CREATE DATABASE "{name}"')
    url = urlunsplit(urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}"))
    command = [sys.executable, "manage.py", "migrate", "-v", "0"]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "DATABASE_URL": url})
    return url, found


@dataclass(kw_only=True)
class Site:
    """A database with so many jobs and the web server that reads it."""

    jobs: int
    url: str
    shared: Path
    """Where the web server's processes keep what they share."""
    port: int = 0
    api_key: str = ""
    cookie: str = ""
    wire: http.client.HTTPConnection | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The number of jobs in words."""
        return f"{self.jobs:,}"

    def headers(self, path: str) -> dict[str, str]:
        """Return who asks: Prometheus, a program or a browser."""
        if path == "/metrics":
            return {"Authorization": f"Bearer {settings.METRICS_TOKEN}"}
        if path.startswith("/api/"):
            return {"Authorization": f"Bearer {self.api_key}"}
        return {"Cookie": f"sessionid={self.cookie}"}

    def forget(self) -> None:
        """Let the next scrape ask the database: the page of the last one is kept for seconds."""
        for kept in self.shared.glob("*/jobs.txt"):
            kept.unlink()

    def ask(self, path: str) -> tuple[float, bytes]:
        """Return the seconds that an answer took, up to its last byte, and the answer. Raises: SystemExit."""
        if self.wire is None:
            self.wire = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.forget()
        began = time.perf_counter()
        self.wire.request("GET", path, headers=self.headers(path))
        response = self.wire.getresponse()
        body = response.read()
        took = time.perf_counter() - began
        if response.status != http.client.OK:
            raise SystemExit(f"{path} of {self.name} jobs: {response.status} {body[:500]!r}")
        return took, body


def start(site: Site, processes: Processes) -> None:
    """Make a user and a key, and start the web server as the local stack does, but with one process: what a process
    remembers is then warm for all that is measured.
    """
    with using(site.url):
        user = User.objects.filter(username="scale").first()
        user = user or User.objects.create_superuser("scale", password=secrets.token_urlsafe(16))
        client = Client()
        client.force_login(user)
        site.cookie = client.cookies["sessionid"].value
        site.api_key = keys.issue_key(label="scale", scopes=["jobs:read"])[1]
    with socket.create_server(("127.0.0.1", 0)) as free:
        site.port = int(free.getsockname()[1])
    site.shared.mkdir()
    argv = ["-m", "gunicorn", "jobsboard.wsgi", "--bind", f"127.0.0.1:{site.port}", "--workers", "1", "--threads", "4"]
    environment = {"DATABASE_URL": site.url, "PROMETHEUS_MULTIPROC_DIR": str(site.shared)}
    processes.start(
        f"web-{site.jobs}", *argv, "--timeout", "60", "--keep-alive", "60", "--no-control-socket", env=environment
    )

    def answers() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", site.port)) == 0

    if not until(answers, seconds=60):
        raise SystemExit(f"the web server of {site.name} jobs did not start")
