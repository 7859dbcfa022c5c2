"""A real SMTP server (aiosmtpd) that takes mails, gives each a queue id, and misbehaves as the weather says."""

import asyncio
import json
import random
import secrets
from dataclasses import dataclass
from email import message_from_bytes
from typing import Any, Final, TextIO

from aiosmtpd.smtp import SMTP, Envelope, Session

from jobsboard.demo import place


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the server treats messages. Units: seconds, shares of one."""

    delay: tuple[float, float]
    deferred: float
    refused: float


BEHAVIOURS: Final[dict[place.Weather, Behaviour]] = {
    "calm": Behaviour(delay=(0.01, 0.06), deferred=0.02, refused=0.004),
    "storm": Behaviour(delay=(0.3, 1.5), deferred=0.72, refused=0.01),
}


class Mailbox:
    """The handler that aiosmtpd calls for each message."""

    def __init__(self, log: TextIO) -> None:
        self.log = log

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 (aiosmtpd)
        """Take, defer or refuse a message; what is taken is in the log before the answer leaves."""
        behaviour = BEHAVIOURS[place.weather()]
        await asyncio.sleep(random.uniform(*behaviour.delay))
        fate = random.random()
        if fate < behaviour.refused:
            return "550 5.1.1 mailbox unavailable"
        if fate < behaviour.refused + behaviour.deferred:
            return "451 4.3.2 system not accepting messages, try again later"
        queue_id = secrets.token_hex(6).upper()
        self._write(queue_id, envelope)
        return f"250 2.0.0 Ok: queued as {queue_id}"

    def _write(self, queue_id: str, envelope: Envelope) -> None:
        content: Any = envelope.original_content or b""
        headers = message_from_bytes(content)
        line = {
            "queue_id": queue_id,
            "message_id": headers["Message-ID"],
            "maybe_duplicate": headers["X-Maybe-Duplicate"],
            "to": envelope.rcpt_tos,
            "bytes": len(content),
        }
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()


async def serve(stop: asyncio.Event) -> None:
    """Listen on a free loopback port until told to stop."""
    with place.mail_log().open("a", encoding="utf-8") as log:
        mailbox = Mailbox(log)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(mailbox, hostname="mail.demo", loop=loop), "127.0.0.1", 0)
        place.announce_mail_port(server.sockets[0].getsockname()[1])
        async with server:
            await stop.wait()
