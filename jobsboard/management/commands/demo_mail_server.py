"""`manage.py demo_mail_server`: the demo's SMTP server."""

import asyncio
import signal
from typing import Any

from django.core.management.base import BaseCommand

from jobsboard.demo import mail_server


class Command(BaseCommand):
    """Serve until SIGTERM."""

    help = "Run the demo's SMTP server."

    def handle(self, *args: Any, **options: Any) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await mail_server.serve(stop)
