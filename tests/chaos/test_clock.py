"""Shifted clocks: a process lives hours off, its monotonic clock does not, and a jump reaches it while it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.chaos.clock import Clocks

PROGRAM = """
import datetime, json, logging, sys, time
def seen():
    at = datetime.datetime
    return {
        "time": time.time(), "ns": time.time_ns() / 1e9, "real": time.clock_gettime(time.CLOCK_REALTIME),
        "now": at.now(datetime.timezone.utc).timestamp(), "naive": at.now().timestamp(),
        "today": at.today().timestamp(), "gmtime": __import__("calendar").timegm(time.gmtime()),
        "localtime": time.mktime(time.localtime()), "log": logging.makeLogRecord({}).created or logging.LogRecord(
            "", 0, "", 0, "", None, None).created,
        "monotonic": time.monotonic(), "text": logging.Formatter("%(asctime)s").format(
            logging.LogRecord("", 0, "", 0, "", None, None)),
    }
for _ in sys.stdin:
    print(json.dumps(seen()), flush=True)
"""


@pytest.mark.parametrize("hours", [2, -2])
def test_a_shifted_process_is_hours_off_and_jumps_while_it_runs(tmp_path: Path, hours: int) -> None:
    """I-19: what makes `make chaos` run workers and web under a wrong clock does what it says."""
    clocks = Clocks(tmp_path)
    env = {**os.environ, **clocks.env("worker-1")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for shift in (0.0, hours * 3600.0, 0.0):
            clocks.set("worker-1", shift)
            process.stdin.write("now\n")
            process.stdin.flush()
            seen = json.loads(process.stdout.readline())
            assert seen.pop("monotonic") == pytest.approx(time.monotonic(), abs=30)
            assert seen.pop("text")
            assert {name: value - time.time() for name, value in seen.items()} == pytest.approx(
                dict.fromkeys(seen, shift), abs=30
            )
        process.stdin.close()


def test_a_process_without_the_shift_is_left_alone(tmp_path: Path) -> None:
    """The module of that name alone changes nothing."""
    env = {**os.environ, **Clocks(tmp_path).env("web")}
    del env["CHAOS_CLOCK"]
    argv = [sys.executable, "-c", "import time; print(type(time.time).__name__)"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "builtin_function_or_method"
