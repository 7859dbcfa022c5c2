"""Addresses of endpoints through the whole way of a delivery: nothing arrives where nothing may (W-01 to W-07, S-19).

What the client itself refuses is in tests/queues/test_outbound.py; here a delivery is made, claimed and tried.
"""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobsboard import env
from jobsboard.alerts import addresses, outbox, sending
from jobsboard.alerts.addresses import AddressRefused
from jobsboard.alerts.delivery import Webhooks
from jobsboard.models import Event, WebhookDelivery, WebhookEndpoint
from queues import secrets_box
from tests.alerts.endpoints import make_alert
from tests.alerts.receivers import PATH_SECRET, SECRETS, Receiver, Say, hurry, receiving, settle
from tests.factories import sql
from tests.queues.test_outbound import OK, Listener, answering, listening

pytestmark = pytest.mark.django_db

INSIDE = [
    "127.0.0.1", "localhost", "2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "127.1", "0", "0.0.0.0",  # noqa: S104
    "①②⑦.⓪.⓪.①", "127。0。0。1", "00127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::]", "127.0.0.1.", "0x7f.1",
    "1.1.1.1\0.evil.com", "user:pw@127.0.0.1", "127.0.0.1\\@example.com", "127.0.0.1%2523@example.com", "a b", "",
]  # fmt: skip


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening(answering(OK)) as one:
        yield one


@pytest.fixture
def open_ports(reachable: None, settings: Any) -> None:
    """Let everything through but the look at where a name leads: no TLS needed, any port."""
    settings.OUTBOUND_ALLOWED_CIDRS = []


def at(url: str, name: str = "ops") -> WebhookEndpoint:
    """Make an endpoint whose stored address is one that nobody could have typed in."""
    endpoint = receiving("http://93.184.215.14/", name)
    WebhookEndpoint.objects.filter(pk=endpoint.pk).update(url_sealed=secrets_box.seal(url))
    return endpoint


def told() -> None:
    """Tell every endpoint of an alert."""
    outbox.announce(make_alert(f"key {time.monotonic()}"), Event.FIRING, now=sql("SELECT jobs_now()")[0][0])


def errors() -> list[str]:
    """Return what the tries of all deliveries said, in the order of endpoints."""
    rows = WebhookDelivery.objects.order_by("endpoint_id", "created_at")
    assert {row.state for row in rows} <= {"pending"}
    return [one["error"] for row in rows for one in row.attempts]


def test_w_01_an_inside_address_in_any_spelling_gets_no_connection(
    open_ports: None, listener: Listener, service: Webhooks
) -> None:
    """W-01, S-19: refused when it is typed in, and before each try should it be stored all the same."""
    for number, host in enumerate(INSIDE):
        url = f"http://{host}:{listener.port}/hook"
        with pytest.raises(AddressRefused):
            addresses.check_url(url, resolve=True)
        at(url, str(number))
    told()
    for _ in range(2):
        settle(service)
        hurry()
    assert listener.connections == 0
    said = errors()
    assert len(said) == 2 * len(INSIDE) and all(said)
    # The failure names what is wrong, and neither user name nor path.
    assert not any("pw" in one or "hook" in one for one in said)


def test_w_02_a_name_is_looked_at_before_each_try(
    open_ports: None, listener: Listener, service: Webhooks, resolver: dict[str, list[list[str]]], settings: Any
) -> None:
    """W-02: mixed answers are refused, and one that leads elsewhere the next time is looked at again."""
    settings.OUTBOUND_ALLOWED_CIDRS = ["127.0.0.2/32"]
    resolver["mixed.example"] = [["93.184.215.14", "127.0.0.1"]]
    resolver["hundred.example"] = [["93.184.215.14"] * 99 + ["127.0.0.1"]]
    resolver["rebinding.example"] = [["127.0.0.2"], ["127.0.0.1"]]
    for name in ("mixed.example", "hundred.example", "rebinding.example"):
        at(f"http://{name}:{listener.port}/", name)
    told()
    settle(service)
    mixed, hundred, first = errors()
    assert "not public" in mixed and "not public" in hundred and "No connection" in first
    hurry()
    settle(service)
    assert "not public" in errors()[-1]
    assert listener.connections == 0


