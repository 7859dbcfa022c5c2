"""Rules about where things are, which import-linter cannot say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
APPS = ("queues", "dlq", "jobsboard")
OURS = sorted(path for app in APPS for path in (ROOT / app).rglob("*.py"))
WRITERS = ROOT / "queues" / "lifecycle"
JOB_TABLES = re.compile(
    r"\b(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM|TRUNCATE(?:\s+TABLE)?|MERGE\s+INTO|COPY)\s+(?:ONLY\s+)?"
    r"(?:public\.)?\"?(?:queues_job|queues_dedupekey)\b",
    re.IGNORECASE,
)
WRITING_METHODS = frozenset(
    {
        "save", "update", "delete", "create", "bulk_create", "bulk_update", "get_or_create", "update_or_create",
        "asave", "aupdate", "adelete", "acreate",
    }
)  # fmt: skip


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _outside() -> list[Path]:
    return [p for p in OURS if WRITERS not in p.parents and "migrations" not in p.parts]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", _outside(), ids=_name)
def test_only_lifecycle_writes_jobs(path: Path) -> None:
    """DESIGN 3, one writer: no other module has a statement that changes jobs or their keys."""
    tree = _tree(path)
    found = [text.strip()[:80] for text in _strings(tree) if JOB_TABLES.search(text)]
    assert found == []
    assert list(_model_writes(tree)) == []


def _model_writes(tree: ast.AST) -> Iterator[str]:
    """Yield calls that write through `Job` or `DedupeKey`, or through something that is visibly one of them."""
    suspects = {"Job", "DedupeKey"} | _assigned_from(tree, {"Job", "DedupeKey"})
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in WRITING_METHODS and _root(node.func.value) in suspects:
            yield f"line {node.lineno}: {ast.unparse(node.func)}"


def _assigned_from(tree: ast.AST, roots: set[str]) -> set[str]:
    """Return names that are assigned from an expression that starts at one of the roots, or annotated as one."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _root(node.value) in roots:
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            words = set(re.findall(r"\w+", ast.unparse(node.annotation)))
            if words & roots:
                name = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
                found.add(name)
    return found


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize(
    "code",
    [
        "Job.objects.filter(id=1).update(state='dead')",
        "job = Job.objects.get(id=1)\njob.save()",
        "def f(job: Job) -> None:\n    job.delete()",
        "DedupeKey.objects.create(key='k')",
    ],
)
def test_a_write_would_be_found(code: str) -> None:
    """The test above can fail."""
    assert list(_model_writes(ast.parse(code)))


def test_a_statement_would_be_found() -> None:
    """So can its other half; tables whose names only begin alike are not meant."""
    assert JOB_TABLES.search("WITH x AS (update  queues_job j SET state = 'dead')")
    assert JOB_TABLES.search("DELETE FROM queues_dedupekey")
    assert not JOB_TABLES.search("UPDATE queues_jobtype SET paused = true")
    assert not JOB_TABLES.search("SELECT id FROM queues_job FOR UPDATE")


@pytest.mark.parametrize("path", OURS, ids=_name)
def test_imports_are_at_the_top(path: Path) -> None:
    """STYLE 1: what a module needs can be seen at its top; only `ready()` has to wait for the models."""
    late = [
        f"line {node.lineno} in {function.name}"
        for function in ast.walk(_tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name != "ready"
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert late == []


def test_no_module_is_a_drawer() -> None:
    """STYLE 1: a newcomer guesses the file from the question; nobody asks for a helper."""
    drawers = {"utils", "helpers", "services", "common", "misc"}
    assert [_name(path) for path in OURS if path.stem in drawers or set(path.parent.parts[-1:]) & drawers] == []


def test_pages_of_queues_do_not_link_to_dlq() -> None:
    """The base app knows nothing of the one above it."""
    pages = [*(ROOT / "queues").rglob("*.html"), *(ROOT / "templates" / "queues").rglob("*.html")]
    found = [
        _name(page) for page in pages if re.search(r"""\bdlq[:./]|url ['"]dlq""", page.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_queues_does_not_import_what_is_above_it() -> None:
    """Imports point down: jobsboard, dlq, queues."""
    above = {"queues": {"dlq", "jobsboard"}, "dlq": {"jobsboard"}}
    found = [
        f"{_name(path)}: {module}"
        for path in OURS
        for module in _imports(path)
        if module.split(".")[0] in above.get(path.relative_to(ROOT).parts[0], set())
    ]
    assert found == []


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def test_no_model_signals() -> None:
    """STYLE 1: what happens on a save is written where the save is."""
    signals = {"post_save", "pre_save", "post_delete", "pre_delete", "m2m_changed"}
    found = [_name(path) for path in OURS if signals & {n.id for n in ast.walk(_tree(path)) if isinstance(n, ast.Name)}]
    assert found == []
