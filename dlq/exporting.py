"""Unresolved dead letters as CSV or JSON lines, in a stream: at most MOST rows, in chunks, whatever their number.

Chunks are found by type and id, each by a statement of its own, so that neither memory nor a transaction grows with the
export. Not here: who may have it (`jobsboard.api.exporting`, `jobsboard.board.exporting`, `manage.py dlq export`).
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from dlq import sql
from queues import audit, contracts
from queues.models import Job
from queues.redaction import REDACTED, redact, redact_text

MOST: Final = 100_000
CHUNK: Final = 500
PAYLOADS: Final = 50
"""Payloads that are in memory at once; each may have a megabyte."""
FORMATS: Final = ("csv", "jsonl")
CONTENT_TYPES: Final = {"csv": "text/csv; charset=utf-8; header=present", "jsonl": "application/x-ndjson"}
COLUMNS: Final = (
    "id", "type", "tier", "reason", "error_class", "message", "fingerprint", "group", "dedupe_key", "idempotency_key",
    "attempts", "max_attempts", "accepted_at", "died_at", "contract_version", "replay_of", "root", "payload",
)  # fmt: skip
"""In this order, always; `payload` only for who may see it."""

Format = Literal["csv", "jsonl"]
Row = dict[str, Any]

_BEGINS_A_FORMULA: Final = tuple("=+-@\t\r\n\x00＝＋－＠")
# A spreadsheet looks behind these for what a cell begins with.
_BEFORE: Final = " \u00a0\"'"

_WHERE: Final = """
j.state = 'dead' AND j.resolution = 'open' AND NOT j.probe AND j.id >= %(first)s AND j.id < %(before)s{conditions}
"""
_CHUNK_SQL: Final = """
SELECT j.id, j.type, j.tier, j.reason, j.failures->-1->>'error_class', j.failures->-1->>'message', j.fingerprint,
  j."group", j.dedupe_key, j.idempotency_key, j.attempt, j.attempt_limit, j.accepted_at, j.settled_at,
  j.contract_version, j.replay_of, j.root
FROM queues_job j WHERE j.type = %(type)s AND {where} ORDER BY j.id DESC LIMIT %(limit)s
"""
_COUNT: Final = """
SELECT count(*) FROM (SELECT 1 FROM queues_job j WHERE j.type = ANY(%(types)s::text[]) AND {where} LIMIT %(limit)s) AS n
"""
_CONDITIONS: Final[Mapping[str, str]] = {
    "tier": "j.tier = %(tier)s",
    "reason": "j.reason = %(reason)s",
    "fingerprint": "j.fingerprint = %(fingerprint)s",
}
_LAST: Final = UUID(int=2**128 - 1)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is exported. `types`: those that the caller may use; `since` and `until` are times of acceptance."""

    types: Sequence[str]
    type: str | None = None
    tier: int | None = None
    reason: str | None = None
    fingerprint: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None

    @property
    def names(self) -> list[str]:
        """The types that it is about, in order."""
        return sorted(name for name in self.types if self.type in (None, name))

    def as_json(self) -> dict[str, Any]:
        """Return the filter for the audit log."""
        values = {"type": self.type, "tier": self.tier, "reason": self.reason, "fingerprint": self.fingerprint,
                  "since": self.since and self.since.isoformat(),
                  "until": self.until and self.until.isoformat()}  # fmt: skip
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class By:
    """Who exports, and from where. Shape: `source` is ui, api or command."""

    actor: str
    source: str
    request_id: str = ""


def count(wanted: Wanted) -> int:
    """Count what would be exported, at most MOST + 1."""
    where, params = _filter(wanted)
    found = sql.rows(_COUNT.format(where=where), {**params, "types": wanted.names, "limit": MOST + 1, "before": _LAST})
    return int(found[0][0])


def pieces(wanted: Wanted, *, payload: bool, most: int = MOST) -> Iterator[Sequence[Row]]:
    """Yield dead letters as plain values, redacted, by type and then newest first; some at a time."""
    left = most
    for name in wanted.names:
        before: UUID | None = _LAST
        while before is not None and left > 0:
            chunk, before = _chunk(wanted, name, before, limit=min(CHUNK, left))
            left -= len(chunk)
            for start in range(0, len(chunk), PAYLOADS):
                rows = chunk[start : start + PAYLOADS]
                if payload:
                    _add_payloads(rows)
                yield rows


