"""Fuzz the HTTP API of a running stack with schemathesis, from the OpenAPI document that it serves.

Counts answers by status. Fails on a 5xx (but a documented 503 with Retry-After), on HTML, and on an answer that does
not come; what else differs from the document is a number in the report, with one example each. Addresses and bodies
get ids, tokens, types and signatures of this stack, so that most requests reach further than the reader of requests.

Run: `make fuzz`, or `make fuzz ARGS="--seconds 60 --seed 7"`. It needs servers of its own: `jobsboard.local isolated`.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import django
import requests
import schemathesis
from schemathesis.cli import schemathesis as command
from schemathesis.core.transport import Response

from benchmarks.chaos.processes import Processes

ROOT = Path(__file__).resolve().parents[1]
SECRET = "whsec_" + base64.b64encode(b"the secret of a fuzzer's provider").decode()
SCOPES = "jobs:write,jobs:read,jobs:confirm,dlq:read,dlq:replay"
STATES = {"accepted", "processing", "awaiting_confirmation", "retrying", "confirmed", "dead", "expired", "cancelled"}
EACH = 25
LOOK_AGAIN_SECONDS = 2.0


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or 1))
    parser.add_argument("--migrated", action="store_true", help="the database has its tables already")
    parser.add_argument("--result", type=Path, help="write what was counted into this file, as JSON")
    parser.add_argument("--log", type=Path, help="write what schemathesis says into this file")
    return parser.parse_args()


def main() -> int:
    """Start the stack, fuzz it, report; returns the exit code."""
    chosen = options()
    if not chosen.migrated:
        subprocess.run([sys.executable, "manage.py", "migrate", "-v", "0"], check=True, cwd=ROOT)
    os.environ |= {"FUZZ_SECRET": SECRET, "JOBSBOARD_HANDLERS": "benchmarks.fuzz_handlers"}
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")
    django.setup()
    from benchmarks import fuzz_stack

    with tempfile.TemporaryDirectory(prefix="jobsboard-fuzz-") as folder:
        processes = Processes(Path(folder), os.environ)
        try:
            key = fuzz_stack.prepare(SCOPES)
            port = fuzz_stack.start(processes)
            fuzz_stack.reach_every_state(STATES, each=EACH)
            tally = Tally(Inputs(chosen.seed, fuzz_stack))
            tally.listen()
            print(f"fuzzing for {chosen.seconds} s with seed {chosen.seed}", flush=True)
            code = fuzz(f"http://127.0.0.1:{port}", key=key, seconds=chosen.seconds, seed=chosen.seed, folder=folder)
            said = (Path(folder) / "schemathesis.log").read_text()
            if chosen.log:
                chosen.log.write_text(said)
            tally.crashed = "" if code in (0, 1) else said[-3000:]
            tally.judge(json.loads((Path(folder) / "report.json").read_text()))
        finally:
            processes.close()
        tally.log_errors = fuzz_stack.errors_in(Path(folder))
        tally.restarts = sum(process.starts - 1 for process in processes.all)
    if chosen.result:
        chosen.result.write_text(json.dumps(tally.as_json(), indent=2))
    return tally.report()


def fuzz(url: str, *, key: str, seconds: int, seed: int, folder: str) -> int:
    """Run schemathesis in this process, where the hooks are; returns its exit code."""
    argv = [
        "run", f"{url}/api/v1/openapi.json", "--header", f"Authorization: Bearer {key}", "--seed", str(seed),
        "--max-time", str(seconds), "--checks", "all", "--continue-on-failure", "--request-timeout", "30",
        "--generation-database", "none", "--report-json-path", str(Path(folder) / "report.json"), "--no-shrink",
        "--no-color", "--warnings", "off", "--suppress-health-check", "all", "--max-redirects", "0",
    ]  # fmt: skip
    with open(Path(folder) / "schemathesis.log", "w") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            command.main(argv, standalone_mode=False)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


class Inputs:
    """Puts what this stack knows into generated requests, most of the time."""

    def __init__(self, seed: int, stack: Any) -> None:
        self.chance = random.Random(seed)
        self.stack = stack
        self.jobs: list[tuple[str, int, str]] = []
        self.plans: list[str] = []
        self.groups: list[str] = []
        self.cursors: list[str] = []
        self.looked_at = float("-inf")
        self.lock = threading.Lock()

    def fill(self, case: Any, kwargs: dict[str, Any]) -> None:
        """Change a case in place."""
        with self.lock:
            if time.monotonic() - self.looked_at > LOOK_AGAIN_SECONDS:
                self.jobs, self.looked_at = self.stack.look(), time.monotonic()
                self.plans, self.groups = self.stack.plans_and_groups()
            self._fill_path(case)
            self._fill_query(case)
            case.body = self._body(case.body)
        if case.operation.path.endswith("/callbacks/{job_type}") and self.often(0.9):
            kwargs["auth"] = _sign

    def often(self, share: float) -> bool:
        """Tell yes with this share."""
        return self.chance.random() < share

    def _fill_path(self, case: Any) -> None:
        for name in case.path_parameters or {}:
            if not self.often(0.8):
                continue
            job_id, fence, _ = self.chance.choice(self.jobs)
            if name == "job_id":
                case.path_parameters[name] = job_id
            elif name == "token":
                case.path_parameters[name] = self.stack.token(job_id, self.chance.choice([fence, 1, 0]))
            elif name == "plan_id" and self.plans:
                case.path_parameters[name] = self.chance.choice(self.plans)
            elif name == "group_id" and self.groups:
                case.path_parameters[name] = self.chance.choice(self.groups)
            elif name == "job_type":
                case.path_parameters[name] = (
                    self.stack.kinds.AWAIT if self.often(0.8) else self.chance.choice(self.stack.TYPES)
                )
            elif name == "name":
                case.path_parameters[name] = self.chance.choice(self.stack.TYPES)

    def _fill_query(self, case: Any) -> None:
        query = case.query or {}
        if "type" in query and self.often(0.8):
            query["type"] = self.chance.choice(self.stack.TYPES)
        if "cursor" in query and self.often(0.8):
            if self.cursors and self.often(0.7):
                query["cursor"] = self.chance.choice(self.cursors)
            else:
                del query["cursor"]

    def _body(self, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        if isinstance(body.get("jobs"), list):
            return {**body, "jobs": [self._body(one) for one in body["jobs"]]}
        body = dict(body)
        if "type" in body and self.often(0.85):
            body["type"] = self.chance.choice(self.stack.TYPES)
        if "dedupe_key" in body and self.often(0.4):
            body["dedupe_key"] = f"fuzz-{self.chance.randrange(20)}"
        if "run_at" in body and "delay_seconds" in body and self.often(0.7):
            del body["run_at"]
        if "job_id" in body and self.often(0.8):
            body["job_id"] = self.chance.choice(self.jobs)[0]
        elif "ref" in body and "outcome" in body and self.often(0.5):
            body["ref"] = f"ext-{self.chance.choice(self.jobs)[0]}"
        if ("ids" in body or "filter" in body) and self.often(0.8):
            body |= {"ids": [self.chance.choice(self.jobs)[0] for _ in range(3)], "filter": None}
            body.pop("expected_count", None)
        return body


def _sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Sign a provider's callback as it goes out."""
    body = request.body or b""
    raw = body.encode() if isinstance(body, str) else bytes(body)
    webhook_id, at = f"fuzz_{random.randrange(2000)}", str(int(time.time()))
    signed = f"{webhook_id}.{at}.".encode() + raw
    mac = hmac.digest(base64.b64decode(SECRET.removeprefix("whsec_")), signed, hashlib.sha256)
    request.headers["webhook-id"] = webhook_id
    request.headers["webhook-timestamp"] = at
    request.headers["webhook-signature"] = "v1," + base64.b64encode(mac).decode()
    return request


