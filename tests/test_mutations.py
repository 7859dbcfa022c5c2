"""The mutations of `benchmarks.mutations` still know the code that they break."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.mutations import MUTATIONS, ROOT, Mutation, break_it


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_a_mutation_applies(mutation: Mutation, tmp_path: Path) -> None:
    """Each edit finds its text once, and changes it."""
    for name, _, _ in mutation.edits:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    break_it(mutation, tmp_path)
    for name, before, _ in mutation.edits:
        assert before not in (tmp_path / name).read_text()
