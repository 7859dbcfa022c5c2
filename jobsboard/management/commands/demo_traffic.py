"""`manage.py demo_traffic`: live traffic for the demo."""

import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand

from jobsboard.demo import traffic


class Command(BaseCommand):
    """Enqueue until SIGTERM."""

    help = "Enqueue the demo's jobs at random times."

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        traffic.run(stop)
