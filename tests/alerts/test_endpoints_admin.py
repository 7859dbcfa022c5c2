"""Endpoints in the admin: who may, secrets that are shown once and stored sealed, rotation, encryption (S-16, S-18)."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.db.models import ProtectedError
from django.test import Client
from standardwebhooks import Webhook, WebhookVerificationError

from jobsboard import checks
from jobsboard.alerts import endpoints, outbox
from jobsboard.alerts.delivery import Webhooks
from jobsboard.alerts.endpoints import EndpointRefused, Wanted, Who
from jobsboard.models import Event, WebhookDelivery, WebhookEndpoint, every_event
from queues import secrets_box
from queues.models import AuditEntry
from tests.alerts.endpoints import make_alert, make_endpoint
from tests.alerts.receivers import PATH_SECRET, SECRETS, Receiver, Say, hurry, receiving, settle
from tests.api.test_keys import _database_text as database_text
from tests.factories import sql

pytestmark = pytest.mark.django_db

ADD = "/admin/jobsboard/webhookendpoint/add/"
URL = f"https://hooks.example/services/{PATH_SECRET}"
ADA = Who(actor="ada")


def logged_in(role: str) -> Client:
    """Return a client of a person of a role, who may open the admin."""
    person = User.objects.create_user(role, is_staff=True)
    person.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(person)
    return client


@pytest.fixture
def admin(reachable: None) -> Client:
    return logged_in("admin")


def fields(**overrides: Any) -> dict[str, Any]:
    """Return a filled form."""
    values = {
        "name": "ops", "format": "standard", "url": URL, "events": every_event(), "least_severity": "warning",
        "every_seconds": "60", **overrides,
    }  # fmt: skip
    return {name: value for name, value in values.items() if value is not None}


def shown(response: Any) -> str:
    """Return the secret that a page shows."""
    found = re.search(r'<code id="issued-secret">(whsec_[^<]+)</code>', response.content.decode())
    assert found, response.content.decode()[-2000:]
    return found[1].replace("&#x2F;", "/").replace("&amp;", "&")


def page(client: Client, endpoint: WebhookEndpoint, verb: str = "change") -> str:
    """Return the address of a page of an endpoint."""
    return f"/admin/jobsboard/webhookendpoint/{endpoint.pk}/{verb}/"


def seen_of(endpoint: WebhookEndpoint) -> str:
    """Return what the form says of the secret that it shows the age of."""
    assert endpoint.secret_at is not None
    return endpoint.secret_at.isoformat()


def errors(response: Any) -> str:
    """Return what a form says is wrong."""
    return str(response.context["errors"])


# ---- making and changing


def test_a_secret_is_shown_once_and_the_address_never(admin: Client, caplog: pytest.LogCaptureFixture) -> None:
    """S-16, S-18: in the answer to the form, and in no page, message, session, log or column after it."""
    response = admin.post(ADD, fields())
    secret = shown(response)
    assert response.status_code == 200 and "no-store" in response["Cache-Control"]
    endpoint = WebhookEndpoint.objects.get()
    assert endpoint.secret_sealed is not None
    assert secrets_box.open(endpoint.secret_sealed) == secret and secrets_box.open(endpoint.url_sealed) == URL
    assert endpoint.url_shown == "https://hooks.example/…" and endpoint.created_by == "admin"
    seen = [admin.get(path).content.decode() for path in (page(admin, endpoint), ADD, ADD.removesuffix("add/"))]
    seen += [admin.get(page(admin, endpoint, "history")).content.decode(), caplog.text, database_text()]
    for hidden in (secret, secret.removeprefix("whsec_"), PATH_SECRET):
        assert not any(hidden in text or hidden.encode().hex() in text for text in seen)
    assert "https://hooks.example/…" in seen[0]
    entry = AuditEntry.objects.get(action="webhook.created")
    assert (entry.actor, entry.source, entry.object_id) == ("admin", "admin", str(endpoint.pk))


def test_slack_has_no_secret_to_show(admin: Client) -> None:
    """Its address is the secret."""
    response = admin.post(ADD, fields(format="slack"))
    assert response.status_code == 302
    assert WebhookEndpoint.objects.get().secret_sealed is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": "http://hooks.example/"}, "WEBHOOK_ALLOW_HTTP"), ({"url": "https://hooks.example:25/"}, "Port 25"),
        ({"url": "https://127.0.0.1/"}, "not public"),
        ({"url": "https://2130706433/"}, "number"), ({"url": "https://bücher.example/"}, "not ASCII"),
        ({"url": ""}, "required"), ({"url": "javascript:alert(1)"}, "https://"), ({"events": []}, "at least one"),
        ({"events": ["alert.everything"]}, "valid choice"), ({"every_seconds": "9"}, "10"), ({"name": " "}, "required"),
        ({"name": "taken"}, "already exists"), ({"format": "pigeon"}, "valid choice"),
        ({"least_severity": ""}, "required"), ({"name": "x" * 101}, "100 characters"),
    ],
)  # fmt: skip
def test_a_form_that_is_wrong_says_what_and_stores_nothing(
    admin: Client, settings: Any, change: dict[str, Any], words: str
) -> None:
    """W-01, W-04: as the addresses' rules say; everything else as the model does."""
    settings.OUTBOUND_ALLOWED_CIDRS, settings.WEBHOOK_ALLOW_HTTP = [], False
    settings.WEBHOOK_ALLOWED_PORTS = frozenset({443})
    make_endpoint("taken")
    response = admin.post(ADD, fields(**change))
    assert response.status_code == 200 and words in errors(response)
    assert errors(response) != "[]" and WebhookEndpoint.objects.count() == 1


