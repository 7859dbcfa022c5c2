"""What a handler left in the world, as a test sees it, and how two such worlds differ."""

import pprint
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from django.db.models import Model

_ADDRESS: Final = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")
_SHOWN: Final = 10

Effects = Counter[str]
"""The effects in words, and how often each is there. Their order does not count: a second run changes it rightly."""


def seen(found: Any) -> Effects:
    """Keep what a test's `effects` returned, so that what happens later does not change it. Raises: TypeError."""
    if isinstance(found, Mapping):
        return Counter(f"{_words(key)}: {_words(value)}" for key, value in found.items())
    if isinstance(found, Iterable) and not isinstance(found, (str, bytes)):
        return Counter(_words(item) for item in found)
    return Counter([_words(found)])


def difference(expected: Effects, found: Effects) -> list[str]:
    """Say what there is too much and too little of."""
    said = []
    for item in sorted(expected.keys() | found.keys()):
        wanted, there = expected[item], found[item]
        if there > wanted:
            said.append(f"{_times(there)} instead of {_times(wanted)}: {item}" if wanted else f"only here: {item}")
        elif there < wanted:
            said.append(f"{_times(there)} instead of {_times(wanted)}: {item}" if there else f"missing: {item}")
    more = [f"and {len(said) - _SHOWN} more"] if len(said) > _SHOWN else []
    return said[:_SHOWN] + more


def _words(item: Any) -> str:
    # Sorts what has no order of its own, so that equal values are equal words.
    words = pprint.pformat(item, width=200)
    if isinstance(item, Model) or _ADDRESS.search(words):
        raise TypeError(
            f"effects() returned something that cannot be compared by its words: {words[:200]}. Return plain values:"
            " [(m.to, m.subject) for m in mail.outbox], or list(Receipt.objects.values_list('invoice', 'cents'))"
        )
    return words


def _times(number: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number} times")
