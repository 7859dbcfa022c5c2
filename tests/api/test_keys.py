"""API keys: format, storage, refusals, cache, the command and the admin page (S-14, S-15, H-20)."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobsboard.admin.access import may_words
from jobsboard.api import keys
from jobsboard.models import SCOPES, ApiKey
from queues.models import AuditEntry
from tests.api.conftest import Api


@pytest.fixture
def key(db: None) -> str:
    return keys.issue_key(label="test", scopes=SCOPES)[1]


def _database_text() -> str:
    """Return everything that is stored, as text."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        tables = [name for (name,) in cursor.fetchall()]
        rows: list[str] = []
        for name in tables:
            cursor.execute(f'SELECT t::text FROM "{name}" t')  # noqa: S608 (names from the catalogue)
            rows += [row for (row,) in cursor.fetchall()]
    return "\n".join(rows)


def test_format_and_storage(key: str) -> None:
    """S-14: public part and digest are stored, the key is not."""
    prefix = key[8:16]
    assert len(key) == len("jb_live_") + 8 + 1 + 43 + 1 + 6
    row = ApiKey.objects.get(prefix=prefix)
    assert row.digest == hashlib.sha256(key.encode()).hexdigest()
    text = _database_text()
    assert prefix in text
    assert key[17:60] not in text


def test_a_key_speaks_for_itself(key: str) -> None:
    for header in (f"Bearer {key}", f"bearer  {key}"):
        found = keys.authenticate(header)
        assert found is not None
        assert found.actor == f"key:{key[8:16]}"


@pytest.mark.django_db
def test_bad_checksum_costs_no_query(key: str) -> None:
    """S-14."""
    wrong = key[:20] + ("A" if key[20] != "A" else "B") + key[21:]
    with CaptureQueriesContext(connection) as queries:
        for header in (
            f"Bearer {wrong}",
            f"Bearer {key[:-1]}",
            "Bearer ",
            None,
            f"Basic {key}",
            key,
            f"Bearer {key} x",
        ):
            assert keys.authenticate(header) is None
    assert len(queries) == 0


def test_cached_for_a_moment(key: str) -> None:
    keys.authenticate(f"Bearer {key}")
    with CaptureQueriesContext(connection) as queries:
        for _ in range(10):
            assert keys.authenticate(f"Bearer {key}") is not None
    assert len(queries) == 0
    assert keys.CACHE_SECONDS <= 5


