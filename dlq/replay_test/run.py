"""One replay test: choose jobs, run the candidate on their payloads, judge each run, report."""

from __future__ import annotations

import datetime as dt
import importlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings

from dlq.replay_test import comparing, sampling, words
from dlq.replay_test.child import Candidate, Stub, Task
from dlq.replay_test.comparing import Finding
from dlq.replay_test.process import Sandbox
from dlq.replay_test.report import Report
from dlq.replay_test.sampling import Recorded
from queues import accept, contracts, handlers
from queues.contracts import Contract
from queues.handlers import Handler
from queues.request import PayloadInvalid

LONGEST_SECONDS: Final = 30.0
"""No payload runs longer, whatever its contract allows."""
_CHUNK: Final = 20


class CannotJudge(Exception):
    """Nothing can be said of the candidate: exit code 2."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for. Units: `memory` in bytes; `within` bounds the whole run."""

    type: str
    back: dt.timedelta
    size: int
    handler: str = ""
    stub: str = ""
    read_only: bool = False
    require: float = 0.5
    least: int = 20
    within: dt.timedelta = dt.timedelta(minutes=15)
    memory: int = 1 << 30
    seed: int = 0


def run(options: Options) -> Report:
    """Run a replay test. Raises: CannotJudge, SandboxFailed, django.db.Error."""
    try:
        contract = contracts.current(options.type)
    except contracts.UnknownContract:
        raise CannotJudge(f"there is no job type {options.type!r}") from None
    candidate, name = _candidate(options, contract)
    sampled = sampling.take(options.type, back=options.back, size=options.size, seed=options.seed)
    began = time.monotonic()
    trial = _Trial(candidate, contract, until=began + options.within.total_seconds())
    # With too few jobs nothing can be said anyway.
    if len(sampled.jobs) >= max(1, options.least):
        trial.run(sampled.jobs)
    return Report(
        type=options.type,
        candidate=name,
        contract_version=contract.version,
        stub=options.stub,
        read_only=options.read_only,
        kernel_wall=trial.kernel_wall,
        since=sampled.since,
        until=sampled.until,
        rows_seen=sampled.seen,
        erased=sampled.erased,
        chosen=len(sampled.jobs),
        not_run=len(sampled.jobs) - len(trial.findings),
        seconds=time.monotonic() - began,
        findings=trial.findings,
        hooks=trial.hooks,
        messages=trial.messages,
        least=max(1, options.least),
        require=options.require,
    )


class _Trial:
    """The runs of one test, and what they summed up to."""

    def __init__(self, candidate: Candidate, contract: Contract, *, until: float) -> None:
        self._candidate = candidate
        self._contract = contract
        self._until = until
        self.findings: list[Finding] = []
        self.hooks = self.messages = 0
        self.kernel_wall = False

    def run(self, jobs: Sequence[Recorded]) -> None:
        with Sandbox(self._candidate) as sandbox:
            self.kernel_wall = sandbox.kernel
            for job, payload in _with_payloads(jobs):
                if time.monotonic() >= self._until:
                    return
                self.findings.append(self._judge(sandbox, job, payload))

    def _judge(self, sandbox: Sandbox, job: Recorded, payload: str) -> Finding:
        try:
            accept.read_payload(payload, self._contract)
        except PayloadInvalid as error:
            message = words.scrub(str(error), json.loads(payload))
            return comparing.refused_at_the_door(job, message, version=self._contract.version)
        seen = sandbox.run(_task(job, payload))
        self.hooks += seen.hooks
        self.messages += seen.messages
        return comparing.judge(job, seen, self._contract)


def _with_payloads(jobs: Sequence[Recorded]) -> Iterator[tuple[Recorded, str]]:
    """Read payloads a few at a time; one that was erased meanwhile is left out."""
    for start in range(0, len(jobs), _CHUNK):
        chunk = jobs[start : start + _CHUNK]
        texts = sampling.payloads([job.id for job in chunk])
        yield from ((job, texts[job.id]) for job in chunk if job.id in texts)


def _task(job: Recorded, payload: str) -> Task:
    return Task(
        id=job.id,
        payload=payload,
        idempotency_key=job.idempotency_key,
        group=job.group,
        trace=None if job.trace is None else json.dumps(job.trace),
        age=job.age,
        left=job.left,
    )


def _candidate(options: Options, contract: Contract) -> tuple[Candidate, str]:
    """Find the code. With a handler named, only its module is imported: it may register the same type."""
    if not options.handler:
        if contract.handler == "http":
            raise CannotJudge(
                f"{options.type!r} is an HTTP target: its code runs in the team's service, where it is to be tested."
                " A Python function can be named with --handler"
            )
        _loading(lambda: handlers.load(settings.JOBSBOARD_HANDLERS), "JOBSBOARD_HANDLERS")
        try:
            found = handlers.find(options.type)
        except handlers.NoHandler as error:
            raise CannotJudge(str(error)) from None
        function, atomic = found.function, found.atomic
    else:
        function = _imported(options.handler)
        atomic = any(handlers.find(name).atomic for name in handlers.types_of(function))
    candidate = Candidate(
        type=options.type,
        function=function,
        atomic=atomic,
        stub=_stub(options.stub),
        soft_limit=float(contract.soft_limit_seconds),
        hard_limit=min(float(contract.hard_limit_seconds) or LONGEST_SECONDS, LONGEST_SECONDS),
        never_retry=contract.never_retry,
        memory=options.memory,
        read_only=options.read_only,
    )
    return candidate, _name(function)


def _stub(path: str) -> Stub | None:
    if not path:
        return None
    found: Stub = _imported(path)
    return found


def _imported(path: str) -> Any:
    """Return what `module:name` names. Raises: CannotJudge."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise CannotJudge(f"{path!r} is not of the form module:function")
    found: Any = _loading(lambda: importlib.import_module(module), module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise CannotJudge(f"{module} has no function {name!r}")
    return found


def _loading(load: Callable[[], Any], what: str) -> Any:
    try:
        return load()
    except Exception as error:  # the candidate's module: whatever it raises, it cannot be tried
        raise CannotJudge(
            f"{what} cannot be imported: {type(error).__name__}: {words.scrub(str(error), None)}"
        ) from error


def _name(function: Handler) -> str:
    return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', repr(function))}"
