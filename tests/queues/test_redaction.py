"""The redaction of payloads and texts: 30 planted secrets, and what must stay readable (S-27)."""

import json
import time
from uuid import UUID

import pytest

from queues.redaction import REDACTED, is_secret_name, redact, redact_text, shape

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nabcdef\n-----END RSA PRIVATE KEY-----"


def _planted(n: int) -> str:
    return f"planted{n:02d}value"


SECRETS: list[tuple[object, str]] = [
    ({"authorization": "Bearer " + _planted(1)}, _planted(1)),
    ({"Authorization": _planted(2)}, _planted(2)),
    ({"accessToken": _planted(3)}, _planted(3)),
    ({"access_token": [_planted(4)]}, _planted(4)),
    ({"client-secret": _planted(5)}, _planted(5)),
    ({"password": {"new": _planted(6)}}, _planted(6)),
    ({"db_passwd": _planted(7)}, _planted(7)),
    ({"X-Api-Key": _planted(8)}, _planted(8)),
    ({"apikey": _planted(9)}, _planted(9)),
    ({"Set-Cookie": _planted(10)}, _planted(10)),
    ({"private_key": _planted(11)}, _planted(11)),
    ({"card": {"number": _planted(12)}}, _planted(12)),
    ({"customer": {"iban": _planted(13)}}, _planted(13)),
    ({"ssn": 123456789}, "123456789"),
    ({"cvv": 987}, "987"),
    ({"note": f"sent with {JWT}"}, JWT.rsplit(".", maxsplit=1)[-1]),
    ({"note": "key sk_live_4eC39HqLyjWDarjtT1zdp7dc used"}, "4eC39HqLyjWDarjtT1zdp7dc"),
    ({"note": "AKIAIOSFODNN7EXAMPLE"}, "AKIAIOSFODNN7EXAMPLE"),
    ({"note": PEM}, "MIIEowIBAAKCAQEA"),
    ({"note": PEM[:60]}, "MIIEowIB"),
    ({"url": "postgresql://app:planted21value@db:5432/x"}, "planted21value"),
    ({"url": "https://planted22value@example.com/hook"}, "planted22value"),
    ({"note": "4111111111111111"}, "4111111111111111"),
    ({"note": "pay 4242-4242-4242-4242 now"}, "4242-4242"),
    ({"note": "amex 3782 822463 10005"}, "822463"),
    ({"n": 5555555555554444}, "5555555555554444"),
    ({"query": "https://x.example/cb?token=planted27value&a=1"}, "planted27value"),
    ({"log": "{'password': 'planted28 value', 'a': 1}"}, "planted28"),
    ({"log": 'body={"api_key": "planted29value"}'}, "planted29"),
    ({"log": '{\\"secret\\": \\"planted30value\\", \\"a\\": 1}'}, "planted30"),
    ({"log": "Authorization: Basic cGxhbnRlZDMx\nHost: x"}, "cGxhbnRlZDMx"),
    ({"log": "curl -H 'Authorization: Bearer planted32value'"}, "planted32value"),
    ({"log": "Cookie: sessionid=planted33value; csrftoken=planted33value\nHost: x"}, "planted33"),
    ({"log": "AWS_SECRET_ACCESS_KEY=planted34value"}, "planted34"),
    ({"deep": [[{"x": [{"refreshToken": "planted35value"}]}]]}, "planted35"),
    ({"sk_live_4eC39HqLyjWDarjtT1zdp7dc": 1}, "4eC39HqLyjWDarjtT1zdp7dc"),
    ({"log": "jb_live_abcd1234_secretsecretsecretsecret"}, "secretsecret"),
    ({"log": "redis://:planted38value@cache:6379/0"}, "planted38"),
]


@pytest.mark.parametrize(("value", "secret"), SECRETS)
def test_planted_secret_is_gone(value: object, secret: str) -> None:
    """S-27, in a value and again in the same value as text."""
    assert len(SECRETS) >= 30
    assert secret not in json.dumps(redact(value))
    assert REDACTED in json.dumps(redact(value))


