"""Ranges of a page's own: what makes one, what is cleared and said, links that keep it, the form without a script."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
from django.test import Client, RequestFactory

from jobsboard.annotations import Wanted, annotate
from jobsboard.board import marks, summary
from jobsboard.board.changes import entries_of
from jobsboard.board.params import Chosen, Params, chosen_range
from queues import audit, lifecycle, outcomes
from queues.models import Job
from queues.outcomes import RANGES, Span
from tests.factories import accept, claim, confirmed, fold_all, make_type

NOW = datetime.now(UTC).replace(second=30, microsecond=0)
PAGES = ["/", "/types/", "/types/mail.send/"]


def ago(**span: float) -> str:
    return (NOW - timedelta(**span)).strftime("%Y-%m-%dT%H:%M")


def choose(query: str) -> tuple[Chosen, list[str]]:
    params = Params(RequestFactory().get(f"/?{query}"))
    return chosen_range(params, now=NOW), params.notes


def test_from_and_to_make_a_range() -> None:
    chosen, notes = choose(f"from={ago(hours=5)}&to={ago(hours=3)}&range=7d")
    assert notes == []
    assert (chosen.name, chosen.span.until - chosen.span.since) == ("", timedelta(hours=2))
    assert chosen.span.since == (NOW - timedelta(hours=5)).replace(second=0)
    assert chosen.words.startswith("range ")
    assert chosen.given == [("from", f"{ago(hours=5)}Z"), ("to", f"{ago(hours=3)}Z")]


def test_without_to_the_range_ends_now() -> None:
    chosen, notes = choose(f"from={ago(hours=2)}&to=")
    assert notes == []
    assert chosen.span.until == NOW
    assert chosen.words.endswith(" UTC to now")
    assert chosen.given == [("from", f"{ago(hours=2)}Z")]


@pytest.mark.parametrize(
    "form", ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S%%2B00:00", "%Y-%m-%d %H:%M"]
)
def test_times_without_a_zone_are_utc(form: str) -> None:
    """What a datetime-local input sends, and what links say."""
    since = (NOW - timedelta(hours=2)).replace(second=0)
    chosen, notes = choose(f"from={since.strftime(form)}")
    assert (chosen.span.since, notes) == (since, [])


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("from=soon", "from “soon” is not a time, cleared"),
        (f"from={ago(hours=2)}&to=later", "to “later” is not a time, cleared"),
        (f"to={ago(hours=2)}", "to needs from as well, cleared"),
        (f"from={ago(hours=2)}&to={ago(hours=3)}", "to is not after from, both cleared"),
        (f"from={ago(hours=2)}&to={ago(hours=2)}", "to is not after from, both cleared"),
        (f"from={ago(hours=-2)}", "from is in the future, cleared"),
        (f"from={ago(hours=-3)}&to={ago(hours=-2)}", "from is in the future, cleared"),
        (f"from={ago(days=401)}", "is too far away, cleared"),
        (f"from={ago(days=401)}&to={ago(days=1)}", "is too far away, cleared"),
        ("from=9999-12-31T23:59:59-14:00", "from “9999-12-31T23:59:59-14:00” is not a time, cleared"),
        ("from=0001-01-01T00:00:00%2B14:00", "is not a time, cleared"),
        ("from=2026-02-30", "is not a time, cleared"),
        ("range=99y", "range “99y” does not exist, cleared"),
        ("range=custom", "range “custom” does not exist, cleared"),
    ],
)
def test_what_makes_no_range_is_cleared_and_said(query: str, says: str) -> None:
    chosen, notes = choose(query)
    assert any(says in note for note in notes), notes
    if "to=later" not in query:
        assert (chosen.name, chosen.given) == ("6h", [])


def test_a_range_into_the_future_ends_now() -> None:
    chosen, notes = choose(f"from={ago(hours=1)}&to={ago(hours=-1)}")
    assert chosen.span.until == NOW
    assert notes == ["to is in the future, so the range ends now"]
    assert [name for name, _ in chosen.given] == ["from"]


@pytest.mark.parametrize(("days", "most"), [(0.01, 72), (1, 72), (10, 72), (99, 72), (399, 72)])
def test_a_range_of_any_length_has_few_slots(days: float, most: int) -> None:
    chosen, _ = choose(f"from={ago(days=days)}")
    assert 1 <= len(chosen.span.slots) <= most


def test_what_is_kept_coarsely_widens_the_range_and_says_so() -> None:
    since = (NOW - timedelta(days=30)).replace(hour=10, minute=20, second=0)
    query = f"from={since:%Y-%m-%dT%H:%M}&to={since + timedelta(minutes=10):%Y-%m-%dT%H:%M}"
    chosen, notes = choose(query)
    assert chosen.span.since == since.replace(minute=0)
    assert chosen.words == f"range {since:%-d %b} 10:00 to 11:00 UTC"
    assert len(notes) == 1
    assert "wider" in notes[0]


@pytest.mark.parametrize("url", PAGES)
def test_pages_answer_to_any_range(viewer: Client, busy: Job, url: str) -> None:
    """Never 500; a value that is cleared is explained on the page."""
    for query in (
        f"from={ago(hours=2)}&to={ago(hours=1)}", f"from={ago(days=399)}", f"from={ago(days=399)}&to={ago(days=398)}",
        f"from={ago(minutes=1)}", f"from={ago(days=5)}&to={ago(days=4)}", *(f"range={name}" for name in RANGES),
    ):  # fmt: skip
        assert viewer.get(f"{url}?{query}").status_code == 200, query
    for query, says in (
        (f"from={ago(hours=1)}&to={ago(hours=2)}", "to is not after from, both cleared"),
        (f"from={ago(days=500)}", "is too far away, cleared"),
        ("from=%3Cscript%3E", "from “&lt;script&gt;” is not a time, cleared"),
    ):
        response = viewer.get(f"{url}?{query}")
        assert response.status_code == 200
        assert says in response.text, (url, query)


def links_of(page: str) -> list[str]:
    return [unescape(href) for href in re.findall(r'href="([^"]*)"', page)]


def test_links_keep_the_range_and_leave_the_default_out(viewer: Client, busy: Job) -> None:
    custom = f"from={ago(hours=2)}Z&to={ago(hours=1)}Z"
    page = links_of(viewer.get(f"/?{custom}").text)
    assert f"/types/mail.send/?{custom}" in page
    assert f"/types/?tier=1&{custom}" in page
    assert f"/types/mail.send/?{custom}" in links_of(viewer.get(f"/types/?{custom}").text)
    plain = links_of(viewer.get("/?range=6h").text)
    assert "/types/mail.send/" in plain
    assert "/types/?tier=1" in plain
    wider = links_of(viewer.get("/?range=24h").text)
    assert "/types/mail.send/?range=24h" in wider


def test_the_choices_replace_each_other(viewer: Client, busy: Job) -> None:
    """A named range drops from and to, the default drops range; other filters stay."""
    page = viewer.get(f"/types/?tier=1&from={ago(hours=2)}&to={ago(hours=1)}").text
    nav = links_of(
        page[page.index('aria-label="Time range"') : page.index("</nav>", page.index('aria-label="Time range"'))]
    )
    assert "?tier=1" in nav
    assert "?tier=1&range=24h" in nav
    assert not [link for link in nav if "from" in link or "6h" in link]
    assert 'aria-current="true"' not in page[page.index('aria-label="Time range"') : page.index('id="range"')]


def test_the_form_works_without_a_script(viewer: Client, busy: Job) -> None:
    """It is a GET form with two inputs that hold the range shown; it carries other filters, not the old range."""
    page = viewer.get(f"/types/?tier=1&range=24h&after=x&from={ago(hours=2)}&to={ago(hours=1)}").text
    form = page[page.index('<form class="field" method="get">') :]
    form = form[: form.index("</form>")]
    inputs = dict(re.findall(r'name="(\w+)"[^>]*value="([^"]*)"', form))
    assert inputs == {"tier": "1", "from": ago(hours=2), "to": ago(hours=1)}
    answer = viewer.get("/types/", {name: unescape(value) for name, value in inputs.items()})
    assert "range " in answer.text
    assert "does not exist" not in answer.text
    for url in ("/jobs/", "/dlq/", "/audit/"):
        assert 'id="range"' not in viewer.get(url).text


def test_the_words_follow_the_range(viewer: Client, busy: Job) -> None:
    since, until = NOW - timedelta(hours=2), NOW - timedelta(hours=1)
    for url in PAGES:
        page = viewer.get(f"{url}?from={ago(hours=2)}&to={ago(hours=1)}").text
        assert f"range {since:%-d %b %H:%M} to " in page, url
        assert f"{until:%H:%M} UTC" in page
        assert "last 6h" not in page
        assert "last range" not in page


@pytest.mark.django_db
def test_what_is_open_is_as_old_as_now_in_a_range_that_is_over() -> None:
    make_type("mail.send", tier_id=1)
    accept(1, kind="mail.send")
    fold_all()
    board = outcomes.board()
    span = Span.between(board.now - timedelta(hours=5), board.now - timedelta(hours=4), now=board.now)
    (line,) = summary.type_lines(summary.read(board, span))
    assert line.oldest_seconds is not None
    assert 0 <= line.oldest_seconds < 600


@pytest.mark.django_db
def test_what_changed_is_of_the_range() -> None:
    """Neither what came after it nor what was before."""
    now = datetime.now(UTC)
    for minutes in (10, 90, 200):
        annotate(
            Wanted(kind="deploy", at=now - timedelta(minutes=minutes), text=str(minutes)), created_by="x", source="api"
        )
    audit.record("contract.paused", actor="kim", object_type="job_type", object_id="mail.send")
    over = Span.between(now - timedelta(hours=2), now - timedelta(hours=1), now=now)
    assert [event.word for event in marks.read(over).events] == ["90"]
    assert list(entries_of(over, now=now)) == []
    assert [entry.action for entry in entries_of(Span.of("1h", now=now), now=now)][:1] == ["contract.paused"]


@pytest.mark.django_db
def test_stages_and_rates_of_a_tier_and_of_all(viewer: Client) -> None:
    """The list of types shows them for the tiers that it shows."""
    make_type("one.job", tier_id=1)
    make_type("two.job", tier_id=2)
    for kind in ("one.job", "two.job", "two.job"):
        lifecycle.settle([confirmed(run, seconds=2.0) for run in claim(accept(1, kind=kind))])
    accept(1, kind="two.job")
    fold_all()
    for query, runs, of in (("", 3, "All tiers"), ("&tier=2", 2, "Tier 2"), ("&tier=3", 0, "Tier 3")):
        page = viewer.get(f"/types/?range=1h{query}").text
        assert f"0 failed, 0 lost, of {runs}" in page
        assert f"{of}, of jobs that left a stage" in page
        assert ("?state=accepted&amp;tier=2" in page) == (query == "&tier=2")
