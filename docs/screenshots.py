"""Take the pictures of the documents: six hours of sample jobs by the real path, then a browser (`make screenshots`).

The past is made by moving the database's clock, for this session only, as the tests do: each job is accepted, claimed
and settled by the same statements as always, and its counts fall into the right minutes. Same seed, same story.
"""

import argparse
import contextlib
import heapq
import itertools
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

MINUTE, HOUR = 60.0, 3600.0
STORY = 6 * HOUR
SLOT = 20.0
STORM = (-118 * MINUTE, -84 * MINUTE)
UNSETTLED = -200.0
"""From here on the mail server hesitates again, so that the pictures show work that waits."""
STRUCK = "onboarding.welcome_email"
"""The type whose mail provider has the storm; the others are well."""
RATES = {
    "onboarding.welcome_email": 10 / MINUTE,
    "crm.sync_contact": 8 / MINUTE,
    "scoring.account": 6 / MINUTE,
    "billing.handoff": 4 / MINUTE,
}
PROOFS = {
    "crm.sync_contact": ("callback", (0.3, 0.8, 1.5, 2.0, 9.0)),
    "billing.handoff": ("check", (2.1, 4.2, 4.3, 6.4)),
}
"""What is not proven by the handler's return: by what, and how many seconds later."""
WAITS = (0.05, 0.1, 0.1, 0.2, 0.4)
RUNS = (0.03, 0.05, 0.05, 0.1, 0.1, 0.2, 0.4, 1.2)
TRACEBACK = (
    'Traceback (most recent call last):\n  File "jobsboard/demo/handlers.py", line 10, in welcome_email\n'
    '    queue_id = mail.send(...)\n  File "jobsboard/demo/mail.py", line 46, in send\n    said = _expect(...)\n'
)
WORKER = "mail-1/4711.1"
Event = Callable[[list[Any]], None]


