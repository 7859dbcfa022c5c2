"""Annotations over HTTP and in the admin: what is kept, what is refused, one key is one annotation, who sees which."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import IntegrityError, connection, transaction
from django.test import Client

from jobsboard.annotations import Wanted, annotate
from jobsboard.models import Annotation
from queues.models import AuditEntry, BoardVersion
from tests.api.conftest import Api, problem

DEPLOY = {"kind": "deploy", "text": "shop 2.3.1", "url": "https://ci.example/runs/4711"}
SUPPORT = {"kind": "support", "category": "missing mail", "count": 3, "job_type": "billing.receipt"}


def ago(**span: float) -> str:
    return (datetime.now(UTC) - timedelta(**span)).isoformat()


def stored(**values: Any) -> Annotation:
    return annotate(Wanted(**{"kind": "deploy", **values}), created_by="key:x", source="api")[0]


def test_each_kind_is_kept(api: Api) -> None:
    """201 with the stored object; `at` is now unless said; count and category are of support only."""
    before = datetime.now(UTC) - timedelta(seconds=5)
    deploy = api.post("/annotations", DEPLOY)
    assert deploy.status_code == 201
    body = deploy.json()
    assert {name: body[name] for name in ("kind", "text", "url", "job_type", "category", "count")} == {
        **DEPLOY, "job_type": None, "category": None, "count": None,
    }  # fmt: skip
    assert body["created_by"].startswith("key:")
    assert before < datetime.fromisoformat(body["at"]) <= datetime.now(UTC) + timedelta(seconds=5)
    at = (datetime.now(UTC) - timedelta(hours=3)).replace(microsecond=0)
    support = api.post("/annotations", {**SUPPORT, "at": at.isoformat()}).json()
    assert (support["category"], support["count"], support["job_type"]) == ("missing mail", 3, "billing.receipt")
    assert datetime.fromisoformat(support["at"]) == at
    one = api.post("/annotations", {"kind": "support", "category": "twice", "count": None}).json()
    assert one["count"] == 1
    listed = api.get("/annotations").json()
    assert [item["id"] for item in listed["items"]] == [one["id"], body["id"], support["id"]]
    assert listed["items"][1] == body
    assert listed["next"] is None


def test_it_is_audited_and_open_pages_hear_of_it(api: Api) -> None:
    version = BoardVersion.objects.get(pk=1).n
    body = api.post("/annotations", SUPPORT).json()
    entry = AuditEntry.objects.get(action="annotation.created")
    assert (entry.object_type, entry.object_id, entry.source) == ("annotation", str(body["id"]), "api")
    assert entry.actor == body["created_by"]
    assert entry.after is not None
    assert (entry.after["category"], entry.after["count"]) == ("missing mail", 3)
    assert entry.request_id
    assert BoardVersion.objects.get(pk=1).n > version


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        ({}, 422, "invalid_request", ""),
        ([], 422, "invalid_request", ""),
        ({"kind": "release"}, 422, "invalid_request", "/kind"),
        ({"kind": 7}, 422, "invalid_request", "/kind"),
        ({"kind": None}, 422, "invalid_request", "/kind"),
        ({**DEPLOY, "extra": 1}, 422, "invalid_request", ""),
        ({**DEPLOY, "category": "x"}, 422, "invalid_request", "/category"),
        ({**DEPLOY, "count": 2}, 422, "invalid_request", "/count"),
        ({"kind": "support"}, 422, "invalid_request", "/category"),
        ({"kind": "support", "category": "  "}, 422, "invalid_request", "/category"),
        ({"kind": "support", "category": "x" * 65}, 422, "invalid_request", "/category"),
        ({"kind": "support", "category": "two\nlines"}, 422, "invalid_request", "/category"),
        ({"kind": "support", "category": "turned\u202eround"}, 422, "invalid_request", "/category"),
        ({**SUPPORT, "count": 0}, 422, "invalid_request", "/count"),
        ({**SUPPORT, "count": -1}, 422, "invalid_request", "/count"),
        ({**SUPPORT, "count": 1_000_001}, 422, "invalid_request", "/count"),
        ({**SUPPORT, "count": 2**63}, 422, "invalid_request", "/count"),
        ({**SUPPORT, "count": 10**30}, 422, "invalid_request", "/count"),
        ({**SUPPORT, "count": 1.5}, 422, "invalid_request", "/count"),
        ({**SUPPORT, "count": "3"}, 422, "invalid_request", "/count"),
        ({**SUPPORT, "count": True}, 422, "invalid_request", "/count"),
        ({**DEPLOY, "text": "x" * 1001}, 422, "invalid_request", "/text"),
        ({**DEPLOY, "text": ["x"]}, 422, "invalid_request", "/text"),
        (b'{"kind": "deploy", "text": "a\\u0000b"}', 422, "invalid_unicode", "/text"),
        (b'{"kind": "deploy", "text": "\\ud800"}', 422, "invalid_unicode", "/text"),
        (b'{"kind": "deploy", "kind": "incident"}', 422, "duplicate_key", "/kind"),
        (b'{"kind": "support", "category": "x", "count": 1e400}', 422, "number_out_of_range", "/count"),
        (b"{", 400, "invalid_json", ""),
        (b"\xff", 400, "invalid_encoding", ""),
        ({**DEPLOY, "url": "javascript:alert(1)"}, 422, "invalid_request", "/url"),
        ({**DEPLOY, "url": "ftp://ci.example/"}, 422, "invalid_request", "/url"),
        ({**DEPLOY, "url": "//ci.example/"}, 422, "invalid_request", "/url"),
        ({**DEPLOY, "url": "https://"}, 422, "invalid_request", "/url"),
        ({**DEPLOY, "url": "https://user:pw@ci.example/"}, 422, "invalid_request", "/url"),
        ({**DEPLOY, "url": "https://[bad/"}, 422, "invalid_request", "/url"),
        ({**DEPLOY, "url": "https://ci.example/" + "x" * 2000}, 422, "invalid_request", "/url"),
        ({**DEPLOY, "url": "https://ci.example/\n"}, 422, "invalid_request", "/url"),
        ({**DEPLOY, "at": "yesterday"}, 422, "invalid_datetime", "/at"),
        ({**DEPLOY, "at": "2026-11-01T10:00:00"}, 422, "invalid_datetime", "/at"),
        ({**DEPLOY, "at": 1_700_000_000}, 422, "invalid_datetime", "/at"),
        ({**DEPLOY, "at": {}}, 422, "invalid_datetime", "/at"),
        ({**DEPLOY, "at": "9999-12-31T23:59:59Z"}, 422, "invalid_request", "/at"),
        ({**DEPLOY, "at": "0001-01-01T00:00:00+14:00"}, 422, "invalid_datetime", "/at"),
        ({**DEPLOY, "at": "1969-12-31T00:00:00Z"}, 422, "invalid_request", "/at"),
        ({**DEPLOY, "job_type": "no.such"}, 404, "unknown_job_type", "/job_type"),
        ({**DEPLOY, "job_type": ""}, 404, "unknown_job_type", "/job_type"),
        ({**DEPLOY, "job_type": "a" * 5000}, 404, "unknown_job_type", "/job_type"),
        ({**DEPLOY, "job_type": 3}, 422, "invalid_request", "/job_type"),
    ],
)
def test_what_is_refused(api: Api, body: Any, status: int, code: str, pointer: str) -> None:
    """Said with its place, never 500; and nothing is written."""
    found = problem(api.post("/annotations", body), status, code)
    assert found["pointer"] == pointer
    assert not Annotation.objects.exists()
    assert not AuditEntry.objects.filter(action="annotation.created").exists()


def test_times_have_bounds(api: Api) -> None:
    """A day ahead, 400 days back."""
    assert api.post("/annotations", {**DEPLOY, "at": ago(hours=-23)}).status_code == 201
    problem(api.post("/annotations", {**DEPLOY, "at": ago(hours=-25)}), 422, "invalid_request")
    assert api.post("/annotations", {**DEPLOY, "at": ago(days=399)}).status_code == 201
    problem(api.post("/annotations", {**DEPLOY, "at": ago(days=401)}), 422, "invalid_request")


def test_secrets_in_what_is_said_are_not_kept(api: Api) -> None:
    text = "rollback, password=hunter2secret"
    body = api.post("/annotations", {**DEPLOY, "text": text, "url": "https://ci.example/?token=hunter2secret"}).json()
    kept = str([list(Annotation.objects.values()), list(AuditEntry.objects.values()), body])
    assert "rollback" in kept
    assert "hunter2secret" not in kept


def test_who_may(api: Api, make_api: Callable[..., Api]) -> None:
    """A closed type answers like an unknown one; a key for some types does not speak for all."""
    problem(make_api(("jobs:read",)).post("/annotations", DEPLOY), 403, "missing_scope")
    problem(make_api(("jobs:write",)).get("/annotations"), 403, "missing_scope")
    mail = make_api(type_patterns=("mail.*",))
    closed = problem(mail.post("/annotations", SUPPORT), 404, "unknown_job_type")
    unknown = problem(mail.post("/annotations", {**SUPPORT, "job_type": "no.such"}), 404, "unknown_job_type")
    assert {**closed, "request_id": ""} == {**unknown, "request_id": ""}
    assert problem(mail.post("/annotations", DEPLOY), 422, "invalid_request")["pointer"] == "/job_type"
    own = mail.post("/annotations", {**DEPLOY, "job_type": "mail.off"}).json()
    api.post("/annotations", SUPPORT)
    everywhere = api.post("/annotations", DEPLOY).json()
    assert [item["id"] for item in mail.get("/annotations").json()["items"]] == [everywhere["id"], own["id"]]
    problem(mail.get("/annotations", type="billing.receipt"), 404, "unknown_job_type")
    problem(api.get("/annotations", type="no.such"), 404, "unknown_job_type")
    assert Client().post("/api/v1/annotations", b"{}", content_type="application/json").status_code == 401


def test_one_key_is_one_annotation(api: Api, make_api: Callable[..., Api]) -> None:
    """The same key and body: 200 and the first. Another body: 422. Another sender's key is another key."""
    headers = {"Idempotency-Key": "deploy-4711"}
    first = api.post("/annotations", DEPLOY, **headers)
    assert (first.status_code, "Idempotency-Replayed" in first) == (201, False)
    again = api.post("/annotations", dict(reversed(DEPLOY.items())), **headers)
    assert (again.status_code, again["Idempotency-Replayed"]) == (200, "true")
    assert again.json() == first.json()
    for other in ({**DEPLOY, "text": "shop 2.3.2"}, {**DEPLOY, "at": ago(hours=1)}, SUPPORT):
        problem(api.post("/annotations", other, **headers), 422, "dedupe_conflict")
    assert make_api().post("/annotations", DEPLOY, **headers).status_code == 201
    assert Annotation.objects.count() == 2
    assert AuditEntry.objects.filter(action="annotation.created").count() == 2
    assert [api.post("/annotations", DEPLOY).status_code for _ in range(2)] == [201, 201]
    for key in ("", "a b", "x" * 256, "é"):
        problem(api.post("/annotations", DEPLOY, **{"Idempotency-Key": key}), 400, "dedupe_key_invalid")


