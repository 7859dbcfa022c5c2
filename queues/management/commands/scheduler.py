"""`manage.py scheduler`: run every registered service until SIGTERM."""

import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand

from queues.scheduler import housekeeping, registered, run_forever


class Command(BaseCommand):
    """Run the scheduler; any number of them may run at once."""

    help = "Run the scheduler's services. Any number of schedulers may run."

    def get_check_kwargs(self, options: dict[str, Any]) -> Any:
        """Look at the servers, too, before anything starts."""
        found: dict[Any, Any] = dict(super().get_check_kwargs(options))
        return {**found, "databases": ["default"]}

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        housekeeping.make_partitions()
        self.stdout.write(f"scheduler: {', '.join(service.name for service in registered())}")
        run_forever(registered(), stop=stop)
