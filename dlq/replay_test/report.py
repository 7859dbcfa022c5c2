"""What a replay test found: counts, the first findings of each kind, an exit code, as text and as JSON.

No value of a payload is in it: errors come with their class, their place and a message that was scrubbed.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from dlq.replay_test.comparing import Finding, Judgement

PASSED, REGRESSED, COULD_NOT_JUDGE = 0, 1, 2
SHOWN: Final = 20
CANNOT_SEE: Final = (
    "what happens outside: no request left the sandbox, and what a stub answers is what the team wrote",
    "time: the code ran today, on today's data, though the job is given the age that it had",
    "runs beside each other, second attempts, deadlocks, and functions that wait for a commit",
    "whether the work was right: only how it ended is compared, and the shape of the result",
)
_LISTED: Final = (Judgement.REGRESSION, Judgement.IMPROVEMENT, Judgement.CHANGED, Judgement.NOT_JUDGED)
_TITLES: Final = {
    Judgement.REGRESSION: "Regressions",
    Judgement.IMPROVEMENT: "Improvements (failed then, end well now)",
    Judgement.CHANGED: "Fail otherwise than then",
    Judgement.NOT_JUDGED: "Not judged",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """One replay test. `not_run`: payloads that were chosen and not reached, or erased meanwhile."""

    type: str
    candidate: str
    contract_version: int
    stub: str
    read_only: bool
    kernel_wall: bool
    since: dt.datetime
    until: dt.datetime
    rows_seen: int
    erased: int
    chosen: int
    not_run: int
    seconds: float
    findings: Sequence[Finding]
    hooks: int
    messages: int
    least: int
    require: float

    @cached_property
    def counts(self) -> Counter[Judgement]:
        """How many findings of each kind."""
        return Counter(finding.judgement for finding in self.findings)

    @property
    def judged(self) -> int:
        """How many payloads say something about the candidate."""
        return len(self.findings) - self.counts[Judgement.NOT_JUDGED]

    @property
    def judged_share(self) -> float:
        """The share of judged among the chosen; 0 of none."""
        return self.judged / self.chosen if self.chosen else 0.0

    @property
    def problem(self) -> str:
        """Why no regression does not mean that all is well; empty when it does."""
        if self.chosen < self.least:
            return f"only {self.chosen} jobs to try in this time, and at least {self.least} are wanted"
        if not self.judged:
            return "not one payload could be judged"
        if self.judged_share < self.require:
            return f"{self.judged_share:.0%} could be judged, and at least {self.require:.0%} are wanted"
        return ""

    @property
    def exit_code(self) -> int:
        """0 passed, 1 regressions, 2 could not judge. A regression that was found counts, however few were judged."""
        if self.counts[Judgement.REGRESSION]:
            return REGRESSED
        return COULD_NOT_JUDGE if self.problem else PASSED

    @property
    def verdict(self) -> str:
        """The exit code in words."""
        if self.exit_code == REGRESSED:
            return f"{self.counts[Judgement.REGRESSION]} regressions"
        return f"could not judge: {self.problem}" if self.problem else f"passed: no regression in {self.judged}"

    def of(self, judgement: Judgement) -> list[Finding]:
        """Return the findings of one kind."""
        return [finding for finding in self.findings if finding.judgement is judgement]

    @cached_property
    def notes(self) -> Counter[str]:
        """What is to be said of many jobs, and of how many."""
        notes = Counter(note for finding in self.findings for note in finding.notes)
        if self.hooks:
            notes["functions waited for a commit and were not run"] = self.hooks
        if self.messages:
            notes["Celery messages went nowhere"] = self.messages
        return notes

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values. Units: times in ISO 8601, seconds."""
        kinds = {
            str(one): {
                "count": self.counts[one],
                "causes": dict(_causes(self.of(one))),
                "shown": [_plain(finding) for finding in self.of(one)[:SHOWN]],
            }
            for one in _LISTED
        }
        return {
            "type": self.type, "candidate": self.candidate, "contract_version": self.contract_version,
            "stub": self.stub or None, "read_only": self.read_only,
            "walls": {"python": True, "database": True, "kernel": self.kernel_wall},
            "since": self.since.isoformat(), "until": self.until.isoformat(), "seconds": round(self.seconds, 3),
            "rows_seen": self.rows_seen, "erased": self.erased, "chosen": self.chosen, "not_run": self.not_run,
            "judged": self.judged, "judged_share": round(self.judged_share, 4), "same": self.counts[Judgement.SAME],
            **kinds, "notes": dict(self.notes), "cannot_see": list(CANNOT_SEE), "verdict": self.verdict,
            "exit_code": self.exit_code,
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """Yield the report for a terminal."""
        yield f"Replay test of {self.type}: {self.candidate}, against what is recorded"
        yield from _table(self._rows())
        for judgement in _LISTED:
            yield from _listed(judgement, self.of(judgement))
        if self.notes:
            yield "\nNotes"
            yield from (f"  {number:>6}  {note}" for note, number in self.notes.most_common())
        yield "\nThis test cannot see"
        yield from (f"  - {one}" for one in CANNOT_SEE)
        yield f"\n{self.verdict[0].upper()}{self.verdict[1:]}. Exit code {self.exit_code}."

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "time", f"{self.since:%Y-%m-%d %H:%M} to {self.until:%Y-%m-%d %H:%M} UTC"
        yield "contract", f"version {self.contract_version}" + (f", stub {self.stub}" if self.stub else "")
        yield "chosen", f"{self.chosen} of {self.rows_seen} rows looked at; {self.erased} erased ones left out"
        yield "run", f"{self.chosen - self.not_run} in {self.seconds:.1f} s; {self.not_run} not run"
        yield "judged", f"{self.judged} ({self.judged_share:.0%}); at least {self.require:.0%} are wanted"
        yield "same", str(self.counts[Judgement.SAME])
        for judgement in _LISTED:
            yield str(judgement).replace("_", " "), str(self.counts[judgement])
        kernel = "kernel" if self.kernel_wall else "NO kernel wall here: what C code does by itself is not refused"
        yield "walls", f"Python, database ({'read only' if self.read_only else 'rolled back'}), {kernel}"


def _table(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    yield from (f"  {name:<12} {text}" for name, text in rows)


def _causes(findings: Sequence[Finding]) -> list[tuple[str, int]]:
    """Count findings by what they have in common."""
    causes = Counter(", ".join(filter(None, (finding.why, finding.error_class, finding.frame))) for finding in findings)
    return causes.most_common(SHOWN)


def _listed(judgement: Judgement, findings: Sequence[Finding]) -> Iterator[str]:
    if not findings:
        return
    yield f"\n{_TITLES[judgement]}: {len(findings)}"
    yield from (f"  {number:>6}  {cause}" for cause, number in _causes(findings))
    if judgement is Judgement.NOT_JUDGED:
        return
    for finding in findings[:SHOWN]:
        error = f"{finding.error_class}: {finding.message}" if finding.error_class else ""
        where = f"at {finding.frame}" if finding.frame else ""
        yield "  - " + ", ".join(filter(None, (f"{finding.job_id} {finding.then}", finding.why, error, where)))
    if len(findings) > SHOWN:
        yield f"  and {len(findings) - SHOWN} more"


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "job_id": str(finding.job_id), "then": finding.then, "why": finding.why,
        "error_class": finding.error_class, "message": finding.message, "frame": finding.frame,
    }  # fmt: skip
