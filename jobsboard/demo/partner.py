"""The billing partner: invoices are handed over to it, and some seconds later stand in its books, or were refused.

It books each idempotency key once, whatever is handed over how often. Its books are a SQLite file of its own.
"""

import contextlib
import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobsboard.demo import place

LIMIT_CENTS: Final = 1_000_000
"""An invoice above it is refused."""
_LOOK_SECONDS: Final = 0.25
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS handoff (
  id integer PRIMARY KEY, key text NOT NULL, invoice text NOT NULL, amount_cents integer NOT NULL, at real NOT NULL,
  seen integer NOT NULL DEFAULT 0, probe integer NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS handoff_unseen ON handoff (at) WHERE seen = 0;
CREATE TABLE IF NOT EXISTS book (
  key text PRIMARY KEY, ref text NOT NULL, refused text NOT NULL, at real NOT NULL);
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the partner's books say of an invoice; `refused` is the reason, empty when it was booked."""

    key: str
    ref: str
    refused: str
    at: float


def hand_over(*, key: str, invoice: str, amount_cents: int, probe: bool = False) -> str:
    """Hand an invoice over and return the receipt: it was taken, nothing is booked yet. A probe's row says so."""
    with _open(place.books()) as books:
        row = books.execute(
            "INSERT INTO handoff (key, invoice, amount_cents, at, probe) VALUES (?, ?, ?, ?, ?)",
            (key, invoice, amount_cents, time.time(), probe),
        )
        return f"handoff-{row.lastrowid}"


def look_up(key: str) -> Entry | None:
    """Return what the books say of a key, None as long as they say nothing."""
    with _open(place.books()) as books:
        row = books.execute("SELECT key, ref, refused, at FROM book WHERE key = ?", (key,)).fetchone()
    return None if row is None else Entry(key=row[0], ref=row[1], refused=row[2], at=row[3])


def entries() -> list[Entry]:
    """Return all books."""
    with _open(place.books()) as books:
        rows = books.execute("SELECT key, ref, refused, at FROM book ORDER BY at").fetchall()
    return [Entry(key=key, ref=ref, refused=refused, at=at) for key, ref, refused, at in rows]


def handoffs() -> list[tuple[str, float]]:
    """Return every handing over as it came. Shape: (key, when)."""
    with _open(place.books()) as books:
        rows: list[tuple[str, float]] = books.execute("SELECT key, at FROM handoff ORDER BY id").fetchall()
    return rows


def probe_keys() -> set[str]:
    """Return the keys of what was handed over as a probe."""
    with _open(place.books()) as books:
        return {row[0] for row in books.execute("SELECT DISTINCT key FROM handoff WHERE probe")}


def run(stop: threading.Event) -> None:
    """Book what was handed over, each some seconds later, until told to stop."""
    while not stop.wait(_LOOK_SECONDS):
        book_due(now=time.time())


def book_due(*, now: float) -> int:
    """Book what is due; returns how many invoices that were."""
    with _open(place.books()) as books:
        rows = books.execute("SELECT id, key, amount_cents, at FROM handoff WHERE seen = 0 ORDER BY id").fetchall()
        due = [row for row in rows if row[3] + delay_of(row[1]) <= now]
        for number, key, amount, _ in due:
            refused = f"above the limit of {LIMIT_CENTS / 100:,.2f} EUR" if amount > LIMIT_CENTS else ""
            books.execute(
                "INSERT INTO book (key, ref, refused, at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (key, f"BK-{number:08d}", refused, now),
            )
            books.execute("UPDATE handoff SET seen = 1 WHERE id = ?", (number,))
        return len(due)


def delay_of(key: str) -> float:
    """Return how long the partner takes for an invoice: 1 to 5 s, the same however often one asks."""
    return 1.0 + 4.0 * hashlib.sha256(key.encode()).digest()[0] / 255


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """Lend a connection for one transaction; several processes write here."""
    books = sqlite3.connect(path, timeout=10.0)
    try:
        books.execute("PRAGMA journal_mode = WAL")
        books.executescript(_TABLES)
        _add_what_is_new(books)
        with books:
            yield books
    finally:
        books.close()


def _add_what_is_new(books: sqlite3.Connection) -> None:
    """Let the books of an older demo know probes. Two processes may try at once."""
    if all(row[1] != "probe" for row in books.execute("PRAGMA table_info(handoff)")):
        with contextlib.suppress(sqlite3.OperationalError):
            books.execute("ALTER TABLE handoff ADD COLUMN probe integer NOT NULL DEFAULT 0")