def test_the_same_moment_written_otherwise_is_the_same(api: Api) -> None:
    at = datetime.now(UTC).replace(microsecond=0)
    forms = [at.isoformat(), at.strftime("%Y-%m-%dT%H:%M:%SZ")]
    answers = [api.post("/annotations", {**DEPLOY, "at": form}, **{"Idempotency-Key": "k"}) for form in forms]
    assert [answer.status_code for answer in answers] == [201, 200]


@pytest.mark.usefixtures("transactional_db")
def test_retries_at_once_make_one() -> None:
    """A CI system that sends the same key from several places at the same time."""
    barrier = threading.Barrier(4, timeout=20)

    def send(_: int) -> tuple[int, bool]:
        try:
            barrier.wait()
            row, is_new = annotate(
                Wanted(kind="deploy", text="2.3.1"), created_by="key:x", source="api", idempotency_key="same"
            )
            return row.pk, is_new
        finally:
            connection.close()

    for turn in range(5):
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(send, range(4)))
        assert len({pk for pk, _ in answers}) == 1
        assert sum(is_new for _, is_new in answers) == 1
        assert AuditEntry.objects.filter(action="annotation.created").count() == turn + 1
        Annotation.objects.all().delete()


def test_pages_of_the_list(api: Api) -> None:
    """Newest first by their time, also where many have the same one; nothing twice, nothing left out."""
    same = datetime.now(UTC) - timedelta(hours=1)
    made = [stored(at=same if n % 2 else same - timedelta(minutes=n), text=str(n)) for n in range(9)]
    expected = [row.pk for row in sorted(made, key=lambda row: (row.at, row.pk), reverse=True)]
    seen: list[int] = []
    query: dict[str, Any] = {"limit": 2}
    for _ in range(6):
        page = api.get("/annotations", **query).json()
        seen += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
        problem(api.get("/annotations", cursor=page["next"], kind="incident"), 422, "invalid_cursor")
    assert seen == expected


