"""A receiver of Jobsboard's webhooks, Python 3.9 or newer, standard library only.

    WEBHOOK_SECRET=whsec_... PORT=9000 python receiver.py

Copy `verify` and `Inbox` into your own service; the server below them is only there to try them out.
"""

import base64
import binascii
import hmac
import json
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOLERANCE_SECONDS = 5 * 60
LARGEST_BODY = 1024 * 1024


class NotGenuine(Exception):
    """The message is not from the sender, not whole, or too old."""


def verify(secrets, headers, body, now=None):
    """Return the message, or raise NotGenuine.

    secrets: those that you hold, each `whsec_...`; more than one only while you change yours.
    headers: names in lower case. body: the bytes exactly as they came, before anything has parsed them.
    """
    message_id = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    signatures = headers.get("webhook-signature", "")
    if not (message_id and timestamp and signatures):
        raise NotGenuine("a header is missing")
    if not re.fullmatch(r"[0-9]{1,12}", timestamp):
        raise NotGenuine("the timestamp is not a number")
    if abs((time.time() if now is None else now) - int(timestamp)) > TOLERANCE_SECONDS:
        # Whoever recorded a message cannot play it back later.
        raise NotGenuine("the timestamp is too far from now")
    signed = f"{message_id}.{timestamp}.".encode() + body
    # During a rotation there are two signatures, separated by a space: one that fits is enough.
    given = [one[3:].encode() for one in signatures.split(" ") if one.startswith("v1,")]
    fits = False
    for secret in secrets:
        expected = base64.b64encode(hmac.new(_key(secret), signed, "sha256").digest())
        for one in given:
            # compare_digest takes as long for a near miss as for a far one. No `break`, for the same reason.
            fits = hmac.compare_digest(expected, one) or fits
    if not fits:
        raise NotGenuine("no signature fits")
    return json.loads(body)


def _key(secret):
    text = secret[len("whsec_") :] if secret.startswith("whsec_") else secret
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise SystemExit("WEBHOOK_SECRET must be whsec_ and base64") from None


class Inbox:
    """Knows what came before: a message may come twice, and an older state after a newer one."""

    def __init__(self, remember=10_000):
        self._remember = remember
        self._seen = OrderedDict()
        self._newest = OrderedDict()
        self._lock = threading.Lock()

    def take(self, message_id, message):
        """Return "new", "duplicate" (seen before) or "stale" (a newer state of the alert was seen)."""
        data = message.get("data") or {}
        alert, sequence = data.get("id"), data.get("sequence", 0)
        with self._lock:
            if message_id in self._seen:
                return "duplicate"
            self._put(self._seen, message_id, True)
            if alert is None:
                # A test, or a heartbeat.
                return "new"
            if sequence < self._newest.get(alert, 0):
                return "stale"
            self._put(self._newest, alert, sequence)
            return "new"

    def _put(self, known, key, value):
        known[key] = value
        known.move_to_end(key)
        while len(known) > self._remember:
            known.popitem(last=False)


class Handler(BaseHTTPRequestHandler):
    secrets = ()
    inbox = Inbox()
    timeout = 10

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            self.answer(413)
            return
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            message = verify(self.secrets, headers, body)
        except NotGenuine as error:
            say("refused", str(error))
            self.answer(401)
            return
        # Answer first and work later: the sender waits 15 seconds at most, and comes again if it hears nothing.
        outcome = self.inbox.take(headers["webhook-id"], message)
        self.answer(204)
        say(outcome, message.get("type"), (message.get("data") or {}).get("title"))

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def say(*words):
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    Handler.secrets = os.environ.get("WEBHOOK_SECRET", "").split()
    if not Handler.secrets:
        sys.exit("WEBHOOK_SECRET is not set")
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Handler)
    say("listening", server.server_port)
    server.serve_forever()
