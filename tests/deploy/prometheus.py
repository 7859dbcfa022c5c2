"""promtool, and what a scrape and the recording rules have to offer to rules and panels."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from django.test import Client, override_settings
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from jobsboard.metrics import view
from tests.factories import accept, fold_all, make_type
from tests.metrics.page import BEARER, TOKEN, report

FOLDER: Final = Path(__file__).parents[2] / "deploy/prometheus"
RULES: Final = FOLDER / "jobsboard.rules.yml"
RULES_TEST: Final = FOLDER / "jobsboard.rules.test.yml"
PROMTOOL: Final = shutil.which("promtool")
NEEDED: Final = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus): RULES ARE NOT TESTED"
)


def promtool(*arguments: str | Path, says: bytes = b"") -> str:
    """Run promtool in the folder of the rules, with an input, and return what it says; it must succeed."""
    assert PROMTOOL is not None
    command = [PROMTOOL, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=FOLDER, input=says.decode(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check_rules(folder: Path, rules: dict[str, Any]) -> None:
    """Let promtool read rules. JSON is YAML."""
    path = folder / "checked.yml"
    path.write_text(json.dumps(rules), encoding="utf-8")
    promtool("check", "rules", path)


def names_in(text: str) -> set[str]:
    """Return the names of metrics in an expression."""
    return set(re.findall(r"\b(?:jobsboard|django)(?:_\w+|:\w+:\w+)", text))


def recorded() -> set[str]:
    """Return the names that the recording rules make."""
    return set(re.findall(r"^ +- record: (\S+)$", RULES.read_text(encoding="utf-8"), re.MULTILINE))


def scrape_of_everything() -> bytes:
    """Return a real scrape in which every metric of jobs has a sample that can have one at once."""
    make_type()
    accept(1)
    report("worker", "tier2", slots=1)
    report("scheduler")
    fold_all()
    view.forget()
    with override_settings(METRICS_TOKEN=TOKEN):
        page = Client().get("/metrics", headers=BEARER).content
    view.forget()
    return page


def scraped() -> set[str]:
    """Return the names of all samples of a real scrape, and of what web processes count."""
    page = scrape_of_everything() + generate_latest(REGISTRY)
    # A ratio has no sample before the first window has passed, but its family is there.
    families = [*text_string_to_metric_families(page.decode())]
    return {one.name for family in families for one in family.samples} | {family.name for family in families}
