"""What web processes count of their requests (django-prometheus), and their sums over all processes of the server.

Not here: the metrics of jobs, which come from the database.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from django.http import HttpRequest, HttpResponseBase
from django_prometheus import middleware
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import ValueClass

from jobsboard.metrics import directory

_KINDS: Final = ("counter", "histogram")
"""What django-prometheus has; their values of processes that ended still count."""
_ENDED: Final = 0
"""Stands for the number of a process in the files that hold the sums of those that ended."""
_LOCK_SECONDS: Final = 3.0

_log = logging.getLogger(__name__)

Before = middleware.PrometheusBeforeMiddleware


class After(middleware.PrometheusAfterMiddleware):  # type: ignore[misc]
    """Counts by view, method and status. A label has as many values as we have views, never what a client wrote."""

    def label_metric(
        self, metric: Any, request: HttpRequest, response: HttpResponseBase | None = None, **labels: Any
    ) -> Any:
        """Take a method that HTTP does not know for one and the same; some of the counters take it as it came."""
        if "method" in labels:
            labels["method"] = self._method(request)
        return super().label_metric(metric, request, response, **labels)


class RequestCollector:
    """The sums over all processes of this server, also of those that ended."""

    def describe(self) -> Iterable[Metric]:
        """Name nothing: registering must not read files."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Read every process's file. Raises: directory.Busy."""
        folder = directory.current()
        # Imported before the directory was made, prometheus_client counts in this process alone: wrong for the server.
        if folder is None or not ValueClass._multiprocess:
            return []
        try:
            with directory.locked(folder, "requests", seconds=_LOCK_SECONDS):
                _add_up_ended(folder)
                files = [path for kind in _KINDS for path in folder.glob(f"{kind}_*.db") if not _is_new(path)]
                return _merged(files, accumulate=True)
        except OSError as error:
            # The directory was removed, or the disk is full: the jobs' own metrics are said all the same.
            _log.warning("no request metrics: %s", error.strerror)
            return []


def _add_up_ended(folder: Path) -> None:
    """Move the values of processes that ended into one file of each kind, so that files do not pile up."""
    for kind in _KINDS:
        sums = folder / f"{kind}_{_ENDED}.db"
        ended = [path for path in folder.glob(f"{kind}_*.db") if path != sums and not _lives(path)]
        if ended:
            _write(sums, [path for path in (*ended, sums) if path.exists() and _is_whole(path)])
            for path in ended:
                path.unlink()


def _lives(path: Path) -> bool:
    try:
        os.kill(int(path.stem.rpartition("_")[2]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        return True
    return True


def _is_new(path: Path) -> bool:
    """Say whether a process has made its file a moment ago and written nothing yet; such a file cannot be read."""
    return path.stat().st_size == 0


def _is_whole(path: Path) -> bool:
    """Say whether a file can be read: its process may have been killed while it made it."""
    try:
        for _ in MmapedDict.read_all_values_from_file(str(path)):
            pass
    except (struct.error, RuntimeError, UnicodeDecodeError):
        _log.warning("metrics: what an ended process counted cannot be read: %s", path.name)
        return False
    return True


def _write(target: Path, files: Sequence[Path]) -> None:
    """Replace the target in one step. Killed before its files are deleted, they count twice; none is ever lost."""
    fresh = target.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    values = MmapedDict(str(fresh))
    try:
        for metric in _merged(files, accumulate=False):
            for sample in metric.samples:
                names, texts = list(sample.labels), list(sample.labels.values())
                key = mmap_key(metric.name, sample.name, names, texts, metric.documentation)
                values.write_value(key, sample.value, 0.0)
    finally:
        values.close()
    fresh.replace(target)


def _merged(files: Sequence[Path], *, accumulate: bool) -> list[Metric]:
    return list(MultiProcessCollector.merge([str(path) for path in files], accumulate=accumulate))
