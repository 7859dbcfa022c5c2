"""Closed until opened: sessions and keys apart, headers, login, health, roles. Every route: `tests.security`."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Group, User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.urls import reverse

from jobsboard import health, middleware
from jobsboard.api import keys
from jobsboard.models import SCOPES, LoginAttempt
from jobsboard.roles import Role, can, require, role_of
from queues import broker
from queues.models import AuditEntry

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "ping", lambda: True)
    keys.forget_cached()


@pytest.fixture
def person(db: None) -> User:
    return User.objects.create_user("jane", password=PASSWORD)


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/nothing", "/jobs/1/2/3", "/admin", "/.env", "/api", "/apiary/x"])
def test_unknown_pages_ask_for_a_login_too(path: str) -> None:
    response = Client().get(path)
    assert response.status_code == 302
    assert response["Location"].startswith("/login/?next=/")


@pytest.mark.django_db
def test_scripts_get_401_not_the_login_page() -> None:
    for headers in ({"HX-Request": "true"}, {"Sec-Fetch-Mode": "cors"}, {"Sec-Fetch-Mode": "same-origin"}):
        assert Client().get("/admin/", headers=headers).status_code == 401
    assert Client().get("/admin/", headers={"Sec-Fetch-Mode": "navigate"}).status_code == 302


@pytest.mark.django_db
def test_session_does_not_open_the_api() -> None:
    """S-11: a session of the mightiest user opens the OpenAPI document and nothing else."""
    User.objects.create_superuser("root", password=PASSWORD)
    client = Client()
    client.login(username="root", password=PASSWORD)
    assert client.get("/api/v1/openapi.json").status_code == 200
    for method, path in (("POST", "/api/v1/jobs"), ("GET", "/api/v1/jobs"), ("POST", "/api/v1/openapi.json")):
        response = client.generic(method, path, b"{}", "application/json")
        assert response.status_code in (401, 405)
        assert response["Content-Type"] == "application/problem+json"


@pytest.mark.django_db
def test_key_does_not_open_pages() -> None:
    """S-11, the reverse; and the API sets no cookie."""
    _, text = keys.issue_key(label="x", scopes=SCOPES)
    headers = {"Authorization": f"Bearer {text}"}
    assert Client().get("/admin/", headers=headers).status_code == 302
    response = Client().get("/api/v1/jobs", headers=headers)
    assert response.status_code == 200
    assert not response.cookies
    document = Client().get("/api/v1/openapi.json", headers=headers)
    assert "/api/v1/jobs" in document.json()["paths"]


@pytest.mark.django_db
def test_forms_need_a_token(person: User) -> None:
    """S-11: a cross-site POST with a session is refused."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(person)
    assert client.post("/logout/").status_code == 403
    assert client.get("/logout/").status_code == 405


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/login/", "/livez", "/nothing", "/api/v1/jobs", "/admin/"])
def test_security_headers(path: str) -> None:
    """S-05, S-08, S-10, S-44: on pages, the API and errors alike; no CORS header for anybody."""
    response = Client().get(path, headers={"Origin": "https://evil.example"})
    assert response["Content-Security-Policy"] == middleware.CSP
    assert "unsafe" not in middleware.CSP
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["X-Frame-Options"] == "DENY"
    assert response["Referrer-Policy"] == "same-origin"
    assert response["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response["Permissions-Policy"]
    assert "no-store" in response["Cache-Control"]
    assert "Access-Control-Allow-Origin" not in response


@pytest.mark.django_db
def test_request_id_and_forwarded_headers() -> None:
    """S-05: believed from trusted proxies only."""
    sent = {"X-Request-Id": "from-proxy-1", "X-Forwarded-For": "203.0.113.9, 10.0.0.7", "X-Forwarded-Proto": "https"}
    direct = Client().get("/livez", headers=sent)
    assert direct["X-Request-Id"] != "from-proxy-1"
    with override_settings(TRUSTED_PROXIES=["127.0.0.0/8", "10.0.0.0/8"]):
        assert Client().get("/livez", headers=sent)["X-Request-Id"] == "from-proxy-1"
        assert Client().get("/livez", headers={"X-Request-Id": "a b\r\n"})["X-Request-Id"] != "a b"
        request = RequestFactory().get("/", headers=sent)
        assert middleware.client_address(request) == "203.0.113.9"
    request = RequestFactory().get("/", headers=sent)
    assert middleware.client_address(request) == "127.0.0.1"


@pytest.mark.django_db
def test_api_never_redirects() -> None:
    """H-21: not even from http to https."""
    with override_settings(SECURE_SSL_REDIRECT=True):
        response = Client().post("/api/v1/jobs", b"{}", content_type="application/json")
    assert response.status_code == 400
    assert response.json()["code"] == "https_required"


@pytest.mark.django_db
def test_bad_host_below_the_api_is_a_problem() -> None:
    response = Client(raise_request_exception=False).get("/api/v1/jobs", headers={"Host": "evil.example"})
    assert response.status_code == 400
    assert response["Content-Type"] == "application/problem+json"


def _log_in(client: Client, password: str, name: str = "jane", **headers: Any) -> Any:
    return client.post("/login/", {"username": name, "password": password}, **headers)


def test_login_and_logout(person: User) -> None:
    """S-09, S-41: the session is rotated, both ends are audited."""
    client = Client()
    client.get("/login/")
    assert _log_in(client, PASSWORD).status_code == 302
    assert "sessionid" in client.cookies
    assert client.cookies["sessionid"]["httponly"]
    assert client.cookies["sessionid"]["samesite"] == "Lax"
    assert client.get("/login/").status_code == 302
    assert client.post("/logout/").status_code == 302
    assert client.post("/logout/")["Location"].startswith("/login/")
    assert [e.action for e in AuditEntry.objects.order_by("id")] == ["login", "logout"]
    assert {e.actor for e in AuditEntry.objects.all()} == {"jane"}


def test_the_button_of_the_admin_logs_out_as_any_other(person: User) -> None:
    """S-41: it is in the audit log; also of somebody who may not see the admin."""
    client = Client()
    client.force_login(person)
    assert client.post(reverse("admin:logout"))["Location"].startswith("/login/")
    assert client.get("/").status_code == 302
    assert [(e.action, e.actor) for e in AuditEntry.objects.all()] == [("logout", "jane")]


def test_failed_login_says_nothing(person: User) -> None:
    """S-09: the same page for a wrong name and a wrong password; a password typed as a name is not kept."""
    pages = []
    for name, password in (("jane", "wrong"), ("hunter2secret", PASSWORD)):
        response = _log_in(Client(), password, name)
        assert response.status_code == 200
        pages.append(re.sub(r'value="[^"]*"|CSRFToken":"[^"]*"', "", response.content.decode()))
    assert pages[0] == pages[1]
    assert [(e.action, e.actor) for e in AuditEntry.objects.order_by("id")] == [
        ("login_failed", "jane"),
        ("login_failed", "(unknown account)"),
    ]
    assert "hunter2secret" not in str(list(AuditEntry.objects.values())) + str(list(LoginAttempt.objects.values()))


def test_login_limit(person: User) -> None:
    """S-09: five a minute for an account and an address; the right password does not help either."""
    for _ in range(5):
        assert _log_in(Client(), "wrong").status_code == 200
    refused = _log_in(Client(), PASSWORD)
    assert refused.status_code == 429
    assert refused["Retry-After"] == "60"
    assert b"Too many attempts" in refused.content
    assert _log_in(Client(), PASSWORD, "JANE").status_code == 429
    assert _log_in(Client(), PASSWORD, REMOTE_ADDR="198.51.100.7").status_code == 302


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["\0", "x" * 5000, "' OR 1=1 --", "‮"])
def test_strange_names(name: str) -> None:
    assert _log_in(Client(), "x", name).status_code == 200


