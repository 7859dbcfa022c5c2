"""The charts: escaping, what is not known, constant and empty data, axes that never turn back."""

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobsboard import durations
from jobsboard.board import chart, svg, timeline
from jobsboard.board.chart_marks import Mark

NOW = datetime(2026, 11, 21, 3, 17, tzinfo=UTC)
NASTY = '"><script>alert(1)</script>&'


def make_chart(*values: float | None, **overrides: object) -> chart.TimeChart:
    fields = {
        "label": "Lag",
        "times": [NOW + timedelta(minutes=i) for i in range(len(values))],
        "series": [chart.Series(name="p95", values=values, css="p95")],
        **overrides,
    }
    return chart.TimeChart(**fields)  # type: ignore[arg-type]


def make_life(**overrides: object) -> timeline.Timeline:
    fields = {"accepted": NOW, "until": NOW + timedelta(minutes=10), "state": "dead", **overrides}
    return timeline.Timeline(**fields)  # type: ignore[arg-type]


def parse(markup: svg.Svg) -> ElementTree.Element:
    return ElementTree.fromstring(f"<root>{markup}</root>")  # noqa: S314 - our own output


@pytest.mark.parametrize(
    "markup",
    [
        svg.spark([0.9, 1.0], target=0.99, label=NASTY),
        svg.bars([1, 2], label=NASTY, state=NASTY),
        svg.mix([(NASTY, 3)]),
        svg.meter(0.5, label=NASTY, state=NASTY),
        chart.tchart(make_chart(1.0, 2.0, label=NASTY, show=lambda v: NASTY, target=1.0, target_label=NASTY)),
        chart.tchart(make_chart(1.0, 2.0, marks=[Mark(NOW, NASTY)])),
        chart.tchart(make_chart(label=NASTY)),
        chart.data_table(
            make_chart(1.0, 2.0, label=NASTY, series=[chart.Series(name=NASTY, values=[1, 2], css=NASTY)])
        ),
        timeline.timeline(make_life(state=NASTY, window_at=NOW, window_label=NASTY, lanes=[(NOW, NOW, NASTY)])),
    ],
)
def test_every_part_from_data_is_escaped(markup: svg.Svg) -> None:
    assert "<script" not in markup
    root = parse(markup)
    assert not any(node.tag == "script" or "onclick" in node.attrib for node in root.iter())
    assert any(
        NASTY.lower() in text.lower() for node in root.iter() for text in (*node.attrib.values(), node.text or "")
    )


@pytest.mark.parametrize("values", [[], [None], [None, None], [float("nan"), None], [float("inf")]])
def test_nothing_known_says_so(values: list[float | None]) -> None:
    assert "no data" in svg.spark(values, target=0.99, label="In window")
    assert "no data" in chart.tchart(make_chart(*values))


@pytest.mark.parametrize("values", [[1.0] * 5, [0.0] * 5, [0.0], [0.5]])
@pytest.mark.parametrize("target", [None, 0.0, 1.0, 0.99])
def test_constant_data_draws(values: list[float], target: float | None) -> None:
    for markup in (
        svg.spark(values, target=target),
        chart.tchart(make_chart(*values, values[0], target=target)),
        chart.tchart(make_chart(*values, values[0], target=target, scale=svg.log_axis)),
        chart.tchart(make_chart(*values, values[0], target=target, scale=svg.ratio_axis)),
    ):
        parse(markup)
        assert "nan" not in markup
        assert "inf" not in markup


def test_a_gap_stays_a_gap() -> None:
    assert svg.spark([1.0, 1.0, None, 1.0, 1.0], target=None).count("<path") == 2


def test_only_what_is_below_the_promise_is_red() -> None:
    assert "s-bad" not in svg.spark([0.995, 1.0], target=0.99)
    crossing = svg.spark([1.0, 0.9, 1.0], target=0.99)
    assert "s-bad" in crossing
    assert "s-neutral" in crossing
    assert "s-neutral" not in svg.spark([0.9, 0.9], target=0.99)


def test_no_style_no_script_no_ids() -> None:
    drawing = make_chart(1.0, 5.0, 2.0, band=(NOW, NOW + timedelta(minutes=1)), marks=[Mark(NOW, "release", "deploy")])
    both = [
        chart.Series(name="a", values=[1, 2, 3], css="l-acc"),
        chart.Series(name="b", values=[1, None, 2], css="l-conf"),
    ]
    for markup in (
        chart.tchart(drawing),
        chart.tchart(make_chart(1, 2, 3, series=both, gap=("a", "b"))),
        timeline.timeline(make_life()),
    ):
        assert " style=" not in markup
        assert " id=" not in markup  # repeated ids would confuse the morph
        assert " on" not in markup.replace(" one", "")


