"""Exports of dead letters: what is in the file, what a spreadsheet makes of it, who gets it, its bounds (S-25)."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.core.signals import request_finished
from django.db import close_old_connections, connection
from django.http import StreamingHttpResponse
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext

from dlq import exporting
from dlq.exporting import By, Wanted
from jobsboard.api import keys
from jobsboard.board import exporting as board_exporting
from queues.accept import Item, enqueue, enqueue_many
from queues.models import AuditEntry
from tests.api.conftest import Api, problem
from tests.dlq.deaths import die, kill
from tests.factories import TYPE, accept, get, make_type, sql

pytestmark = pytest.mark.django_db
BY = By(actor="ann", source="ui", request_id="r1")
OTHER = "test.other"


@pytest.fixture(autouse=True)
def _types() -> Iterator[None]:
    keys.forget_cached()
    make_type(redact=["/house"])
    make_type(OTHER)
    yield
    keys.forget_cached()


def api(*scopes: str, types: tuple[str, ...] = ("*",)) -> Api:
    """Return a client with a key."""
    return Api(keys.issue_key(label="test", scopes=scopes or ("dlq:read",), type_patterns=types)[1])


def person(role: str) -> Client:
    """Return a browser with somebody logged in."""
    user = User.objects.create_user(role)
    user.groups.add(Group.objects.get(name=role))
    client = Client(raise_request_exception=False)
    client.force_login(user)
    return client


def body(response: Any) -> bytes:
    """Read a download to its end."""
    assert response.status_code == 200, response.content
    return b"".join(response.streaming_content)


def audited() -> tuple[AuditEntry, dict[str, Any]]:
    """Return the entry of the one export that there was, and what it says."""
    entry = AuditEntry.objects.get(action="dead_letters.exported")
    return entry, entry.after or {}


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def exported(form: exporting.Format = "csv", **wanted: Any) -> bytes:
    return b"".join(exporting.stream(Wanted(types=[TYPE, OTHER], **wanted), form=form, payload=True, by=BY))


def test_both_forms_hold_the_same_dead_letters() -> None:
    """Unresolved ones, each once, with fixed columns, by type and then newest first."""
    ids = [str(one) for one in die(2)]
    other = [str(one) for one in die(1, kind=OTHER)]
    accept(2)
    [gone] = die(1)
    sql("UPDATE queues_job SET resolution = 'ignored', resolved_at = jobs_now(), resolved_by = 'x' WHERE id = %s", gone)
    table, lines = rows(exported()), [json.loads(line) for line in exported("jsonl").splitlines()]
    assert [row["id"] for row in table] == [one["id"] for one in lines] == [*reversed(ids), *other]
    assert tuple(table[0]) == tuple(lines[0]) == exporting.COLUMNS
    assert (table[0]["attempts"], lines[0]["attempts"], lines[0]["payload"]) == ("1", 1, {"n": 1})
    assert table[0]["payload"] == '{"n":1}'
    assert table[0]["died_at"] == lines[0]["died_at"]
    assert lines[0]["died_at"].endswith("Z")
    assert (table[0]["error_class"], table[0]["message"], table[0]["replay_of"]) == ("Boom", "boom", "")


VECTORS = [
    "=1+1", "+cmd|'/c calc'!A1", "-2+3", "@SUM(A1)", "\t=1", " =1", '"=1"', "\r=1", "\n=1", "  \u00a0=1", "'=1",
    "=HYPERLINK(\"http://x\")", "＝1", "-", "\x00=1",
]  # fmt: skip


@pytest.mark.parametrize("text", VECTORS)
def test_s_25_no_cell_is_a_formula(text: str) -> None:
    """S-25, R-07: in any column that somebody from outside can fill; the text is all there behind the apostrophe."""
    [cell] = next(csv.reader(io.StringIO(exporting.csv_line([text]).decode(), newline="")))
    assert cell == "'" + text.replace("\x00", "\ufffd")


@pytest.mark.parametrize("text", ["plain", "a=1", "1-2", "x@y.example", "", " ", "é", "{}", "名"])
def test_s_25_other_texts_are_as_they_were(text: str) -> None:
    """S-25."""
    assert next(csv.reader(io.StringIO(exporting.csv_line([text]).decode()))) == [text]


def test_s_25_numbers_stay_numbers_and_everything_is_quoted() -> None:
    """S-25: a negative number is no formula; separators and quotes in a text open no other cell."""
    line = exporting.csv_line([-5, 1.5, None, 'a","=b\r\n=c', True])
    assert line.startswith(b'"-5","1.5",""')
    assert next(csv.reader(io.StringIO(line.decode(), newline=""))) == ["-5", "1.5", "", 'a","=b\r\n=c', "True"]


def test_s_25_hostile_jobs_in_a_whole_file() -> None:
    """S-25: message, key, group and error class from outside; JSON lines hold them exactly."""
    for number, text in enumerate(("=1+1", "@SUM(A1)", "+1")):
        die(1, error=text, message=text, dedupe_key=f"{text}{number}", group=text)
    for row in rows(exported()):
        for name in ("error_class", "message", "dedupe_key", "group"):
            assert row[name].startswith("'"), row
    lines = [json.loads(line) for line in exported("jsonl").splitlines()]
    assert {one["message"] for one in lines} == {"=1+1", "@SUM(A1)", "+1"}


def test_s_27_nothing_in_it_is_a_secret() -> None:
    """S-27: by name, by look and by the contract's pointer, in payload and message; also where the type is gone."""
    secret_payload = {"house": "4000-1", "password": "hunter2", "n": "sk_live_4eC39HqLyjW"}
    kill([enqueue(TYPE, secret_payload).job_id], message="token=t0ps3cret failed")
    for form in ("csv", "jsonl"):
        data = exported(form).decode()
        for secret in ("4000-1", "hunter2", "4eC39Hq", "t0ps3cret"):
            assert secret not in data
        assert "[redacted]" in data


