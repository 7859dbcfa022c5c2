"""Strict JSON: RELIABILITY.md C1, rows H-01 to H-16. Not here: the same rows through HTTP (tests/api)."""

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queues.canonical import JsonRefused, canonical, json_pointer, parse, request_hash

DEEP = 64


@pytest.mark.parametrize(
    ("text", "code", "says", "pointer"),
    [
        (b'{"a":1', "invalid_json", "line 1 column 7", ""),
        (b"", "invalid_json", "line 1 column 1", ""),
        (b'{"a":1}\n}', "invalid_json", "line 2 column 1", ""),
        (b"{'a':1}", "invalid_json", "line 1 column 2", ""),
        (b'{"a":1,}', "invalid_json", "line 1 column", ""),
        (b'{"a":"\n"}', "invalid_json", "line 1 column", ""),
        (b'{"x":"NaN",\n "a":NaN}', "invalid_json", "line 2 column 6", ""),
        (b"[-Infinity]", "invalid_json", "line 1 column 2", ""),
        (b"[01]", "invalid_json", "line 1 column", ""),
        (b'\xef\xbb\xbf{"a":1}', "invalid_encoding", "UTF-8", ""),
        ('{"a":1}'.encode("utf-16"), "invalid_encoding", "UTF-8", ""),
        ('{"a":1}'.encode("utf-16-le"), "invalid_encoding", "UTF-8", ""),
        ('{"a":1}'.encode("utf-32-be"), "invalid_encoding", "UTF-8", ""),
        (b'{"a":"\xff"}', "invalid_encoding", "Byte 6", ""),
        (b'{"a":"\xed\xa0\x80"}', "invalid_encoding", "Byte 6", ""),
        (b'{"a":["\\ud800"]}', "invalid_unicode", "surrogate", "/a/0"),
        (b'{"a":"\\uDFFF\\uD800"}', "invalid_unicode", "surrogate", "/a"),
        (b'{"a":"\\u0000"}', "invalid_unicode", "U+0000", "/a"),
        (b'{"a":{"\\ud800":1}}', "invalid_unicode", "surrogate", "/a"),
        (b'{"a":[0,1e400]}', "number_out_of_range", "too large", "/a/1"),
        (b'{"a":-1e400}', "number_out_of_range", "too large", "/a"),
        (b'{"a/b":' + b"9" * 5000 + b"}", "number_out_of_range", "digits", "/a~1b"),
        (b"[" * (DEEP + 1) + b"]" * (DEEP + 1), "too_deep", "64", "/0" * DEEP),
        (b"[" * 1000 + b"]" * 1000, "too_deep", "64", None),
        (b"[" * 100_000 + b"]" * 100_000, "too_deep", "64", None),
        (b"[" * 100_000, "too_deep", "64", None),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "too_deep", "64", None),
        (b'{"a":1,"a":2}', "duplicate_key", "more than once", "/a"),
        (b'{"x":[{"a~":1,"a~":1}]}', "duplicate_key", "more than once", "/x/0/a~0"),
        (b'{"a":1,"\\u0061":2}', "duplicate_key", "more than once", "/a"),
    ],
)
def test_refused(text: bytes, code: str, says: str, pointer: str | None) -> None:
    """H-01, H-03, H-04, H-11 to H-15."""
    with pytest.raises(JsonRefused) as caught:
        parse(text)
    assert caught.value.code == code
    assert says in caught.value.detail
    if pointer is not None:
        assert caught.value.pointer == pointer


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"null",
        b" [1, 1.0, -0, 1e300, 1E-400] ",
        b'{"a":"\\\\ud800 \\\\u0000"}',  # an escaped backslash, then text
        '{"a":"\\ud83d\\ude00 \U0001f600"}'.encode(),
        b"[" * DEEP + b"]" * DEEP,
        b"[" + b"9" * 4000 + b"]",
        b'{"__type__":"uuid","__value__":{"hex":"zz"}}',
        b'{"a":"<script>\\u202e\\u001b[31m"}',
        ("[" + ",".join(["{}"] * 5000) + "]").encode(),
    ],
)
def test_taken_as_sent(text: bytes) -> None:
    """H-16, H-17: what is taken is kept byte for byte."""
    parsed = parse(text)
    assert parsed.text.encode() == text
    assert parsed.value == json.loads(text)


def test_text_may_be_str() -> None:
    assert parse('{"a":"é"}').value == {"a": "é"}
    with pytest.raises(JsonRefused) as caught:
        parse('{"a":"\ud800"}')
    assert caught.value.code == "invalid_unicode"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b'{"a":1,"b":[true,null]}', b'{ "b" : [true, null],\n"a":1 }', True),
        (b'{"a":"\\u00e9"}', '{"a":"é"}'.encode(), True),
        (b'{"a":1.0}', b'{"a":1.00}', True),
        (b'{"a":1}', b'{"a":1.0}', False),
        (b'{"a":"1"}', b'{"a":1}', False),
        (b'{"a":true}', b'{"a":1}', False),
        (b'{"a":[1,2]}', b'{"a":[2,1]}', False),
        ('{"a":"é"}'.encode(), '{"a":"e\u0301"}'.encode(), False),
    ],
)
def test_hash_of_the_canonical_form(one: bytes, other: bytes, *, same: bool) -> None:
    """H-06, H-07: spaces and key order are no difference; the kind of a number and Unicode forms are."""
    assert (request_hash(parse(one).value, "g") == request_hash(parse(other).value, "g")) is same


def test_group_is_part_of_the_request() -> None:
    assert len({request_hash({}, None), request_hash({}, ""), request_hash({}, "g")}) == 3


def test_canonical_form() -> None:
    assert canonical({"b": 1.0, "a": ["é", None]}) == '{"a":["é",null],"b":1.0}'.encode()
    for bad in (float("nan"), "\ud800"):
        with pytest.raises(JsonRefused):
            canonical([bad])


def test_pointer() -> None:
    assert json_pointer(["a/b", 0, "~"]) == "/a~1b/0/~0"


_TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner),
    max_leaves=20,
)


@given(_JSON)
def test_round_trip(value: object) -> None:
    """Whatever Python can write is taken, and its canonical form is a fixed point."""
    parsed = parse(json.dumps(value))
    assert parsed.value == value
    assert canonical(parse(canonical(value)).value) == canonical(value)


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_read(data: bytes) -> None:
    """No input makes anything else than JsonRefused."""
    try:
        parse(data)
    except JsonRefused as refused:
        assert refused.code.startswith(("invalid", "number", "too", "duplicate"))


def test_hostile_texts_end_soon() -> None:
    """A megabyte of brackets, escapes or repeated keys costs less than a second."""
    for text in (b"[" * 1_000_000, b'["' + b"\\\\u0000" * 140_000 + b'"]', b"{" + b'"a":1,' * 150_000 + b'"b":1}'):
        start = time.process_time()
        with contextlib.suppress(JsonRefused):
            parse(text)
            # Linear takes a tenth of a second; what it must not be is minutes.
            assert time.process_time() - start < 10.0
