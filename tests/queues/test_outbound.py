"""The client for addresses that people typed in (RELIABILITY.md C5, S-19): a local listener counts what arrives."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from queues import outbound
from queues.outbound import TargetRefused, TargetTimeout, TargetUnreachable, post

LOOPBACK = ["127.0.0.0/8", "::1/128"]


class Listener:
    """Accepts connections on a free port of 127.0.0.1 and gives each to `talk`."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.server.getsockname()[1]
        self.connections = 0
        self._talk = talk
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._talk(connection)


@contextlib.contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[Listener]:
    listener = Listener(talk)
    try:
        yield listener
    finally:
        listener.server.close()


def answering(text: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(text)

    return talk


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening(answering(OK)) as one:
        yield one


@pytest.fixture
def allowed(settings: Any) -> None:
    settings.OUTBOUND_ALLOWED_CIDRS = LOOPBACK


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Names with the answers that they give, one list per look-up; the last one stays."""
    names: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def fake(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in names:
            return real(host, port, *args, **kwargs)
        answers = names[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [entry for address in found for entry in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", fake)
    return names


def send(url: str, *, seconds: float = 5.0) -> outbound.Answer:
    return post(url, body=b"{}", headers={"Content-Type": "application/json"}, seconds=seconds)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "127.1", "0", "0.0.0.0",  # noqa: S104
        "①②⑦.⓪.⓪.①", "127。0。0。1", "00127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::]", "169.254.169.254",
        "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "[fe80::1]", "[fc00::1]", "224.0.0.1", "192.0.2.1",
        "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "255.255.255.255", "240.0.0.1", "1.1.1.1\0.evil.com", "127.0.0.1.",
        "0x7f.1", "a b", "user:pw@127.0.0.1", "127.0.0.1\\@example.com", "",
    ],
)  # fmt: skip
def test_an_inside_address_gets_no_connection(host: str, listener: Listener) -> None:
    with pytest.raises(TargetRefused):
        send(f"http://{host}:{listener.port}/")
    assert listener.connections == 0


@pytest.mark.parametrize(
    "url",
    ["ftp://a.example/", "file:///etc/passwd", "gopher://127.0.0.1:6379/_FLUSHALL", "javascript:alert(1)", "http://",
     "https:///x", "http://a.example:0/", "http://a.example:99999/", "//a.example/", "http://[::1/"],
)  # fmt: skip
def test_other_schemes_and_broken_addresses_are_refused(url: str) -> None:
    with pytest.raises(TargetRefused):
        send(url)


@pytest.mark.parametrize(
    "answer",
    [["93.184.215.14", "127.0.0.1"], ["127.0.0.1", "93.184.215.14"], ["93.184.215.14"] * 99 + ["10.0.0.1"]],
)
def test_one_inside_address_among_public_ones_is_enough_to_refuse(
    answer: list[str], listener: Listener, resolver: dict[str, list[list[str]]]
) -> None:
    resolver["mixed.example"] = [answer]
    with pytest.raises(TargetRefused):
        send(f"http://mixed.example:{listener.port}/")
    assert listener.connections == 0


def test_a_name_is_resolved_once_and_connected_to_as_checked(
    listener: Listener, resolver: dict[str, list[list[str]]], settings: Any
) -> None:
    # The first answer is allowed and nobody listens there; a second look-up would lead to the listener.
    settings.OUTBOUND_ALLOWED_CIDRS = ["127.0.0.2/32"]
    resolver["rebinding.example"] = [["127.0.0.2"], ["127.0.0.1"]]
    with pytest.raises(TargetUnreachable):
        send(f"http://rebinding.example:{listener.port}/")
    assert listener.connections == 0
    with pytest.raises(TargetRefused):
        send(f"http://rebinding.example:{listener.port}/")
    assert listener.connections == 0


def test_an_allowed_range_is_reached_by_its_name(
    allowed: None, resolver: dict[str, list[list[str]]], listener: Listener
) -> None:
    resolver["inside.example"] = [["127.0.0.1"]]
    answer = send(f"http://inside.example:{listener.port}/")
    assert (answer.status, answer.body) == (200, b"ok")


def test_the_host_header_keeps_the_name(allowed: None, resolver: dict[str, list[list[str]]]) -> None:
    seen: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        seen.append(connection.recv(65536))
        connection.sendall(OK)

    resolver["inside.example"] = [["127.0.0.1"]]
    with listening(talk) as listener:
        send(f"http://inside.example:{listener.port}/path?x=1")
    head = seen[0].decode()
    assert f"Host: inside.example:{listener.port}\r\n" in head
    assert head.startswith("POST /path?x=1 HTTP/1.1\r\n")


def test_the_next_address_is_tried_when_nobody_listens(
    allowed: None, resolver: dict[str, list[list[str]]], listener: Listener
) -> None:
    resolver["two.example"] = [["::1", "127.0.0.1"]]
    assert send(f"http://two.example:{listener.port}/").status == 200


@pytest.mark.parametrize("place", ["http://169.254.169.254/latest/meta-data/", "http://93.184.215.14/", "/other"])
@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirects_are_answers(allowed: None, status: int, place: str) -> None:
    text = f"HTTP/1.1 {status} Moved\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
    with listening(answering(text)) as listener:
        assert send(f"http://127.0.0.1:{listener.port}/").status == status
        assert listener.connections == 1


def test_proxies_of_the_environment_are_ignored(
    allowed: None, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert send(f"http://127.0.0.1:{listener.port}/").status == 200


def test_an_endless_body_is_read_to_64_kib(allowed: None) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with listening(talk) as listener:
        assert len(send(f"http://127.0.0.1:{listener.port}/").body) == outbound.MAX_BODY


def test_an_endless_chunked_body_is_read_to_64_kib(allowed: None) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")

    with listening(talk) as listener:
        assert len(send(f"http://127.0.0.1:{listener.port}/").body) == outbound.MAX_BODY


def test_a_gzip_bomb_stays_packed(allowed: None) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    with listening(answering(head + bomb)) as listener:
        assert send(f"http://127.0.0.1:{listener.port}/").body == bomb[: outbound.MAX_BODY]


def drip(start: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(start)
        stop = threading.Event()
        while not stop.wait(0.05):
            connection.sendall(drop)

    return talk


@pytest.mark.parametrize(
    "talk",
    [
        drip(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
        drip(b"HTTP/1.1 200 OK\r\n\r\n", b"a"),
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"a"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        lambda connection: connection.recv(65536) and threading.Event().wait(5),
    ],
    ids=["headers", "one header", "body", "body with length", "100-continue", "silence"],
)
def test_a_slow_answer_ends_in_time(allowed: None, talk: Callable[[socket.socket], None]) -> None:
    with listening(talk) as listener:
        started = time.monotonic()
        with pytest.raises((TargetTimeout, TargetUnreachable)) as caught:
            send(f"http://127.0.0.1:{listener.port}/", seconds=0.6)
        assert time.monotonic() - started < 2
    # 100 short headers are over before the time is: http.client gives up by itself.
    assert caught.value.may_have_arrived


def test_a_slow_body_of_a_refusal_still_tells_the_status(allowed: None) -> None:
    with listening(drip(b"HTTP/1.1 410 Gone\r\n\r\n", b"a")) as listener:
        answer = send(f"http://127.0.0.1:{listener.port}/", seconds=0.4)
    assert answer.status == 410
    assert answer.body.startswith(b"a")


def test_a_slow_tls_handshake_ends_in_time(allowed: None) -> None:
    with listening(drip(b"", b"\x16")) as listener, pytest.raises((TargetTimeout, TargetUnreachable)) as caught:
        send(f"https://127.0.0.1:{listener.port}/", seconds=0.5)
    assert not caught.value.may_have_arrived


def test_a_header_of_a_megabyte_is_no_answer(allowed: None) -> None:
    text = b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 1_000_000 + b"\r\n\r\n"
    with listening(answering(text)) as listener, pytest.raises(TargetUnreachable) as caught:
        send(f"http://127.0.0.1:{listener.port}/")
    assert caught.value.may_have_arrived


def test_nobody_listens(allowed: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TargetUnreachable) as caught:
        send(f"http://127.0.0.1:{port}/")
    assert not caught.value.may_have_arrived
    assert "127.0.0.1" not in str(caught.value)


def test_a_slow_resolver_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(10) and [])
    started = time.monotonic()
    with pytest.raises(TargetTimeout) as caught:
        send("http://slow.example/", seconds=0.3)
    assert time.monotonic() - started < 2
    assert not caught.value.may_have_arrived
    release.set()


def test_an_unknown_name(resolver: dict[str, list[list[str]]]) -> None:
    resolver["none.example"] = [[]]
    with pytest.raises(TargetUnreachable):
        send("http://none.example/")


def test_a_header_with_a_line_break_is_never_sent(allowed: None, listener: Listener) -> None:
    with pytest.raises(TargetRefused):
        post(f"http://127.0.0.1:{listener.port}/", body=b"", headers={"X-A": "a\r\nX-B: b"})


class _Quiet(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        return


def test_tls_checks_the_name_and_sends_it(
    allowed: None, resolver: dict[str, list[list[str]]], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = _certificate(tmp_path, name="secure.example")
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda _sock, name, _context: asked.append(name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Quiet)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(certificate))
    resolver |= {"secure.example": [["127.0.0.1"]], "other.example": [["127.0.0.1"]]}
    try:
        assert send(f"https://secure.example:{server.server_port}/").status == 200
        with pytest.raises(TargetUnreachable) as caught:
            send(f"https://other.example:{server.server_port}/")
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["secure.example", "other.example"]
    assert not caught.value.may_have_arrived


def _certificate(directory: Any, *, name: str) -> tuple[Any, Any]:
    import datetime as dt

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(tz=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return directory / "cert.pem", directory / "key.pem"
