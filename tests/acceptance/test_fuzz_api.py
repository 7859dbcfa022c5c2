"""A short run of `benchmarks.fuzz_api`: schemathesis against a whole stack. The long one is `make fuzz`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import ROOT, own_servers

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("transactional_db")]

SECONDS = (8, 40)
"""A busy machine may spend the first of them on reading the document; then there is more time."""
LEAST = 5
"""Requests. Some hundred on a quiet machine."""


@pytest.fixture(scope="module")
def transactional_db(committed: None) -> None:
    """One database for the stack."""


@pytest.mark.timeout(300)
def test_the_api_holds_what_its_document_says(tmp_path: Path) -> None:
    """No 5xx, no HTML, no request without an answer, no error in a log; the document names what is answered."""
    result = tmp_path / "result.json"
    for seconds in SECONDS:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.fuzz_api", "--migrated", "--seconds", str(seconds),
             "--result", str(result)],
            cwd=ROOT, env={**os.environ, **own_servers()}, capture_output=True, text=True, timeout=140,
        )  # fmt: skip
        found = json.loads(result.read_text())
        if found["requests"] >= LEAST:
            break
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert found["requests"] >= LEAST
    # ST202, a request that its schema allows and its contract refuses, is no difference; nor is an odd single one.
    differs = {name for name in found["differs"] if not name.startswith("ST202")}
    assert differs <= {"ST201 Schema-violating request accepted"}, done.stdout[-5000:]
