"""Break a promise in a copy of the tree and name the tests that go red; exit 1 when a mutation is not seen.

Run: `python -m benchmarks.mutations [--only NAME] [-- PYTEST ARGUMENTS]`. Without arguments each mutation meets the
tests of the core: queues, concurrency, faults, model, scenarios and outcomes. A test that a mutation makes hang ends
by its time-out and counts as red.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
TESTS: Final = (
    "tests/queues", "tests/concurrency", "tests/faults", "tests/model", "tests/scenarios", "tests/outcomes",
)  # fmt: skip
RED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+?)(?:\[| - |$)", re.MULTILINE)


@dataclass(frozen=True)
class Mutation:
    """What is broken. `edits`: (file, text that stands there once, text instead)."""

    name: str
    what: str
    edits: tuple[tuple[str, str, str], ...]


MUTATIONS: Final = (
    Mutation(
        "windows_do_not_matter",
        "a cohort is judged when its minute is over, its window or not",
        (
            (
                "queues/outcomes/flow.py",
                '+ make_interval(secs => {row}window_seconds) <= {judged}"',
                '<= {judged}"',
            ),
        ),
    ),
    Mutation(
        "an_hour_is_judged_whole",
        "an hour whose windows have not all passed counts as nothing instead of by its minutes",
        (("queues/outcomes/flow.py", 'UNION ALL {_inside("hour", "minute", "1 hour")}', ""),),
    ),
    Mutation(
        "a_stage_begins_with_the_run_before",
        "the end of a run does not begin the next stage",
        (("queues/lifecycle/settle.py", "    entered_at = h.now,\n", ""),),
    ),
    Mutation(
        "a_fold_forgets_the_day",
        "a fold adds to minutes and hours only",
        (("queues/lifecycle/rollup.py", "('hour'), ('day'), ('total')", "('hour'), ('total')"),),
    ),
    Mutation(
        "no_fence_in_finish",
        "the end of a run is written whoever holds the job by now",
        (
            (
                "queues/lifecycle/settle.py",
                "FROM queues_job j JOIN item i ON i.id = j.id AND i.fence = j.fence\n  CROSS",
                "FROM queues_job j JOIN item i ON i.id = j.id\n  CROSS",
            ),
        ),
    ),
    Mutation(
        "no_dedupe_constraint",
        "a key is looked for before it is inserted, and no constraint holds it",
        (
            (
                "queues/migrations/0002_jobs.py",
                "operations = [migrations.RunPython(_create, _drop)]",
                "operations = [migrations.RunPython(_create, _drop),"
                ' migrations.RunSQL("ALTER TABLE queues_dedupekey DROP CONSTRAINT queues_dedupekey_pkey")]',
            ),
            (
                "queues/lifecycle/accept.py",
                "FROM item WHERE dedupe_key IS NOT NULL ORDER BY type, dedupe_key\n"
                "  ON CONFLICT (type, key) DO NOTHING",
                "FROM item WHERE dedupe_key IS NOT NULL AND NOT EXISTS (SELECT FROM queues_dedupekey k"
                " WHERE k.type = item.type AND k.key = item.dedupe_key)",
            ),
            (
                "queues/lifecycle/resolve.py",
                "FROM parent p WHERE p.other\n  ON CONFLICT (type, key) DO NOTHING RETURNING job_id",
                "FROM parent p WHERE p.other AND NOT EXISTS (SELECT FROM queues_dedupekey k WHERE k.type = p.type"
                " AND k.key = %(key)s) RETURNING job_id",
            ),
        ),
    ),
    Mutation(
        "no_rescue_sweep",
        "nobody gives up runs whose lease ran out",
        (("queues/scheduler/rescue.py", "    ids = lifecycle.lost(limit=BATCH)\n", "    ids: list[object] = []\n"),),
    ),
    Mutation(
        "heartbeat_without_fence",
        "a beat extends the lease of whatever run the job has",
        (
            (
                "queues/lifecycle/claim.py",
                "SELECT j.id, i.lease FROM queues_job j JOIN item i ON i.id = j.id AND i.fence = j.fence",
                "SELECT j.id, i.lease FROM queues_job j JOIN item i ON i.id = j.id",
            ),
        ),
    ),
    Mutation(
        "release_lowers_the_fence",
        "a release gives the fence back with the attempt",
        (
            (
                "queues/lifecycle/settle.py",
                "    attempt = j.attempt - h.given_back::integer,\n",
                "    attempt = j.attempt - h.given_back::integer, fence = j.fence - h.given_back::integer,\n",
            ),
        ),
    ),
    Mutation(
        "replay_without_guard",
        "a parent may be replayed again",
        (("queues/lifecycle/resolve.py", " AND j.replayed_by IS NULL\n    AND j.resolution = 'open'", "\n"),),
    ),
    Mutation(
        "cancel_is_forgotten",
        "a run that fails goes on although somebody asked it to stop",
        (("queues/lifecycle/settle.py", "      WHEN j.cancel_requested THEN 'cancelled'\n", ""),),
    ),
    Mutation(
        "evidence_is_not_kept",
        "a proof that comes while a run goes on is not applied when it ends",
        (("queues/lifecycle/settle.py", " OR j.evidence IS NOT NULL THEN 'confirmed'", " THEN 'confirmed'"),),
    ),
)


def copy(to: Path) -> None:
    """Copy what git knows, or would take, and borrow the environment."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    named = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, named.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    (to / ".venv").symlink_to(ROOT / ".venv")


def break_it(mutation: Mutation, tree: Path) -> None:
    """Apply the edits. Raises: SystemExit when the code is no longer what a mutation knows."""
    for name, before, after in mutation.edits:
        text = (tree / name).read_text()
        if text.count(before) != 1:
            raise SystemExit(f"{mutation.name}: {name} has its text {text.count(before)} times")
        (tree / name).write_text(text.replace(before, after))


def red_tests(tree: Path, tests: list[str]) -> Counter[str]:
    """Run tests there. Shape: test → how many of its cases failed."""
    argv = [sys.executable, "-m", "jobsboard.local", "test", "--", "-q", "-p", "no:cacheprovider", *tests]
    ran = subprocess.run(argv, cwd=tree, capture_output=True, text=True)
    if ran.returncode not in (0, 1):
        raise SystemExit(f"the tests did not run:\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}")
    return Counter(RED.findall(ran.stdout))


def main() -> None:
    """Try each mutation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=[one.name for one in MUTATIONS])
    parser.add_argument("tests", nargs="*", help="pytest arguments instead of the core's tests")
    chosen = parser.parse_args()
    unseen = []
    for mutation in MUTATIONS:
        if chosen.only and mutation.name not in chosen.only:
            continue
        with tempfile.TemporaryDirectory(prefix="jobsboard-mutation-") as folder:
            tree = Path(folder) / "tree"
            copy(tree)
            break_it(mutation, tree)
            red = red_tests(tree, chosen.tests or [name for name in TESTS if (tree / name).exists()])
        print(f"{mutation.name}: {mutation.what}: {sum(red.values())} red", flush=True)
        for name, n in sorted(red.items()):
            print(f"    {name}" + (f" ({n} cases)" if n > 1 else ""), flush=True)
        if not red:
            unseen.append(mutation.name)
    if unseen:
        raise SystemExit(f"not seen by any test: {', '.join(unseen)}")


if __name__ == "__main__":
    main()
