"""Marks: where their letters fit, what the sentence and the table say, whose marks a page shows, support under lag."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from jobsboard.annotations import Wanted, annotate
from jobsboard.board import chart, marks, svg
from jobsboard.board.chart_marks import KINDS, Mark, legend, says, tags
from jobsboard.models import Annotation
from queues import contract_switches
from queues.models import ContractRevision, Job, OutcomeRollup
from queues.outcomes import Span
from tests.board.conftest import ClientOf
from tests.factories import analyze, make_type, sql

NOW = datetime(2026, 11, 21, 3, 17, tzinfo=UTC)
NASTY = '"><script>alert(1)</script><img src=x onerror=alert(1)>&'


def parse(markup: svg.Svg) -> ElementTree.Element:
    return ElementTree.fromstring(f"<root>{markup}</root>")  # noqa: S314 (our own output)


def make_chart(found: list[Mark], *, minutes: int = 120, **overrides: Any) -> chart.TimeChart:
    times = [NOW + timedelta(minutes=i) for i in range(minutes)]
    series = [chart.Series(name="p95", values=[float(i + 1) for i in range(minutes)], css="p95")]
    return chart.TimeChart(**{"label": "Lag", "times": times, "series": series, "marks": found, **overrides})


def ago(**span: float) -> datetime:
    return datetime.now(UTC) - timedelta(**span)


def note(kind: str = "deploy", **values: Any) -> Annotation:
    return annotate(Wanted(kind=kind, **values), created_by="key:ci", source="api")[0]


def marks_of(page: str, chart_label: str) -> str:
    """Return the sentence of the chart whose sentence begins so."""
    found = re.search(rf'aria-label="({chart_label}[^"]*)"', page)
    assert found, f"no chart {chart_label}"
    return found[1]


# ---- drawing


@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from([*KINDS, ""]), st.text("abcM .", max_size=30)), max_size=40),
    st.sampled_from([(200.0, False), (266.0, True), (900.0, True)]),
)
def test_letters_and_words_never_touch(found: list[tuple[float, str, str]], screen: tuple[float, bool]) -> None:
    """In a plot of 200 px words are hidden; from 266 px on they show. A wide letter has 6.3 px, a tag 4 px of space."""
    width, with_words = screen
    placed = [(x, Mark(NOW, word, kind)) for x, kind, word in found]
    taken: list[tuple[float, float]] = []
    for node in parse(svg.join(*tags(placed, y=10))):
        x = float((node.get("x") or "").removesuffix("%")) / 100 * width
        shown = "".join(node.itertext()) if with_words else node.text or ""
        long = len(shown) * 6.3 + 4
        taken.append((x, x + long) if node.get("text-anchor") == "start" else (x - long, x))
    taken.sort()
    assert all(before[1] <= after[0] + 0.1 for before, after in zip(taken, taken[1:], strict=False)), taken
    assert all(begin >= -0.1 and end <= width * 1.01 for begin, end in taken), taken


def test_words_crowd_out_no_letters_and_do_not_leave_the_plot() -> None:
    """A word shows only where the next tag keeps its place."""
    found = [(x, Mark(NOW, "a rather long name", "deploy")) for x in (0.02, 0.2, 0.4, 0.65, 0.79, 0.95)]
    drawn = ["".join(node.itertext()) for node in parse(svg.join(*tags(found, y=10))) if node.tag == "text"]
    assert [words[0] for words in drawn] == ["D"] * 6
    assert tags([(0.79, found[0][1])], y=10)[0].count("<tspan") == 0
    assert tags([(0.5, found[0][1])], y=10)[0].count("<tspan") == 1


def test_kinds_differ_without_colour() -> None:
    """Each has its own letter, and the legend says what the letters in the chart mean, and no others."""
    assert len({kind.letter for kind in KINDS.values()}) == len(KINDS)
    found = [Mark(NOW + timedelta(minutes=9), "2.3.1", "deploy"), Mark(NOW, "SMTP", "incident")]
    drawn = chart.tchart(make_chart(found))
    words = ["".join(node.itertext()) for node in parse(drawn).iter("text")]
    assert "D 2.3.1" in words
    assert any(word.startswith("I") for word in words)
    assert "I incident, D deploy<" in drawn
    assert "mk-i" in drawn
    assert "mk-d" in drawn
    assert legend([]) == ""
    assert "paused" not in drawn


def test_marks_that_stand_together_are_counted_and_the_worst_leads() -> None:
    (tag,) = tags([(0.5, Mark(NOW, "a", "deploy")), (0.501, Mark(NOW, "b", "incident")), (0.51, Mark(NOW, "c"))], y=9)
    assert "".join(parse(tag).itertext()) == "I+2"


def test_a_plot_makes_room_above_for_letters_only_where_it_has_some() -> None:
    assert make_chart([]).top < make_chart([Mark(NOW, "x", "deploy")]).top
    plain = chart.tchart(make_chart([]))
    assert "mark" not in plain


@pytest.mark.parametrize("minutes", [2, 60, 61, 359])
def test_the_table_has_every_mark_beside_its_time(minutes: int) -> None:
    """Also where only each nth row is shown; those before the first and after the last row stand at the ends."""
    found = [
        Mark(NOW + timedelta(minutes=at, seconds=30), f"release-{n}", "deploy")
        for n, at in enumerate(range(-5, minutes + 5, 3))
    ]
    table = parse(chart.data_table(make_chart(found, minutes=minutes)))
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert rows[0][-1] == "What happened"
    for mark in found:
        holding = [row for row in rows[1:] if f"deploy {mark.word} at {mark.at:%H:%M}" in row[-1].split("; ")]
        assert len(holding) == 1, mark
        at = datetime.strptime(holding[0][0], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
        step = max(1, -(-minutes // 60))
        if 0 <= (mark.at - NOW).total_seconds() / 60 <= minutes - 1:
            assert abs(at - mark.at) <= timedelta(minutes=step)
    assert "What happened" not in chart.data_table(make_chart([], minutes=minutes))


def test_the_sentence_names_the_newest_and_counts_the_rest() -> None:
    found = [Mark(NOW + timedelta(minutes=n), str(n), "deploy") for n in range(7)]
    words = chart.sentence(make_chart(found))
    assert words.startswith("Lag. Marked: deploy 6 at 03:23, deploy 5 at 03:22, ")
    assert words.endswith("and 3 more")
    assert chart.sentence(make_chart([])) == "Lag"
    assert len(says(Mark(NOW, "x" * 1000, "deploy"))) < 100


def test_hostile_words_are_text() -> None:
    found = [Mark(NOW, NASTY, "deploy"), Mark(NOW + timedelta(minutes=50), NASTY, NASTY)]
    lane = chart.Lane(name=NASTY, counts={NASTY: [1] * 120})
    drawing = make_chart(found, lane=lane)
    for markup in (chart.tchart(drawing), chart.data_table(drawing)):
        assert "<script" not in markup
        assert "<img" not in markup
        root = parse(markup)
        assert not any("onerror" in node.attrib for node in root.iter())


def test_a_lane_stands_on_the_axis_of_its_chart() -> None:
    """A bar's middle is where the line has its point; without data the lane is drawn all the same."""
    counts = [0] * 120
    counts[60] = 7
    lane = chart.Lane(name="support", counts={"missing mail": counts, "twice": [0] * 119 + [1]})
    assert lane.sums[60] == 7
    drawn = parse(chart.tchart(make_chart([], lane=lane)))
    bars = [node for node in drawn.iter("rect") if node.get("class") == "a-neutral"]
    assert len(bars) == 2
    left, wide = (float((bars[0].get(name) or "").removesuffix("%")) for name in ("x", "width"))
    assert left + wide / 2 == pytest.approx(60 / 119 * 100, abs=0.1)
    assert "support 8, at most 7 at a time" in str(chart.tchart(make_chart([], lane=lane)))
    nothing = chart.TimeChart(label="Lag", times=[NOW, NOW + timedelta(minutes=1)], series=[], lane=chart.Lane(
        name="support", counts={"x": [0, 3]}))  # fmt: skip
    assert "no data in this range" in chart.tchart(nothing)
    assert "support 3" in chart.tchart(nothing)
    heads = [node.text for node in parse(chart.data_table(make_chart([], lane=lane))).iter("th")][:4]
    assert heads == ["Time, UTC", "p95", "missing mail", "twice"]