def test_w_03_a_redirect_to_the_inside_is_not_followed(
    receiver: Receiver, listener: Listener, service: Webhooks
) -> None:
    """W-03: not even where the inside is allowed."""
    receiver.answers = [Say(status=307, headers={"Location": f"http://127.0.0.1:{listener.port}/latest/meta-data/"})]
    receiving(receiver)
    told()
    settle(service)
    assert listener.connections == 0 and errors() == ["redirect: answered 307; redirects are not followed"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://a.example/", "https://"), ("file:///etc/passwd", "https://"), ("javascript:alert(1)", "https://"),
        ("gopher://127.0.0.1:6379/_FLUSHALL", "https://"), ("https://", "no host"), ("https:///x", "no host"),
        ("http://a.example/", "WEBHOOK_ALLOW_HTTP"), ("https://a.example:80/", "Port 80"),
        ("https://a.example:22/", "WEBHOOK_ALLOWED_PORTS"), ("https://a.example:0/", "Port 0"),
        ("https://a.example:99999/", "cannot be read"), ("https://a.example/#top", "fragment"),
        ("https://ada:pw@a.example/", "user name"), ("https://bücher.example/", "not ASCII"),
        ("https://a.example/straße", "not ASCII"), ("https://①②⑦.⓪.⓪.①/", "not ASCII"),
        ("https://a.example/a b", "not allowed"), ("https://a.example/\r\nX: y", "not allowed"),
        ("https://2130706433/", "number"), ("https://0x7f000001/", "number"), ("https://127.1/", "number"),
        ("https://169.254.169.254/", "not public"), ("https://[::1]/", "not public"),
        ("https://10.0.0.1/", "not public"),
        ("https://[fe80::1%25eth0]/", "zone"), ("https://a.example/" + "x" * 2000, "2,000"), ("", "https://"),
    ],
)  # fmt: skip
def test_w_04_only_https_on_443_and_the_words_name_the_problem(url: str, words: str) -> None:
    """W-04, W-01: as the settings are by default. The words never hold a part of the address that may be secret."""
    with pytest.raises(AddressRefused) as refused:
        addresses.check_url(url)
    assert words in str(refused.value)
    assert "pw@" not in str(refused.value) and "straße" not in str(refused.value)


def test_w_04_the_rules_hold_at_the_try_as_well(
    listener: Listener, service: Webhooks, reachable: None, settings: Any
) -> None:
    """W-04: an address that was allowed when it was typed in, under settings that are tighter now."""
    receiving(f"http://127.0.0.1:{listener.port}/")
    settings.WEBHOOK_ALLOWED_PORTS = frozenset({443})
    told()
    settle(service)
    settings.WEBHOOK_ALLOWED_PORTS, settings.WEBHOOK_ALLOW_HTTP = None, False
    hurry()
    settle(service)
    assert listener.connections == 0
    assert [one.split(".")[0] for one in errors()] == [
        f"Port {listener.port} is not allowed, only 443", "The address must start with https://",
    ]  # fmt: skip


def test_w_04_named_ports_and_http_are_opened_by_name(settings: Any) -> None:
    """W-04: each by its own setting; neither opens a private range."""
    settings.WEBHOOK_ALLOWED_PORTS = frozenset({443, 8443})
    addresses.check_url("https://a.example:8443/")
    with pytest.raises(AddressRefused):
        addresses.check_url("http://a.example:8443/")
    settings.WEBHOOK_ALLOW_HTTP = True
    addresses.check_url("http://a.example:8443/")
    with pytest.raises(AddressRefused, match="Port 80"):
        addresses.check_url("http://a.example/")
    with pytest.raises(AddressRefused, match="not public"):
        addresses.check_url("http://192.168.1.1:8443/")


def test_a_public_address_is_fine_and_a_name_need_not_lead_anywhere(resolver: dict[str, list[list[str]]]) -> None:
    """A form works without a resolver; where a name leads inside now, it says so."""
    for url in (
        "https://a.example/",
        "https://a.example:443/x?y=1",
        "https://93.184.215.14/",
        "https://[2606:4700::1]/",
    ):
        addresses.check_url(url)
    addresses.check_url("https://no-such-name.invalid/", resolve=True)
    resolver["inside.example"] = [["10.1.2.3"]]
    addresses.check_url("https://inside.example/")
    with pytest.raises(AddressRefused, match="not public"):
        addresses.check_url("https://inside.example/", resolve=True)