@pytest.mark.parametrize(
    "value",
    [
        {"order_id": "100000000000000001"},
        {"order_id": 4111111111111112},
        {"order": "ORD4111111111111111X", "id": "a4111111111111111"},
        {"id": str(UUID("44444444-4444-4444-4444-444444444444")), "other": "12345678-4111-1111-1111-111111111111"},
        {"id": "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"},
        {"at": 1_700_000_000_000, "us": 1_700_000_000_000_000, "ns": 1_700_000_000_000_000_000},
        {"at": "2026-01-02T03:04:05.678901Z", "clock": "12:30:45"},
        {"amount": 4111111111.111111, "text": "4.111111111111111"},
        {"phone": "+49 30 1234 5678 9012", "snowflake": 411111111111111111},
        {"dedupe_key": "invoice-1", "idempotency_key": "jb_" + "a" * 32, "key": "k"},
        {"max_tokens": 4096, "token_count": 12},
        {"secretary": "Jane", "discard": "x", "scorecard": 1, "author": "x", "company": "x", "keyboard": "x"},
        {"password_changed": True, "token": None},
        {"url": "https://example.com/a@b?x=1", "mail": "jane@example.com"},
        {"text": "Basic authentication failed; bearer was missing"},
        {"certificate": "-----BEGIN CERTIFICATE-----"},
        {"empty": {}, "list": [], "n": 1.5, "no": False},
    ],
)
def test_harmless_values_stay(value: object) -> None:
    assert redact(value) == value


def test_contract_pointers() -> None:
    value = {"email": "e", "items": [{"name": "a", "sku": 1}, {"name": "b", "sku": 2}], "a/b": {"~": 1}, "m": {"k": 1}}
    shown = redact(value, pointers=["/email", "/items/*/name", "/a~1b/~0", "/m/*", "/not/there", "/items/1/sku"])
    assert shown == {
        "email": REDACTED,
        "items": [{"name": REDACTED, "sku": 1}, {"name": REDACTED, "sku": REDACTED}],
        "a/b": {"~": REDACTED},
        "m": {"k": REDACTED},
    }
    assert redact(value, pointers=[""]) == REDACTED
    assert redact([1, 2], pointers=["/0"]) == [REDACTED, 2]


def test_input_is_not_changed() -> None:
    value = {"a": [{"token": "x"}]}
    redact(value)
    assert value == {"a": [{"token": "x"}]}


def test_too_deep_is_hidden_not_an_error() -> None:
    value: object = "x"
    for _ in range(500):
        value = [value]
    assert REDACTED in json.dumps(redact(value))
    assert shape(value)


def test_text_keeps_its_other_words() -> None:
    text = redact_text('POST https://u:p@x.example/a failed: {"token": "abc", "a": 1} (card 4242 4242 4242 4242)')
    assert text == f'POST https://{REDACTED}@x.example/a failed: {{"token": {REDACTED}, "a": 1}} (card {REDACTED})'


def test_shape_has_keys_and_types_only() -> None:
    value = {"a": "secret", "n": 1, "f": 1.5, "b": True, "z": None, "l": [{"x": 1}, {"x": 2}, "s"], "o": {}}
    assert shape(value) == {
        "a": "string",
        "n": "integer",
        "f": "number",
        "b": "boolean",
        "z": "null",
        "l": [{"x": "integer"}, "string"],
        "o": {},
    }


@pytest.mark.parametrize("name", ["token", "tokens", "userPassword", "API-KEY", "HTTP_AUTHORIZATION", "credit_card_no"])
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "piece", ["a", "token=", 'token=\\"', "://", "eyJ", "4 ", "4111", "-----BEGIN PRIVATE KEY-----", "{'"]
)
def test_hostile_text_ends_soon(piece: str) -> None:
    """S-36: no pattern needs more than one pass over 256 KiB."""
    start = time.process_time()
    redact_text(piece * (262_144 // len(piece)))
    assert time.process_time() - start < 2.0