class Tally:
    """What came back."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.checks: list[tuple[str, str, int, list[str]]] = []
        self.broken: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.crashed = ""
        self.log_errors: list[str] = []
        self.restarts = 0

    def listen(self) -> None:
        """Register the hooks."""

        @schemathesis.hook
        def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
            self.inputs.fill(case, kwargs)

        @schemathesis.hook
        def after_call(context: Any, case: Any, response: Response) -> None:
            self.note(case, response)

        @schemathesis.hook
        def after_network_error(context: Any, case: Any, request: requests.PreparedRequest) -> None:
            self._break("no answer", f"{request.method} {request.url}")

    def note(self, case: Any, response: Response) -> None:
        """Count an answer and judge it."""
        known = response.request.method == case.operation.method.upper()
        name = f"{response.request.method} {case.operation.path}" if known else "other methods"
        self.statuses[name, response.status_code] += 1
        kind = (response.headers.get("content-type") or [""])[0]
        example = _example(response)
        if response.status_code >= 500:
            documented = response.status_code == 503 and "retry-after" in response.headers
            if not documented:
                self._break(f"{response.status_code}", example)
        if "html" in kind or response.content.lstrip()[:1] == b"<":
            self._break("HTML", example)
        if response.status_code >= 400 and not kind.startswith("application/problem+json"):
            self._break("an error that is no problem document", example)
        if response.status_code == 200 and b'"next":"' in response.content[-3000:]:
            found = json.loads(response.content).get("next")
            self.inputs.cursors = [*self.inputs.cursors[-50:], found]

    def judge(self, report: dict[str, Any]) -> None:
        """Take over what schemathesis found, kind by kind, and whether it came to its end."""
        self.checks = [(one["code"], one["title"], one["count"], one["operations"]) for one in report["failures"]]
        if not report["complete"] or report["errors"]:
            self.crashed = self.crashed or f"complete {report['complete']}, errors {str(report['errors'])[:2000]}"

    def _break(self, what: str, example: str) -> None:
        self.broken[what] += 1
        self.examples.setdefault(what, example)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers."""
        by_status: Counter[int] = Counter()
        for (_, status), n in self.statuses.items():
            by_status[status] += n
        return {
            "requests": sum(by_status.values()),
            "by_status": dict(sorted(by_status.items())),
            "operations": len({name for name, _ in self.statuses}),
            "broken": dict(self.broken),
            "differs": {f"{code} {title}": n for code, title, n, _ in self.checks},
            "log_errors": self.log_errors,
            "restarts": self.restarts,
            "crashed": self.crashed,
        }

    def report(self) -> int:
        """Print the tables; returns the exit code."""
        numbers = self.as_json()
        statuses = sorted(numbers["by_status"])
        width = max((len(name) for name, _ in self.statuses), default=10)
        print(f"{'':{width}} " + " ".join(f"{status:>6}" for status in statuses))
        for name in sorted({name for name, _ in self.statuses}):
            print(f"{name:{width}} " + " ".join(f"{self.statuses[name, status] or '':>6}" for status in statuses))
        print(f"{'all':{width}} " + " ".join(f"{numbers['by_status'][status]:>6}" for status in statuses))
        print(
            "\ndiffers from the document, as the checks of schemathesis see it:" if self.checks else "\nnothing differs"
        )
        for code, title, n, operations in self.checks:
            print(f"  {n:>6}  {code} {title}: {', '.join(operations)}")
        for what, example in self.examples.items():
            print(f"\n  {what}: {example}")
        bad = [f"{n} x {what}" for what, n in self.broken.items()]
        bad += [f"in a log: {line}" for line in self.log_errors[:10]]
        bad += [f"{self.restarts} processes ended"] if self.restarts else []
        bad += [f"schemathesis did not end well: {self.crashed}"] if self.crashed else []
        bad += ["nothing was asked"] if not numbers["requests"] else []
        print(f"\n{numbers['requests']} requests to {numbers['operations']} operations; " + ("; ".join(bad) or "held"))
        return 1 if bad else 0


def _example(response: Response) -> str:
    asked = f"{response.request.method} {response.request.url} {str(response.request.body)[:300]}"
    return f"{asked} -> {response.status_code} {response.content[:200]!r}"


if __name__ == "__main__":
    sys.exit(main())