def test_without_keys_the_form_says_how_to_make_one(admin: Client, settings: Any) -> None:
    """No secret can be stored, so no endpoint can be made; what is there can still be renamed."""
    endpoint = receiving(URL.replace("hooks.example", "93.184.215.14"))
    settings.ENCRYPTION_KEYS = []
    response = admin.post(ADD, fields(name="two"))
    assert response.status_code == 200 and "ENCRYPTION_KEYS is not set" in errors(response)
    response = admin.post(page(admin, endpoint), fields(name="renamed", url="", format=None))
    assert response.status_code == 302
    assert [one.name for one in WebhookEndpoint.objects.all()] == ["renamed"]
    response = admin.post(page(admin, endpoint, "rotate"), {"seen": seen_of(endpoint)}, follow=True)
    assert "ENCRYPTION_KEYS is not set" in response.content.decode()


def test_an_empty_address_keeps_the_one_that_is_there(admin: Client) -> None:
    """Nothing of it is in the form; another one replaces it, and the format stays."""
    endpoint = receiving("http://93.184.215.14:8080/a/b")
    html = admin.get(page(admin, endpoint)).content.decode()
    assert "/a/b" not in html and "http://93.184.215.14:8080/…" in html
    admin.post(page(admin, endpoint), fields(name="new", url="", events=["alert.firing"], format="slack"))
    endpoint.refresh_from_db()
    assert (endpoint.name, endpoint.events, endpoint.format) == ("new", ["alert.firing"], "standard")
    assert secrets_box.open(endpoint.url_sealed) == "http://93.184.215.14:8080/a/b"
    WebhookEndpoint.objects.update(failures=3, last_error="answered 500")
    admin.post(page(admin, endpoint), fields(name="new", events=["alert.firing"]))
    endpoint.refresh_from_db()
    assert secrets_box.open(endpoint.url_sealed) == URL and (endpoint.failures, endpoint.last_error) == (0, "")
    entries = AuditEntry.objects.filter(action="webhook.changed").order_by("id")
    assert [(entry.after or {}).get("address") for entry in entries] == [None, "replaced"]
    assert PATH_SECRET not in str([(entry.before, entry.after) for entry in entries])
    admin.post(page(admin, endpoint), fields(name="new", url="", events=["alert.firing"]))
    assert entries.count() == 2


@pytest.mark.parametrize("role", ["viewer", "operator", "owner"])
def test_only_admins_manage_endpoints(role: str, reachable: None) -> None:
    """S-02: no list, no form, no rotation, no switch, no deletion."""
    endpoint = receiving("http://93.184.215.14/")
    client = logged_in(role)
    before = database_text()
    for path in (ADD.removesuffix("add/"), ADD, page(client, endpoint), page(client, endpoint, "delete")):
        assert client.get(path).status_code == 403
    seen = seen_of(endpoint)
    for path, data in (
        (ADD, fields(name="two")), (page(client, endpoint), fields()),
        (page(client, endpoint, "rotate"), {"seen": seen}),
        (page(client, endpoint, "switch"), {"on": "0"}), (page(client, endpoint, "delete"), {"post": "yes"}),
    ):  # fmt: skip
        assert client.post(path, data).status_code == 403
    assert database_text() == before


