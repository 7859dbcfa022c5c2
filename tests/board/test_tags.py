"""The board's template tags: words, escaping, and that what is not known is never shown as a number."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.template import Context, Template

from jobsboard.templatetags import board

NOW = datetime(2026, 11, 21, 3, 17, 4, 204_000, tzinfo=UTC)


def render(source: str, **context: Any) -> str:
    return Template("{% load board %}" + source).render(Context(context))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.9993, "99.93%"), (0.99999, "99.99%"), (0.9999999999, "99.99%"), (1, "100%"), (1.0, "100%"), (0.57, "57.00%"),
        (0, "0%"), (0.000001, "&lt;0.01%"), (0.718, "71.80%"),
    ],
)  # fmt: skip
def test_ratio_is_never_rounded_up(value: float, words: str) -> None:
    assert render("{% ratio value %}", value=value) == words


def test_ratio_trims_a_target() -> None:
    assert render("{% ratio 0.999 trim=True %} {% ratio 0.98 trim=True %}") == "99.9% 98%"


@pytest.mark.parametrize("tag", ["ratio value", "duration value", "count value", "ratio missing", "count missing"])
def test_what_is_not_known_is_muted(tag: str) -> None:
    assert render("{% " + tag + " %}", value=None) == '<span class="mute">no data</span>'


def test_count() -> None:
    assert render("{% count 4127 %} {% count 1000 1000 %} {% count 0 %}") == '4,127 1,000+ <span class="mute">0</span>'


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "just now"), (40, "40 s ago"), (59.9, "59 s ago"), (1320, "22 min ago"), (7200, "2 h ago"),
        (172_800, "2 d ago"), (-24, "in 24 s"),
    ],
)  # fmt: skip
def test_ago(seconds: float, words: str) -> None:
    assert board.ago_words(seconds) == words


def test_times_carry_the_full_time() -> None:
    assert render("{% ago at now %}", at=NOW - timedelta(minutes=1), now=NOW) == (
        '<time datetime="2026-11-21T03:16:04.204Z" title="2026-11-21 03:16:04.204 UTC" data-ago>1 min ago</time>'
    )
    assert ">03:17:04<" in render("{% clock at now %}", at=NOW, now=NOW)
    assert ">20 Nov 03:17<" in render("{% clock at now %}", at=NOW - timedelta(days=1), now=NOW)
    assert "never" in render("{% clock at %}", at=None)


def test_state_is_icon_and_word() -> None:
    shown = render("{% state 'awaiting_confirmation' %}")
    assert 'class="st is-awaiting"' in shown
    assert "sprite.svg#i-awaiting" in shown
    assert shown.endswith("Awaiting confirmation</span>")
    assert "Not known" in render("{% state value %}", value=None)


@pytest.mark.parametrize(
    "tag", ["state value", "state 'dead' value", "state 'dead' sign=value", "icon value", "tier value"]
)
def test_tags_escape(tag: str) -> None:
    assert "<script" not in render("{% " + tag + " %}", value='"><script>')


@pytest.mark.parametrize(
    ("value", "words"), [(0.9991, "Within promise"), (0.999, "Within promise"), (0.9, "Outside"), (None, "No data")]
)
def test_promise(value: float | None, words: str) -> None:
    assert words in render("{% promise value 0.999 %}", value=value)
