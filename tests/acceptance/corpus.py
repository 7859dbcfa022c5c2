"""The bytes of RELIABILITY C1: examples of each rule, with the answer that it names. Tests: test_bad_input.py."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

PLAIN: dict[str, Any] = {"type": "in.plain", "payload": {"n": 1}}


def with_payload(payload: bytes, **more: Any) -> bytes:
    """Return a body whose payload is these bytes."""
    rest = json.dumps(more)[1:-1].encode()
    return b'{"type":"in.plain","payload":' + payload + (b"," + rest if rest else b"") + b"}"


BAD_TIMES: list[Any] = [
    "10000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2026-01-01T00:00:00",
    "2026-12-31T23:59:60Z", "2026-02-30T00:00:00Z", "2026-01-01", "now", "", " 2030-01-01T00:00:00Z",
    "2030-01-01T00:00:00Z\n", "2030-01-01T00:00:00+24:00", "2030-01-01T00:00:00+0100", "infinity", "epoch",
    "٢٠٣٠-01-01T00:00:00Z", 1893456000, 1.5, True, [], {}, 10**30,
    (datetime.now(UTC) + timedelta(days=5 * 365)).isoformat(),
]  # fmt: skip

BAD_BODIES: list[tuple[str, bytes, int, str]] = [
    ("H-01 cut off", b'{"a":1', 400, "invalid_json"),
    ("H-01 nothing", b"", 400, "invalid_json"),
    ("H-01 two values", json.dumps(PLAIN).encode() * 2, 400, "invalid_json"),
    ("H-01 NaN", with_payload(b'{"a":NaN}'), 400, "invalid_json"),
    ("H-01 -Infinity", with_payload(b"[-Infinity]"), 400, "invalid_json"),
    ("H-01 comment", with_payload(b"{/* */}"), 400, "invalid_json"),
    ("H-01 single quotes", b"{'type':'in.plain','payload':1}", 400, "invalid_json"),
    ("H-01 a form", b"type=in.plain&payload=1", 400, "invalid_json"),
    ("H-01 leading zero", with_payload(b"[01]"), 400, "invalid_json"),
    ("H-01 control character", with_payload(b'"\x01"'), 400, "invalid_json"),
    ("H-03 byte order mark", b"\xef\xbb\xbf" + json.dumps(PLAIN).encode(), 400, "invalid_encoding"),
    ("H-03 UTF-16", json.dumps(PLAIN).encode("utf-16"), 400, "invalid_encoding"),
    ("H-03 UTF-16 LE without mark", json.dumps(PLAIN).encode("utf-16-le"), 400, "invalid_encoding"),
    ("H-03 UTF-32", json.dumps(PLAIN).encode("utf-32-be"), 400, "invalid_encoding"),
    ("H-04 broken UTF-8", with_payload(b'{"a":"\xff"}'), 400, "invalid_encoding"),
    ("H-04 overlong", with_payload(b'"\xc0\xaf"'), 400, "invalid_encoding"),
    ("H-04 surrogate as UTF-8", with_payload(b'"\xed\xa0\x80"'), 400, "invalid_encoding"),
    ("H-04 cut off character", with_payload(b'"\xe2\x82"'), 400, "invalid_encoding"),
    ("H-04 broken key", with_payload(b'{"\xff":1}'), 400, "invalid_encoding"),
    ("H-11 lone surrogate", with_payload(b'{"a":"\\ud800"}'), 422, "invalid_unicode"),
    ("H-11 in a key", with_payload(b'{"\\udfff":1}'), 422, "invalid_unicode"),
    ("H-11 wrong order", with_payload(b'"\\udc00\\ud800"'), 422, "invalid_unicode"),
    ("H-11 in the type", b'{"type":"\\ud800","payload":1}', 422, "invalid_unicode"),
    ("H-11 NUL", with_payload(b'"\\u0000"'), 422, "invalid_unicode"),
    ("H-12 1e400", with_payload(b'{"a":1e400}'), 422, "number_out_of_range"),
    ("H-12 -1e400", with_payload(b"-1e400"), 422, "number_out_of_range"),
    ("H-12 in the envelope", with_payload(b"1", delay_seconds=0).replace(b": 0}", b": 1e400}"), 422, "*"),
    ("H-13 5000 digits", with_payload(b'{"a":' + b"9" * 5000 + b"}"), 422, "number_out_of_range"),
    ("H-13 negative", with_payload(b"[-" + b"1" * 100_000 + b"]"), 422, "number_out_of_range"),
    ("H-13 as priority", with_payload(b"1", priority=0).replace(b": 0}", b": " + b"9" * 5000 + b"}"), 422, "*"),
    ("H-14 1000 deep", with_payload(b"[" * 1000 + b"]" * 1000), 422, "too_deep"),
    ("H-14 100000 deep", with_payload(b"[" * 100_000 + b"]" * 100_000), 422, "too_deep"),
    ("H-14 objects", with_payload(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), 422, "too_deep"),
    ("H-14 never closed", with_payload(b"[" * 100_000), 422, "too_deep"),
    ("H-14 the body itself", b"[" * 100_000 + b"]" * 100_000, 422, "*"),
    ("H-14 65", with_payload(b"[" * 65 + b"]" * 65), 422, "too_deep"),
    ("H-15 key twice", with_payload(b'{"a":1,"a":2}'), 422, "duplicate_key"),
    ("H-15 escaped the second time", with_payload(b'{"a":1,"\\u0061":2}'), 422, "duplicate_key"),
    ("H-15 deep", with_payload(b'[{"b":{"a":1,"a":1}}]'), 422, "duplicate_key"),
    ("H-15 in the envelope", b'{"type":"in.plain","type":"in.off","payload":1}', 422, "duplicate_key"),
    ("H-15 payload twice", b'{"type":"in.plain","payload":1,"payload":1}', 422, "duplicate_key"),
    ("H-18 unknown type", b'{"type":"in.nothing","payload":1}', 404, "unknown_job_type"),
    ("H-18 type of wildcards", b'{"type":"in.*","payload":1}', 404, "unknown_job_type"),
    ("H-18 empty type", b'{"type":"","payload":1}', 404, "unknown_job_type"),
    ("H-18 SQL", b'{"type":"in.plain\' OR 1=1 --","payload":1}', 404, "unknown_job_type"),
    ("H-18 long type", json.dumps({**PLAIN, "type": "x" * 100_000}).encode(), 404, "unknown_job_type"),
    ("H-18 disabled", b'{"type":"in.off","payload":1}', 409, "type_disabled"),
    ("H-18 a version", with_payload(b"1", contract_version=1), 422, "invalid_request"),
    ("H-18 a queue", with_payload(b"1", queue="tier1"), 422, "invalid_request"),
    ("H-18 a number", b'{"type":1,"payload":1}', 422, "invalid_request"),
    ("H-18 no type", b'{"payload":1}', 422, "invalid_request"),
    ("H-18 no payload", b'{"type":"in.plain"}', 422, "invalid_request"),
    ("H-18 schema", b'{"type":"in.strict","payload":{}}', 422, "contract_violation"),
    ("H-18 over the contract's limit", b'{"type":"in.strict","payload":{"n":"' + b"a" * 2000 + b'"}}', 413, "*"),
    ("a list", b"[]", 422, "invalid_request"),
    ("null", b"null", 422, "invalid_request"),
    ("priority 101", with_payload(b"1", priority=101), 422, "*"),
    ("priority 1.5", with_payload(b"1", priority=1.5), 422, "*"),
    ("priority true", with_payload(b"1", priority=True), 422, "*"),
    ("priority text", with_payload(b"1", priority="1"), 422, "*"),
    ("priority 2^63", with_payload(b"1", priority=2**63), 422, "*"),
    ("group empty", with_payload(b"1", group=""), 422, "*"),
    ("group of two words", with_payload(b"1", group="a b"), 422, "*"),
    ("group 256", with_payload(b"1", group="g" * 256), 422, "*"),
    ("group NUL", with_payload(b"1", group="a\0"), 422, "*"),
    ("max age 0", with_payload(b"1", max_age_seconds=0), 422, "*"),
    ("max age -1", with_payload(b"1", max_age_seconds=-1), 422, "*"),
    ("max age 1e308", with_payload(b"1", max_age_seconds=1e308), 422, "*"),
    ("delay -1", with_payload(b"1", delay_seconds=-1), 422, "*"),
    ("delay 1e308", with_payload(b"1", delay_seconds=1e308), 422, "*"),
    ("delay and run_at", with_payload(b"1", delay_seconds=1, run_at="2026-01-01T00:00:00Z"), 422, "*"),
    *(
        (f"H-19 run_at {value!r}", with_payload(b"1", run_at=value), 422, "invalid_datetime")
        for value in BAD_TIMES
    ),
]  # fmt: skip


BAD_HTTP: list[tuple[str, bytes]] = [
    ("bad chunk size", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
    ("negative chunk size", b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n"),
    ("unknown coding", b"Transfer-Encoding: gzip\r\n\r\n{}"),
    ("both lengths", b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
    ("two lengths", b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} "),
    ("negative length", b"Content-Length: -1\r\n\r\n{}"),
    ("no number as length", b"Content-Length: abc\r\n\r\n{}"),
    ("length with a plus", b"Content-Length: +2\r\n\r\n{}"),
    ("header without a colon", b"Nonsense\r\n\r\n"),
    ("header with a space in its name", b"Some Thing: 1\r\n\r\n"),
    ("header of 100 kB", b"X-Long: " + b"a" * 100_000 + b"\r\n\r\n"),
    ("200 headers", b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + b"\r\n"),
    ("folded header", b"X-A: 1\r\n 2\r\n\r\n"),
    ("expectation", b"Expect: miracles\r\nContent-Length: 2\r\n\r\n{}"),
]
"""What comes after a good request line and its type."""


BAD_KEYS = ["", " ", "a b", "a\t", "k" * 256, "k" * 3000, "k" * 100_000, secrets.token_hex(10_000), "café",
            "cafe\u0301", "k1\u200b", "k\u202e1", "\x7f", "k\n"]  # fmt: skip


KEPT = [
    b'{"__type__":"uuid","__value__":{"hex":"zz"}}',
    b'{"__type__":"nope","__value__":1}',
    b'{"__type__":"bytes","__value__":"!!"}',
    b'{"b":1,"a":2,  "c":[ ]}',
    b"1.0", b"-0", b"-0.0", b"1E2", b"1e-400", b"123456789012345678901234567890", b"0.1000", b'"\\u00e9"', b'"\\/"',
    b'"\\ud83d\\ude80"', b"[]", b"null", b"true", b'""', b'{"":0}',
    b'{"a":"<script>alert(1)</script>","b":"\\"><img src=x onerror=alert(1)>","c":"javascript:alert(1)"}',
    '"\u202eevil\u2066"'.encode(), b'"\\u001b[31mred"', b'"' + b"w" * 10_000 + b'"', '"\ufeff\u200b\u2028"'.encode(),
    '"𝕏 \U0010ffff \ufffe"'.encode(), b"[" * 64 + b"]" * 64, b'{"a":"\\\\u0000","b":"\\\\ud800"}',
    b'{"card":"4111111111111111"}', b'{"type":"in.off","payload":{"payload":1}}',
]  # fmt: skip


BAD_QUERIES = [
    "limit=0", "limit=-1", "limit=1000000000", "limit=abc", "limit=", "limit=1.0", "limit=%2b1", "limit=1&limit=2",
    "limit=99999999999999999999", "limit=%D9%A1", "offset=100000000000000000000", "offset=0", "page=2", "state=DEAD",
    "state=", "state=dead&state=confirmed", "tier=0", "tier=4", "tier=x", "since=yesterday", "since=2026-01-01",
    "until=9999-99-99T00:00:00Z", "group=a%20b", "group=", "dedupe_key=%00", "cursor=x", "cursor=", "cursor=a:b:c",
    "cursor=" + "a" * 3000, "q=1", "sort=id;DROP TABLE queues_job",
]  # fmt: skip
