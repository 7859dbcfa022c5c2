"""Annotations: what a deploy, an incident or a support desk says. Their rules, and the one place that writes them.

Not here: who may write (`jobsboard.api.annotations`, the admin), how they are shown (`jobsboard.board.marks`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from jobsboard.models import ANNOTATION_KINDS, Annotation
from queues import audit
from queues.canonical import canonical
from queues.models import BoardVersion
from queues.outcomes import DAYS_KEPT
from queues.redaction import redact_text

FUTURE: Final = timedelta(days=1)
PAST: Final = timedelta(days=400)
CATEGORY_MAX: Final = 64
TEXT_MAX: Final = 1000
URL_MAX: Final = 2000
COUNT_MAX: Final = 1_000_000

# Controls, and the marks that turn the direction of what follows: a label stands beside others on one line.
_UNFIT: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class AnnotationRefused(ValueError):
    """The annotation cannot be kept so. `field` is what is wrong, `detail` a sentence."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field
        self.detail = detail


class KeyUsedOtherwise(ValueError):
    """The idempotency key was used with another annotation; nothing was written."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What somebody wants to keep. `at` None is now; `job_type` empty is about all types; `count` None is 1."""

    kind: str
    at: datetime | None = None
    job_type: str = ""
    category: str = ""
    count: int | None = None
    text: str = ""
    url: str = ""


def check(wanted: Wanted) -> None:
    """Refuse what nobody could read later. Raises: AnnotationRefused."""
    if wanted.kind not in ANNOTATION_KINDS:
        raise AnnotationRefused("kind", f"kind is one of {', '.join(ANNOTATION_KINDS)}.")
    if wanted.kind == "support":
        _check_category(wanted.category)
    elif wanted.category:
        raise AnnotationRefused("category", "A category belongs to support.")
    elif wanted.count is not None:
        raise AnnotationRefused("count", "A count belongs to support.")
    if wanted.count is not None and not 1 <= wanted.count <= COUNT_MAX:
        raise AnnotationRefused("count", f"count is from 1 to {COUNT_MAX}.")
    if len(wanted.text) > TEXT_MAX or "\x00" in wanted.text:
        raise AnnotationRefused("text", f"text has at most {TEXT_MAX} characters, and no U+0000.")
    _check_url(wanted.url)
    _check_time(wanted.at)


def _check_category(category: str) -> None:
    if not category.strip():
        raise AnnotationRefused("category", "Support needs a category, such as missing mail.")
    if len(category) > CATEGORY_MAX or _UNFIT.search(category):
        raise AnnotationRefused("category", f"category is one line of at most {CATEGORY_MAX} characters.")


def _check_url(url: str) -> None:
    if not url:
        return
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        usable = False
    if not usable or len(url) > URL_MAX or _UNFIT.search(url) or not url.startswith(("http://", "https://")):
        detail = f"url is an http or https address without a user, of at most {URL_MAX} characters."
        raise AnnotationRefused("url", detail)


def _check_time(at: datetime | None) -> None:
    if at is None:
        return
    if at.tzinfo is None:
        raise AnnotationRefused("at", "The time needs a zone.")
    # A bound of days, not a decision about a job: the process's clock will do.
    now = datetime.now(UTC)
    if at > now + FUTURE:
        raise AnnotationRefused("at", f"at is at most {FUTURE.days} day ahead.")
    if at < now - PAST:
        raise AnnotationRefused("at", f"at is at most {PAST.days} days ago.")


def annotate(
    wanted: Wanted, *, created_by: str, source: str, request_id: str = "", idempotency_key: str | None = None
) -> tuple[Annotation, bool]:
    """Keep an annotation with its audit entry; return it, and whether it is new.

    The same key of the same sender with the same content is the same annotation.
    Raises: AnnotationRefused, KeyUsedOtherwise.
    """
    check(wanted)
    values = _values(wanted)
    with transaction.atomic():
        if idempotency_key is None:
            row, is_new = Annotation.objects.create(created_by=created_by, **values), True
        else:
            digest = hashlib.sha256(canonical(_as_sent(wanted))).hexdigest()
            # A rival that sends the same key at once waits at the unique index, then finds the first one's row.
            row, is_new = Annotation.objects.get_or_create(
                created_by=created_by, idempotency_key=idempotency_key, defaults={**values, "digest": digest}
            )
            if row.digest != digest:
                raise KeyUsedOtherwise("The key was used with another annotation.")
        if is_new:
            # Defaults that the database gave.
            row.refresh_from_db()
            _record(row, source=source, request_id=request_id)
    return row, is_new


def forget_old() -> bool:
    """Delete what is older than any range that a page shows."""
    Annotation.objects.filter(at__lt=Now() - timedelta(days=DAYS_KEPT)).delete()
    return False


def _values(wanted: Wanted) -> dict[str, Any]:
    values: dict[str, Any] = {
        "kind": wanted.kind,
        "job_type": wanted.job_type,
        "category": redact_text(wanted.category.strip())[:CATEGORY_MAX],
        "count": wanted.count or 1,
        "text": redact_text(wanted.text)[:TEXT_MAX],
        "url": redact_text(wanted.url)[:URL_MAX],
    }
    return values if wanted.at is None else {**values, "at": wanted.at}


def _as_sent(wanted: Wanted) -> list[Any]:
    at = None if wanted.at is None else wanted.at.astimezone(UTC).isoformat()
    return [wanted.kind, at, wanted.job_type, wanted.category, wanted.count, wanted.text, wanted.url]


def _record(row: Annotation, *, source: str, request_id: str) -> None:
    after: dict[str, Any] = {
        "kind": row.kind,
        "at": row.at.isoformat(),
        "job_type": row.job_type,
        "text": row.text,
        "url": row.url,
    }
    if row.kind == "support":
        after |= {"category": row.category, "count": row.count}
    audit.record(
        "annotation.created",
        actor=row.created_by,
        object_type="annotation",
        object_id=row.pk,
        after={name: value for name, value in after.items() if value != ""},
        source=source,
        request_id=request_id,
    )
    # Pages that are open show it at their next poll. Last, since every fold waits for this row.
    BoardVersion.objects.update(n=F("n") + 1, at=Now())
