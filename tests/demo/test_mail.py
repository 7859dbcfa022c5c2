"""The mail server as it is spoken to: SMTP, its search, and an answer that gets lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jobsboard.demo import handlers, mail, mail_server, place
from jobsboard.demo.journal import Journal, read
from jobsboard.demo.mail_server import Behaviour, Mailbox
from jobsboard.demo.world import World
from queues.handlers import Confirmed, PermanentError
from tests.demo.conftest import MakeContext, confirmed

WELCOME = "onboarding.welcome_email"
PAYLOAD = {"user_id": 7, "email": "customer-7@example.org"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Serve mails, behaving as the returned dict says."""
    chances = {"deferred": 0.0, "refused": 0.0, "answer_lost": 0.0, "search_fails": 0.0}
    monkeypatch.setattr(mail_server, "behaviour", lambda: Behaviour(delay=(0.0, 0.0), **chances))
    loop, up = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        loop.call_soon(up.set)
        await mail_server.serve(stop)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert up.wait(10)
    while not (place.directory() / "mail.json").exists():
        threading.Event().wait(0.01)
    yield chances
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def taken() -> list[dict[str, Any]]:
    return list(read(place.mail_log()))


def test_a_mail_is_confirmed_by_the_servers_queue_id(server: dict[str, Any], context: MakeContext) -> None:
    job = context(WELCOME, PAYLOAD)
    assert handlers.welcome_email_sent(job) is None
    sent = confirmed(handlers.welcome_email(job))
    assert [(line["queue_id"], line["message_id"]) for line in taken()] == [
        (sent.ref, mail.message_id(job.idempotency_key))
    ]
    assert handlers.welcome_email_sent(job) == sent


def test_a_probes_mail_says_that_it_is_one(server: dict[str, Any], context: MakeContext) -> None:
    for number, probe in enumerate((False, True)):
        handlers.welcome_email(context(WELCOME, PAYLOAD, idempotency_key=f"jb_{number}", probe=probe))
    assert [line["probe"] for line in taken()] == [False, True]
    assert World.now().probes == {"jb_1"}


def test_a_lost_answer_is_found_by_the_check_and_nothing_is_sent_twice(
    server: dict[str, Any], context: MakeContext
) -> None:
    """Issue 3, must show 4: the server takes the mail and dies before it says so."""
    server["answer_lost"] = 1.0
    job = context(WELCOME, PAYLOAD)
    with pytest.raises(mail.MailDeferred):
        handlers.welcome_email(job)
    (line,) = taken()
    assert not line["answered"]
    assert handlers.welcome_email_sent(job) == Confirmed(ref=line["queue_id"])
    assert len(taken()) == 1


@pytest.mark.parametrize(("chance", "error"), [("deferred", mail.MailDeferred), ("refused", PermanentError)])
def test_what_the_server_does_not_take_is_an_error(
    server: dict[str, Any], context: MakeContext, chance: str, error: type[Exception]
) -> None:
    server[chance] = 1.0
    with pytest.raises(error, match="SMTP"):
        handlers.welcome_email(context(WELCOME, PAYLOAD))
    assert taken() == []


def test_a_search_that_fails_says_nothing(server: dict[str, Any], context: MakeContext) -> None:
    """None would mean that there is no such mail, and another would be sent."""
    server["search_fails"] = 1.0
    with pytest.raises(mail.MailDeferred):
        handlers.welcome_email_sent(context(WELCOME, PAYLOAD))


def test_a_restart_forgets_no_mail() -> None:
    first = Mailbox(Journal(place.mail_log()))
    queue_id = first.take(b"Message-ID: <jb_1@jobsboard.example>\r\n\r\nHello", answered=True)
    again = Mailbox(Journal(place.mail_log()))
    assert again.queue_ids == {"<jb_1@jobsboard.example>": queue_id}
