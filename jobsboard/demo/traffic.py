"""Live traffic: customers sign up, pay and get digests, at random times; producers retry now and then."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from django.db import InterfaceError, OperationalError, connection

from queues.accept import EnqueueError, enqueue

RATES: Final = {"onboarding.welcome_email": 2.0, "billing.receipt": 0.7, "digest.weekly": 0.4}
"""Jobs a second, on average."""
RETRY_SHARE: Final = 0.04
"""How often a producer sends a recent job again, as after a lost answer."""


def _email(number: int) -> str:
    return f"customer-{number}@example.org"


def _welcome(number: int) -> dict[str, Any]:
    return {"user_id": number, "email": _email(number), "plan": random.choice(["free", "team", "business"])}


def _receipt(number: int) -> dict[str, Any]:
    return {"invoice_id": f"INV-{number:06d}", "email": _email(number), "amount_cents": random.randrange(500, 50_000)}


def _digest(number: int) -> dict[str, Any]:
    return {"user_id": number, "email": _email(number), "week": time.strftime("%G-W%V", time.gmtime())}


PAYLOADS: Final[dict[str, Callable[[int], dict[str, Any]]]] = {
    "onboarding.welcome_email": _welcome,
    "billing.receipt": _receipt,
    "digest.weekly": _digest,
}


def run(stop: threading.Event) -> None:
    """Enqueue until told to stop. A database that is down costs jobs of the demo only, and is waited for."""
    # Numbers go on where an earlier run of the demo ended, so that keys stay new.
    number = int(time.time()) % 10_000_000 * 10
    recent: deque[tuple[str, dict[str, Any]]] = deque(maxlen=50)
    total = sum(RATES.values())
    while not stop.wait(random.expovariate(total)):
        number += 1
        if recent and random.random() < RETRY_SHARE:
            name, payload = random.choice(list(recent))
        else:
            name = random.choices(list(RATES), weights=list(RATES.values()))[0]
            payload = PAYLOADS[name](number)
            recent.append((name, payload))
        try:
            enqueue(name, payload)
        except EnqueueError as error:
            print(f"not accepted: {error}", flush=True)  # noqa: T201 (the log of the demo's traffic)
        except (OperationalError, InterfaceError) as error:
            print(f"database: {error}", flush=True)  # noqa: T201
            connection.close()
            stop.wait(1.0)
