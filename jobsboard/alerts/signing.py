"""Secrets of endpoints, and the headers that prove that a message is ours and whole (Standard Webhooks).

Not here: storing secrets (`queues.secrets_box`), who may see one (`jobsboard.admin.webhooks`).
Source: the Standard Webhooks specification, through the library `standardwebhooks`.
"""

from __future__ import annotations

import base64
import math
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from standardwebhooks import Webhook

ROTATION: Final = timedelta(hours=24)
"""So long after a rotation both secrets sign."""
_BYTES: Final = 32


def new_secret() -> str:
    """Return a secret as receivers' libraries take it: `whsec_` and 32 random bytes in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def headers(message_id: str, body: str, *, keys: Sequence[str], at: datetime) -> dict[str, str]:
    """Return id, time and one signature for each secret, the newest first; none, if there is no secret.

    Units: `at` is the time of sending and must know its zone. Body is signed as UTF-8, as it is sent.
    """
    # The library replaces the zone without converting: only UTC gives the right signature.
    at = at.astimezone(UTC)
    signatures = [Webhook(key).sign(message_id, at, body) for key in keys]
    signed = {"webhook-signature": " ".join(signatures)} if signatures else {}
    return {"webhook-id": message_id, "webhook-timestamp": str(math.floor(at.timestamp())), **signed}