def test_login_goes_nowhere_else(person: User) -> None:
    response = Client().post("/login/?next=https://evil.example/", {"username": "jane", "password": PASSWORD})
    assert response["Location"] == "/"


def test_admin_has_no_login_of_its_own(person: User) -> None:
    client = Client()
    client.force_login(person)
    assert client.get("/admin/login/").status_code == 403
    assert client.post("/admin/login/", {"username": "x", "password": "y"}).status_code == 403


@pytest.mark.django_db
def test_livez_asks_nobody(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        response = Client().get("/livez")
    assert response.json() == {"status": "ok"}


@pytest.mark.django_db
def test_readyz(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-38: no names and no errors; the broker only degrades, since messages are hints."""
    assert Client().get("/readyz").json() == {"status": "ok", "database": "up", "broker": "up"}
    monkeypatch.setattr(broker, "ping", lambda: False)
    degraded = Client().get("/readyz")
    assert (degraded.status_code, degraded.json()["status"], degraded.json()["broker"]) == (200, "degraded", "down")
    monkeypatch.setattr(health, "_ask_database", lambda: False)
    down = Client().get("/readyz")
    assert (down.status_code, down.json()["status"]) == (503, "unavailable")


@pytest.mark.django_db
def test_security_txt() -> None:
    response = Client().get("/.well-known/security.txt")
    assert response["Content-Type"].startswith("text/plain")
    assert b"Contact: " in response.content
    assert b"Expires: " in response.content


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("group", "role", "actions"),
    [
        (None, Role.NONE, set()),
        ("strangers", Role.NONE, set()),
        ("viewer", Role.VIEWER, {"view"}),
        ("operator", Role.OPERATOR, {"view", "see_payload", "act"}),
        ("owner", Role.OWNER, {"view", "see_payload", "act", "edit_contract", "reveal"}),
        (
            "admin",
            Role.ADMIN,
            {"view", "see_payload", "act", "edit_contract", "reveal", "manage_keys", "replay_anyway"},
        ),
    ],
)
def test_roles(group: str | None, role: Role, actions: set[str]) -> None:
    """S-03."""
    user = User.objects.create_user("x")
    if group:
        user.groups.add(Group.objects.get_or_create(name=group)[0])
    assert role_of(user) == role
    known: Any = ("view", "see_payload", "act", "edit_contract", "reveal", "manage_keys", "replay_anyway")
    assert {action for action in known if can(user, action)} == actions


@pytest.mark.django_db
def test_groups_exist() -> None:
    assert set(Group.objects.values_list("name", flat=True)) >= {"viewer", "operator", "owner", "admin"}


@pytest.mark.django_db
def test_nobody_and_everybody() -> None:
    assert role_of(AnonymousUser()) == Role.NONE
    assert role_of(User.objects.create_superuser("root")) == Role.ADMIN
    assert role_of(User.objects.create_superuser("gone", is_active=False)) == Role.NONE


@pytest.mark.django_db
def test_require() -> None:
    @require("act")
    def view(request: HttpRequest, n: int) -> HttpResponse:
        return HttpResponse(str(n))

    request = RequestFactory().get("/")
    request.user = User.objects.create_superuser("root")
    assert view(request, n=1).status_code == 200
    request.user = User.objects.create_user("nobody")
    with pytest.raises(PermissionDenied):
        view(request, n=1)
