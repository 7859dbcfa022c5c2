"""Digests of what customers did in a time: what the demo's schedules enqueue. Each is one file, written once."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from jobsboard.demo import place
from jobsboard.demo.journal import read

_COUNTED: Final[Mapping[str, str]] = {"onboarding.welcome_email": "sign_ups", "billing.handoff": "invoices"}


def write(*, key: str, until: dt.datetime, minutes: int, probe: bool = False) -> str:
    """Write the digest of a time and return its reference; one that is there stays as it is."""
    path = place.digests() / f"{key}.json"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        counts = count(until=until, minutes=minutes)
        found = {"ref": f"digest-{until:%Y%m%dT%H%M}-{minutes}", "probe": probe, **counts}
        part.write_text(json.dumps(found), encoding="utf-8")
        # Whole or not at all, and by the first of two runs.
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
        part.unlink()
    ref: str = json.loads(path.read_text(encoding="utf-8"))["ref"]
    return ref


def count(*, until: dt.datetime, minutes: int) -> Counter[str]:
    """Count what producers sent in so many minutes before a time, what they sent again left out."""
    end = until.timestamp()
    counts: Counter[str] = Counter(dict.fromkeys(_COUNTED.values(), 0))
    for line in read(place.traffic_log()):
        if line["type"] in _COUNTED and end - 60 * minutes <= line["at"] < end and not line["duplicate"]:
            counts[_COUNTED[line["type"]]] += 1
    return counts


def written() -> dict[str, dict[str, Any]]:
    """Return what is there. Shape: idempotency key → ref, probe, sign_ups, invoices."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in place.digests().glob("*.json")}
