"""What the processes of a web server share, and what they count of their requests."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from django.test import Client
from prometheus_client import Counter, Histogram
from prometheus_client.values import ValueClass

from jobsboard.metrics import directory, families, view
from jobsboard.metrics import requests as request_metrics
from tests.metrics.page import BEARER


@pytest.mark.django_db
def test_processes_of_a_server_share_what_one_has_read(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each would answer with an age of its own, and counters would fall from one scrape to the next."""
    first = Client().get("/metrics", headers=BEARER).content
    monkeypatch.setattr(families, "read", lambda: pytest.fail("another process has read it"))
    assert Client().get("/metrics", headers=BEARER).content == first
    (shared / "jobs.txt").write_bytes(b"not a number\n")
    with pytest.raises(pytest.fail.Exception):
        Client().get("/metrics", headers=BEARER)


@pytest.mark.django_db
def test_a_process_that_hangs_while_it_reads_holds_up_no_other(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "WAIT_SECONDS", 0.05)
    with directory.locked(shared, "jobs", seconds=1):
        assert Client().get("/metrics", headers=BEARER).status_code == 503
    assert Client().get("/metrics", headers=BEARER).status_code == 200


def test_directories_of_dead_servers_are_removed(shared: Path, tmp_path: Path) -> None:
    """Of one whose processes hold it, or whose master lives, nothing is touched; nor anything that is not ours."""
    dead, held, master = (tmp_path / name for name in ("999999-1", "999998-1", directory._name(os.getpid())))
    for path in (dead, held, master, tmp_path / "notes"):
        path.mkdir()
        (path / directory._HELD).touch()
    reused = tmp_path / f"{os.getpid()}-1"
    reused.mkdir()
    (reused / directory._HELD).touch()
    descriptor = os.open(held / directory._HELD, os.O_RDWR)
    try:
        assert directory._locks(descriptor)
        directory._forget_dead_servers(tmp_path, but=shared)
    finally:
        os.close(descriptor)
    assert {path.name for path in tmp_path.iterdir()} == {shared.name, held.name, master.name, "notes"}


def test_a_directory_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Web serves without request metrics then, and does not take a link that somebody laid for it."""
    monkeypatch.delenv(directory.VARIABLE, raising=False)
    monkeypatch.setattr(directory, "_ours", None)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"jobsboard-web-{os.geteuid()}").symlink_to(elsewhere)
    assert directory.prepare() is None
    assert list(elsewhere.iterdir()) == []
    assert directory.VARIABLE not in os.environ
    assert directory.current() is None


COUNT = """
import os, sys
from prometheus_client import Counter, Histogram
from prometheus_client.values import ValueClass
Counter("django_test_total", "A counter.", ["view"]).labels(sys.argv[1]).inc(int(sys.argv[2]))
Histogram("django_test_seconds", "A histogram.", ["view"], buckets=[1, 2]).labels(sys.argv[1]).observe(1.5)
print("counted", flush=True)
sys.stdin.read()
"""


def test_values_of_ended_processes_are_kept_in_one_file(tmp_path: Path) -> None:
    """Two that were killed and one that lives: sums are right before, while and after; and files do not pile up."""

    def start(view_name: str, n: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", COUNT, view_name, str(n)],
            env={**os.environ, directory.VARIABLE: str(tmp_path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "counted\n"
        return process

    def sums() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        collected = request_metrics._merged([*tmp_path.glob("*.db")], accumulate=True)
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in collected for s in family.samples}

    running = [start("a", 5), start("a", 7), start("b", 1)]
    try:
        for killed in (running[0], running[1]):
            before = sums()
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            request_metrics._add_up_ended(tmp_path)
            assert sums() == before
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert before[("django_test_total", (("view", "a"),))] == 12
    assert before[("django_test_seconds_bucket", (("le", "2.0"), ("view", "a")))] == 2
    assert before[("django_test_seconds_sum", (("view", "a"),))] == 3
    assert before[("django_test_seconds_count", (("view", "a"),))] == 2
    names = sorted(path.name for path in tmp_path.iterdir())
    last = running[2].pid
    assert names == ["counter_0.db", f"counter_{last}.db", "histogram_0.db", f"histogram_{last}.db"]


def test_a_file_that_cannot_be_read_stops_no_scrape(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is just being made counts nothing yet; one whose process was killed while making it never will."""
    monkeypatch.setattr(ValueClass, "_multiprocess", True)
    (shared / f"counter_{os.getpid()}.db").touch()
    (shared / "counter_999999.db").touch()
    (shared / "histogram_999998.db").write_bytes(b"\xff\xff\x00\x00" + b"\xff" * 60)
    assert request_metrics.RequestCollector().collect() == []
    assert {path.name for path in shared.glob("*.db")} == {
        f"counter_{os.getpid()}.db", "counter_0.db", "histogram_0.db",
    }  # fmt: skip
    assert request_metrics.RequestCollector().collect() == []


def _values(metric: Counter | Histogram) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for family in metric.collect():
        for one in family.samples:
            for name, text in one.labels.items():
                if name != "le":
                    found.setdefault(name, set()).add(text)
    return found


@pytest.mark.django_db
def test_what_clients_write_makes_no_labels() -> None:
    """Paths that do not exist, ids in paths and made-up methods: labels have the values that we gave them."""
    client = Client()
    metrics = request_metrics.After.metrics_cls.get_instance()
    for i in range(20):
        client.get(f"/made-up-path/{i}")
        client.get(f"/jobs/00000000-0000-7000-8000-{i:012d}/")
        client.generic(f"MADEUP{i}", "/livez")
        client.generic("GET", "/livez", headers={"X-Requested-With": f"x{i}", "Accept": f"text/{i}"})
    for metric in vars(metrics).values():
        for name, texts in _values(metric).items():
            assert not any(re.search(r"MADEUP|0000|made-up-path", text) for text in texts), (metric, name)
    methods = _values(metrics.requests_latency_by_view_method)["method"]
    assert "<invalid method>" in methods and len(methods) <= 10


def test_workers_and_schedulers_count_no_requests() -> None:
    """The middleware is what makes the counters, and only web loads it."""
    code = (
        "import django; django.setup(); import jobsboard.celery, queues.tasks, queues.runtime.chunk, sys;"
        "sys.exit('django_prometheus' in sys.modules or 'prometheus_client' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "DJANGO_SETTINGS_MODULE": "jobsboard.settings"}
    )
    assert done.returncode == 0


@pytest.mark.django_db
def test_without_its_directory_or_disk_space_jobs_are_still_counted(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 8: what tells of trouble does not depend on a temporary directory."""

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    client = Client(raise_request_exception=False)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert client.get("/metrics", headers=BEARER).status_code == 200
    shutil.rmtree(shared)
    answer = client.get("/metrics", headers=BEARER)
    assert answer.status_code == 200
    assert b"jobsboard_up 1.0" in answer.content
