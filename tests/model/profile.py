"""How long the machine searches."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

ROUNDS: Final = 4
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


def search(
    machine: type[RuleBasedStateMachine], seen: Collection[str], wanted: frozenset[str], *, settings: settings
) -> None:
    """Run a machine until it has come across everything that it has to, at most ROUNDS times.

    Hypothesis draws on the constants of all modules that are loaded, so one seed goes another way after each change
    and beside other tests: what is rare is not in every round.
    """
    for number in range(ROUNDS):
        run_state_machine_as_test(machine if DEEP else seed(number)(machine), settings=settings)
        if wanted <= set(seen):
            return
    raise AssertionError(f"the search never saw {sorted(wanted - set(seen))}")
