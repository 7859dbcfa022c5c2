"""`manage.py demo_pager`: the demo's receiver of alerts."""

import os
import signal
import socket
import threading
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from jobsboard.demo import place
from jobsboard.demo.journal import Journal
from jobsboard.demo.pager import Pager
from jobsboard.demo.pager_server import Server


class Command(BaseCommand):
    """Serve until SIGTERM."""

    help = "Run the demo's receiver of alerts on an inherited listening socket."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--fd", type=int, required=True, help="the listening socket")

    def handle(self, *args: Any, **options: Any) -> None:
        secret = os.environ.get("PAGER_SECRET", "")
        if not secret:
            raise CommandError("PAGER_SECRET is not set: the local stack draws it for `make demo`")
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        pager = Pager(Journal(place.pager_log()), secret=secret)
        with Server(pager, socket.socket(fileno=options["fd"])) as server:
            thread = threading.Thread(target=server.serve_forever, name="pager")
            thread.start()
            stop.wait()
            server.shutdown()
            thread.join()
