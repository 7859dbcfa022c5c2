"""Where the demo's processes meet: a directory with their logs, the mail server's ports and the weather."""

import datetime as dt
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from django.core.exceptions import ImproperlyConfigured

Kind = Literal["calm", "storm"]
VARIABLE: Final = "JOBSBOARD_DEMO_DIR"


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How the providers behave. `since` is when somebody last changed it, None when nobody did."""

    kind: Kind = "calm"
    since: dt.datetime | None = None


def is_demo() -> bool:
    """Say whether this process belongs to a demo."""
    return bool(os.environ.get(VARIABLE))


def directory() -> Path:
    """Return the demo's directory; the local stack makes and names it. Raises: ImproperlyConfigured."""
    if not is_demo():
        raise ImproperlyConfigured(f"{VARIABLE} is not set: the demo runs by `make demo`, and its commands by"
                                   " `python -m jobsboard.local -- python manage.py …` beside it")  # fmt: skip
    path = Path(os.environ[VARIABLE])
    path.mkdir(parents=True, exist_ok=True)
    return path


def weather() -> Weather:
    """Return what the providers are to behave like."""
    try:
        found = json.loads((directory() / "weather.json").read_text(encoding="utf-8"))
        since = dt.datetime.fromisoformat(found["since"])
        return Weather(kind="storm" if found["kind"] == "storm" else "calm", since=since)
    except (FileNotFoundError, ValueError, KeyError):
        return Weather()


def set_weather(kind: Kind) -> None:
    """Change how the providers behave, from the next request on. Setting what it is already leaves its time."""
    if weather().kind != kind:
        since = dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds")
        _write("weather.json", json.dumps({"kind": kind, "since": since}))


def announce_mail(*, smtp: int, search: int) -> None:
    """Tell handlers where the mail server listens, and where its log can be asked."""
    _write("mail.json", json.dumps({"smtp": smtp, "search": search}))


def mail_port(which: Literal["smtp", "search"]) -> int:
    """Return where the mail server listens. Raises: ConnectionError while it has not started."""
    try:
        return int(json.loads((directory() / "mail.json").read_text(encoding="utf-8"))[which])
    except (FileNotFoundError, ValueError, KeyError):
        raise ConnectionError("the demo's mail server is not up") from None


def mail_log() -> Path:
    """Return the mail server's own log: a line for each message that it took."""
    return directory() / "mail.jsonl"


def crm_log() -> Path:
    """Return the CRM's own log: what it received, what it did, and each time it called back."""
    return directory() / "crm.jsonl"


def books() -> Path:
    """Return the billing partner's database."""
    return directory() / "partner.sqlite3"


def score_log() -> Path:
    """Return the log of scores that were computed."""
    return directory() / "scores.jsonl"


def digests() -> Path:
    """Return the directory of the digests that schedules asked for."""
    path = directory() / "digests"
    path.mkdir(exist_ok=True)
    return path


def pager_log() -> Path:
    """Return the pager's own log: each alert that reached it, and each message that it refused."""
    return directory() / "pager.jsonl"


def traffic_log() -> Path:
    """Return the producers' own log: what they sent and what they were told."""
    return directory() / "traffic.jsonl"


def _write(name: str, text: str) -> None:
    part = directory() / f".{name}.{os.getpid()}"
    part.write_text(text, encoding="utf-8")
    part.replace(directory() / name)
