"""A short `make plan-kill` with a fixed seed: a plan that is killed on its way ends as if nobody had touched it.

I-30, I-32, I-35, R-06.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import ROOT

SEED = 2
ITEMS = 800
LEAST = {"scheduler": 2, "web": 1, "postgres": 1}


@pytest.mark.acceptance
@pytest.mark.timeout(300)
def test_a_plan_is_carried_out_once_whoever_is_killed(tmp_path: Path) -> None:
    """Servers of its own. The kills are spread over 12 s; the pace alone makes the plan take 13 s."""
    result = tmp_path / "result.json"
    chosen = ["--seed", str(SEED), "--items", str(ITEMS), "--seconds", "12", "--rate", "60", "--result", str(result)]
    isolated = [sys.executable, "-m", "jobsboard.local", "--die-with-parent", "isolated", "--", sys.executable]
    done = subprocess.run(
        [*isolated, "-m", "benchmarks.plan_kill", *chosen], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    seen = json.loads(result.read_text())
    # The verdicts once more: an exit code alone would also be 0 for a run that judged nothing.
    assert len(seen["broken"]) >= 26
    assert set(seen["broken"].values()) == {0}, seen["broken"]
    assert all(seen["kills"].get(kind, 0) >= n for kind, n in LEAST.items()), seen["kills"]
    assert seen["pauses"] == 2, seen
