"""What is served: vendored files are what VENDOR.txt says, templates hold a strict CSP, sizes stay in budget."""

import gzip
import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "static" / "ops"
VENDORS = [OPS / "vendor", ROOT / "tests" / "browser" / "vendor"]
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
SPRITE = set(re.findall(r'<symbol id="i-([\w-]+)"', (OPS / "sprite.svg").read_text()))


def vendored(directory: Path) -> dict[str, str]:
    blocks = re.findall(r"^file: (.+)\n(?:.+\n)*?sha256: ([0-9a-f]{64})$", (directory / "VENDOR.txt").read_text(), re.M)
    return dict(blocks)


@pytest.mark.parametrize("directory", VENDORS, ids=["served", "tests"])
def test_vendored_files_are_unchanged_and_listed(directory: Path) -> None:
    listed = vendored(directory)
    assert {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in listed} == listed
    present = {path.name for path in directory.iterdir()} - {"VENDOR.txt", "LICENSES.txt"}
    assert present <= set(listed)


@pytest.mark.parametrize("directory", VENDORS, ids=["served", "tests"])
def test_every_vendored_file_names_its_origin(directory: Path) -> None:
    text = (directory / "VENDOR.txt").read_text()
    for field in ("name", "version", "licence", "source", "npm-integrity"):
        assert len(re.findall(rf"^{field}: \S", text, re.M)) == len(vendored(directory)), field


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT)))
def test_templates_hold_a_strict_csp(template: Path) -> None:
    source = template.read_text()
    assert not re.search(r"\sstyle\s*=", source)
    assert not re.search(r"<style\b", source)
    assert not re.search(r"\son[a-z]+\s*=", source)
    assert not re.search(r"<script\b(?![^>]*\bsrc=)", source)
    assert "javascript:" not in source
    assert not re.search(r"\bhx-on|\"js:|'js:", source)
    assert not re.search(r"hx-trigger=\"[^\"]*\[", source), "a filter in hx-trigger is evaluated as code"
    assert not re.search(r"(?:src|href)=[\"']https?://", source), "nothing is loaded from elsewhere"
    assert "|safe" not in source


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT)))
def test_icons_exist(template: Path) -> None:
    assert set(re.findall(r"{% icon [\"']([\w-]+)", template.read_text())) <= SPRITE


def test_icons_of_states_exist() -> None:
    from_code = {"help", "bad", "ok", "warn"}
    looks = re.findall(r'Look\("\w+", "(\w+)"', (ROOT / "jobsboard" / "board" / "svg.py").read_text())
    assert len(looks) >= 8
    assert from_code | set(looks) <= SPRITE


@pytest.mark.parametrize(("name", "budget"), [("app.js", 3 * 1024), ("app.css", 8 * 1024), ("sprite.svg", 3 * 1024)])
def test_sizes(name: str, budget: int) -> None:
    assert len(gzip.compress((OPS / name).read_bytes(), 9)) <= budget


def test_mark_safe_has_one_place() -> None:
    sources = [path for path in (ROOT / "jobsboard").rglob("*.py") if "mark_safe(" in path.read_text()]
    assert [path.name for path in sources] == ["board.py"]
    assert sources[0].read_text().count("mark_safe(") == 1
