"""`manage.py demo_check`: hold the board against the logs of the demo's providers, count by count."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from jobsboard.demo import reconcile
from jobsboard.demo.reconcile import Row
from jobsboard.demo.world import World

HEAD = ("outside", "board", "open", "wrong")


class Command(BaseCommand):
    """Compare evidence with the outside world, one by one."""

    help = "Compare the board with the logs of the demo's mail server, CRM and billing partner; exit 1 on disagreement."

    def handle(self, *args: Any, **options: Any) -> None:
        before = World.now()
        seen, kept = reconcile.jobs(), reconcile.inbox()
        rows = reconcile.compare(before, seen, World.now(), kept=kept)
        self._print(rows)
        wrong = [row for row in rows if row.wrong]
        if wrong:
            for row in wrong:
                self.stderr.write(f"{row.what}: {', '.join(row.wrong[: reconcile.EXAMPLES])}")
            raise CommandError(f"{len(wrong)} of {len(rows)} counts disagree")
        probes = sum(job.probe for job in seen)
        self.stdout.write(f"{len(seen) - probes} jobs and {probes} probes; all {len(rows)} counts agree")

    def _print(self, rows: list[Row]) -> None:
        width = max(len(row.what) for row in rows)
        self.stdout.write(f"{'':{width}}" + "".join(f"{name:>9}" for name in HEAD))
        for row in rows:
            numbers = (row.outside, row.board, row.open, len(row.wrong))
            because = "; ".join(f"{n} {words}" for words, n in row.explained.items() if n)
            self.stdout.write(f"{row.what:{width}}" + "".join(f"{n:9,}" for n in numbers) + f"  {because}".rstrip())
