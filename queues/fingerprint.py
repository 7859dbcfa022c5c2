"""Which failures are the same: a short hash of type, error class, normalized message and top application frame."""

import hashlib
import re
from typing import Final

_VARIABLE: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|0x[0-9a-f]+|\b[0-9a-f]{12,}\b|'[^']*'|\"[^\"]*\"|\d+",
    re.IGNORECASE,
)


def normalize(message: str) -> str:
    """Replace what differs from job to job (numbers, ids, quoted values) in the first 300 characters."""
    return _VARIABLE.sub("#", message[:300]).strip()


def fingerprint(job_type: str, *, reason: str, error_class: str, message: str, frame: str) -> str:
    """Return 16 hex digits. `frame` is `module:function` of the innermost application frame, or empty."""
    words = "\x00".join((job_type, reason, error_class, normalize(message), frame))
    return hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:16]