def test_filters(tmp_path: Path) -> None:
    """Each narrows, over every way."""
    one, two = die(1, fingerprint="a" * 16), die(1, fingerprint="b" * 16, reason="rejected")
    other = die(1, kind=OTHER)
    at = get(two[0]).accepted_at
    for wanted, ids in (
        ({}, [*two, *one, *other]),
        ({"type": OTHER}, other),
        ({"tier": 2}, [*two, *one, *other]),
        ({"tier": 1}, []),
        ({"reason": "rejected"}, two),
        ({"fingerprint": "a" * 16}, one),
        ({"since": at, "type": TYPE}, two),
        ({"until": at}, one),
    ):
        found = [row["id"] for row in rows(exported(**wanted))]
        assert found == [str(job_id) for job_id in ids], wanted
    query = {"reason": "rejected", "format": "csv", "since": "2020-01-01T00:00:00Z"}
    assert [row["id"] for row in rows(body(api().get("/dead-letters/export", **query)))] == [str(two[0])]
    file = tmp_path / "a.csv"
    call_command("dlq", "export", "--why", "rejected", "--since", "1h", "--output", str(file))
    assert [row["id"] for row in rows(file.read_bytes())] == [str(two[0])]


def test_it_is_bounded_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-26: a header, and the last JSON line; exactly as many as fit is not cut."""
    die(4)
    monkeypatch.setattr(exporting, "MOST", 3)
    monkeypatch.setattr(exporting, "CHUNK", 2)
    whole = exporting.pieces
    monkeypatch.setattr(exporting, "pieces", lambda *a, **k: whole(*a, **{**k, "most": 3}))
    answer = api().get("/dead-letters/export", format="jsonl")
    *lines, last = [json.loads(line) for line in body(answer).splitlines()]
    assert (len(lines), last["cut"], last["rows"]) == (3, True, 3)
    assert (answer["Jobsboard-Export-Complete"], answer["Jobsboard-Export-Rows"]) == ("false", "3+")
    assert audited()[1]["state"] == "cut"
    assert len(rows(exported())) == 3
    sql("UPDATE queues_job SET resolution = 'ignored', resolved_at = jobs_now(), resolved_by = 'x' WHERE id ="
        " (SELECT id FROM queues_job WHERE state = 'dead' LIMIT 1)")  # fmt: skip
    answer = api().get("/dead-letters/export", format="jsonl")
    assert len(body(answer).splitlines()) == 3
    assert (answer["Jobsboard-Export-Complete"], answer["Jobsboard-Export-Rows"]) == ("true", "3")


def test_memory_and_statements_do_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One statement a chunk and one for each 50 payloads; four times the rows hold no more memory at once."""
    monkeypatch.setattr(exporting, "CHUNK", 16)
    monkeypatch.setattr(exporting, "PAYLOADS", 8)

    def more(n: int) -> None:
        enqueue_many([Item(type=TYPE, payload={"x": "y" * 8_000}) for _ in range(n)])
        sql("UPDATE queues_job SET state = 'dead', reason = 'stale', resolution = 'open', settled_at = jobs_clock(),"
            " due_at = NULL WHERE state = 'accepted'")  # fmt: skip

    def measured() -> tuple[int, int, int]:
        tracemalloc.start()
        size = sum(len(piece) for piece in exporting.stream(Wanted(types=[TYPE]), form="jsonl", payload=True, by=BY))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        with CaptureQueriesContext(connection) as caught:
            list(exporting.pieces(Wanted(types=[TYPE]), payload=True))
        # Contracts are read again every two seconds.
        return size, peak, sum("queues_jobtype" not in query["sql"] for query in caught)

    more(32)
    size, peak, statements = measured()
    more(96)
    larger, second, later = measured()
    # The chunk after the last full one is empty.
    assert (statements, later) == (3 + 4, 9 + 16)
    assert larger > 3.9 * size
    assert second < 1.5 * peak, (peak, second)
    assert second < larger / 2


