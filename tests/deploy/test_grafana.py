"""deploy/grafana: the dashboard is what Grafana takes, its queries are PromQL, and what they name exists."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.grafana import mistakes
from tests.deploy.prometheus import NEEDED, check_rules, names_in, recorded, scraped

DASHBOARDS = sorted((Path(__file__).parents[2] / "deploy/grafana").glob("*.json"))


def dashboard() -> dict[str, Any]:
    """Read the dashboard."""
    [path] = DASHBOARDS
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def queries() -> Iterator[tuple[str, str]]:
    """Yield (title of its panel, expression) of every query, with the variables filled in."""
    filled = {"$job": "jobsboard", "$tier": "1|2", "$type": ".*", "$__rate_interval": "5m"}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for variable, text in filled.items():
                expression = expression.replace(variable, text)
            yield panel["title"], expression


def test_grafana_takes_the_dashboard() -> None:
    """Every field is one of Grafana 11.6's own types and has a value that they allow."""
    assert mistakes(dashboard()) == []


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what writes a value at a place."""

    def change(found: Any) -> None:
        *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parts:
            found = found[part]
        found[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("titel", "Jobsboard"),
        ("schemaVersion", "41"),
        ("graphTooltip", 7),
        ("tags", "jobsboard"),
        ("time", {"from": "now-6h", "till": "now"}),
        ("panels.1.gridPos.height", 8),
        ("panels.1.gridPos.w", "12"),
        ("panels.1.targets.0.expression", "up"),
        ("panels.1.targets.0.expr", 1),
        ("panels.1.fieldConfig.defaults.thresholds.mode", "relative"),
        ("panels.1.fieldConfig.defaults.thresholds.steps.0.colour", "red"),
        ("panels.1.options.colorMode", "loud"),
        ("panels.5.fieldConfig.defaults.custom.lineWidth", "thin"),
        ("panels.5.fieldConfig.defaults.custom.fill", 1),
        ("panels.5.options.legend.placement", "left of it"),
        ("panels.5.fieldConfig.overrides.0.matcher", "B"),
        ("templating.list.1.type", "metrics"),
        ("templating.list.1.refresh", "always"),
    ],
)
def test_a_mistake_is_found(path: str, value: Any) -> None:
    """What guards the dashboard is no formality: a misspelt field, a wrong kind, a word that Grafana does not have."""
    changed = copy.deepcopy(dashboard())
    _set(path, value)(changed)
    assert mistakes(changed) != []


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    """Grafana would push overlapping panels around, and mix up those of the same number."""
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert cells.isdisjoint(taken) and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


def test_every_panel_says_what_it_shows() -> None:
    for panel in dashboard()["panels"]:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"].endswith(".") and panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.django_db
def test_every_name_in_a_panel_exists() -> None:
    """A metric that a scrape does not have, and no rule records, would be an empty panel for ever."""
    known = scraped() | recorded()
    for title, expression in queries():
        assert names_in(expression), title
        assert names_in(expression) <= known, title
    for variable in dashboard()["templating"]["list"][1:]:
        assert names_in(variable["query"]["query"]) <= known


def test_the_figures_of_the_brief_have_a_panel() -> None:
    """Lag at three quantiles by tier, ratio, burn, dead letters by reason, depth, oldest, wait, run, workers, twice."""
    text = "\n".join(expression for _, expression in queries())
    for quantile in ("0.5", "0.95", "0.99"):
        assert f"histogram_quantile({quantile}, sum by (tier, le)" in text
    for name in (
        "promise_missed:ratio", "promise_budget:ratio", "promise_target_ratio", "queue_depth", "oldest_job_age_seconds",
        "job_wait_seconds_bucket", "job_duration_seconds_bucket", "worker_slots", "suspected_duplicate_effects_total",
    ):  # fmt: skip
        assert name in text
    assert re.search(r"by \(reason\).*jobs_settled_total", text)


@NEEDED
def test_every_query_is_promql(tmp_path: Path) -> None:
    """promtool reads each of them as the expression of a rule."""
    rules = [{"record": f"panel:query{i}", "expr": expression} for i, (_, expression) in enumerate(queries())]
    assert len(rules) > 30
    check_rules(tmp_path, {"groups": [{"name": "panels", "rules": rules}]})