def test_filters_of_the_list(api: Api) -> None:
    base = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    early = stored(at=base, kind="incident")
    late = stored(at=base + timedelta(hours=1), job_type="billing.receipt")
    asked = stored(at=base + timedelta(minutes=30), kind="support", category="x", job_type="billing.receipt")

    def ids(**query: Any) -> list[int]:
        return [item["id"] for item in api.get("/annotations", **query).json()["items"]]

    assert ids() == [late.pk, asked.pk, early.pk]
    assert ids(kind="incident") == [early.pk]
    assert ids(type="billing.receipt") == [late.pk, asked.pk]
    assert ids(type="billing.receipt", kind="support") == [asked.pk]
    assert ids(since=early.at.isoformat(), until=late.at.isoformat()) == [asked.pk, early.pk]
    assert ids(type="mail.off") == []
    for query in ({"kind": "x"}, {"limit": 0}, {"limit": 101}, {"limit": "x"}, {"page": 2}, {"cursor": "x"}):
        response = api.get("/annotations", **query)
        assert response.status_code == 422, query
    problem(api.get("/annotations", since="soon"), 422, "invalid_datetime")


def test_the_document_names_both_calls(api: Api) -> None:
    document = api.get("/openapi.json").json()
    calls = document["paths"]["/api/v1/annotations"]
    assert {calls[method]["operationId"] for method in ("get", "post")} == {"listAnnotations", "createAnnotation"}
    fields = calls["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(fields) == {"kind", "at", "job_type", "category", "count", "text", "url"}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "values",
    [
        {"kind": "release"},
        {"count": 0, "kind": "support", "category": "x"},
        {"kind": "support"},
        {"category": "x"},
        {"count": 2},
        {"url": "javascript:alert(1)"},
    ],
)
def test_the_database_refuses_too(values: dict[str, Any]) -> None:
    """Whatever way a row takes."""
    with pytest.raises(IntegrityError), transaction.atomic():
        Annotation.objects.create(**{"kind": "deploy", "created_by": "x", **values})