def test_rotation_and_switch_are_posts(admin: Client) -> None:
    """S-12: no GET changes anything."""
    endpoint = receiving("http://93.184.215.14/")
    for verb in ("rotate", "switch"):
        assert admin.get(page(admin, endpoint, verb)).status_code == 405
    assert admin.post("/admin/jobsboard/webhookendpoint/999/rotate/").status_code == 404


def test_an_endpoint_with_deliveries_is_disabled_and_not_deleted(admin: Client) -> None:
    """They tell who was reached; one that was never sent anything can go."""
    endpoint, other = receiving("http://93.184.215.14/"), receiving("http://93.184.215.14/", "other")
    outbox.send_test(endpoint.pk, actor="ada")
    assert admin.post(page(admin, endpoint, "delete"), {"post": "yes"}).status_code == 403
    with pytest.raises(EndpointRefused):
        endpoints.delete(endpoint.pk, who=ADA)
    with pytest.raises(ProtectedError):
        endpoint.delete()
    assert admin.post(page(admin, other, "delete"), {"post": "yes"}).status_code == 302
    assert [one.name for one in WebhookEndpoint.objects.all()] == ["ops"]
    assert (AuditEntry.objects.get(action="webhook.deleted").before or {})["name"] == "other"
    for on in ("0", "0", "1"):
        assert admin.post(page(admin, endpoint, "switch"), {"on": on}).status_code == 302
    actions = AuditEntry.objects.filter(action__in=["webhook.enabled", "webhook.disabled"]).order_by("id")
    assert [one.action for one in actions] == ["webhook.disabled", "webhook.enabled"]


# ---- rotation


def test_both_secrets_sign_for_a_day(receiver: Receiver, service: Webhooks, admin: Client, shift_clock: Any) -> None:
    """S-18: the old one works until its end, then fails."""
    endpoint = receiving(receiver)
    old = SECRETS[endpoint.pk]
    new = shown(admin.post(page(admin, endpoint, "rotate"), {"seen": seen_of(endpoint)}))
    assert old != new
    for shift, fits in (("0", (True, True)), ("23 hours", (True, True)), ("25 hours", (False, True))):
        shift_clock(shift)
        outbox.send_test(endpoint.pk, actor="ada")
        settle(service)
        got = receiver.got[-1]
        assert tuple(verifies(secret, got) for secret in (old, new)) == fits
    assert len(receiver.got) == 3
    entry = AuditEntry.objects.get(action="webhook.rotated")
    assert old not in str(entry.after) and new not in str(entry.after)


def verifies(secret: str, got: Any) -> bool:
    """Ask the library."""
    try:
        Webhook(secret).verify(got.body, dict(got.headers))
    except WebhookVerificationError:
        return False
    return True


def test_a_second_press_does_not_end_the_secret_that_the_receiver_has(admin: Client) -> None:
    """Twice is once: it is about the secret that the page showed, which is the old one by then."""
    endpoint = receiving("http://93.184.215.14/")
    seen = {"seen": seen_of(endpoint)}
    shown(admin.post(page(admin, endpoint, "rotate"), seen))
    endpoint.refresh_from_db()
    before = [bytes(one) for one in (endpoint.secret_sealed, endpoint.secret_old_sealed) if one]
    again = admin.post(page(admin, endpoint, "rotate"), seen, follow=True)
    assert "rotated meanwhile" in again.content.decode()
    for wrong in ("", "soon", "2026-01-01T00:00:00+00:00"):
        admin.post(page(admin, endpoint, "rotate"), {"seen": wrong})
    endpoint.refresh_from_db()
    assert [bytes(one) for one in (endpoint.secret_sealed, endpoint.secret_old_sealed) if one] == before
    assert len(before) == 2 and AuditEntry.objects.filter(action="webhook.rotated").count() == 1


def test_slack_is_not_rotated(reachable: None) -> None:
    """There is nothing to rotate: its address is replaced."""
    endpoint = receiving("http://93.184.215.14/", format="slack")
    with pytest.raises(EndpointRefused, match="no secret"):
        endpoints.rotate(endpoint.pk, seen=None, who=ADA)


# ---- at rest