def test_revoked_within_the_cache_time(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-14: effective after at most five seconds, without anybody telling this process."""
    assert keys.authenticate(f"Bearer {key}") is not None
    ApiKey.objects.update(revoked_at=Now())
    later = time.monotonic() + 5.0
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert keys.authenticate(f"Bearer {key}") is None


def test_last_used_is_written_once_a_minute(key: str) -> None:
    def stored() -> Any:
        return ApiKey.objects.get(prefix=key[8:16]).last_used_at

    assert stored() is None
    keys.authenticate(f"Bearer {key}")
    first = stored()
    assert first is not None
    keys.forget_cached()
    keys.authenticate(f"Bearer {key}")
    assert stored() == first


def test_same_401_for_everything(key: str) -> None:
    """H-20, S-15: one answer, whatever is wrong."""
    revoked, expired = (keys.issue_key(label=name, scopes=SCOPES)[1] for name in ("revoked", "expired"))
    ApiKey.objects.filter(label="revoked").update(revoked_at=Now())
    ApiKey.objects.filter(label="expired").update(expires_at=Now())
    unknown, _ = keys.issue_key(label="gone", scopes=SCOPES)[1], ApiKey.objects.filter(label="gone").delete()
    secret = "A" * 43
    forged = f"jb_live_{key[8:16]}_{secret}"
    forged = f"{forged}_{keys._checksum(forged)}"
    answers = set()
    for header in (
        None,
        "Bearer ",
        "Basic eA==",
        "Bearer x",
        *(f"Bearer {k}" for k in (revoked, expired, unknown, forged)),
    ):
        headers = {} if header is None else {"Authorization": header}
        for method, path in (("POST", "/api/v1/jobs"), ("GET", "/api/v1/nothing"), ("GET", "/api/v1/openapi.json")):
            response = Client().generic(method, path, b"{}", "application/json", headers=headers)
            body = response.json() | {"request_id": ""}
            answers.add((response.status_code, response["WWW-Authenticate"], str(body), response["Content-Type"]))
    assert len(answers) == 1
    assert answers.pop()[0] == 401


def test_key_in_the_query_string(key: str, caplog: pytest.LogCaptureFixture) -> None:
    """H-20: refused even beside a good header, and not written to the log."""
    response = Client().get(f"/api/v1/jobs?api_key={key}", headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 401
    assert key[17:60] not in caplog.text


@pytest.mark.parametrize(
    "rights",
    [
        {"scopes": []},
        {"scopes": ["jobs:all"]},
        {"type_patterns": []},
        {"type_patterns": ["A B"]},
        {"type_patterns": [""]},
    ],
)
@pytest.mark.django_db
def test_rights_that_make_no_sense(rights: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="are"):
        keys.issue_key(**{"label": "x", "scopes": SCOPES, **rights})


def test_type_patterns() -> None:
    one = keys.Key(prefix="x", label="x", scopes=frozenset(), type_patterns=("billing.*", "mail.welcome"))
    assert [one.may_use(name) for name in ("billing.x", "mail.welcome", "mail.x", "xbilling.x")] == [
        True,
        True,
        False,
        False,
    ]
    assert not one.uses_every_type


def test_command(make_api: Callable[..., Api]) -> None:
    out = io.StringIO()
    call_command(
        "api_key", "create", "--label", "shop", "--scopes", "jobs:write,jobs:read", "--types", "billing.*", stdout=out
    )
    text = out.getvalue().strip()
    found = keys.authenticate(f"Bearer {text}")
    assert found is not None
    assert found.scopes == {"jobs:write", "jobs:read"}
    listed = io.StringIO()
    call_command("api_key", "list", stdout=listed)
    assert text[8:16] in listed.getvalue()
    assert text[17:60] not in listed.getvalue()
    call_command("api_key", "revoke", text[8:16], stdout=out)
    keys.forget_cached()
    assert keys.authenticate(f"Bearer {text}") is None
    assert [e.action for e in AuditEntry.objects.order_by("id")] == ["api_key.created", "api_key.revoked"]
    for arguments in (["revoke", "nothing1"], ["create", "--label", "x", "--scopes", "nope"]):
        with pytest.raises(CommandError):
            call_command("api_key", *arguments, stdout=out)


def test_admin_page_shows_the_key_once(types: None, caplog: pytest.LogCaptureFixture) -> None:
    """S-14: in the answer to its creation and nowhere after: not in the database, a cookie, the log or a page."""
    User.objects.create_superuser("root", password="x" * 16)
    client = Client()
    client.login(username="root", password="x" * 16)
    sent = {"label": "shop", "scopes": ["jobs:write"], "type_patterns": "billing.* mail.*"}
    response = client.post("/admin/jobsboard/apikey/add/", sent)
    assert response.status_code == 200, response
    row = ApiKey.objects.get()
    text = response.content.decode().split('id="issued-key">')[1].split("<")[0]
    assert keys.authenticate(f"Bearer {text}") is not None
    assert (row.scopes, row.type_patterns, row.created_by) == (["jobs:write"], ["billing.*", "mail.*"], "root")
    secret = text[17:60]
    pages = [client.get(f"/admin/jobsboard/apikey/{tail}") for tail in ("", f"{row.pk}/change/", f"{row.pk}/history/")]
    assert all(page.status_code == 200 for page in pages)
    everything = _database_text() + caplog.text + str(client.cookies) + "".join(p.content.decode() for p in pages)
    assert secret not in everything
    assert row.digest not in "".join(page.content.decode() for page in pages)

    client.post(
        f"/admin/jobsboard/apikey/{row.pk}/change/", {"label": "shop 2", "revoke": "on", "scopes": ["dlq:replay"]}
    )
    row.refresh_from_db()
    assert (row.label, row.scopes) == ("shop 2", ["jobs:write"])
    assert row.revoked_at is not None
    assert keys.authenticate(f"Bearer {text}") is None
    assert client.post(f"/admin/jobsboard/apikey/{row.pk}/delete/", {"post": "yes"}).status_code == 403
    actions = list(AuditEntry.objects.filter(object_type="api_key").order_by("id").values_list("action", "actor"))
    assert actions == [("api_key.created", "root"), ("api_key.renamed", "root"), ("api_key.revoked", "root")]


@pytest.mark.django_db
def test_the_admin_page_says_what_a_key_may_do() -> None:
    User.objects.create_superuser("root", password="x" * 16)
    client = Client()
    client.login(username="root", password="x" * 16)

    def page(**given: Any) -> str:
        row = keys.issue_key(**{"label": "shop", "scopes": SCOPES, **given})[0]
        return client.get(f"/admin/jobsboard/apikey/{row.pk}/change/").content.decode()

    assert (
        "Whoever has this key may send and cancel jobs, and confirm and reject outcomes, for job types named billing.* "
        "or mail.welcome, until it is revoked."
    ) in page(scopes=["jobs:confirm", "jobs:write"], type_patterns=["billing.*", "mail.welcome"])
    assert "replay and cancel dead letters, for every job type, until" in page()
    row = ApiKey.objects.latest("id")
    ApiKey.objects.filter(pk=row.pk).update(expires_at=datetime(2100, 1, 2, tzinfo=UTC))
    row.refresh_from_db()
    assert "for every job type, until 2100-01-02 00:00 UTC." in may_words(row)
    ApiKey.objects.filter(pk=row.pk).update(revoked_at=datetime(2026, 1, 2, tzinfo=UTC))
    page_of_revoked = client.get(f"/admin/jobsboard/apikey/{row.pk}/change/").content.decode()
    assert "It was revoked on 2026-01-02 00:00 UTC and may do nothing." in page_of_revoked
    assert all("do nothing" not in may_words(ApiKey(scopes=[scope], type_patterns=["*"])) for scope in SCOPES)
    assert "What this key may do" not in client.get("/admin/jobsboard/apikey/add/").content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize("role", ["viewer", "operator", "owner"])
def test_only_admins_manage_keys(role: str) -> None:
    user = User.objects.create_user("staff", password="x" * 16, is_staff=True)
    user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.login(username="staff", password="x" * 16)
    assert client.get("/admin/jobsboard/apikey/").status_code == 403
    assert client.get("/admin/jobsboard/apikey/add/").status_code == 403