# ---- the admin

ADD, LIST = "/admin/jobsboard/annotation/add/", "/admin/jobsboard/annotation/"
EMPTY = {"at_0": "", "at_1": "", "at": "", "job_type": "", "category": "", "count": "", "text": "", "url": ""}


def staff(role: str) -> Client:
    person = User.objects.create_user(role, is_staff=True)
    person.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(person)
    return client


@pytest.mark.usefixtures("types")
@pytest.mark.parametrize(("role", "may_add"), [("viewer", False), ("operator", True), ("owner", True), ("admin", True)])
def test_who_reads_and_adds_in_the_admin(role: str, may_add: bool) -> None:
    row = stored(text="shop 2.3.1")
    client = staff(role)
    page = client.get(LIST)
    assert page.status_code == 200
    assert "shop 2.3.1" in page.text
    assert client.get(ADD).status_code == (200 if may_add else 403)
    sent = client.post(ADD, {**EMPTY, "kind": "support", "category": "missing mail", "job_type": "billing.receipt"})
    assert sent.status_code == (302 if may_add else 403)
    assert Annotation.objects.count() == (2 if may_add else 1)
    change = f"{LIST}{row.pk}/change/"
    assert client.get(change).status_code == 200
    assert client.post(change, {**EMPTY, "kind": "incident"}).status_code == 403
    assert client.post(f"{LIST}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    row.refresh_from_db()
    assert row.kind == "deploy"
    if may_add:
        added = Annotation.objects.get(kind="support")
        assert (added.category, added.count, added.job_type, added.created_by) == (
            "missing mail", 1, "billing.receipt", role,
        )  # fmt: skip
        entry = AuditEntry.objects.get(object_id=str(added.pk), action="annotation.created")
        assert (entry.actor, entry.source) == (role, "admin")


@pytest.mark.usefixtures("types")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "support"}, "Support needs a category"),
        ({"kind": "deploy", "category": "x"}, "A category belongs to support"),
        ({"kind": "deploy", "count": "3"}, "A count belongs to support"),
        ({"kind": "support", "category": "x", "count": "0"}, "count is from 1"),
        ({"kind": "support", "category": "x", "count": "9" * 30}, "count is from 1"),
        ({"kind": "deploy", "url": "javascript:alert(1)"}, "url is an http or https address"),
        ({"kind": "deploy", "at": "2001-01-01 00:00"}, "at is at most 400 days ago"),
        ({"kind": "deploy", "at": "soon"}, "Enter a valid date/time"),
        ({"kind": "deploy", "job_type": "no.such"}, "Select a valid choice"),
        ({"kind": "deploy", "text": "a\0b"}, "Null characters are not allowed"),
        ({"kind": "release"}, "Select a valid choice"),
    ],
)
def test_the_admin_says_what_is_wrong(given: dict[str, str], words: str) -> None:
    response = staff("operator").post(ADD, {**EMPTY, **given})
    assert response.status_code == 200
    assert words in response.text
    assert not Annotation.objects.exists()


@pytest.mark.usefixtures("types")
def test_a_person_without_a_role_sees_no_annotations() -> None:
    stored(text="shop 2.3.1")
    person = User.objects.create_user("nobody", is_staff=True)
    client = Client()
    client.force_login(person)
    assert client.get(LIST).status_code == 403
    assert client.get(ADD).status_code == 403
