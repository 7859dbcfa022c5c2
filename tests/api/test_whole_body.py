"""A body that ends before its announced length is an error, whatever of it came (H-24)."""

from __future__ import annotations

from io import BytesIO

import pytest
from django.http import HttpRequest, HttpResponse, QueryDict, UnreadablePostError
from django.test import RequestFactory

from jobsboard.slow_bodies import SlowBodiesMiddleware, WholeBody


def _body(text: bytes, announced: int) -> tuple[WholeBody, list[str]]:
    ends: list[str] = []
    return WholeBody(BytesIO(text), announced, at_end=lambda: ends.append("end")), ends


@pytest.mark.parametrize("size", [1, 3, 100, -1, None])
def test_a_whole_body_is_read_to_its_end(size: int | None) -> None:
    body, ends = _body(b"reason=x", 8)
    text = b""
    while len(text) < 8:
        assert ends == []
        text += body.read(size)
    assert (text, ends) == (b"reason=x", ["end"])
    assert body.read(1) == b""


@pytest.mark.parametrize("size", [1, 3, 100, -1, None])
def test_a_body_that_was_cut_off_is_an_error(size: int | None) -> None:
    body, ends = _body(b"reason=x", 9)
    with pytest.raises(OSError, match="1 bytes early"):
        while True:
            body.read(size)
    assert ends == []


def test_lines_are_counted() -> None:
    body, ends = _body(b"one\ntwo", 7)
    assert [body.readline(), body.readline(2), body.readline()] == [b"one\n", b"tw", b"o"]
    assert ends == ["end"]
    cut, _ = _body(b"one\n", 7)
    assert cut.readline() == b"one\n"
    with pytest.raises(OSError, match="3 bytes early"):
        cut.readline()


def test_half_a_form_is_no_form() -> None:
    """A pause whose end was cut off would be one without an end."""
    seen: list[QueryDict] = []
    form = {
        "wsgi.input": BytesIO(b"reason=deploy"),
        "CONTENT_LENGTH": "40",
        "CONTENT_TYPE": "application/x-www-form-urlencoded",
    }

    def view(got: HttpRequest) -> HttpResponse:
        seen.append(got.POST)
        return HttpResponse()

    request = RequestFactory().post("/", **form)  # type: ignore[arg-type]
    with pytest.raises(UnreadablePostError):
        SlowBodiesMiddleware(view)(request)
    assert seen == []
