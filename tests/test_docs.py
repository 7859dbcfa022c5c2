"""The documents say what the code does: settings, commands, states, fields, calls, links."""

from __future__ import annotations

import ast
import base64
import dataclasses
import datetime as dt
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from standardwebhooks import Webhook

from jobsboard import alert_rules
from jobsboard.alerts import defaults
from jobsboard.api import problems
from jobsboard.api.urls import api
from jobsboard.durations import duration
from jobsboard.models import SCOPES, AlertRule, Metric
from queues.accept import EnqueueError
from queues.contract_fields import FIELDS, NOT_ENFORCED, SWITCHES, VERSIONED, default_of
from queues.http_target import signing_key
from queues.scheduler import registered
from queues.states import CANCELLED_REASONS, DEAD_REASONS, EXPIRED_REASONS, JobState, Reason

ROOT = Path(settings.BASE_DIR)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TEXT = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXT["README.md"]
API = TEXT["docs/api.md"]
ALL = "\n".join(TEXT.values())


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table row, without header and rule lines."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not re.match(r"\|[-| ]+\|$", line)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def named(text: str) -> dict[str, list[str]]:
    """Return the rows whose first cell is one name in backticks, by that name."""
    return {row[0].strip("`"): row for row in rows(text) if re.fullmatch(r"`[\w.-]+`", row[0])}