positive = st.floats(min_value=1e-4, max_value=1e7)


@given(st.lists(positive, min_size=1, max_size=20), st.sampled_from([svg.linear_axis, svg.log_axis]))
def test_axes_are_monotone(values: list[float], scale: type) -> None:
    axis: svg.Axis = scale(values)
    assert list(axis.ticks) == sorted(set(axis.ticks))
    assert 2 <= len(axis.ticks) <= len(svg.LADDER)
    places = [axis.at(v) for v in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
    assert axis.at(axis.low) == 0
    assert axis.at(axis.high) == pytest.approx(1)


@given(st.lists(st.floats(min_value=0, max_value=1), max_size=20))
def test_ratio_axis_holds_every_value(values: list[float]) -> None:
    axis = svg.ratio_axis(values)
    assert axis.high == 1
    assert list(axis.ticks) == sorted(set(axis.ticks))
    assert axis.low <= min(values, default=1.0) + 1e-9


@given(st.lists(st.floats(min_value=0, max_value=180), min_size=1, max_size=6))
def test_end_labels_never_touch(places: list[float]) -> None:
    spread = chart.spread(sorted(places), gap=14, low=14, high=162)
    assert all(after - before >= 14 - 1e-6 for before, after in zip(spread, spread[1:], strict=False))
    assert max(spread) <= 162


def test_lagbar_puts_late_right_of_the_line() -> None:
    late, early = svg.lagbar(60, 700, 900, 600), svg.lagbar(1, 5, 30, 600)
    assert "breachband" in late
    assert "breachband" not in early
    assert 'aria-label="p50 1m, p95 11m 40s, p99 15m; window 10m"' in late


@pytest.mark.parametrize("lag", [(None, None, None, 600), (1, 2, 3, None), (1, 2, 3, 0), (1, None, 3, 600)])
def test_lagbar_without_lag(lag: tuple[float | None, ...]) -> None:
    assert "no confirmed jobs" in svg.lagbar(*lag)


@given(st.lists(st.tuples(st.sampled_from(sorted(svg.LOOKS)), st.integers(0, 10_000_000)), max_size=8))
def test_mix_fits_its_width(parts: list[tuple[str, int]]) -> None:
    rects = [r.attrib for r in parse(svg.mix(parts, width=60)).iter("rect")]
    assert rects
    assert all(float(r["x"]) + float(r["width"]) <= 60.1 for r in rects if "x" in r)


def test_timeline_of_every_state() -> None:
    run = timeline.Run(number=1, started=NOW + timedelta(seconds=1), ended=NOW + timedelta(seconds=2))
    for state in svg.LOOKS:
        markup = timeline.timeline(make_life(state=state, runs=[run]))
        assert f"is-{svg.look(state).css}" in markup
        assert "1 attempt" in markup
    parse(timeline.timeline(make_life(until=NOW)))
    running = timeline.Run(number=2, started=NOW + timedelta(minutes=9), ended=None)
    assert "2 attempts" in timeline.timeline(make_life(state="processing", runs=[run, running]))


def test_timeline_says_late_only_when_the_window_passed() -> None:
    assert "window passed" in timeline.timeline(make_life(window_at=NOW + timedelta(minutes=1)))
    assert "window passed" not in timeline.timeline(make_life(window_at=NOW + timedelta(minutes=11)))


def test_data_table_keeps_the_newest_and_bounds_its_rows() -> None:
    table = chart.data_table(make_chart(*[float(i) for i in range(720)]))
    assert 30 <= table.count("<tr>") <= 62
    assert ">719<" in table


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0ms"), (0.0001, "<1ms"), (0.42, "420ms"), (0.57, "570ms"), (0.9999, "999ms"), (1, "1s"), (9.99, "9.9s"),
        (59.99, "59s"), (60, "1m"), (372, "6m 12s"), (3599.9, "59m 59s"), (3600, "1h"), (7500, "2h 05m"),
        (86_400, "1d"), (273_600, "3d 4h"), (-5, "-5s"),
    ],
)  # fmt: skip
def test_duration_is_cut_never_rounded_up(seconds: float, words: str) -> None:
    assert durations.duration(seconds) == words


def test_an_unknown_state_keeps_its_word() -> None:
    assert svg.look("half_open") == svg.Look("cancelled", "help", "Half open")
    assert svg.look("").label == "Not known"
