"""`manage.py worker_health`: say whether the workers of this host are well, for a supervisor or a container's check."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from queues import workers


class Command(BaseCommand):
    """Exit 1 when no worker of this host reports itself, or one is in trouble."""

    help = "Exit 1 unless every worker of this host reports itself and none is in trouble."

    def handle(self, *args: Any, **options: Any) -> None:
        found = workers.of_host(workers.hostname())
        if not found:
            raise CommandError("no worker of this host has reported itself in the last seconds")
        ill = [f"{process}: {trouble}" for process, trouble in found.items() if trouble]
        if ill:
            raise CommandError("; ".join(ill))
        self.stdout.write(f"{len(found)} of {len(found)} workers are well")
