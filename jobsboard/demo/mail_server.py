"""A real SMTP server (aiosmtpd) that takes mails, gives each a queue id, and misbehaves as the weather says.

Beside it a search over its log, as mail providers have one: is there a message with this Message-ID?
"""

import asyncio
import json
import logging
import random
import secrets
import threading
import time
from dataclasses import dataclass
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from aiosmtpd.smtp import SMTP, Envelope, Session

from jobsboard.demo import place
from jobsboard.demo.journal import Journal, read


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the server treats messages. Units: seconds, shares of one."""

    delay: tuple[float, float]
    deferred: float
    refused: float
    answer_lost: float
    """Of the messages that it takes: the connection breaks before the answer, and the sender cannot know."""
    search_fails: float


BEHAVIOURS: Final[dict[place.Kind, Behaviour]] = {
    "calm": Behaviour(delay=(0.01, 0.06), deferred=0.02, refused=0.0008, answer_lost=0.004, search_fails=0.0),
    "storm": Behaviour(delay=(0.05, 0.3), deferred=0.88, refused=0.002, answer_lost=0.1, search_fails=0.1),
}


def behaviour() -> Behaviour:
    """Return how the server behaves now."""
    return BEHAVIOURS[place.weather().kind]


class Mailbox:
    """The handler that aiosmtpd calls for each message, and what it took so far."""

    def __init__(self, log: Journal) -> None:
        self.log = log
        # A restart forgets nothing: its log is its memory.
        self.queue_ids: dict[str, str] = {}
        for line in read(log.path):
            self.queue_ids.setdefault(line["message_id"], line["queue_id"])

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 (aiosmtpd)
        """Take, defer or refuse a message; what is taken is in the log before the answer leaves."""
        now = behaviour()
        await asyncio.sleep(random.uniform(*now.delay))
        fate = random.random()
        if fate < now.refused:
            return "550 5.1.1 mailbox unavailable"
        if fate < now.refused + now.deferred:
            return "451 4.3.2 system not accepting messages, try again later"
        lost = random.random() < now.answer_lost
        queue_id = self.take(envelope.original_content or b"", answered=not lost)
        if lost and isinstance(server.transport, asyncio.WriteTransport):
            server.transport.abort()
        return f"250 2.0.0 Ok: queued as {queue_id}"

    def take(self, content: Any, *, answered: bool) -> str:
        """Write a message down and return its queue id."""
        queue_id = secrets.token_hex(6).upper()
        headers = message_from_bytes(bytes(content))
        message_id = str(headers["Message-ID"])
        self.log.write(
            "taken",
            queue_id=queue_id,
            message_id=message_id,
            maybe_duplicate=headers["X-Maybe-Duplicate"],
            answered=answered,
            probe=headers["X-Jobsboard-Probe"] == "true",
        )
        self.queue_ids.setdefault(message_id, queue_id)
        return queue_id


class Search(ThreadingHTTPServer):
    """`GET /messages?message_id=…`: {"queue_id": …}, null when there is no such message."""

    daemon_threads = True

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        super().__init__(("127.0.0.1", 0), _SearchRequest)


class _SearchRequest(BaseHTTPRequestHandler):
    server: Search

    def do_GET(self) -> None:  # noqa: N802 (http.server)
        if random.random() < behaviour().search_fails:
            self.send_error(503)
            return
        asked = parse_qs(urlsplit(self.path).query).get("message_id", [""])[0]
        body = json.dumps({"queue_id": self.server.mailbox.queue_ids.get(asked), "at": time.time()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the log that counts is the mailbox's."""


async def serve(stop: asyncio.Event) -> None:
    """Listen on free loopback ports until told to stop."""
    # The library says three lines about each message; the mailbox has one.
    logging.getLogger("mail.log").setLevel(logging.WARNING)
    mailbox = Mailbox(Journal(place.mail_log()))
    loop = asyncio.get_running_loop()
    with Search(mailbox) as search:
        threading.Thread(target=search.serve_forever, name="search", daemon=True).start()
        server = await loop.create_server(lambda: SMTP(mailbox, hostname="mail.demo", loop=loop), "127.0.0.1", 0)
        place.announce_mail(smtp=server.sockets[0].getsockname()[1], search=search.server_address[1])
        async with server:
            await stop.wait()
        search.shutdown()
