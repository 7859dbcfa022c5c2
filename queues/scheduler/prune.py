"""Remove jobs past their retention, day by day; what may go is decided in the database (migration 0005)."""

import datetime as dt
import logging
import time
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from queues import lifecycle
from queues.lifecycle import Look, Swap

log = logging.getLogger(__name__)

MOST: Final = 1_000
"""Jobs in one look: a few hundredths of a second, in which an accept may have to wait for one of their keys."""
CALLBACKS_MOST: Final = 2_000
SWAP_FROM: Final = 5_000
"""Fewer jobs that may go are deleted; a swap makes everybody wait for a moment."""
COPY_BYTES: Final = 8 * 1024 * 1024
LOOK_AGAIN_SECONDS: Final = 6 * 3600.0
REFUSALS: Final = 12
"""After so many rounds in which the lock was not to be had, a day is deleted row by row, which needs none."""


@dataclass
class Walk:
    """How far one day is. `remove`: rows go as they are seen; else they wait for the swap."""

    day: dt.date
    remove: bool = False
    after: UUID | None = None
    may_go: int = 0
    stay: list[UUID] = field(default_factory=list)
    stay_bytes: int = 0

    def add(self, look: Look) -> None:
        """Take note of one look."""
        self.after = look.last
        self.may_go += look.may_go - look.removed
        self.stay_bytes += look.stay_bytes
        if len(self.stay) <= lifecycle.STAY_MOST:
            self.stay += look.stay

    @property
    def too_much_stays(self) -> bool:
        """The jobs that stay are too many or too large to be copied."""
        return len(self.stay) > lifecycle.STAY_MOST or self.stay_bytes > COPY_BYTES


@dataclass
class Prune:
    """The service's memory: which days it has yet to look at, how far it is, and which swaps were refused.

    Any number of schedulers may prune: a job that may go may go for ever, so what one found is true whatever another
    one did meanwhile. Who meets another one at work leaves the round to it.
    """

    days: list[dt.date] = field(default_factory=list)
    walk: Walk | None = None
    looked: dict[dt.date, float] = field(default_factory=dict)
    refused: dict[dt.date, tuple[Walk, int]] = field(default_factory=dict)
    in_round: bool = False
    held_up: bool = False

    def run_once(self) -> bool:
        """Take one short step; True while the round has more."""
        if not self.in_round:
            self._begin()
        try:
            self.in_round = self._step()
        except Exception:
            # The next day first: one that fails again and again keeps no other from its turn.
            self.walk, self.in_round = None, bool(self.days)
            raise
        return self.in_round

    def _begin(self) -> None:
        prunable = lifecycle.prunable_days()
        horizon = time.monotonic() - LOOK_AGAIN_SECONDS
        self.looked = {day: at for day, at in self.looked.items() if at > horizon and day in prunable}
        self.refused = {day: was for day, was in self.refused.items() if day in prunable}
        self.days = [day for day in prunable if day not in self.looked or day in self.refused]
        self.in_round, self.held_up = True, False

    def _step(self) -> bool:
        if self.walk is None and not self.days:
            return lifecycle.prune_callbacks(limit=CALLBACKS_MOST) == CALLBACKS_MOST
        if self.walk is None:
            day = self.days.pop(0)
            if day in self.refused:
                return self._swap_again(day)
            self.walk = Walk(day)
        return self._look(self.walk)

    def _look(self, walk: Walk) -> bool:
        look = lifecycle.prune_day(walk.day, after=walk.after, most=MOST, remove=walk.remove)
        if look is None:
            return self._leave_to_another()
        walk.add(look)
        if look.seen == MOST:
            return True
        self.walk = None
        if walk.remove or (walk.stay and not walk.may_go):
            self.looked[walk.day] = time.monotonic()
        elif walk.stay and (walk.may_go < SWAP_FROM or walk.too_much_stays):
            self.walk = Walk(walk.day, remove=True)
        else:
            return self._swap(walk, refusals=0)
        return True

    def _swap_again(self, day: dt.date) -> bool:
        walk, refusals = self.refused.pop(day)
        if refusals < REFUSALS or not walk.may_go:
            return self._swap(walk, refusals=refusals)
        log.warning("prune: somebody always uses the jobs of %s; deleting them row by row", day)
        self.walk = Walk(day, remove=True)
        return True

    def _swap(self, walk: Walk, *, refusals: int) -> bool:
        if self.held_up:
            # One refusal a round: each may have made everybody wait for 100 ms, and the next would be refused as well.
            self.refused[walk.day] = (walk, refusals)
            return True
        became = lifecycle.swap_day(walk.day, stay=walk.stay)
        if became == Swap.BUSY:
            return self._leave_to_another()
        if became == Swap.REFUSED:
            self.held_up = True
            self.refused[walk.day] = (walk, refusals + 1)
            log.info("prune: the jobs of %s are in use, trying again in the next round", walk.day)
            return True
        self.looked[walk.day] = time.monotonic()
        log.info("prune: partition of %s %s: %d jobs removed, %d stay", walk.day, became, walk.may_go, len(walk.stay))
        return True

    def _leave_to_another(self) -> bool:
        self.walk = None
        self.days = []
        return False


run_once: Final = Prune().run_once