def test_neither_secret_nor_address_is_in_any_column(receiver: Receiver, service: Webhooks) -> None:
    """S-16: after all that happens to an endpoint, with a receiver that answers with what it was asked for."""
    endpoint = receiving(receiver)
    secrets = [SECRETS[endpoint.pk]]
    echo = f"{receiver.url} {PATH_SECRET} {secrets[0]}".encode()
    receiver.answers = [Say(status=500, body=echo), Say(status=302, headers={"Location": receiver.url}), Say(body=echo)]
    outbox.announce(make_alert(), Event.FIRING, now=sql("SELECT jobs_now()")[0][0])
    for _ in range(3):
        settle(service)
        hurry()
    secrets.append(endpoints.rotate(endpoint.pk, seen=endpoint.secret_at, who=ADA))
    wanted = Wanted(
        name="moved", format="standard", url=receiver.url + "2", events=every_event(), least_severity="warning",
        every_seconds=60,
    )  # fmt: skip
    endpoints.change(endpoint.pk, wanted, who=ADA)
    receiver.answers = [Say(body=f"{receiver.url}2 {PATH_SECRET}2 {secrets[-1]}".encode())]
    outbox.send_test(endpoint.pk, actor="ada")
    settle(service)
    endpoints.enable(endpoint.pk, on=False, who=ADA, reason="because")
    text = database_text()
    assert len(receiver.got) == 4 and "moved" in text
    for hidden in (PATH_SECRET, *secrets, *(one.removeprefix("whsec_") for one in secrets)):
        assert hidden not in text and hidden.encode().hex() not in text


def reseal() -> str:
    """Run the command."""
    out = io.StringIO()
    call_command("secrets", "reseal", "--actor", "ada", "--reason", "a leaked key", stdout=out)
    return out.getvalue()


def test_a_rotation_of_the_encryption_keeps_everything(receiver: Receiver, service: Webhooks, settings: Any) -> None:
    """S-16: after it the first key alone opens what there is; what was delivered before and after verifies."""
    endpoint = receiving(receiver)
    secret = endpoints.rotate(endpoint.pk, seen=endpoint.secret_at, who=ADA)
    receiving(receiver, "slack", format="slack")
    old, new = settings.ENCRYPTION_KEYS[0], Fernet.generate_key().decode()
    delivery, _ = outbox.send_test(endpoint.pk, actor="ada")
    settle(service)
    settings.ENCRYPTION_KEYS = [new, old]
    assert "2 endpoint url, 1 endpoint secret, 1 endpoint secret (old)" in reseal()
    settings.ENCRYPTION_KEYS = [new]
    again, _ = outbox.resend(delivery.pk, actor="ada")
    settle(service)
    assert WebhookDelivery.objects.get(pk=again.pk).state == "delivered"
    first, second = receiver.got
    assert first.body == second.body
    for held in (secret, SECRETS[endpoint.pk]):
        assert verifies(held, first) and verifies(held, second)
    entries = AuditEntry.objects.filter(action="secrets.resealed", object_type="webhook")
    assert [(one.actor, one.reason, one.source) for one in entries] == [("ada", "a leaked key", "command")] * 2


def test_what_cannot_be_opened_is_named_and_shown_as_the_reason(
    receiver: Receiver, service: Webhooks, settings: Any
) -> None:
    """S-16, E-06: nothing is overwritten; deliveries say why nothing leaves, and the start says so too."""
    endpoint = receiving(receiver)
    before = bytes(endpoint.url_sealed)
    assert checks._secrets() == []
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    with pytest.raises(CommandError, match=r"ops \(endpoint url\), ops \(endpoint secret\)"):
        reseal()
    [found] = checks._secrets()
    assert "2 stored secrets cannot be decrypted" in found.msg
    outbox.announce(make_alert(), Event.FIRING, now=sql("SELECT jobs_now()")[0][0])
    settle(service)
    row = WebhookDelivery.objects.select_related("endpoint").get()
    assert bytes(row.endpoint.url_sealed) == before
    assert row.state == "pending" and "not in ENCRYPTION_KEYS" in row.attempts[0]["error"]
    assert receiver.got == []


def test_a_secret_whose_day_is_over_is_dropped(receiver: Receiver, shift_clock: Any) -> None:
    """Nobody needs to open it again."""
    endpoint = receiving(receiver)
    endpoints.rotate(endpoint.pk, seen=endpoint.secret_at, who=ADA)
    shift_clock("25 hours")
    assert "(old)" not in reseal()
    endpoint.refresh_from_db()
    assert (endpoint.secret_old_sealed, endpoint.secret_old_until) == (None, None)
