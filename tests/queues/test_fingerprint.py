"""Which failures count as the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from queues.fingerprint import fingerprint, normalize


def _of(message: str, **overrides: str) -> str:
    words = {"reason": "", "error_class": "TimeoutError", "frame": "shop.mail:send", **overrides}
    return fingerprint(
        overrides.get("job_type", "mail"), message=message, **{k: v for k, v in words.items() if k != "job_type"}
    )


def test_what_differs_from_job_to_job_does_not_count() -> None:
    """Numbers, ids, addresses in memory and quoted values."""
    same = [
        "order 17 of 'anna' at 0x7f01 failed: 6f9619ff-8b86-d011-b42d-00c04fc964ff",
        'order 9 of "bob" at 0xBEEF failed: 00000000-0000-4000-8000-000000000001',
    ]
    assert len({_of(message) for message in same}) == 1
    assert len({_of(f"commit {c}") for c in ("deadbeefdeadbeef", "0123456789abcdef")}) == 1


def test_what_matters_does() -> None:
    """Type, class, reason, frame and the words of the message."""
    found = {
        _of("x"), _of("y"), _of("x", error_class="OSError"), _of("x", frame="shop.mail:other"),
        _of("x", reason="rejected"), _of("x", job_type="sms"),
    }  # fmt: skip
    assert len(found) == 6


@given(st.text(st.characters(codec=None), max_size=400), st.text(st.characters(codec=None)))
def test_any_text_has_a_fingerprint(message: str, frame: str) -> None:
    """16 hex digits, also for what UTF-8 cannot say; the same again."""
    found = _of(message, frame=frame)
    assert found == _of(message, frame=frame)
    assert len(found) == 16
    assert int(found, 16) >= 0
    assert len(normalize(message)) <= 300


def test_a_word_moved_between_fields_is_another_failure() -> None:
    """Fields are kept apart."""
    assert fingerprint("a", reason="b", error_class="", message="", frame="") != fingerprint(
        "a", reason="", error_class="b", message="", frame=""
    )
