"""`manage.py demo_check`: hold the board's confirmed mails against the mail server's own log."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from jobsboard.demo import place
from jobsboard.demo.traffic import RATES
from queues.models import Job


class Command(BaseCommand):
    """Compare evidence with the outside world, message by message."""

    help = "Compare the evidence of confirmed jobs with the demo mail server's log; exit 1 when they disagree."

    def handle(self, *args: Any, **options: Any) -> None:
        # The log is read first: what is confirmed after that must not look like a mail that is missing.
        lines = place.mail_log().read_text(encoding="utf-8").splitlines()
        taken = {json.loads(line)["queue_id"]: json.loads(line)["message_id"] for line in lines}
        confirmed = {}
        for ref, key in Job.objects.filter(type__in=RATES, state="confirmed").values_list(
            "evidence__ref", "idempotency_key"
        ):
            confirmed[ref] = f"<{key}@jobsboard.example>"
        later = {
            json.loads(line)["queue_id"]
            for line in place.mail_log().read_text(encoding="utf-8").splitlines()[len(lines) :]
        }
        # Mails that arrived after the first look at the log are left out on both sides.
        confirmed = {ref: message for ref, message in confirmed.items() if ref not in later}
        false = [ref for ref, message in confirmed.items() if taken.get(ref) != message]
        unknown = [ref for ref in taken if ref not in confirmed]
        self.stdout.write(
            f"{len(taken)} mails taken by the mail server, {len(confirmed)} jobs confirmed with a queue id, "
            f"{len(false)} of them not in its log, {len(unknown)} mails without a confirmed job (yet)"
        )
        if false:
            raise CommandError(f"confirmed without a mail: {', '.join(false[:5])}")
