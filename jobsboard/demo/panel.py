"""What the overview says about a demo: how the weather is, and what to look at. Nothing outside a demo."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from jobsboard.demo import place

COMMAND: Final = ".venv/bin/python -m jobsboard.local -- python manage.py demo_weather"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The weather of the providers; `since` is None while nobody has changed it."""

    storm: bool
    since: datetime | None
    command: str = COMMAND


def panel() -> Panel | None:
    """Return what to show; None when this is no demo."""
    if not place.is_demo():
        return None
    weather = place.weather()
    return Panel(storm=weather.kind == "storm", since=weather.since)
