"""How the CRM treats a contact: what it does, what it will call back and when. Chance, by the weather.

Not here: keeping, sending and repeating (`crm`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from jobsboard.demo import place

SIGNED_SHARE: Final = 0.25
"""How often it calls back in its own name, signed, instead of to the address that came with the request."""
BLOCKED: Final = "the address is on the block list"
BUSY: Final = "another import holds this contact"


@dataclass(frozen=True, kw_only=True)
class Word:
    """One callback to come. Units: seconds from now."""

    outcome: str = "confirmed"
    after: float
    detail: str = ""
    retryable: bool = False
    signed: bool = False
    same_id: bool = False


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What becomes of a contact. Without an effect it is rejected; `final` says for good."""

    words: list[Word]
    effect: bool = True
    final: bool = True


@dataclass(frozen=True, kw_only=True)
class Mood:
    """The chances. `fates` are shares of one by name; what is missing to one is prompt."""

    busy: float
    lost_answers: float
    fates: Mapping[str, float]
    search_fails: float = 0.0
    draw: random.Random = field(default_factory=random.Random, compare=False)

    def unavailable(self) -> bool:
        """Say whether it is too busy to take a request."""
        return self.draw.random() < self.busy

    def cannot_search(self) -> bool:
        """Say whether it cannot tell now which contacts it has."""
        return self.draw.random() < self.search_fails

    def retry_after(self) -> int:
        """Return for how long. Units: seconds."""
        return self.draw.randint(1, 5)

    def loses_answer(self) -> bool:
        """Say whether the connection breaks before the answer."""
        return self.draw.random() < self.lost_answers

    def fate(self) -> Fate:
        """Decide about a contact that it sees for the first time."""
        return FATES[self._name()](self.draw)

    def words_again(self, *, rejected: str) -> list[Word]:
        """Decide what to call back for a contact that it knows: the same outcome, if anything."""
        if rejected:
            return [Word(outcome="rejected", after=self.draw.uniform(0.1, 2.0), detail=rejected)]
        name = self._name()
        return FATES[name if name in _SILENT else "prompt"](self.draw).words

    def _name(self) -> str:
        at = self.draw.random()
        for name, share in self.fates.items():
            at -= share
            if at < 0:
                return name
        return "prompt"


def of(kind: place.Kind) -> Mood:
    """Return the mood of a weather."""
    return MOODS[kind]


def _signed(draw: random.Random) -> bool:
    return draw.random() < SIGNED_SHARE


def _prompt(draw: random.Random) -> Fate:
    # From nearly at once: a callback may overtake the answer to the request that it belongs to.
    return Fate(words=[Word(after=draw.uniform(0.005, 2.0), signed=_signed(draw))])


def _slow(draw: random.Random) -> Fate:
    return Fate(words=[Word(after=draw.uniform(5.0, 20.0), signed=_signed(draw))])


def _late(draw: random.Random) -> Fate:
    return Fate(words=[Word(after=draw.uniform(32.0, 90.0), signed=_signed(draw))])


def _never(_: random.Random) -> Fate:
    return Fate(words=[])


def _twice(draw: random.Random) -> Fate:
    first, signed, same = draw.uniform(0.2, 2.0), _signed(draw), draw.random() < 0.5
    again = Word(after=first + draw.uniform(0.0, 5.0), signed=signed, same_id=same)
    return Fate(words=[Word(after=first, signed=signed), again])


def _changes_its_mind(draw: random.Random) -> Fate:
    first = draw.uniform(0.2, 2.0)
    second = Word(outcome="rejected", after=first + draw.uniform(1.0, 8.0), detail=BLOCKED, signed=_signed(draw))
    return Fate(words=[Word(after=first, signed=_signed(draw)), second])


def _rejects_too_soon(draw: random.Random) -> Fate:
    first = draw.uniform(0.2, 2.0)
    second = Word(after=first + draw.uniform(1.0, 8.0), signed=_signed(draw))
    return Fate(words=[Word(outcome="rejected", after=first, detail=BUSY, signed=_signed(draw)), second])


def _rejected(draw: random.Random) -> Fate:
    word = Word(outcome="rejected", after=draw.uniform(0.2, 2.0), detail=BLOCKED, signed=_signed(draw))
    return Fate(words=[word], effect=False)


def _retryable(draw: random.Random) -> Fate:
    word = Word(outcome="rejected", after=draw.uniform(0.2, 2.0), detail=BUSY, retryable=True, signed=_signed(draw))
    return Fate(words=[word], effect=False, final=False)


FATES: Final[Mapping[str, Callable[[random.Random], Fate]]] = {
    "prompt": _prompt,
    "slow": _slow,
    "late": _late,
    "never": _never,
    "twice": _twice,
    "changes_its_mind": _changes_its_mind,
    "rejects_too_soon": _rejects_too_soon,
    "rejected": _rejected,
    "retryable": _retryable,
}
_SILENT: Final = frozenset({"late", "never", "slow"})

MOODS: Final[Mapping[place.Kind, Mood]] = {
    "calm": Mood(
        busy=0.005,
        lost_answers=0.004,
        fates={
            "slow": 0.05, "late": 0.004, "never": 0.006, "twice": 0.03, "changes_its_mind": 0.003,
            "rejects_too_soon": 0.0004, "rejected": 0.0008, "retryable": 0.005,
        },
    ),
    "storm": Mood(
        busy=0.85,
        lost_answers=0.05,
        search_fails=0.1,
        fates={
            "slow": 0.2, "late": 0.2, "never": 0.25, "twice": 0.03, "changes_its_mind": 0.005,
            "rejects_too_soon": 0.003, "rejected": 0.004, "retryable": 0.02,
        },
    ),
}  # fmt: skip