def test_what_is_shown_of_an_address() -> None:
    """Of chat services the path is the secret."""
    assert addresses.shown("https://hooks.example/services/T0/B0/x") == "https://hooks.example/…"
    assert addresses.shown("https://hooks.example:8443/?key=1") == "https://hooks.example:8443/…"
    assert addresses.shown("https://hooks.example/") == "https://hooks.example"


# ---- what comes back


def _endless(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"<p>" + b"x" * 65536)


#: Packed before anybody waits for it: to pack it takes a busy machine longer than a try may take.
_PACKED = gzip.compress(bytes(20_000_000), compresslevel=1)


def _bomb(connection: socket.socket) -> None:
    connection.recv(65536)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(_PACKED)}\r\n\r\n"
    connection.sendall(head.encode() + _PACKED)


def _drip(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 500 No\r\n\r\n")
    while True:
        connection.sendall(b"z")
        threading.Event().wait(0.05)


def _big_header(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n")


def _continue(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    threading.Event().wait(10)


@pytest.mark.parametrize(
    ("talk", "state", "seconds"),
    # What ends long before its limit is given time; what only the limit ends is not.
    [(_endless, "delivered", 8.0), (_bomb, "delivered", 8.0), (_drip, "pending", 1.0), (_big_header, "pending", 1.0),
     (_continue, "pending", 1.0)],
)  # fmt: skip
def test_w_05_answers_without_measure_end_in_time_and_leave_little(
    reachable: None, service: Webhooks, monkeypatch: pytest.MonkeyPatch,
    talk: Callable[[socket.socket], None], state: str, seconds: float,
) -> None:  # fmt: skip
    """W-05, W-06: at most a kilobyte of it is kept, and the try ends at its limit."""
    monkeypatch.setattr(sending, "SECONDS", seconds)
    with listening(talk) as listener:
        receiving(f"http://127.0.0.1:{listener.port}/")
        told()
        began = time.monotonic()
        settle(service)
        assert time.monotonic() - began < 10
    row = WebhookDelivery.objects.get()
    assert row.state == state
    assert len(row.attempts[0]["excerpt"].encode()) <= sending.EXCERPT_BYTES
    assert row.attempts[0]["excerpt"].isprintable()


def test_w_05_an_excerpt_is_readable_short_and_without_secrets(receiver: Receiver, service: Webhooks) -> None:
    """W-05, S-27: control characters, broken UTF-8, a secret, and what it was asked for, echoed."""
    endpoint = receiving(receiver)
    secret = SECRETS[endpoint.pk]
    said = f"bad\x00\x1b[31m\r\n\u202etoken=sk_live_abcdefgh12345678 {secret} {receiver.url}\n/hooks/{PATH_SECRET}"
    receiver.answers = [Say(status=500, body=said.encode() + b"\xff\xfe" + "é".encode() * 3000)]
    told()
    settle(service)
    kept = WebhookDelivery.objects.get().attempts[0]["excerpt"]
    assert kept.startswith("bad") and kept.isprintable() and len(kept.encode()) <= 1024
    for hidden in ("sk_live", secret, secret.removeprefix("whsec_"), PATH_SECRET):
        assert hidden not in kept


def test_w_07_no_proxy_of_the_environment_is_asked(
    receiver: Receiver, listener: Listener, service: Webhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W-07: a proxy would resolve names for us."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.port}")
    receiving(receiver)
    told()
    settle(service)
    assert (len(receiver.got), listener.connections) == (1, 0)


@pytest.mark.parametrize(
    ("value", "ports"),
    [("", {443}), ("443", {443}), ("443, 8443", {443, 8443}), ("*", None), ("0", "!"), ("65536", "!"), ("https", "!"),
     ("443;8443", "!"), ("443,*", "!"), ("-1", "!"), ("４４３", "!")],
)  # fmt: skip
def test_allowed_ports_are_read_strictly(monkeypatch: pytest.MonkeyPatch, value: str, ports: Any) -> None:
    """One clear line on a mistake, and never the value."""
    monkeypatch.setenv("WEBHOOK_ALLOWED_PORTS", value)
    if ports == "!":
        with pytest.raises(env.Mistake, match="^WEBHOOK_ALLOWED_PORTS must be port numbers"):
            env.ports("WEBHOOK_ALLOWED_PORTS", "443")
    else:
        assert env.ports("WEBHOOK_ALLOWED_PORTS", "443") == ports
