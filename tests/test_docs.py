"""The documents say what the code does: settings, commands, states, fields, calls, links."""

from __future__ import annotations

import base64
import datetime as dt
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

from jobsboard.api import problems
from jobsboard.api.urls import api
from jobsboard.models import SCOPES
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
        for folder in ("queues", "jobsboard")
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


def reliability() -> list[tuple[str, str]]:
    """Return (invariant, test file) for each row of docs/reliability.md."""
    found = [row for row in rows(TEXT["docs/reliability.md"]) if re.match(r"[A-Z]-\d\d\b", row[0])]
    return [(row[0], file) for row in found for file in re.findall(r"\(\.\./([^)]+)\)", row[-1])]


def test_reliability_lists_invariants() -> None:
    """The reader below finds the table."""
    assert len({name for name, _ in reliability()}) >= 5


@pytest.mark.parametrize(("name", "file"), reliability())
def test_the_guarding_test_names_the_invariant(name: str, file: str) -> None:
    """A test that no longer guards an invariant is no longer listed for it."""
    assert name in (ROOT / file).read_text(encoding="utf-8")


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