class Story:
    """Events in the order of their time; those of one time and kind are one batch."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 (sample data)
        self.began = time.time()
        self.number = 1000
        self.order = itertools.count()
        self.queue: list[tuple[float, int, Event, Any]] = []
        self.tries: dict[Any, int] = {}
        self.interesting: dict[str, Any] = {}

    def at(self, when: float, event: Event, subject: Any) -> None:
        heapq.heappush(self.queue, (round(when, 2), next(self.order), event, subject))

    def play(self) -> None:
        """Play everything until now."""
        while self.queue and self.queue[0][0] < -1.0:
            when, _, event, subject = heapq.heappop(self.queue)
            batch = [subject]
            # Bound methods are equal, not identical.
            while self.queue and self.queue[0][0] == when and self.queue[0][2] == event:
                batch.append(heapq.heappop(self.queue)[3])
            self.now = when
            shift(self.began + when - time.time())
            event(batch)
        shift(0.0)

    def fill(self) -> None:
        """Plan what producers send."""
        for step in range(int(STORY / SLOT)):
            when = -STORY + step * SLOT
            for name, rate in RATES.items():
                sent = sum(self.random.random() < rate for _ in range(int(SLOT)))
                for _ in range(sent):
                    self.number += 1
                    self.at(when, self.accept, (name, self.number))
                    if self.random.random() < 0.04:
                        self.at(when + SLOT, self.accept, (name, self.number))

    def accept(self, batch: list[tuple[str, int]]) -> None:
        from queues.accept import Item, enqueue_many

        items = [Item(type=name, payload=payload(name, number)) for name, number in batch]
        for item, receipt in zip(items, enqueue_many(items), strict=True):
            if receipt.duplicate:
                continue
            # A few scores find no worker and grow too old.
            if item.type == "scoring.account" and STORM[0] - HOUR < self.now < STORM[0] and self.random.random() < 0.05:
                self.at(self.now + HOUR + 1, self.expire, receipt.job_id)
            elif self.now > UNSETTLED and item.type == STRUCK and self.random.random() < 0.08:
                continue
            else:
                self.at(self.now + self.random.choice(WAITS), self.claim, receipt.job_id)

    def expire(self, batch: list[Any]) -> None:
        from queues import lifecycle

        lifecycle.expire(batch)

    def claim(self, batch: list[Any]) -> None:
        from queues import lifecycle

        for run in lifecycle.claim(batch, worker=WORKER):
            if self.now > -12.0:
                continue
            self.at(self.now + self.random.choice(RUNS), self.settle, run)

    def settle(self, batch: list[Any]) -> None:
        from queues import lifecycle

        ends, again = [], []
        for run in batch:
            fate, struck = self.random.random(), run.type == STRUCK
            storm, hesitant = STORM[0] < self.now < STORM[1], self.now > UNSETTLED
            deferred = 0.68 if struck and storm else 0.6 if struck and hesitant else 0.015
            if fate < (0.003 if struck else 0.0005):
                ends.append(
                    failed(run, "PermanentError", "SMTP 550 5.1.1 mailbox unavailable", reason="permanent_error")
                )
            elif fate < deferred:
                wait = round(backoff(run, self.random), 1)
                error = "SMTP 451 4.3.2 system not accepting messages, try again later"
                ends.append(failed(run, "MailDeferred", error, retry_in=wait))
                again.append((run, wait))
            elif run.type in PROOFS:
                ends.append(awaiting(run, f"{run.type[:3]}-{self.random.getrandbits(48):012x}"))
                kind, waits = PROOFS[run.type]
                if self.now < -12.0:
                    self.at(self.now + self.random.choice(waits), self.prove, (run, kind, ends[-1].reference))
            else:
                ends.append(confirmed(run, f"{self.random.getrandbits(48):012X}"))
                if struck and run.attempt >= 4:
                    self.interesting["job"] = run.id
        states = {job_id: state for (job_id, _), state in lifecycle.settle(ends).items()}
        for run, wait in again:
            if states.get(run.id) == "retrying":
                self.at(self.now + wait + 0.2, self.claim, run.id)
            elif states.get(run.id) == "dead" and run.type == STRUCK:
                self.buried(run.id)

    def prove(self, batch: list[Any]) -> None:
        from queues import lifecycle
        from queues.lifecycle import Proof

        lifecycle.confirm(
            [Proof(id=run.id, positive=True, kind=kind, ref=ref, fence=run.fence) for run, kind, ref in batch]
        )

    def buried(self, job_id: Any) -> None:
        """Somebody replays every third dead letter of the storm when it is over."""
        if self.now < STORM[1] and self.random.random() < 0.35:
            self.at(STORM[1] + 25 * MINUTE, self.replay, job_id)
        else:
            self.interesting["dead letter"] = job_id

    def replay(self, batch: list[Any]) -> None:
        from queues import actions

        for job_id in batch:
            child = actions.replay_job(job_id, actor="dana", reason="mail provider is back", source="ui")
            self.at(self.now + 0.3, self.claim, child)

    def kill(self) -> None:
        """Let one job kill its process three times."""
        from queues import lifecycle
        from queues.accept import enqueue

        shift(self.began - 40 * MINUTE - time.time())
        job_id = enqueue("scoring.account", payload("scoring.account", 999)).job_id
        for _ in range(3):
            run = lifecycle.claim([job_id], worker=WORKER)[0]
            lifecycle.rescue([job_id], dead_runs=[(job_id, run.fence)])
        shift(0.0)


def payload(name: str, number: int) -> dict[str, Any]:
    """Return what the demo's producers send."""
    if name == "billing.handoff":
        return {"invoice_id": f"INV-{number:06d}", "amount_cents": 900 + number % 7 * 1300}
    if name == "scoring.account":
        return {"user_id": number, "seats": 1 + number % 20, "visits": number % 60}
    email = f"customer-{number}@example.org"
    return {"user_id": number, "email": email, "plan": ("free", "team", "business")[number % 3]}


