"""The audit log: who did what, when, to which object, and why.

Not here: reading it (the board's audit page); the trigger that refuses changes (migration 0002).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from django.db import connection

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


def record_each(
    action: str,
    changes: Mapping[Any, Any],
    *,
    actor: str,
    object_type: str,
    before: Any = None,
    reason: str = "",
    source: str = "ui",
    request_id: str = "",
) -> None:
    """Write an entry for each of many objects that one act changed, in one statement of the caller's transaction.

    Shape: `changes` is object id → after.
    """
    if not changes:
        return
    params = {
        "action": action[:64], "actor": _plain(actor, limit=150), "object_type": object_type[:32],
        "before": json.dumps(redact(before)), "reason": _plain(redact_text(reason), limit=1000), "source": source,
        "request_id": _plain(request_id, limit=64),
        "changes": json.dumps({_plain(str(name), limit=200): redact(after) for name, after in changes.items()}),
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(_EACH, params)


_EACH: Final = """
INSERT INTO queues_auditentry (actor, action, object_type, object_id, before, after, reason, source, request_id)
SELECT %(actor)s, %(action)s, %(object_type)s, e.key, nullif(%(before)s::jsonb, 'null'), e.value::jsonb, %(reason)s,
  %(source)s, %(request_id)s
FROM json_each(%(changes)s::json) AS e
"""


def _plain(text: str, *, limit: int) -> str:
    # PostgreSQL stores no U+0000; an attempted login may name one.
    return text.replace("\x00", "\ufffd")[:limit]
