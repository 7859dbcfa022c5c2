"""Send probes that are due, and say how they went."""

import time
from dataclasses import dataclass
from typing import Final

from queues import probes

LATE_EVERY_SECONDS: Final = 5.0


@dataclass
class Probes:
    """The service's memory: when it looked last for proofs that came late."""

    looked_at: float = float("-inf")

    def run_once(self) -> bool:
        """Do one round; True: more may be due."""
        more = probes.sweep()
        if time.monotonic() - self.looked_at > LATE_EVERY_SECONDS:
            probes.note_late()
            self.looked_at = time.monotonic()
        return more
