"""Template tags for the board's small pieces: icon, state, tier, times, numbers, charts.

Not here: how a chart is drawn (board/svg.py, chart.py, timeline.py) and anything that reads data. Text goes through
`format_html`; charts come as `Svg`, whose every part was escaped. A value that is not known is said so, never shown as
zero.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Decimal

from django import template
from django.template import Context
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from jobsboard import durations
from jobsboard.board import breaker_strip, chart, probe_strip, rates, svg
from jobsboard.board import timeline as life_of

register = template.Library()


def _drawn(markup: svg.Svg) -> SafeString:
    return mark_safe(markup)  # noqa: S308 - the one place: svg.el and svg.text escaped every value that an Svg holds


def _muted(words: str) -> SafeString:
    return format_html('<span class="mute">{}</span>', words)


def _moment(value: datetime) -> tuple[str, str]:
    """The machine form and the full form of a time, both UTC and to the millisecond."""
    utc = value.astimezone(UTC)
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z"), f"{utc:%Y-%m-%d %H:%M:%S}.{_ms(utc)} UTC"


def _ms(value: datetime) -> str:
    return f"{value.microsecond // 1000:03d}"


@register.simple_tag
def icon(name: str, css: str = "") -> SafeString:
    """One symbol of static/ops/sprite.svg; decoration, so a word or an aria-label stands beside it."""
    kind = format_html(' class="{}"', css) if css else ""
    return format_html('<svg{} aria-hidden="true"><use href="{}#i-{}"/></svg>', kind, static("ops/sprite.svg"), name)


@register.simple_tag
def state(value: str | None, label: str = "", sign: str = "", plain: bool = False) -> SafeString:
    """A badge, icon and word. `label` and `sign` (an icon) replace those of the state; None is a grey "Not known"."""
    look = svg.look(value or "")
    css = f"st is-{look.css}{' plain' if plain else ''}"
    return format_html('<span class="{}">{}{}</span>', css, icon(sign or look.icon), label or look.label)


@register.simple_tag
def promise(value: float | Decimal | None, target: float | Decimal) -> SafeString:
    """The badge that compares a ratio with its promise: Within promise, Outside promise or No data."""
    known = svg.finite(value)
    if known is None:
        return state("cancelled", "No data", "help")
    return state("confirmed", "Within promise") if known >= float(target) else state("dead", "Outside promise", "bad")


@register.simple_tag
def tier(number: int) -> SafeString:
    """A tier in its box; tiers have no colour."""
    return format_html('<span class="tier" title="Tier {}">T{}</span>', number, number)


@register.simple_tag
def duration(seconds: float | Decimal | None, none: str = "no data") -> str:
    """420ms, 9.4s, 6m 12s, 2h 05m; `none` in grey when not known."""
    known = svg.finite(seconds)
    return _muted(none) if known is None else durations.duration(known)


@register.simple_tag
def ratio(value: float | Decimal | None, digits: int = 2, trim: bool = False, none: str = "no data") -> str:
    """A share as 99.93%, never rounded up: only a whole 1 is 100%. `trim` drops zeros at the end (99.9%)."""
    known = svg.finite(value)
    if known is None:
        return _muted(none)
    exact, unit = Decimal(str(value)) * 100, Decimal(1).scaleb(-digits)
    shown = exact.quantize(unit, rounding=ROUND_FLOOR)
    if not shown and exact > 0:
        return f"<{unit}%"
    whole = f"{shown.normalize() if trim else shown:f}"
    return f"{int(shown)}%" if exact in (0, 100) else f"{whole}%"


@register.simple_tag
def count(value: int | str | None, cap: int | None = None, none: str = "no data") -> str:
    """4,127, or 1,000+ at the cap of a bounded count; zero is muted."""
    if not isinstance(value, int):  # None, or what the template engine gives for a missing variable
        return _muted(none)
    if cap is not None and value >= cap:
        return f"{cap:,}+"
    return f"{value:,}" if value else _muted("0")


@register.simple_tag
def ago(value: datetime | None, now: datetime, none: str = "never") -> SafeString:
    """22 min ago, in 24 s; app.js keeps it true between refreshes."""
    if not value:
        return _muted(none)
    machine, full = _moment(value)
    words = ago_words((now - value).total_seconds())
    return format_html('<time datetime="{}" title="{}" data-ago>{}</time>', machine, full, words)


def ago_words(seconds: float) -> str:
    """Say how long ago, or in how long, in one unit. app.js has the same rule."""
    size = int(abs(seconds))
    if not size:
        return "just now"
    unit, word = next(step for step in AGO_STEPS if size < step[0])[1:]
    amount = f"{size // unit} {word}"
    return f"in {amount}" if seconds < 0 else f"{amount} ago"


AGO_STEPS = ((60, 1, "s"), (3600, 60, "min"), (172_800, 3600, "h"), (math.inf, 86_400, "d"))


@register.simple_tag
def clock(value: datetime | None, now: datetime | None = None, none: str = "never") -> SafeString:
    """02:55:41, with the day before it when `now` is given and is another day."""
    if not value:
        return _muted(none)
    machine, full = _moment(value)
    utc = value.astimezone(UTC)
    other_day = now is not None and utc.date() != now.astimezone(UTC).date()
    words = f"{utc.day} {utc:%b %H:%M}" if other_day else f"{utc:%H:%M:%S}"
    return format_html('<time datetime="{}" title="{}">{}</time>', machine, full, words)


@register.simple_tag
def hm(value: datetime) -> SafeString:
    """02:55, where seconds say nothing; the full time is in its title."""
    machine, full = _moment(value)
    return format_html('<time datetime="{}" title="{}">{}</time>', machine, full, f"{value.astimezone(UTC):%H:%M}")


@register.simple_tag
def lasting(since: datetime, now: datetime) -> str:
    """36 min: how long something lasts, in one unit."""
    return ago_words((now - since).total_seconds()).removesuffix(" ago")


@register.filter
def short_id(value: object) -> str:
    """The end of a UUIDv7: its random part, since ids of one moment begin alike."""
    return str(value)[-12:]


@register.simple_tag
def spark(
    values: Sequence[float | None],
    target: float | None = None,
    label: str = "confirmed in window",
    width: int | str = 76,
    height: int = 22,
) -> SafeString:
    """A ratio over time with its promise dashed; red only below it."""
    return _drawn(svg.spark(values, target=svg.finite(target), width=width, height=height, label=label))


@register.simple_tag
def lagbar(
    p50: float | None, p95: float | None, p99: float | None, window: float | None, width: int = 112
) -> SafeString:
    """Lag percentiles against the window, log scale; all in seconds."""
    return _drawn(svg.lagbar(p50, p95, p99, window, width=width))


@register.simple_tag
def mix(parts: Sequence[tuple[str, int]], width: int = 112) -> SafeString:
    """Open jobs by state: [("accepted", 12), ("retrying", 3)]."""
    return _drawn(svg.mix(parts, width=width))


@register.simple_tag
def shares(lines: Sequence[rates.StageLine]) -> SafeString:
    """Where the time goes, as one bar."""
    parts = [(line.state, line.share or 0.0) for line in lines]
    return _drawn(svg.shares(parts, label=rates.share_words(lines) or "No job left a stage in this range"))


@register.simple_tag
def meter(
    fraction: float | None, state: str = "processing", target: float | None = None, label: str = ""
) -> SafeString:
    """A share of a whole, 0 to 1; decoration unless `label` is given."""
    return _drawn(svg.meter(fraction, state=state, target=target, label=label))


@register.simple_tag
def bars(counts: Sequence[int], state: str = "dead", label: str = "", width: int = 84, height: int = 22) -> SafeString:
    """A count per equal slice of time."""
    return _drawn(svg.bars(counts, state=state, label=label, width=width, height=height))


@register.simple_tag
def strip(ticks: Sequence[probe_strip.Tick], size: int, label: str) -> SafeString:
    """The last runs of a probe, the newest right."""
    return _drawn(probe_strip.strip(ticks, size=size, label=label))


@register.simple_tag
def breakers(history: Sequence[str], since: datetime, until: datetime, label: str) -> SafeString:
    """What a circuit breaker did, the newest right."""
    return _drawn(breaker_strip.strip(history, since=since, until=until, label=label))


@register.simple_tag
def tchart(drawing: chart.TimeChart, table: bool = True) -> SafeString:
    """A time chart, and its numbers as a table to open."""
    drawn = chart.tchart(drawing)
    return _drawn(svg.join(drawn, chart.data_table(drawing)) if table else drawn)


@register.simple_tag
def timeline(life: life_of.Timeline) -> SafeString:
    """One job from acceptance to now or its end."""
    return _drawn(life_of.timeline(life))


@register.simple_tag(takes_context=True)
def current(context: Context, url: str) -> SafeString:
    """aria-current for a link of the navigation: `page` on the page itself, `true` on a page below it."""
    path = getattr(context.get("request"), "path", "")
    if path == url:
        return format_html(' aria-current="{}"', "page")
    return format_html(' aria-current="{}"', "true") if url != "/" and path.startswith(url) else format_html("{}", "")
