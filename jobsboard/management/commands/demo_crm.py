"""`manage.py demo_crm`: the demo's CRM, and the billing partner beside it."""

import os
import signal
import socket
import threading
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from jobsboard.demo import partner, place
from jobsboard.demo.crm import Callbacks, Crm
from jobsboard.demo.crm_server import Server
from jobsboard.demo.journal import Journal

PROVIDER_PATH = "/api/v1/callbacks/crm.sync_contact"


class Command(BaseCommand):
    """Serve until SIGTERM."""

    help = "Run the demo's CRM on an inherited listening socket, and the billing partner."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--fd", type=int, required=True, help="the listening socket")

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        log = Journal(place.crm_log())
        callbacks = Callbacks(log, secret=_secret("CRM_CALLBACK_SECRET"))
        crm = Crm(log, callbacks, secret=_secret("CRM_SECRET"), provider_url=settings.PUBLIC_URL + PROVIDER_PATH)
        with Server(crm, socket.socket(fileno=options["fd"])) as server:
            threads = [
                threading.Thread(target=callbacks.run, args=(stop,), name="callbacks"),
                threading.Thread(target=partner.run, args=(stop,), name="partner"),
                threading.Thread(target=server.serve_forever, name="crm"),
            ]
            for thread in threads:
                thread.start()
            stop.wait()
            server.shutdown()
            for thread in threads:
                thread.join()


def _secret(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise CommandError(f"{name} is not set: the local stack draws it for `make demo`")
    return value