# ---- reading


@pytest.mark.django_db
def test_one_statement_reads_what_belongs_to_the_span_and_the_type() -> None:
    for name in ("mail.send", "other"):
        make_type(name)
    for minutes, values in {
        10: {"text": "all"},
        20: {"text": "mine", "job_type": "mail.send"},
        30: {"text": "theirs", "job_type": "other"},
        400: {"text": "before"},
        -30: {"text": "planned"},
    }.items():
        note(at=ago(minutes=minutes), **values)
    note("incident", at=ago(minutes=5), text="SMTP")
    note("support", at=ago(minutes=5), category="missing", job_type="mail.send", count=2)
    note("support", at=ago(minutes=6), category="missing", job_type="other", count=40)
    note("support", at=ago(minutes=6), category="general", count=80)
    span = Span.of("6h", now=datetime.now(UTC))
    with CaptureQueriesContext(connection) as captured:
        one = marks.read(span, name="mail.send")
        everything = marks.read(span)
    assert len(captured) == 2
    assert [event.word for event in one.events] == ["SMTP", "all", "mine"]
    assert [mark.word for mark in one.marks(types={"mail.send"}, named=False)] == ["SMTP", "all", "mine"]
    assert one.support() == [("missing", 2)]
    assert [event.word for event in everything.events] == ["SMTP", "all", "mine", "theirs"]
    named = [mark.word for mark in everything.marks(types={"other"}, named=True)]
    assert named == ["SMTP", "all", "theirs other"]
    assert everything.support() == [("general", 80), ("missing", 42)]


