"""Where the demo's processes meet: a directory with the mail server's port, its log and the weather."""

import json
import os
from pathlib import Path
from typing import Literal

from django.core.exceptions import ImproperlyConfigured

Weather = Literal["calm", "storm"]


def directory() -> Path:
    """Return the demo's directory; the local stack makes and names it. Raises: ImproperlyConfigured."""
    name = os.environ.get("JOBSBOARD_DEMO_DIR")
    if not name:
        raise ImproperlyConfigured("JOBSBOARD_DEMO_DIR is not set: the demo runs by `make demo`, and its commands by"
                                   " `python -m jobsboard.local -- python manage.py …` beside it")  # fmt: skip
    path = Path(name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def weather() -> Weather:
    """Return what the mail server is to behave like."""
    try:
        return "storm" if (directory() / "weather").read_text().strip() == "storm" else "calm"
    except FileNotFoundError:
        return "calm"


def set_weather(value: Weather) -> None:
    """Change how the mail server behaves, from the next message on."""
    _write("weather", value)


def announce_mail_port(port: int) -> None:
    """Tell handlers where the mail server listens."""
    _write("mail.json", json.dumps({"port": port}))


def mail_port() -> int:
    """Return where the mail server listens. Raises: ConnectionError while it has not started."""
    try:
        return int(json.loads((directory() / "mail.json").read_text())["port"])
    except (FileNotFoundError, ValueError, KeyError):
        raise ConnectionError("the demo's mail server is not up") from None


def mail_log() -> Path:
    """Return the mail server's own log: one JSON object a line for each message that it took."""
    return directory() / "mail.log"


def _write(name: str, text: str) -> None:
    part = directory() / f".{name}.{os.getpid()}"
    part.write_text(text)
    part.replace(directory() / name)
