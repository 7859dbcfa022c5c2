"""How long the machine searches."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings

DEEP: Final = os.environ.get("JOBSBOARD_MODEL", "")


def profile(*, examples: int, deep: int, steps: int) -> settings:
    """Return how long to search. JOBSBOARD_MODEL=deep: as long as RELIABILITY.md says, with another seed each time."""
    return settings(
        max_examples=deep if DEEP else examples,
        stateful_step_count=steps,
        derandomize=not DEEP,
        database=None,
        deadline=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
