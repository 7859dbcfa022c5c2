"""The CRM: takes contacts over HTTP, answers 202 with a reference, and calls back when it has decided; it can be asked.

It is a provider like others: it verifies who sends, drops second copies by their Idempotency-Key, calls back late,
twice, with a contradiction or never at times, and repeats a callback that got no 2xx. Its log is its memory.
How often it does what is `crm_moods`'; sending callbacks in time is `Callbacks`', serving HTTP `crm_server`'s.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import heapq
import http.client
import itertools
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from standardwebhooks import Webhook

from jobsboard.demo import crm_moods, place
from jobsboard.demo.journal import Journal, read

TRIES: Final = 10
FIRST_WAIT: Final = 1.0
LAST_WAIT: Final = 30.0
CALL_SECONDS: Final = 5.0
SENDERS: Final = 4

Answer = tuple[int, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Callback:
    """One message to Jobsboard. `url` is the token's address, or that of a provider's signed callbacks."""

    id: str
    key: str
    ref: str
    job_id: str
    outcome: str
    detail: str
    retryable: bool
    signed: bool
    url: str

    @property
    def body(self) -> str:
        """What is posted; a signed callback names the job by the reference."""
        said: dict[str, Any] = {"ref": self.ref, "outcome": self.outcome}
        if self.detail:
            said["detail"] = self.detail
        if self.outcome == "rejected":
            said["retryable"] = self.retryable
        return json.dumps(said)


class Refused(Exception):
    """The request gets this status instead of being worked on."""

    def __init__(self, status: int, words: str, *, retry_after: int = 0) -> None:
        super().__init__(words)
        self.status = status
        self.retry_after = retry_after


class AnswerLost(Exception):
    """The work is done, and the connection breaks before anybody hears of it."""


class Crm:
    """The contacts, by idempotency key, and what becomes of each."""

    def __init__(self, log: Journal, callbacks: Callbacks, *, secret: str, provider_url: str) -> None:
        self.log = log
        self.callbacks = callbacks
        self.webhook = Webhook(secret)
        self.provider_url = provider_url
        self._lock = threading.Lock()
        # Key → reference, of requests that it knows; the outcome of those that are decided for good.
        self.refs: dict[str, str] = {}
        self.rejected: dict[str, str] = {}
        for line in read(log.path):
            self._remember(line)

    def _remember(self, line: Mapping[str, Any]) -> None:
        if line["event"] == "effect":
            self.refs[line["key"]] = line["ref"]
        elif line["event"] == "rejected":
            self.refs[line["key"]] = line["ref"]
            self.rejected[line["key"]] = line["detail"]

    def receive(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Work on one request. Header names in lower case. Raises: Refused, AnswerLost."""
        self._verify(headers, body)
        key = headers.get("idempotency-key", "")
        if not key:
            raise Refused(400, "Idempotency-Key is missing")
        mood = crm_moods.of(place.weather().kind)
        job_id = headers.get("jobsboard-job-id", "")
        probe = headers.get("jobsboard-probe", "") == "true"
        self.log.write("received", key=key, job_id=job_id, attempt=headers.get("jobsboard-attempt", ""), probe=probe)
        if mood.unavailable():
            raise Refused(503, "the CRM is busy", retry_after=mood.retry_after())
        with self._lock:
            ref, plan = self._work(key, mood)
        self._plan(plan, key=key, ref=ref, job_id=job_id, url=headers.get("jobsboard-callback-url", ""))
        if mood.loses_answer():
            raise AnswerLost
        return 202, {"ref": ref}

    def look_up(self, headers: Mapping[str, str], target: str) -> Answer:
        """Say what became of a contact: the check of Jobsboard's contract. `target` is path and query, and signed.

        Raises: Refused.
        """
        self._verify(headers, target.encode())
        key = headers.get("idempotency-key", "")
        if crm_moods.of(place.weather().kind).cannot_search():
            raise Refused(503, "the CRM is busy")
        with self._lock:
            ref, refused = self.refs.get(key), self.rejected.get(key)
        if refused is not None:
            self.log.write("told", key=key, ref=ref, outcome="rejected")
            return 200, {"outcome": "rejected", "detail": refused}
        if ref is None:
            return 200, {"outcome": "unknown"}
        self.log.write("told", key=key, ref=ref, outcome="confirmed")
        return 200, {"outcome": "confirmed", "ref": ref}

    def _verify(self, headers: Mapping[str, str], body: bytes) -> None:
        try:
            self.webhook.verify(body, dict(headers), json_parse=False)
        except Exception as error:  # the library raises what its parts raise: ValueError, binascii.Error, its own
            self.log.write("refused", why=type(error).__name__)
            raise Refused(401, "the signature does not fit") from None

    def _work(self, key: str, mood: crm_moods.Mood) -> tuple[str, list[crm_moods.Word]]:
        """Do the work of a key once, and say what will be called back."""
        known = self.refs.get(key)
        if known is not None:
            self.log.write("repeat", key=key, ref=known)
            return known, mood.words_again(rejected=self.rejected.get(key, ""))
        ref = f"crm-{secrets.token_hex(6)}"
        fate = mood.fate()
        if fate.effect:
            self.refs[key] = ref
            self.log.write("effect", key=key, ref=ref)
        elif fate.final:
            self.refs[key] = ref
            self.rejected[key] = fate.words[0].detail
            self.log.write("rejected", key=key, ref=ref, detail=fate.words[0].detail)
        return ref, fate.words

    def _plan(self, words: list[crm_moods.Word], *, key: str, ref: str, job_id: str, url: str) -> None:
        message = ""
        for word in words:
            # A provider that says the same twice may do so under one id, or under two.
            message = message if word.same_id and message else f"msg_{secrets.token_hex(10)}"
            callback = Callback(
                id=message, key=key, ref=ref, job_id=job_id, outcome=word.outcome, detail=word.detail,
                retryable=word.retryable, signed=word.signed, url=self.provider_url if word.signed else url,
            )  # fmt: skip
            self.callbacks.plan(callback, at=time.time() + word.after)


