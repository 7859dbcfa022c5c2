"""Live traffic of launch week: sign-ups, each with a mail, a contact and a score; invoices; requests sent twice."""

import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from django.db import InterfaceError, OperationalError, connection

from jobsboard.demo import partner, place
from jobsboard.demo.journal import Journal
from queues.accept import EnqueueError, Item, enqueue_many

SIGN_UPS: Final = 1.2
"""A second, on average; each is three jobs."""
INVOICES: Final = 0.4
RUSH: Final = 2.5
"""In a storm everybody comes at once: so many times as many requests. It is what the providers cannot bear."""
REPEAT_SHARE: Final = 0.04
"""How often a producer sends a recent request again, as after a lost answer."""
TOO_LARGE_EVERY: Final = 1200
"""Each so manieth invoice is above the partner's limit, and refused: seldom enough for tier 1 to keep its promise."""

Request = list[Item]


def sign_up(number: int, draw: random.Random) -> Request:
    """Return what follows from a sign-up, accepted as a whole or not at all."""
    email, plan = f"customer-{number}@example.org", draw.choice(["free", "team", "business"])
    contact = {"user_id": number, "email": email, "plan": plan}
    account = {"user_id": number, "seats": draw.choice([1, 1, 3, 5, 20, 80]), "visits": draw.randrange(60)}
    return [
        Item(type="onboarding.welcome_email", payload=contact),
        Item(type="crm.sync_contact", payload=contact),
        Item(type="scoring.account", payload=account),
    ]


def invoice(number: int, draw: random.Random, *, too_large: bool) -> Request:
    """Return an invoice for the partner."""
    amount = partner.LIMIT_CENTS + 1 if too_large else draw.randrange(500, 50_000)
    return [Item(type="billing.handoff", payload={"invoice_id": f"INV-{number:06d}", "amount_cents": amount})]


def requests(first: int, draw: random.Random) -> Iterator[Request]:
    """Yield what producers send, without end."""
    recent: deque[Request] = deque(maxlen=30)
    invoices = 0
    number = first
    while True:
        if recent and draw.random() < REPEAT_SHARE:
            yield draw.choice(list(recent))
            continue
        number += 1
        if draw.random() < SIGN_UPS / (SIGN_UPS + INVOICES):
            request = sign_up(number, draw)
        else:
            invoices += 1
            request = invoice(number, draw, too_large=invoices % TOO_LARGE_EVERY == 0)
        recent.append(request)
        yield request


def rate(kind: place.Kind) -> float:
    """Return how many requests come in a second, repeated ones included."""
    return (SIGN_UPS + INVOICES) / (1 - REPEAT_SHARE) * (RUSH if kind == "storm" else 1.0)


def run(stop: threading.Event) -> None:
    """Enqueue until told to stop. A database that is down costs jobs of the demo only, and is waited for."""
    log = Journal(place.traffic_log())
    # Numbers go on where an earlier run of the demo ended, so that keys stay new.
    source = requests(int(time.time()) % 100_000_000 * 10, random.Random())
    while not stop.wait(random.expovariate(rate(place.weather().kind))):
        try:
            send(next(source), log)
        except EnqueueError as error:
            print(f"not accepted: {error}", flush=True)  # noqa: T201 (the log of the demo's traffic)
        except (OperationalError, InterfaceError) as error:
            print(f"database: {error}", flush=True)  # noqa: T201
            connection.close()
            stop.wait(1.0)


def send(request: Request, log: Journal) -> None:
    """Enqueue one request and write down what the producer was told. Raises: EnqueueError, OperationalError."""
    for item, receipt in zip(request, enqueue_many(request), strict=True):
        facts: dict[str, Any] = {"type": item.type, "job_id": str(receipt.job_id), "duplicate": receipt.duplicate}
        log.write("accepted", **facts)
