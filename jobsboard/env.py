"""Strict readers for environment variables: one clear line on a mistake, never a value in the text.

Defaults live in settings.py, beside the setting that they feed.
"""

import ipaddress
import os
import re
import sys
from types import TracebackType
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}
_BROKER_SCHEMES = {"redis", "rediss", "redis+socket", "amqp", "amqps"}
# What stands in example files and generated projects. A random key has none of these words in it.
_PLACEHOLDER = re.compile(
    r"change.?me|change.?this|insecure|replace|example|your.?secret|secret.?key|placeholder|x{8}|1234567", re.IGNORECASE
)


class Mistake(ImproperlyConfigured):
    """A variable that is missing or cannot be used."""


_hook = sys.excepthook


def _one_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Say a mistake without a traceback, which names everything but the variable first; exit code 1 as always."""
    if issubclass(kind, Mistake):
        sys.stderr.write(f"jobsboard: {error}\n")
    else:
        _hook(kind, error, traceback)


sys.excepthook = _one_line


def text(name: str, default: str | None = None) -> str:
    """Return the variable; without a default it is required."""
    value = os.environ.get(name, default)
    if value is None or (value == "" and default is None):
        raise Mistake(f"{name} is not set. See README.md, section Configuration.")
    return value


def flag(name: str, default: bool = False) -> bool:
    """Read a boolean; anything but the usual words is an error."""
    value = os.environ.get(name, "1" if default else "0").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise Mistake(f"{name} must be 1 or 0 (or true, false, yes, no, on, off).")


def seconds(name: str, default: int, *, least: int = 0) -> int:
    """Read a whole number of seconds, up to a day."""
    value = os.environ.get(name, "").strip() or str(default)
    if not (value.isascii() and value.isdigit() and len(value) <= 5 and least <= int(value) <= 86400):
        raise Mistake(f"{name} must be a whole number of seconds from {least} to 86400.")
    return int(value)


def words(name: str, default: str = "") -> list[str]:
    """Read a comma-separated list; empty items are dropped."""
    return [item.strip() for item in os.environ.get(name, default).split(",") if item.strip()]


def networks(name: str) -> list[str]:
    """Read a comma-separated list of CIDR ranges."""
    for item in words(name):
        try:
            ipaddress.ip_network(item)
        except ValueError:
            raise Mistake(f"{name} has an item that is not a CIDR range such as 10.0.0.0/8.") from None
    return words(name)


def ports(name: str, default: str) -> frozenset[int] | None:
    """Read a comma-separated list of ports; None, written as *, is any port."""
    items = words(name) or [default]
    if items == ["*"]:
        return None
    if not all(item.isascii() and item.isdigit() and len(item) <= 5 and 0 < int(item) <= 65535 for item in items):
        raise Mistake(f"{name} must be port numbers from 1 to 65535, separated by commas, or * for any.")
    return frozenset(map(int, items))


def secret_key(*, debug: bool) -> str:
    """Read SECRET_KEY and refuse what anybody could guess."""
    value = text("SECRET_KEY")
    if not debug and (len(value) < 32 or len(set(value)) < 8 or _PLACEHOLDER.search(value)):
        raise Mistake("SECRET_KEY must have at least 32 random characters, and not those of an example.")
    return value


def database(name: str = "DATABASE_URL") -> dict[str, str | int]:
    """Read a PostgreSQL URL into the parts that Django wants."""
    parts = urlsplit(text(name))
    try:
        port = parts.port
    except ValueError:
        raise Mistake(f"{name} has a port that is not a number.") from None
    if parts.scheme not in {"postgres", "postgresql"} or not parts.path.strip("/"):
        raise Mistake(f"{name} must look like postgresql://user:password@host:5432/name.")
    return {
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),
        "PORT": port or "",
    }


def broker(name: str = "BROKER_URL") -> str:
    """Read the broker's URL; Redis or Valkey, or RabbitMQ."""
    value = text(name)
    if urlsplit(value).scheme not in _BROKER_SCHEMES:
        raise Mistake(f"{name} must start with one of {', '.join(sorted(_BROKER_SCHEMES))}, then ://.")
    return value
