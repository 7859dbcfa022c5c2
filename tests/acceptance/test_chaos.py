"""A short `make chaos` with a fixed seed: every promise that the checker judges holds.

I-01, I-08, I-09, I-10, I-12, I-13, I-14, I-19, I-25, I-30, I-31, I-35, I-39.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import ROOT

SEED = 4
FAULTS, KINDS = 14, 12
ACCEPTS = 500


@pytest.mark.acceptance
@pytest.mark.timeout(420)
def test_every_promise_holds_under_fire(tmp_path: Path) -> None:
    """Servers of its own; the faults take 40 s, a SIGSTOP 8 s. Start, healing and judging come on top: healing for as
    long as it takes to work off what was accepted meanwhile, so that no more is than the checker needs."""
    result = tmp_path / "result.json"
    chaos = ["--seed", str(SEED), "--seconds", "40", "--faults-every", "2.2", "--pause", "8", "--result", str(result)]
    chaos += ["--rate", "20", "--batch-rate", "20"]
    isolated = [sys.executable, "-m", "jobsboard.local", "--die-with-parent", "isolated", "--", sys.executable]
    done = subprocess.run(
        [*isolated, "-m", "benchmarks.chaos", *chaos], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    seen = json.loads(result.read_text())
    # The verdicts once more: an exit code alone would also be 0 for a run that judged nothing.
    assert len(seen["broken"]) >= 28
    assert set(seen["broken"].values()) == {0}, seen["broken"]
    assert sum(seen["faults"].values()) >= FAULTS, seen["faults"]
    assert len(seen["faults"]) >= KINDS, seen["faults"]
    assert seen["counts"]["new"] >= ACCEPTS, seen["counts"]
