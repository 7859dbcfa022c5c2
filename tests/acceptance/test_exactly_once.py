"""Real workers that die at the worst moment: what happened once, what is told, what is asked first."""

from __future__ import annotations

import json
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import DjangoDbBlocker

from queues import confirmation
from tests.acceptance.conftest import Stack, stack_in
from tests.acceptance.jobs import ATOMIC, CALLBACK, CHECKED, MAIL, MAIL_CHECKED, STEPS
from tests.factories import accept, get, sql

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def transactional_db(committed: None) -> None:
    """One database for all tests of this module."""


@pytest.fixture(scope="module")
def stack(
    transactional_db: None, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A scheduler and a worker for all tests of this module: each has a job type of its own."""
    with django_db_blocker.unblock(), stack_in(tmp_path_factory.mktemp("stack")) as made:
        # A table that atomic handlers write to; nothing in it refuses a second row.
        sql("CREATE TABLE accept_effect (job_id uuid)")
        made.scheduler()
        made.worker()
        yield made
        made.close()
        sql("DROP TABLE accept_effect")


def test_an_atomic_effect_happens_exactly_once(stack: Stack) -> None:
    """I-28: a worker that dies after the write and before the commit leaves nothing; the next run does it all."""
    accept(60, kind=ATOMIC)
    stack.all_confirmed(60, kind=ATOMIC, seconds=60)
    assert sql("SELECT count(*), count(DISTINCT job_id) FROM accept_effect") == [(60, 60)]
    assert sql("SELECT count(*) FROM queues_job WHERE type = %s AND fence > 1", ATOMIC) >= [(6,)]


def test_no_step_is_done_twice(stack: Stack) -> None:
    """I-28: kill -9 between the steps, after each of them once."""
    ids = accept(5, kind=STEPS)
    stack.all_confirmed(5, kind=STEPS, seconds=60)
    lines = (stack.folder / "effects.jsonl").read_text().splitlines()
    seen = Counter((one["id"], one["what"]) for one in map(json.loads, lines))
    assert seen == {(str(i), f"step {n}"): 1 for i in ids for n in range(3)}
    assert {get(i).fence for i in ids} == {4}


class _DyingMailServer(socketserver.StreamRequestHandler):
    """Takes a message, writes it down, and dies before it says so; the second time it lives."""

    folder: Path
    dead = threading.Event()

    def handle(self) -> None:
        """Speak just enough SMTP."""
        self._say("220 mail.test")
        while line := self.rfile.readline():
            word = line.strip().upper()
            if word.startswith(b"DATA"):
                self._say("354 go on")
                text = b""
                while not text.endswith(b"\r\n.\r\n"):
                    text += self.rfile.readline()
                self._take(text)
                if not self.dead.is_set():
                    self.dead.set()
                    return
                self._say("250 queued")
            elif word.startswith(b"QUIT"):
                self._say("221 bye")
                return
            else:
                self._say("250 ok")

    def _say(self, words: str) -> None:
        self.wfile.write(words.encode() + b"\r\n")

    def _take(self, text: bytes) -> None:
        said = {k: v for k, _, v in (line.partition(": ") for line in text.decode().splitlines())}
        with open(self.folder / "mail.log", "a", encoding="utf-8") as file:
            file.write(f"{said['Message-ID']} {said['X-Maybe-Duplicate']}\n")


@pytest.fixture
def mail_server(stack: Stack) -> Iterator[None]:
    """A mail server that dies after the first message that it took."""
    _DyingMailServer.folder = stack.folder
    _DyingMailServer.dead.clear()
    # Its log tells of this one's mails alone.
    (stack.folder / "mail.log").unlink(missing_ok=True)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _DyingMailServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (stack.folder / "smtp.port").write_text(str(server.server_address[1]))
        yield
        server.shutdown()


@pytest.mark.parametrize("kind", [MAIL, MAIL_CHECKED])
def test_a_mail_server_that_dies_after_taking_the_mail(kind: str, stack: Stack, mail_server: None) -> None:
    """With a check the mail is found and not sent again; without, it goes out again and says so, with the same key."""
    [job_id] = accept(kind=kind)
    stack.all_confirmed(1, kind=kind, seconds=30)
    job = get(job_id)
    sent = [line.split() for line in (stack.folder / "mail.log").read_text().splitlines()]
    message_id = f"<{job.idempotency_key}@example.org>"
    assert job.evidence is not None
    assert [f["error_class"] for f in job.failures] == ["NoAnswer"]
    runs = [run for run in stack.runs() if run["type"] == kind]
    if kind == MAIL_CHECKED:
        assert sent == [[message_id, "no"]]
        assert (job.evidence["kind"], job.evidence["ref"], len(runs)) == ("check", "in the log", 1)
    else:
        assert sent == [[message_id, "no"], [message_id, "yes"]]
        assert [run["maybe_duplicate"] for run in runs] == [False, True]
    assert job.begun == 2


def test_callbacks_confirm_what_real_workers_handed_over(stack: Stack) -> None:
    """Some callbacks come before the handler returned, some after; each job is confirmed once."""

    def call_back(n: int) -> None:
        evidence = confirmation.Evidence(outcome="confirmed", ref=f"ext-{n}")
        confirmation.by_provider(CALLBACK, webhook_id=f"msg-{n}", job_id=None, evidence=evidence)

    for n in range(10):
        call_back(n)
    accept(20, kind=CALLBACK)
    stack.until(lambda: stack.states(CALLBACK) == {"confirmed": 10, "awaiting_confirmation": 10}, seconds=30)
    for n in range(10, 20):
        call_back(n)
    assert stack.states(CALLBACK) == {"confirmed": 20}
    assert len(stack.runs(CALLBACK)) == 20


def test_due_checks_are_asked_by_real_workers(stack: Stack) -> None:
    """The scheduler publishes them, a worker asks, the world answers at last."""
    accept(3, kind=CHECKED)
    stack.until(lambda: stack.states(CHECKED) == {"awaiting_confirmation": 3}, seconds=20)
    asked = "SELECT count(*) FROM queues_job WHERE type = %s AND due_at > finished_at + interval '1.5 s'"
    stack.until(lambda: sql(asked, CHECKED) == [(3,)], seconds=20)
    stack.go()
    stack.all_confirmed(3, kind=CHECKED, seconds=20)
    assert {i for (i,) in sql("SELECT evidence ->> 'kind' FROM queues_job WHERE type = %s", CHECKED)} == {"check"}
    assert len(stack.runs(CHECKED)) == 3