class Callbacks:
    """Sends each callback at its time, and again until it gets a 2xx or has tried often enough."""

    def __init__(
        self, log: Journal, *, secret: str, post: Callable[[str, str, Mapping[str, str]], Answer] | None = None
    ) -> None:
        self.log = log
        self.webhook = Webhook(secret)
        self.post = post or call
        self._heap: list[tuple[float, int, int, Callback]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._restore()

    def plan(self, callback: Callback, *, at: float) -> None:
        """Remember to send it then."""
        number = next(self._order)
        # First the log: whoever reads it later must not find a callback sent that nobody planned.
        self.log.write("planned", due=round(at, 3), number=number, **asdict(callback))
        self._push(callback, at=at, number=number, tries=0)

    def _push(self, callback: Callback, *, at: float, number: int, tries: int) -> None:
        with self._changed:
            heapq.heappush(self._heap, (at, number, tries, callback))
            self._changed.notify()

    def _restore(self) -> None:
        """Take up what was planned and not delivered when the process ended."""
        planned: dict[int, tuple[float, Callback]] = {}
        highest = 0
        for line in read(self.log.path):
            if line["event"] == "planned":
                callback = Callback(**{name: line[name] for name in Callback.__dataclass_fields__})
                planned[line["number"]] = (line["due"], callback)
                highest = max(highest, line["number"])
            elif line["event"] in ("delivered", "gave_up"):
                planned.pop(line["number"], None)
        for number, (due, callback) in planned.items():
            heapq.heappush(self._heap, (due, number, 0, callback))
        # A number names one planned callback, over all starts.
        self._order = itertools.count(highest + 1)

    def run(self, stop: threading.Event) -> None:
        """Send what is due until told to stop."""
        pool = ThreadPoolExecutor(SENDERS)
        while not stop.is_set():
            due = self._take_due()
            if due is not None:
                pool.submit(self.send, *due)
        # What was not sent is in the log, and sent at the next start.
        pool.shutdown(cancel_futures=True)

    def _take_due(self, *, seconds: float = 0.5) -> tuple[int, int, Callback] | None:
        """Wait a moment for one that is due."""
        with self._changed:
            wait = min(self._heap[0][0] - time.time(), seconds) if self._heap else seconds
            if wait > 0:
                self._changed.wait(wait)
            if not self._heap or self._heap[0][0] > time.time():
                return None
            _, number, tries, callback = heapq.heappop(self._heap)
            return number, tries, callback

    def send(self, number: int, tries: int, callback: Callback) -> bool:
        """Send one callback once, and see to the next try; returns whether it was taken."""
        headers = {"Content-Type": "application/json"}
        if callback.signed:
            now = dt.datetime.now(tz=dt.UTC)
            headers["webhook-id"] = callback.id
            headers["webhook-timestamp"] = str(int(now.timestamp()))
            headers["webhook-signature"] = self.webhook.sign(callback.id, now, callback.body)
        facts = {"number": number, "key": callback.key, "ref": callback.ref, "outcome": callback.outcome}
        # Before it leaves: an outcome that Jobsboard knows was always said here first.
        self.log.write("calling", **facts)
        try:
            status, said = self.post(callback.url, callback.body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            status, said = 0, {"error": type(error).__name__}
        if 200 <= status < 300:
            self.log.write("delivered", **facts, status=status, said=said)
            return True
        tries += 1
        self.log.write("failed", **facts, status=status, said=said, tries=tries)
        if tries >= TRIES:
            self.log.write("gave_up", **facts)
        else:
            wait = min(FIRST_WAIT * 2 ** (tries - 1), LAST_WAIT)
            self._push(callback, at=time.time() + wait, number=number, tries=tries)
        return False


def call(url: str, body: str, headers: Mapping[str, str]) -> Answer:
    """Post to Jobsboard and return what it said. Raises: OSError, HTTPException, ValueError."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    with contextlib.closing(kind(parts.hostname or "", parts.port, timeout=CALL_SECONDS)) as connection:
        connection.request("POST", parts.path, body=body.encode(), headers=dict(headers))
        answer = connection.getresponse()
        text = answer.read(65_536)
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    return answer.status, said if isinstance(said, dict) else {}
