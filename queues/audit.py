"""The audit log: who did what, when, to which object, and why.

Not here: reading it (the board's audit page); the trigger that refuses changes (migration 0002).
"""

from __future__ import annotations

from typing import Any

from queues.models import AuditEntry
from queues.redaction import redact, redact_text


def record(
    action: str,
    *,
    actor: str,
    object_type: str,
    object_id: object,
    before: Any = None,
    after: Any = None,
    reason: str = "",
    source: str = "ui",
    request_id: str = "",
) -> AuditEntry:
    """Write one entry in the caller's transaction, so that it exists exactly if the change does.

    Shape: `source` is ui, admin, api or command.
    """
    return AuditEntry.objects.create(
        action=action[:64],
        actor=_plain(actor, limit=150),
        object_type=object_type[:32],
        object_id=_plain(str(object_id), limit=200),
        before=redact(before),
        after=redact(after),
        reason=_plain(redact_text(reason), limit=1000),
        source=source,
        request_id=_plain(request_id, limit=64),
    )


def _plain(text: str, *, limit: int) -> str:
    # PostgreSQL stores no U+0000; an attempted login may name one.
    return text.replace("\x00", "\ufffd")[:limit]
