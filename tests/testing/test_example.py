"""The example of docs/handlers.md runs, and its tables name what there is."""

from __future__ import annotations

import re
import unittest
from pathlib import Path
from typing import Any, get_args

import pytest
from django.conf import settings

from jobsboard import testing

SECTION = (
    (Path(settings.BASE_DIR) / "docs/handlers.md")
    .read_text(encoding="utf-8")
    .split("## Testing your handlers")[1]
    .split("\n## ")[0]
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


def test_the_example_runs(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody pastes it."""
    [contract] = blocks("toml")
    (tmp_path / "contracts.toml").write_text(contract)
    monkeypatch.chdir(tmp_path)
    handler, tests, _ = blocks("python")
    scope: dict[str, Any] = {"__name__": "example"}
    exec(handler, scope)  # noqa: S102 (our own document)
    exec(tests, scope)  # noqa: S102
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(scope["ReceiptTest"]).run(result)
    assert [text for _, text in result.errors + result.failures] == []
    assert result.testsRun == 4


def test_every_helper_and_variant_is_described() -> None:
    """And nothing else."""
    first = {re.split(r"[`(]", row)[1] for row in re.findall(r"^\| (`[^|]+) \|", SECTION, re.MULTILINE)}
    assert first == (set(testing.__all__) - {"Variant"}) | set(get_args(testing.Variant))
