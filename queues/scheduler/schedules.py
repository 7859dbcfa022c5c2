"""Make jobs of the ticks of schedules that are due; end pauses; set right what a clock that went back left behind."""

import time
from dataclasses import dataclass
from typing import Final

from queues import schedule_ticks, schedules

CHECK_EVERY_SECONDS: Final = 60.0


@dataclass
class Schedules:
    """The service's memory: when it held all schedules against their lines last."""

    checked_at: float = float("-inf")

    def run_once(self) -> bool:
        """Do one round; True: more may be due."""
        schedules.end_pauses()
        if time.monotonic() - self.checked_at > CHECK_EVERY_SECONDS:
            schedule_ticks.check()
            self.checked_at = time.monotonic()
        return schedule_ticks.sweep()
