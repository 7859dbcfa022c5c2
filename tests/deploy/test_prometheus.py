"""deploy/prometheus: the rules are PromQL, fire when they should and not else, and what they name exists."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.deploy.prometheus import (
    FOLDER,
    NEEDED,
    RULES,
    RULES_TEST,
    names_in,
    promtool,
    recorded,
    scrape_of_everything,
    scraped,
)

TEXT = RULES.read_text(encoding="utf-8")
ALERTS = re.findall(r"^ +- alert: (\w+)$", TEXT, re.MULTILINE)
EXPRESSIONS = re.sub(r"(?m)^ *#.*$|(?:summary|description): .*$", "", TEXT)


@NEEDED
def test_promtool_takes_rules_and_configuration() -> None:
    assert f"{TEXT.count('expr:')} rules found" in promtool("check", "rules", RULES)
    promtool("check", "config", "--syntax-only", FOLDER / "prometheus.yml")


@NEEDED
def test_rules_fire_when_they_should() -> None:
    """And not on healthy series, on counters that begin at 0, without data, or for a server that comes and goes."""
    assert "SUCCESS" in promtool("test", "rules", RULES_TEST)


@NEEDED
@pytest.mark.parametrize(
    ("was", "broken"),
    [
        ("clamp_max(14.4 *", "clamp_max(1.44 *"),
        ("max by (job, tier, type) (increase(jobsboard_promise_due", "(increase(jobsboard_promise_due"),
    ],
)
def test_a_rule_that_is_broken_fails_its_tests(tmp_path: Path, was: str, broken: str) -> None:
    """The tests of the rules can fail."""
    assert was in TEXT
    (tmp_path / RULES.name).write_text(TEXT.replace(was, broken), encoding="utf-8")
    shutil.copy(RULES_TEST, tmp_path)
    with pytest.raises(AssertionError, match="FAILED"):
        promtool("test", "rules", tmp_path / RULES_TEST.name)


@NEEDED
@pytest.mark.django_db
def test_promtool_finds_nothing_in_a_scrape() -> None:
    """Names, units and help texts are as Prometheus wants them."""
    promtool("check", "metrics", says=scrape_of_everything())


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tested_both_ways(alert: str) -> None:
    """Once silent, once firing."""
    text = RULES_TEST.read_text(encoding="utf-8")
    assert re.search(rf"alertname: {alert}, eval_time: \w+, exp_alerts: \[\]", text)
    assert re.search(rf"alertname: {alert}\n +eval_time: \w+\n +exp_alerts:\n", text)


@pytest.mark.django_db
def test_every_name_in_a_rule_exists() -> None:
    """A rule on a metric that nobody exports never fires; what comes later is named as such."""
    known = scraped()
    named = names_in(EXPRESSIONS)
    assert len(named) > 15
    assert named - known - recorded() == set()


def test_every_alert_says_how_urgent_it_is() -> None:
    assert len(ALERTS) == len(re.findall(r"severity: (?:page|ticket)$", TEXT, re.MULTILINE)) >= 14


def test_every_alert_is_documented() -> None:
    """Whoever is woken finds it in docs/monitoring.md."""
    text = (FOLDER.parents[1] / "docs/monitoring.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(Jobsboard\w+)` \|", text, re.MULTILINE)) == set(ALERTS)