def backoff(run: Any, source: random.Random) -> float:
    """Return the delay that the run's contract says."""
    from queues import contracts, retry

    contract = contracts.of_version(run.type, run.contract_version)
    base, cap = contract.backoff_base_seconds, contract.backoff_cap_seconds
    return retry.delay(
        run.attempt, backoff=contract.backoff, base=base, cap=cap, jitter=contract.jitter, draw=source.random
    )


def failed(run: Any, error: str, message: str, *, retry_in: float = 0.0, reason: str | None = None) -> Any:
    """Return the end of a run that failed, as the runtime writes it."""
    from queues import contracts
    from queues.fingerprint import fingerprint
    from queues.lifecycle import End, Verdict

    frame = "jobsboard.demo.mail:_expect"
    return End(
        id=run.id,
        fence=run.fence,
        verdict=Verdict.FAILED,
        reason=reason,
        retry_in=retry_in,
        failure={"error_class": error, "message": message, "traceback": f"{TRACEBACK}{error}: {message}"},
        fingerprint=fingerprint(run.type, reason=reason or "", error_class=error, message=message, frame=frame),
        seconds=0.1,
        on_stale=contracts.of_version(run.type, run.contract_version).on_stale,
    )


def awaiting(run: Any, ref: str) -> Any:
    """Return the end of a run whose proof comes later."""
    from queues import contracts
    from queues.lifecycle import End, Verdict

    within = float(contracts.of_version(run.type, run.contract_version).confirm_within_seconds)
    return End(
        id=run.id,
        fence=run.fence,
        verdict=Verdict.AWAITING,
        reference=ref,
        confirm_in=within,
        act_in=within,
        seconds=0.1,
    )


def confirmed(run: Any, ref: str) -> Any:
    """Return the end of a run that got its queue id from the mail server, or only returned."""
    from queues.lifecycle import End, Verdict

    unverified = run.type == "scoring.account"
    evidence = {"kind": "return" if unverified else "reference", "ref": None if unverified else ref, "late": False}
    return End(id=run.id, fence=run.fence, verdict=Verdict.CONFIRMED, evidence=evidence, seconds=0.1)


def movable_clock(*, movable: bool) -> None:
    """Let this session's clock be moved, or give the database its own clock back."""
    from django.db import connection

    moved = " + coalesce(nullif(current_setting('jobs.shift', true), ''), '0')::interval" if movable else ""
    with connection.cursor() as cursor:
        for name, kind, now in (
            ("jobs_now", "STABLE", "statement_timestamp()"),
            ("jobs_clock", "VOLATILE", "clock_timestamp()"),
        ):
            cursor.execute(
                f"CREATE OR REPLACE FUNCTION {name}() RETURNS timestamptz LANGUAGE sql {kind} PARALLEL SAFE AS"
                f" $$SELECT {now}{moved}$$"
            )