def stream(wanted: Wanted, *, form: Format, payload: bool, by: By) -> Iterator[bytes]:
    """Yield the export piece by piece, and write it to the audit log with its number of rows, however it ends."""
    columns = COLUMNS if payload else COLUMNS[:-1]
    n, state = 0, "broken off"
    try:
        if form == "csv":
            yield csv_line(columns)
        for rows in pieces(wanted, payload=payload):
            n += len(rows)
            yield b"".join(_line(row, columns, form=form) for row in rows)
        is_cut = n == MOST and count(wanted) > MOST
        state = "cut" if is_cut else "complete"
        if is_cut and form == "jsonl":
            words = f"There are more than {MOST:,} dead letters; narrow the filter, as by until."
            yield _json_line({"cut": True, "rows": n, "detail": words})
    finally:
        audit.record(
            "dead_letters.exported", actor=by.actor, object_type="dead_letters", object_id=form,
            after={"filter": wanted.as_json(), "rows": n, "payload": payload, "state": state},
            source=by.source, request_id=by.request_id,
        )  # fmt: skip


def headers(wanted: Wanted, *, form: Format) -> dict[str, str]:
    """Return the headers of a download. `Jobsboard-Export-Rows` is how many rows there are now, `100000+` when cut."""
    found = count(wanted)
    return {
        "Content-Disposition": f'attachment; filename="dead-letters.{form}"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Jobsboard-Export-Rows": str(found) if found <= MOST else f"{MOST}+",
        "Jobsboard-Export-Complete": "true" if found <= MOST else "false",
    }


def csv_line(values: Sequence[Any]) -> bytes:
    """Write one line: every cell quoted, and no text that a spreadsheet would take for a formula.

    Lossy: a text that begins like a formula gets an apostrophe before it. Source: OWASP, CSV Injection.
    """
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerow([_cell(value) for value in values])
    return buffer.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, dt.datetime):
        return _time(value)
    text = value if isinstance(value, str) else _compact(value)
    guard = "'" if text.lstrip(_BEFORE)[:1] in _BEGINS_A_FORMULA else ""
    return guard + text.replace("\x00", "\ufffd")


def _line(row: Row, columns: Sequence[str], *, form: Format) -> bytes:
    if form == "csv":
        return csv_line([row[name] for name in columns])
    return _json_line({name: _plain(row[name]) for name in columns})


def _json_line(values: Mapping[str, Any]) -> bytes:
    return (_compact(values) + "\n").encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    return _time(value) if isinstance(value, dt.datetime) else value


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _time(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def _filter(wanted: Wanted) -> tuple[str, dict[str, Any]]:
    chosen = [words for name, words in _CONDITIONS.items() if getattr(wanted, name) is not None]
    if wanted.until is not None:
        chosen.append("j.accepted_at < %(until)s")
    if wanted.since is not None:
        chosen.append("j.accepted_at >= %(since)s")
    params = {name: getattr(wanted, name) for name in (*_CONDITIONS, "since", "until")}
    # An id begins with the milliseconds of its acceptance, so partitions before `since` are never read.
    params["first"] = UUID(int=0) if wanted.since is None else _first_id(wanted.since)
    return _WHERE.format(conditions="".join(f" AND {one}" for one in chosen)), params


def _first_id(at: dt.datetime) -> UUID:
    return UUID(int=max(0, int(at.timestamp() * 1000) - 1000) << 80)


def _chunk(wanted: Wanted, name: str, before: UUID, *, limit: int) -> tuple[list[Row], UUID | None]:
    where, params = _filter(wanted)
    found = sql.rows(_CHUNK_SQL.format(where=where), {**params, "type": name, "before": before, "limit": limit})
    rows = [_read(values) for values in found]
    return rows, UUID(rows[-1]["id"]) if len(rows) == limit else None


def _read(values: Sequence[Any]) -> Row:
    row = dict(zip(COLUMNS, values, strict=False))
    for name in ("id", "replay_of", "root"):
        row[name] = None if row[name] is None else str(row[name])
    row["message"] = None if row["message"] is None else redact_text(row["message"])
    return row


def _add_payloads(rows: Sequence[Row]) -> None:
    ids = [UUID(row["id"]) for row in rows]
    stored = dict(Job.objects.filter(id__in=ids).values_list("id", "payload"))
    for row in rows:
        row["payload"] = _redacted(row["type"], row["contract_version"], stored.get(UUID(row["id"])))


def _redacted(name: str, version: int, payload: str | None) -> Any:
    if payload is None:
        return None
    try:
        pointers = contracts.of_version(name, version).redact
    except contracts.UnknownContract:
        # Nobody can say any more what was secret in it.
        return REDACTED
    return redact(json.loads(payload), pointers=pointers)
