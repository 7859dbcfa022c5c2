"""Handlers and checks of the demo. `crm.sync_contact` has none: its work goes to the CRM over HTTP."""

import datetime as dt

from jobsboard.demo import digest, journal, mail, partner, place, scoring
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext, Rejected, check, handler


@handler("onboarding.welcome_email")
def welcome_email(job: JobContext) -> Confirmed:
    """Greet a new customer; the mail server's queue id is the evidence."""
    queue_id = mail.send(
        to=job.payload["email"],
        subject="Welcome",
        body=f"Hello, customer {job.payload['user_id']}. Good to have you here.",
        idempotency_key=job.idempotency_key,
        maybe_duplicate=job.maybe_duplicate,
        probe=job.probe,
    )
    return Confirmed(ref=queue_id)


@check("onboarding.welcome_email")
def welcome_email_sent(job: JobContext) -> Confirmed | None:
    """Ask the mail server whether an earlier run's mail left, before another one is sent."""
    queue_id = mail.find(job.idempotency_key)
    return Confirmed(ref=queue_id) if queue_id else None


@handler("scoring.account")
def score_account(job: JobContext) -> Confirmed:
    """Compute the score of an account."""
    found = scoring.score(
        user_id=job.payload["user_id"],
        seats=job.payload["seats"],
        visits=job.payload["visits"],
        progress=job.progress,
    )
    journal.note(place.score_log(), "scored", key=job.idempotency_key, score=found, probe=job.probe)
    return Confirmed(ref=None, result={"score": found})


@handler("billing.handoff")
def hand_over_invoice(job: JobContext) -> AwaitingConfirmation:
    """Hand an invoice to the billing partner, who books it later."""
    receipt = job.once(
        "hand over",
        lambda: partner.hand_over(
            key=job.idempotency_key,
            invoice=job.payload["invoice_id"],
            amount_cents=job.payload["amount_cents"],
            probe=job.probe,
        ),
    )
    return AwaitingConfirmation(ref=str(receipt))


@check("billing.handoff")
def invoice_booked(job: JobContext) -> Confirmed | Rejected | None:
    """Look into the partner's books."""
    entry = partner.look_up(job.idempotency_key)
    if entry is None:
        return None
    return Rejected(entry.refused) if entry.refused else Confirmed(ref=entry.ref)


@handler("reports.digest")
def write_digest(job: JobContext) -> Confirmed:
    """Write down what came in before a tick of a schedule."""
    until = dt.datetime.fromisoformat(job.payload["until"])
    ref = digest.write(key=job.idempotency_key, until=until, minutes=job.payload["minutes"], probe=job.probe)
    return Confirmed(ref=ref)
