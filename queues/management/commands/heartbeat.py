"""The heartbeat process of a worker. Workers start it; people do not."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from queues.runtime import heartbeat


class Command(BaseCommand):
    """Extend the leases of the worker that started this process."""

    help = "Internal: started by each worker to extend the leases of its jobs."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("arguments", help="JSON: fd, parent, node, queues, slots")

    def handle(self, *args: Any, **options: Any) -> None:
        heartbeat.main(json.loads(options["arguments"]))