def test_a_reader_that_goes_away_ends_it() -> None:
    """Nothing more is read from the database, and the audit log says how far it was."""
    die(3)
    user = User.objects.create_superuser("root")
    request = RequestFactory().get("/dlq/export")
    request.user = user
    response = board_exporting.export(request)
    assert isinstance(response, StreamingHttpResponse)
    stream = iter(cast(Iterator[bytes], response.streaming_content))
    next(stream)
    # As a server closes it when it cannot write any more; but the test's own connection stays.
    request_finished.disconnect(close_old_connections)
    try:
        response.close()
    finally:
        request_finished.connect(close_old_connections)
    after = audited()[1]
    assert (after["rows"], after["state"]) == (0, "broken off")
    with CaptureQueriesContext(connection) as caught:
        assert list(stream) == []
    assert len(caught) == 0


def test_headers_and_audit() -> None:
    """S-22, S-41: a file with a fixed name that no browser takes for a page; who, which filter, how many."""
    die(2)
    answer = api().get("/dead-letters/export", format="csv", type=TYPE)
    assert len(rows(body(answer))) == 2
    assert answer["Content-Type"].startswith("text/csv; charset=utf-8")
    assert answer["Content-Disposition"] == 'attachment; filename="dead-letters.csv"'
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Cache-Control"] == "no-store"
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.object_type, entry.source) == ("dead_letters.exported", "dead_letters", "api")
    assert entry.actor.startswith("key:")
    assert entry.request_id == answer["X-Request-Id"]
    assert entry.after == {"filter": {"type": TYPE}, "rows": 2, "payload": True, "state": "complete"}


def test_i_33_a_key_gets_its_own_types() -> None:
    """I-33: others are not in it, and cannot be asked for; without the scope there is none."""
    die(1)
    mine = die(1, kind=OTHER)
    some = api(types=(OTHER,))
    assert [row["id"] for row in rows(body(some.get("/dead-letters/export", format="csv")))] == [str(mine[0])]
    problem(some.get("/dead-letters/export", format="csv", type=TYPE), 404, "unknown_job_type")
    problem(api("jobs:read", "dlq:replay").get("/dead-letters/export", format="csv"), 403, "missing_scope")
    assert AuditEntry.objects.count() == 1


@pytest.mark.parametrize(
    "query",
    [
        {}, {"format": "xml"}, {"format": "csv", "reason": "x"}, {"format": "csv", "fingerprint": "a b"},
        {"format": "csv", "tier": "9"}, {"format": "csv", "since": "x"}, {"format": "csv", "state": "dead"},
        {"format": ["csv", "csv"]},
    ],
)  # fmt: skip
def test_a_filter_that_means_nothing_exports_nothing(query: dict[str, Any]) -> None:
    answer = api().get("/dead-letters/export", **query)
    problem(answer, 422, json.loads(answer.content)["code"])
    assert not AuditEntry.objects.exists()


@pytest.mark.parametrize(("role", "sees"), [("viewer", False), ("operator", True), ("admin", True)])
def test_the_board_leaves_the_payload_out_for_a_viewer(role: str, sees: bool) -> None:
    """By role; and who is not logged in gets the login."""
    [one] = die()
    [row] = rows(body(person(role).get("/dlq/export", {"type": TYPE})))
    assert (row["id"], row.get("payload")) == (str(one), '{"n":0}' if sees else None)
    entry, after = audited()
    assert (entry.actor, entry.source, after["payload"]) == (role, "ui", sees)
    [line] = body(person("owner").get("/dlq/export", {"format": "jsonl"})).splitlines()
    assert json.loads(line)["id"] == str(one)
    assert Client().get("/dlq/export").status_code == 302


def test_the_board_exports_no_more_than_was_asked_for() -> None:
    """Where a page would clear a filter that it does not know, a file is refused."""
    die()
    client = person("operator")
    for query in ({"type": "nope"}, {"reason": "x"}, {"tier": "9"}, {"format": "xml"}, {"since": "x"}):
        assert client.get("/dlq/export", query).status_code == 400, query
    assert client.post("/dlq/export").status_code == 405
    assert not AuditEntry.objects.filter(action="dead_letters.exported").exists()


def test_a_chunk_is_found_by_its_index() -> None:
    """Promise 10: type and id lead to it, whatever else there is."""
    where, params = exporting._filter(Wanted(types=[TYPE]))
    params |= {"type": TYPE, "before": UUID(int=2**128 - 1), "limit": 500}
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        cursor.execute("EXPLAIN " + exporting._CHUNK_SQL.format(where=where), params)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    names = sql(
        "SELECT indexrelid::regclass::text FROM pg_index i JOIN pg_inherits h ON h.inhrelid = i.indexrelid"
        " WHERE h.inhparent IN ('job_dead'::regclass, 'job_by_type'::regclass)"
    )
    assert any(name in plan for (name,) in names), plan
    assert "Seq Scan" not in plan
