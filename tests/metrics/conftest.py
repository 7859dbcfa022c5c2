"""A token, and nothing that an earlier test has read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.test import override_settings

from jobsboard.metrics import directory, view
from tests.metrics.page import TOKEN


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    view.forget()
    with override_settings(METRICS_TOKEN=TOKEN):
        yield
    view.forget()


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let this process share a directory, as the web processes of a server do."""
    monkeypatch.setenv(directory.VARIABLE, str(tmp_path))
    monkeypatch.setattr(directory, "_ours", None)
    monkeypatch.setattr(directory, "_holding", held := list[int]())
    found = directory.prepare()
    assert found is not None
    yield found
    for descriptor in held:
        os.close(descriptor)