@pytest.mark.django_db
def test_switches_and_versions_are_marks() -> None:
    make_type("mail.send")
    make_type("other")
    for paused in (True, False):
        contract_switches.set_switch("mail.send", paused=paused, actor="kim", reason="provider")
        contract_switches.set_switch("other", enabled=not paused, actor="kim", reason="x")
    ContractRevision.objects.create(job_type_id="mail.send", version=2, fields={}, actor="kim")
    span = Span.of("1h", now=datetime.now(UTC) + timedelta(seconds=1))
    found = marks.read(span, name="mail.send").marks(types={"mail.send"}, named=False)
    assert sorted((mark.kind, mark.word) for mark in found) == [
        ("paused", "by kim"), ("resumed", "by kim"), ("version", "v2"),
    ]  # fmt: skip
    assert {event.job_type for event in marks.read(span, name="mail.send").events} == {"mail.send"}
    kinds = {event.kind for event in marks.read(span).events}
    assert kinds == {"paused", "resumed", "disabled", "enabled", "version"}
    assert kinds <= set(KINDS)


@pytest.mark.django_db
def test_support_is_summed_by_slot_and_category() -> None:
    make_type("mail.send")
    span = Span.of("1h", now=datetime.now(UTC))
    for slot, category, n in ((0, "missing", 3), (0, "missing", 4), (5, "missing", 1), (5, "twice", 2)):
        at = span.slots[slot] + timedelta(seconds=30)
        note("support", at=max(at, span.since), category=category, count=n, job_type="mail.send")
    found = marks.read(span, name="mail.send")
    lane = found.lane()
    assert lane is not None
    assert {name: (counts[0], counts[5], sum(counts)) for name, counts in lane.counts.items()} == {
        "missing": (7, 1, 8), "twice": (0, 2, 2),
    }  # fmt: skip
    assert len(lane.sums) == len(span.slots)
    assert marks.read(span, name="other").lane() is None


@pytest.mark.django_db
def test_many_categories_are_five_and_the_rest() -> None:
    for n in range(9):
        note("support", category=f"c{n}", count=n + 1, job_type="mail.send")
    found = marks.read(Span.of("1h", now=datetime.now(UTC) + timedelta(seconds=1)), name="mail.send")
    assert found.support() == [("c8", 9), ("c7", 8), ("c6", 7), ("c5", 6), ("c4", 5), ("other", 10)]
    lane = found.lane()
    assert lane is not None
    assert sum(lane.counts["other"]) == 10