def variables() -> set[str]:
    """Return the environment variables that settings.py reads, directly or by a reader's default."""
    read = set(re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', (ROOT / "jobsboard/settings.py").read_text()))
    readers = (ROOT / "jobsboard/env.py").read_text()
    return read | set(re.findall(r'(?:name: str = |text\()"([A-Z_]+)"', readers))


def test_every_variable_is_in_the_table() -> None:
    """The section Configuration lists exactly what is read."""
    assert {"DATABASE_URL", "BROKER_URL", "SECRET_KEY", "DEBUG"} <= variables()
    section = README.split("## Configuration")[1].split("\n## ")[0]
    assert set(named(section)) == variables()


@pytest.mark.parametrize(
    "name",
    [
        path.stem
        for folder in ("queues", "dlq", "jobsboard")
        for path in sorted((ROOT / folder / "management/commands").glob("[a-z]*.py"))
    ],
)
def test_every_command_is_described(name: str) -> None:
    """Somebody who finds a command can look it up."""
    assert re.search(rf"manage\.py {name}\b", TEXT["docs/operations.md"])


@pytest.mark.parametrize("name", [service.name for service in registered()])
def test_every_service_of_the_scheduler_is_described(name: str) -> None:
    """Whoever reads its log knows what each does."""
    assert re.search(rf"\b{name} \(", TEXT["docs/operations.md"])


def test_every_state_and_reason_is_described() -> None:
    """The two tables of the API have each of them, and nothing else."""
    tables = API.split("## The job")[1]
    found = [(re.findall(r"`([a-z_]+)`", row[0]), row[1]) for row in rows(tables)]
    states = [name for names, _ in found for name in names if name in set(JobState)]
    assert sorted(states) == sorted(JobState)
    reasons = {name: set(beside.split(", ")) for names, beside in found for name in names if name not in set(JobState)}
    assert set(reasons) == set(Reason)
    for state, fitting in (("dead", DEAD_REASONS), ("expired", EXPIRED_REASONS), ("cancelled", CANCELLED_REASONS)):
        assert {name for name, beside in reasons.items() if state in beside} == set(fitting)


def test_every_call_is_in_the_table_and_nothing_else() -> None:
    """What the document promises exists, and what exists is documented."""
    paths: dict[str, Any] = api.get_openapi_schema()["paths"]
    real = {
        f"{method.upper()} {path.removeprefix('/api/v1').replace('{job_id}', '{id}')}"
        for path, calls in paths.items()
        for method in calls
    }
    section = API.split("## Calls that exist now")[1].split("\n## ")[0]
    assert {row[0].strip("`") for row in rows(section)[1:]} == real


def test_every_error_code_is_described() -> None:
    """A program that meets a code finds it here."""
    codes = set(problems._STATUS) | set(problems._TITLES) | {kind.code for kind in EnqueueError.__subclasses__()}
    sources = "".join(path.read_text() for path in [*(ROOT / "jobsboard/api").glob("*.py"), ROOT / "queues/accept.py"])
    codes |= set(re.findall(r'(?:Problem\(|code=)\s*"([a-z_]+)"', sources))
    section = API.split("## Errors")[1].split("\n## ")[0]
    assert codes <= set(re.findall(r"`([a-z_]+)`", section))


def test_every_scope_is_named() -> None:
    """Whoever makes a key sees what it can open."""
    assert all(re.search(rf"\b{scope}\b", API) for scope in SCOPES)


def test_every_field_of_a_contract_is_described() -> None:
    """No field is missing, and none is described that does not exist."""
    assert set(named(TEXT["docs/contracts.md"])) == set(FIELDS)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_fields_default_kind_and_mark_are_true(name: str) -> None:
    """The tables agree with the model and with NOT_ENFORCED."""
    row = named(TEXT["docs/contracts.md"])[name]
    kind = "switch" if name in SWITCHES else "version" if name in VERSIONED else "current"
    mark = "not enforced yet" if name in NOT_ENFORCED else "enforced"
    assert row[3:] == [f"`{json.dumps(default_of(name))}`", kind, mark]


def test_every_metric_of_alerts_is_described() -> None:
    """Whoever writes a rule finds what it measures, and of what it can be asked for."""
    table = {name: row for name, row in named(TEXT["docs/alerts.md"]).items() if len(row) == 3}
    assert set(table) == set(Metric.values)
    for metric, row in table.items():
        assert row[2].split(", ") == list(alert_rules.scopes_of(metric)), metric


def test_the_table_of_default_rules_is_true() -> None:
    """Names, thresholds and severities are those of the code, in its order."""
    wanted = []
    for one in defaults.DEFAULTS:
        rule = AlertRule(**dataclasses.asdict(one))
        metric = f"`{rule.metric}`" + (f" ({rule.reason})" if rule.reason else "")
        lasting = duration(rule.for_seconds) if rule.for_seconds else "at once"
        wanted.append([rule.name, f"{metric} {alert_rules.threshold_words(rule)}", lasting, rule.severity])
    assert [row for row in rows(TEXT["docs/alerts.md"]) if len(row) == 4][1:] == wanted


def test_every_make_target_exists() -> None:
    """No document names a target that is not there; the README names the two that matter."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = re.findall(r"`[^`\n]*`|^    .*$", ALL, re.MULTILINE)
    used = {name for line in code for name in re.findall(r"(?:^|[`\s])make ([a-z]+)", line)}
    assert {"demo", "test"} <= used <= targets


def links() -> list[tuple[str, str]]:
    """Return (page, target) of every link and picture that stays inside the tree."""
    found = []
    for page, text in TEXT.items():
        targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
        found += [(page, target) for target in targets if not re.match(r"[a-z]+:", target)]
    return found


@pytest.mark.parametrize(("page", "target"), links())
def test_every_linked_file_and_heading_exists(page: str, target: str) -> None:
    """No link leads nowhere."""
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


RELIABILITY = TEXT["docs/reliability.md"]
INVARIANTS = [f"I-{number:02d}" for number in range(1, 46)]
SCENARIOS = [str(number) for number in range(1, 26)]
WAITS = re.compile(r"waits for issue [A-Z]: .{15,}")


def reliability() -> dict[str, list[str]]:
    """Return the rows of docs/reliability.md by their first cell: the id of an invariant, or a scenario's number."""
    return {row[0]: row for row in rows(RELIABILITY) if re.fullmatch(r"[A-Z]-\d\d|\d+", row[0])}


def guards() -> list[tuple[str, str]]:
    """Return (id, test file) for each link of a row."""
    found = [(name, re.findall(r"\(\.\./([^)]+)\)", row[-1])) for name, row in reliability().items()]
    return [(name, file) for name, files in found for file in files]


@functools.cache
def named_by(file: str) -> frozenset[str]:
    """Return the ids that tests of a file carry in their names or docstrings; of scenarios their numbers."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    tests = [
        n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[:4].lower() == "test"
    ]
    said = "\n".join(ast.get_docstring(node) or "" for node in (tree, *tests))
    names = "\n".join(node.name for node in tests)
    found = set(re.findall(r"\b[A-Z]-\d\d\b", said)) | {f"I-{i}" for i in re.findall(r"^test_i_(\d\d)_", names, re.M)}
    numbers = re.findall(r"\b[Ss]cenario (\d+)", said) + re.findall(r"^test_scenario_(\d\d)_", names, re.M)
    return frozenset(found | {str(int(number)) for number in numbers})


def test_every_invariant_and_every_scenario_has_its_row() -> None:
    """All 45 and all 25, each once and in order, each with the promise that it stands for."""
    first = [row[0] for row in rows(RELIABILITY)]
    assert [name for name in first if re.fullmatch(r"I-\d\d", name)] == INVARIANTS
    assert [name for name in first if re.fullmatch(r"\d+", name)] == SCENARIOS
    promises = re.findall(r"^(\d+)\. \*\*", RELIABILITY, re.M)
    assert promises == [str(number) for number in range(1, 11)]
    for name in INVARIANTS:
        assert set(reliability()[name][2].split(", ")) <= set(promises), name


@pytest.mark.parametrize("name", [*INVARIANTS, *SCENARIOS])
def test_a_row_has_its_tests_or_says_what_it_waits_for(name: str) -> None:
    """Nothing is promised in silence: it is tested, or its feature is named with the issue that brings it."""
    files = [file for guarded, file in guards() if guarded == name]
    assert files or WAITS.fullmatch(reliability()[name][-1])
    if name in SCENARIOS and files:
        played = re.compile(rf"^def test_scenario_{int(name):02d}_\w+", re.M)
        assert any(played.search((ROOT / file).read_text(encoding="utf-8")) for file in files), "nobody plays it"


@pytest.mark.parametrize(("name", "file"), guards())
def test_the_guarding_test_names_the_invariant(name: str, file: str) -> None:
    """A test that no longer guards an invariant is no longer listed for it."""
    assert name in named_by(file)


def test_no_guarding_test_is_left_out() -> None:
    """Whoever names an invariant or a scenario in a test finds that file in the table."""
    named = {str(p.relative_to(ROOT)): named_by(str(p.relative_to(ROOT))) for p in (ROOT / "tests").rglob("test_*.py")}
    guarding = {file for file, ids in named.items() if ids & {*INVARIANTS, *SCENARIOS}}
    assert guarding - {file for _, file in guards()} == set()
    assert len(guarding) > 20


def test_no_test_names_an_invariant_that_does_not_exist() -> None:
    """An id that is misspelt guards nothing."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        found = named_by(str(path.relative_to(ROOT)))
        unknown = {name for name in found if name.startswith("I-") and name not in INVARIANTS}
        unknown |= {name for name in found if name.isdigit() and name not in SCENARIOS}
        assert unknown == set(), path


def test_the_readme_is_short() -> None:
    """It is read to its end only if it has one."""
    assert len(README.splitlines()) <= 150


def test_no_document_names_a_machine() -> None:
    """Paths of one machine, or where packages came from, are nobody else's business."""
    assert not re.search(r"/(?:work|root|home|Users|var/tmp)/|pypi\.org|registry\.", ALL)


def example() -> Callable[[str, dict[str, str], bytes], bool]:
    """Return the verifier that docs/handlers.md shows."""
    code = re.search(r"```python\n(import base64.*?)```", TEXT["docs/handlers.md"], re.DOTALL)
    assert code
    scope: dict[str, Any] = {}
    exec(code[1], scope)  # noqa: S102 (our own document)
    verify: Callable[[str, dict[str, str], bytes], bool] = scope["verify"]
    return verify


@pytest.mark.parametrize("secret", ["whsec_" + base64.b64encode(b"k" * 24).decode(), "a plain secret, taken as it is"])
def test_the_shown_verifier_takes_our_signature_and_no_other(secret: str) -> None:
    """Who copies the example can read what we send."""
    verify, body, now = example(), '{"city": "Zürich"}', dt.datetime.now(tz=dt.UTC)

    def headers(at: dt.datetime) -> dict[str, str]:
        signature = Webhook(signing_key(secret)).sign("job-1", at, body)
        stamp = str(int(at.timestamp()))
        return {"webhook-id": "job-1", "webhook-timestamp": stamp, "webhook-signature": signature}

    assert verify(secret, headers(now), body.encode())
    assert not verify(secret, headers(now), body.encode() + b" ")
    assert not verify("another secret", headers(now), body.encode())
    assert not verify(secret, headers(now - dt.timedelta(minutes=6)), body.encode())


def scripts() -> list[str]:
    """Return what the Makefile gives to Python beside the local stack itself."""
    return re.findall(r"-- python ((?:-m )?[\w./]+)", (ROOT / "Makefile").read_text())


@pytest.mark.parametrize("script", scripts())
def test_scripts_of_the_makefile_start(script: str) -> None:
    """A script that cannot find its modules says so here and not in an hour."""
    command = [sys.executable, *script.split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