def shift(seconds: float) -> None:
    """Move the clock of this session."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('jobs.shift', %s, false)", [f"{seconds:.3f} seconds"])


def keep_alive(stop: threading.Event) -> None:
    """Report the workers that would run this, and hold the leases of what runs."""
    from django.db import connection

    from queues import lifecycle, workers
    from queues.models import Job

    while True:
        held = list(Job.objects.filter(state="processing").values_list("id", "fence"))
        lifecycle.heartbeat([(job_id, fence, 15.0) for job_id, fence in held])
        for tier, slots in ((1, 4), (2, 3), (3, 2)):
            workers.report(
                f"mail-1/{4710 + tier}", kind="worker", hostname="mail-1", pid=os.getpid(), queues=[f"tier{tier}"],
                slots=slots, busy=min(slots, len(held)) if tier == 2 else 0,
            )  # fmt: skip
        workers.report("mail-1/4700", kind="scheduler", hostname="mail-1", pid=os.getpid())
        if stop.wait(2.0):
            connection.close()
            return


def bulk() -> tuple[int, Any]:
    """Let failures be judged, and try a replay of the largest. Shape: the failure's id, the plan's."""
    from dlq import groups, triage
    from dlq.models import ReplayPlan
    from dlq.plans import advance, selection
    from dlq.plans.create import PlanRequest, create
    from dlq.plans.selection import Selection
    from dlq.replaying import Who
    from queues import contracts

    triage.run_once()
    types = sorted(contracts.all_current())
    largest = max(groups.groups(groups.GroupFilter(types=types)).rows, key=lambda row: row.open)
    chosen = Selection(type=largest.type, reason=largest.reason, fingerprint=largest.fingerprint)
    who = Who(actor="dana", reason="would a replay work?", source="ui")
    now = selection.now()
    n = selection.count(chosen, types=types, as_of=now)
    plan, _ = create(
        PlanRequest(action="replay", selection=chosen, types=types, who=who, as_of=now, expected_count=n, dry_run=True)
    )
    while advance.advance(plan.id) or ReplayPlan.objects.get(id=plan.id).state == "running":
        pass
    return largest.id, plan.id


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Serve the board on a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "jobsboard.wsgi", "--bind", f"127.0.0.1:{port}", "--threads", "4"]
    web = subprocess.Popen([*command, "--no-control-socket"], cwd=ROOT)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and web.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError):
                if urllib.request.urlopen(f"{url}/readyz", timeout=2).status == 200:  # noqa: S310 (our own server)
                    break
            threading.Event().wait(0.2)
        else:
            raise SystemExit("the web process does not serve")
        yield url
    finally:
        web.terminate()
        web.wait(20)


def take(url: str, password: str, paths: dict[str, str], out: Path) -> None:
    """Log in and take each picture; a page that does not answer 200 ends it."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": 1440, "height": 1000}, color_scheme=scheme, reduced_motion="reduce"
            )
            page = context.new_page()
            page.goto(f"{url}/login/")
            page.fill("[name=username]", "dana")
            page.fill("[name=password]", password)
            page.press("[name=password]", "Enter")
            page.wait_for_url(f"{url}/")
            for name, path in paths.items():
                if scheme == "dark" and name != "overview":
                    continue
                page.set_viewport_size({"width": 1440, "height": 1000})
                answer = page.goto(url + path, wait_until="networkidle")
                if answer is None or answer.status != 200:
                    raise SystemExit(f"{path} answered {answer and answer.status}")
                file = out / f"screenshot-{name}{f'-{scheme}' if name == 'overview' else ''}.png"
                if name == "overview":
                    # A window as tall as the page: a picture longer than its window cuts the navigation off.
                    tall = page.evaluate("document.documentElement.scrollHeight")
                    page.set_viewport_size({"width": 1440, "height": tall})
                page.screenshot(path=file)
                print(f"wrote {file.name}")
        browser.close()


def main() -> None:
    """Make the data, serve them, take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")
    os.environ["JOBSBOARD_ENVIRONMENT"] = "sample"
    django.setup()
    from django.contrib.auth import get_user_model
    from django.core.management import call_command

    from queues import lifecycle

    call_command("migrate", verbosity=0)
    call_command("contracts", "sync", str(ROOT / "jobsboard/demo/contracts.toml"), actor="dana", verbosity=0)
    password = secrets.token_urlsafe(15)
    get_user_model().objects.create_superuser("dana", password=password)
    began = time.monotonic()
    story = Story(options.seed)
    movable_clock(movable=True)
    story.kill()
    story.fill()
    story.play()
    movable_clock(movable=False)
    while lifecycle.fold():
        pass
    group, plan = bulk()
    print(f"six hours in {time.monotonic() - began:.0f} s")
    stop = threading.Event()
    keeper = threading.Thread(target=keep_alive, args=(stop,))
    keeper.start()
    paths = {
        "overview": "/",
        "job": f"/jobs/{story.interesting['job']}/",
        "dead-letter": f"/dlq/{story.interesting['dead letter']}/",
        "dead-letters": "/dlq/",
        "failure": f"/dlq/groups/{group}/",
        "replay-plan": f"/replays/{plan}/?which=all",
    }
    try:
        with serving() as url:
            take(url, password, paths, options.out)
    finally:
        stop.set()
        keeper.join()


if __name__ == "__main__":
    main()
