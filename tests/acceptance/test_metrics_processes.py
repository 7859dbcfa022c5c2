"""Promise 10's numbers from real web servers: several processes, one of them killed, two servers of one database."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobsboard.local import ports
from queues import lifecycle
from tests.acceptance.conftest import Stack
from tests.acceptance.fleet import Fleet, Process
from tests.acceptance.jobs import QUICK
from tests.factories import accept, claim, confirmed, fold_all, sql

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

TOKEN: Final = "metrics-token-0123456789"
REQUESTS: Final = 40
Page = Mapping[str, float]


@pytest.fixture
def fleet(stack: Stack, tmp_path: Path) -> Iterator[Fleet]:
    """Servers with a token, whose shared directories are in the test's own."""
    made = Fleet(stack, env={"METRICS_TOKEN": TOKEN, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "shared")})
    yield made
    made.end()


def get(port: int, path: str) -> tuple[int, bytes]:
    """Ask over a connection of its own, so that any process of the server may answer."""
    connection = http.client.HTTPConnection(ports.LOOPBACK, port, timeout=15)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def scrape(port: int) -> Page:
    """Return the samples by name and labels as they are written."""
    while True:
        try:
            status, body = get(port, "/metrics")
            break
        except (OSError, http.client.HTTPException):
            # The process that was to answer has just been killed; the next one is asked.
            continue
    assert status == 200, body[-500:]
    page: dict[str, float] = {}
    for family in text_string_to_metric_families(body.decode()):
        for one in family.samples:
            if family.type in ("counter", "histogram", "unknown"):
                page[f"{one.name}{sorted(one.labels.items())}"] = one.value
    return page


def livez(page: Page) -> float:
    """How many requests for /livez the server counted."""
    return sum(n for name, n in page.items() if "by_view_transport_method" in name and "'livez'" in name)


def ours(page: Page, name: str, kind: str = QUICK) -> float:
    """Sum a metric of a job type."""
    return sum(n for key, n in page.items() if key.startswith(f"jobsboard_{name}[") and f"'{kind}'" in key)


def fallen(before: Page, after: Page) -> dict[str, tuple[float, float | None]]:
    """Return what was more, or there, a scrape ago."""
    return {name: (n, after.get(name)) for name, n in before.items() if after.get(name, -1.0) < n}


def children(process: Process) -> set[int]:
    """Return gunicorn's processes without the master."""
    return {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}


def shared(process: Process, tmp_path: Path) -> Path:
    """Return the directory of a server."""
    [found] = (tmp_path / "shared").glob(f"{process.pid}-*")
    return found


def counting(folder: Path) -> set[int]:
    """Return the processes that have a file of counters; 0 is the sum of those that ended."""
    return {int(path.stem.removeprefix("counter_")) for path in folder.glob("counter_*.db")}


def test_counters_over_processes_kills_and_servers(fleet: Fleet, stack: Stack, tmp_path: Path) -> None:
    """Requests add up over the processes of a server and of no other; a kill takes none away."""
    first, second = ports.free(), ports.free()
    with fleet.together():
        process, other = fleet.web(first), fleet.web(second)
    folder = shared(process, tmp_path)
    stack.until(lambda: get(first, "/livez") and children(process) <= counting(folder), seconds=60)

    begun, elsewhere = livez(scrape(first)), livez(scrape(second))
    for _ in range(REQUESTS):
        assert get(first, "/livez")[0] == 200
    last = scrape(first)
    for _ in range(20):
        page = scrape(first)
        assert livez(page) == begun + REQUESTS
        assert fallen(last, page) == {}
        last = page
    assert livez(scrape(second)) == elsewhere, "two servers of one machine are two"

    for _ in range(2):
        before = children(process)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)

        def replaced(before: set[int] = before) -> bool:
            nonlocal last
            page = scrape(first)
            assert livez(page) == begun + REQUESTS
            assert fallen(last, page) == {}
            last = page
            return len(children(process) - before) == 1 and children(process) <= counting(folder)

        stack.until(replaced, seconds=60)
        assert counting(folder) == {0, *children(process)}, "the files of the dead are summed up and gone"
    assert other.poll() is None


def test_numbers_of_jobs_are_the_databases_and_never_fall(fleet: Fleet, stack: Stack, tmp_path: Path) -> None:
    """While jobs are accepted and confirmed, asked as fast as it goes, for longer than any process remembers."""
    port = ports.free()
    process = fleet.web(port)
    last = scrape(port)
    until = time.monotonic() + 7
    scrapes = 0
    while time.monotonic() < until:
        runs = claim(accept(3, kind=QUICK))
        lifecycle.settle([confirmed(run) for run in runs[:2]])
        fold_all()
        for _ in range(4):
            page = scrape(port)
            assert fallen(last, page) == {}
            last = page
            scrapes += 1
    assert scrapes >= 12 and len(counting(shared(process, tmp_path))) >= 2
    with contextlib.closing(http.client.HTTPConnection(ports.LOOPBACK, port)) as without_token:
        without_token.request("GET", "/metrics")
        assert without_token.getresponse().status == 401

    ((jobs, done),) = sql("SELECT count(*), count(*) FILTER (WHERE state = 'confirmed') FROM queues_job")
    assert jobs >= 9

    def equal() -> bool:
        page = scrape(port)
        wanted = {"jobs_accepted_total": jobs, "jobs_settled_total": done, "outcome_lag_seconds_count": done}
        return {name: ours(page, name) for name in wanted} == wanted

    stack.until(equal, seconds=20)
