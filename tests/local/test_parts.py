"""All tests run in parts: which, how many at a time, and what becomes of one that fails.

Not here: the servers that each part has (`test_stack.py`).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from jobsboard.local.commands import OLDER_PARTS, PARTS, Isolation, Part, run_tests, summary
from jobsboard.local.errors import UsageError

ROOT: Final = Path(__file__).resolve().parents[2]
PARTED: Final = """
import sys
from pathlib import Path
from jobsboard.local import commands
sys.executable, commands.LANES = sys.argv[1], int(sys.argv[2])
older = Path(sys.argv[3]) if len(sys.argv) > 3 else None
sys.exit(commands.run_tests([], isolation=commands.Isolation(), older=older))
"""


def words(part: Part, *servers: str) -> str:
    """Return what a part is started with: only what computes need not wait for a disk."""
    return " ".join([*(["--no-fsync"] if part.computes else []), *servers, *part.arguments])


def test_what_was_skipped_is_said(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite tests="4" failures="1" errors="0" skipped="2">'
        '<testcase><skipped message="no Chromium"/></testcase><testcase><skipped message="no Chromium"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert summary(report) == "1 passed, 1 failed, 0 errors, 2 SKIPPED: 2 x no Chromium"


def parted(tmp_path: Path, does: str, *, lanes: int, older: str = "") -> tuple[int, list[str]]:
    """Run all parts of the tests with a program in Python's place; return the exit code and the parts' arguments."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "part: $@"\n{does}\n')
    python.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", PARTED, str(python), str(lanes), *([older] if older else [])],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said = [line.removeprefix("part: ") for line in done.stdout.splitlines() if line.startswith("part: ")]
    return done.returncode, [line.removeprefix("-m jobsboard.local test ") for line in said]


@pytest.mark.parametrize(
    ("slow", "others", "code"), [("exit 0", "exit 0", 0), ("kill -9 $$", "exit 0", 9), ("exit 0", "exit 3", 3)]
)
def test_a_part_of_the_tests_that_fails_or_is_killed_fails_the_whole(
    tmp_path: Path, slow: str, others: str, code: int
) -> None:
    does = f'case "$*" in *"not ("*"--ignore"*) {others};; *test_chaos*) {slow};; esac'
    found, parts = parted(tmp_path, does, lanes=3)
    assert found == code
    assert sorted(parts) == sorted(words(part) for part in PARTS)


def test_the_parts_of_the_tests_are_all_tests_each_once() -> None:
    """Every file, and once more every file with a test that starts processes or a browser, is in one part."""
    files = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]
    starting = [path for path in files if re.search(r"mark\.(acceptance|browser)\b", (ROOT / path).read_text())]
    for marked, all_of_them in (("acceptance or browser", starting), ("not (acceptance or browser)", files)):
        taken: list[Path] = []
        for arguments in (part.arguments[2:] for part in PARTS if part.arguments[1] == marked):
            here = [one for one in arguments if not one.startswith("--")] or ["tests"]
            left_out = [one.removeprefix("--ignore=") for one in arguments if one.startswith("--")]
            assert all((ROOT / one).exists() for one in (*here, *left_out))
            taken += [
                path
                for path in all_of_them
                if any(map(path.is_relative_to, here)) and not any(map(path.is_relative_to, left_out))
            ]
        assert sorted(taken) == sorted(all_of_them), marked


def test_few_parts_run_at_a_time_and_those_that_compute_are_nice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    does = f'echo "+ $(nice) $*" >> {log}; sleep 0.2; echo "- $(nice) $*" >> {log}'
    assert parted(tmp_path, does, lanes=2)[0] == 0
    lines = log.read_text().splitlines()
    at_once = [sum({"+": 1, "-": -1}[line[0]] for line in lines[:n]) for n in range(1, len(lines) + 1)]
    assert (max(at_once), at_once[-1], len(lines)) == (2, 0, 2 * len(PARTS))
    assert {(int(line.split()[1]) > os.nice(0), "not (acceptance" in line) for line in lines} <= {
        (True, True), (False, False),
    }  # fmt: skip


def test_whoever_is_stopped_tells_what_it_saw_so_far(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "part: $*"\necho . >> {tmp_path}/begun\nexec sleep 100\n')
    python.chmod(0o700)
    argv = [sys.executable, "-c", PARTED, str(python), "2"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        begun, give_up = tmp_path / "begun", time.monotonic() + 30
        while not begun.exists() or len(begun.read_text().splitlines()) < 2:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        running.terminate()
        said, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert [line for line in said.splitlines() if line.startswith("part: ")] == [
        f"part: -m jobsboard.local test {words(part)}" for part in PARTS[:2]
    ]


def test_on_an_older_server_run_only_the_fast_tests_that_use_a_database(tmp_path: Path) -> None:
    code, parts = parted(tmp_path, "exit 0", lanes=9, older="/old/bin")
    assert code == 0
    assert sorted(line for line in parts if "/old/bin" in line) == sorted(
        f"{words(part, '--pg-bin', '/old/bin')} --with-database" for part in OLDER_PARTS
    )
    assert len(parts) == len(PARTS) + len(OLDER_PARTS)
    with pytest.raises(UsageError):
        run_tests(["-q"], isolation=Isolation(), older=tmp_path)
