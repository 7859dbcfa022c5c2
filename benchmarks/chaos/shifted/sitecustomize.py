"""Shifts the wall clock of a Python process, while it runs, by the number in a file that others may change.

Python imports a module of this name at its start; `benchmarks.chaos.clock` puts this folder on the path of the
processes that it shifts, and their children inherit it. Monotonic clocks stay as they are. Only what Python code asks
for is shifted: `time.time` and its relatives, and the present of `datetime` and `date`.
"""

import ctypes
import datetime
import gc
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

SECONDS = struct.Struct("<d")
_TAKES_SECONDS = ("gmtime", "localtime", "ctime")


class _Plain:
    """A function that, as those of `time`, does not become a method of a class that keeps it (logging does)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def install(path: str) -> None:
    """Shift this process by the seconds in a file, as they are at each call."""
    with open(path, "rb") as file:
        shared = mmap.mmap(file.fileno(), SECONDS.size, access=mmap.ACCESS_READ)
    real, was = time.time, {name: getattr(time, name) for name in _TAKES_SECONDS}
    gettime, strftime = time.clock_gettime, time.strftime

    def shifted() -> float:
        return real() + float(SECONDS.unpack_from(shared)[0])

    new: dict[str, Callable[..., Any]] = {
        name: lambda seconds=None, known=known: known(shifted() if seconds is None else seconds)
        for name, known in was.items()
    }
    new["time"] = shifted
    new["time_ns"] = lambda: int(shifted() * 1e9)
    new["clock_gettime"] = lambda clock: shifted() if clock == time.CLOCK_REALTIME else gettime(clock)
    new["strftime"] = lambda form, when=None: strftime(form, was["localtime"](shifted()) if when is None else when)
    for name, function in new.items():
        setattr(time, name, _Plain(function))
    _replace(
        datetime.datetime,
        now=classmethod(lambda cls, tz=None: cls.fromtimestamp(shifted(), tz)),
        today=classmethod(lambda cls: cls.fromtimestamp(shifted())),
        utcnow=classmethod(lambda cls: cls.fromtimestamp(shifted(), datetime.timezone.utc).replace(tzinfo=None)),  # noqa: UP017 (an older Python must get as far as to say so)
    )
    _replace(datetime.date, today=classmethod(lambda cls: cls.fromtimestamp(shifted())))


def _replace(kind: type, **methods: Any) -> None:
    """Replace methods of a type written in C: a subclass would not be what C code makes and asks for."""
    [members] = gc.get_referents(kind.__dict__)
    members.update(methods)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))


def check() -> None:
    """End the process when its clocks do not agree: a shift that does not work would prove nothing."""
    told = time.time()
    known = datetime.datetime.now(datetime.timezone.utc).timestamp()  # noqa: UP017
    if abs(known - told) > 60:
        sys.stderr.write(f"sitecustomize: datetime is not shifted: {known} beside {told}\n")
        os._exit(97)


if os.environ.get("CHAOS_CLOCK"):
    install(os.environ["CHAOS_CLOCK"])
    check()