@pytest.mark.django_db
def test_what_is_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 200 marks, the newest; of support so many annotations are added up."""
    now = datetime.now(UTC)
    Annotation.objects.bulk_create(
        [Annotation(kind="deploy", at=now - timedelta(seconds=n), text=str(n), created_by="x") for n in range(230)]
        + [
            Annotation(
                kind="support", at=now - timedelta(seconds=n), category="c", job_type="mail.send", created_by="x"
            )
            for n in range(50)
        ]
    )
    span = Span.of("1h", now=now)
    found = marks.read(span)
    assert [event.word for event in found.events] == [str(n) for n in range(200)]
    assert found.support() == [("c", 50)]
    monkeypatch.setattr(marks, "CONTACTS_MAX", 20)
    assert marks.read(span, name="mail.send").support() == [("c", 20)]


@pytest.mark.django_db
@pytest.mark.parametrize("name", [None, "mail.send"])
def test_annotations_and_the_audit_log_are_read_by_index(name: str | None) -> None:
    Annotation.objects.bulk_create(
        [Annotation(kind="deploy", at=ago(days=n % 300), text=str(n), created_by="x") for n in range(2000)]
    )
    analyze("jobsboard_annotation")
    sql("SET LOCAL enable_seqscan = off")
    with CaptureQueriesContext(connection) as captured:
        marks.read(Span.of("6h", now=datetime.now(UTC)), name=name)
    plan = "\n".join(row[0] for row in sql("EXPLAIN " + captured[0]["sql"].replace("%", "%%")))
    assert "annotation_by_" in plan
    assert "audit_by_object" in plan or "audit_by_time" in plan
    assert not re.search("Seq Scan on (jobsboard_annotation|queues_auditentry)", plan), plan


# ---- pages


@pytest.fixture
def noted(busy: Job) -> Job:
    """A board with something on it, and what happened beside it."""
    OutcomeRollup.objects.create(
        grain="minute", at=ago(minutes=45), type="mail.send", tier=1, window_seconds=60, ready=9, in_window=8
    )
    note(at=ago(minutes=50), text="shop 2.3.1", url="https://ci.example/runs/4711")
    note(at=ago(minutes=40), text="mailer 9", job_type="mail.send")
    note(at=ago(minutes=30), text="reports 4", job_type="report.build")
    note("incident", at=ago(minutes=20), text="SMTP is down")
    note("support", at=ago(minutes=10), category="missing mail", count=14, job_type="mail.send")
    note("support", at=ago(minutes=9), category="twice", count=3, job_type="mail.send")
    contract_switches.set_switch("mail.send", paused=True, actor="kim", reason="provider")
    return busy


def test_every_chart_of_a_type_is_marked(viewer: Client, noted: Job) -> None:
    page = viewer.get("/types/mail.send/").text
    for label in ("Outcome lag", "Confirmed within window", r"Accepted [\d.]+ and"):
        said = marks_of(page, label)
        for words in ("paused by kim", "incident SMTP is down", "deploy mailer 9", "deploy shop 2.3.1"):
            assert words in said, (label, words)
        assert "reports 4" not in said
    assert page.count("What happened</th>") == 3


def test_charts_of_tiers_are_marked_with_their_types(viewer: Client, noted: Job) -> None:
    """The lag of a tier shows what happened to its types; the flow of all tiers shows everything."""
    page = viewer.get("/?lag=1").text
    lag, flow = marks_of(page, "Outcome lag, tier 1"), marks_of(page, r"Accepted [\d.]+ and")
    assert "deploy mailer 9 mail.send" in lag
    assert "reports 4" not in lag
    assert "deploy reports 4 report.build" in flow
    assert "incident SMTP is down" in lag
    other = viewer.get("/?lag=3").text
    lag_of_3 = other[other.index('id="h-lag"') : other.index('id="h-flow"')]
    assert "deploy reports 4 report.build" in lag_of_3
    assert "mailer 9" not in lag_of_3


def test_what_changed_lists_annotations_and_acts_newest_first(viewer: Client, noted: Job) -> None:
    page = viewer.get("/").text
    section = page[page.index('id="h-chg"') : page.index('id="types"')]
    order = [
        "kim paused mail.send", "3 people asked support about mail.send", "14 people asked support about mail.send",
        "Incident", "Deploy report.build", "Deploy mail.send",
    ]  # fmt: skip
    places = [section.index(words) for words in order]
    assert places == sorted(places)
    assert "missing mail" in section


def test_an_address_from_outside_gets_no_referrer(viewer: Client, busy: Job) -> None:
    note(text="shop 2.3.1", url="https://ci.example/runs/4711?a=1&b=2")
    page = viewer.get("/").text
    assert 'href="https://ci.example/runs/4711?a=1&amp;b=2" rel="noreferrer noopener">Deploy</a>' in page


def test_support_stands_under_the_lag_of_its_type(viewer: Client, noted: Job) -> None:
    page = viewer.get("/types/mail.send/").text
    said = re.sub(r"<[^>]+>", "", page[page.index('id="support"') : page.index("</p>", page.index('id="support"'))])
    assert said.endswith("Support, last 6h: missing mail 14, twice 3")
    # The two may fall into neighbouring slots.
    assert re.search("support 17, at most 1[47] at a time", page)
    over = f"from={ago(hours=9):%Y-%m-%dT%H:%M}&to={ago(hours=8):%Y-%m-%dT%H:%M}"
    for nothing in ("/types/report.build/", f"/types/mail.send/?{over}"):
        quiet = viewer.get(nothing).text
        assert 'id="support"' not in quiet, nothing
        assert "at a time" not in quiet, nothing


def test_a_page_costs_the_same_with_many_annotations(viewer: Client, noted: Job) -> None:
    def statements(url: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(url).status_code == 200
        return len(captured)

    urls = ["/", "/types/", "/types/mail.send/"]
    before = [statements(url) for url in urls]
    sizes = [len(viewer.get(url).content) for url in urls]
    rows = [Annotation(kind="deploy", at=ago(minutes=n % 300), text="x" * 1000, created_by="x") for n in range(600)]
    rows += [
        Annotation(kind="support", at=ago(minutes=n % 300), category=f"c{n}", job_type="mail.send", created_by="x")
        for n in range(600)
    ]
    Annotation.objects.bulk_create(rows)
    assert [statements(url) for url in urls] == before
    grown = [len(viewer.get(url).content) - size for url, size in zip(urls, sizes, strict=True)]
    assert abs(grown[1]) < 200
    # 200 marks of at most 80 characters in the tables of three charts, and the lane.
    assert max(grown) < 120_000, grown


def test_hostile_annotations_are_text_on_every_page(client_of: ClientOf, busy: Job) -> None:
    note(text=NASTY, url="https://ci.example/?q=%22%3E<script>alert(1)</script>")
    note("incident", text=NASTY, job_type="mail.send")
    note("support", category=NASTY, job_type="mail.send")
    viewer = client_of("viewer")
    for url in ("/", "/types/", "/types/mail.send/", "/audit/", "/?lag=1"):
        page = viewer.get(url).text
        assert "<script>alert" not in page, url
        assert "<img" not in page, url
    assert "&lt;script&gt;alert(1)" in viewer.get("/types/mail.send/").text


def test_an_open_page_sees_an_annotation_at_its_next_poll(viewer: Client, busy: Job) -> None:
    headers = {"HX-Request": "true"}
    tag = viewer.get("/types/mail.send/", headers=headers)["HX-PTag"]
    note(text="shop 2.3.1")
    again = viewer.get("/types/mail.send/", headers={**headers, "HX-PTag": tag})
    assert again.status_code == 200
    assert "shop 2.3.1" in again.text


def test_the_audit_page_names_it(viewer: Client, noted: Job) -> None:
    page = viewer.get("/audit/?action=annotation.created").text
    assert page.count("annotation.created</span>") == 6
