"""What the stage may publish of types with limits, order or a half open breaker: what a claim would let begin now.

A type's groups are walked in turn, a bounded number a round, so that one with a long backlog keeps none of the others
waiting. Room that hints under way will take is not given away a second time.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Final
from uuid import UUID

from queues import lifecycle
from queues.contracts import Contract
from queues.lifecycle import LIMITED_HINT_SECONDS, Ask, Due

GROUPS: Final = 50
"""Groups of a type that one round looks at."""
EACH: Final = 20
"""At most so many of one group in one round."""
_LOOK_EVERY: Final = 1.0


@dataclass
class LimitedStage:
    """The memory of limited types: where the walk of their groups goes on, which hints are under way."""

    after: dict[str, str] = field(default_factory=dict)
    sent: dict[str, dict[UUID, float]] = field(default_factory=dict)
    looked: dict[str, float] = field(default_factory=dict)
    ungrouped_last: set[str] = field(default_factory=set)
    """Types whose work without a group took from the groups in the round before: now these come first."""

    def due(
        self, asked: Mapping[str, int], *, current: Mapping[str, Contract], tiers: Mapping[str, Sequence[int]]
    ) -> dict[str, list[Due]]:
        """Return what may be published of each type, at most as many as asked for."""
        self._forget(asked)
        rooms = lifecycle.rooms(sorted(asked))
        most: dict[str, int] = {}
        for name, wanted in asked.items():
            least = rooms[name].least if name in rooms else 0
            bound = wanted if least is None else min(wanted, least - len(self.sent.get(name, ())))
            if bound > 0:
                most[name] = bound
        plain = [
            Ask(tier, name, n + len(self.sent.get(name, ())), LIMITED_HINT_SECONDS)
            for name, n in most.items()
            if not current[name].in_groups
            for tier in tiers[name]
        ]
        found = lifecycle.stageable(plain) if plain else {}
        for name, n in most.items():
            if current[name].in_groups:
                found[name] = self._in_groups(current[name], n, tiers[name])
        return {name: self._fresh(name, rows)[: most[name]] for name, rows in found.items()}

    def published(self, name: str, rows: Collection[Due]) -> None:
        """Remember hints that were sent."""
        now = time.monotonic()
        self.sent.setdefault(name, {}).update({row.id: now for row in rows})

    def _fresh(self, name: str, rows: Sequence[Due]) -> list[Due]:
        under_way = self.sent.get(name, {})
        return [row for row in rows if row.id not in under_way]

    def _forget(self, names: Collection[str]) -> None:
        """Keep only hints that no claim has taken yet, and none for long: a claim may have refused it."""
        horizon = time.monotonic() - LIMITED_HINT_SECONDS
        recent = {name: [i for i, at in self.sent.get(name, {}).items() if at > horizon] for name in names}
        ids = list(chain.from_iterable(recent.values()))
        waiting = lifecycle.still_waiting(ids) if ids else set()
        for name, kept in recent.items():
            if name in self.sent:
                self.sent[name] = {i: self.sent[name][i] for i in kept if i in waiting}

    def _in_groups(self, contract: Contract, most: int, tiers: Sequence[int]) -> list[Due]:
        """Return the first of each group, then the second of each; the next round begins after the last one taken."""
        name = contract.name
        alone = self._without_group(contract, most, tiers)
        lanes = {"": alone} if alone and name not in self.ungrouped_last else {}
        began = after = self.after.get(name, "")
        for _ in range(2):
            found, last = lifecycle.stageable_in_groups(
                name, ordered=contract.ordered, after=after, groups=GROUPS, each=EACH
            )
            fresh = {group: self._fresh(name, rows) for group, rows in found.items() if group not in lanes}
            lanes |= {group: rows for group, rows in fresh.items() if rows}
            after = last or ""
            if last is not None or not began or len(lanes) > most:
                break
        first = "" in lanes
        if alone:
            lanes[""] = alone
        groups = list(lanes)
        # At a cut among the heads the next round begins with those that were left out.
        cut = len(groups) > most
        self.after[name] = next((g for g in reversed(groups[:most]) if g), began) if cut else after
        (self.ungrouped_last.add if first and cut else self.ungrouped_last.discard)(name)
        return [row for row in chain.from_iterable(zip_longest(*lanes.values())) if row is not None]

    def _without_group(self, contract: Contract, most: int, tiers: Sequence[int]) -> list[Due]:
        """Return work that has no group; looked for now and then, and each round while there is some."""
        now = time.monotonic()
        if now - self.looked.get(contract.name, float("-inf")) < _LOOK_EVERY:
            return []
        each = min(EACH, most)
        rows = lifecycle.stageable_without_group(contract.name, each=each)
        if contract.ordered:
            for tier in tiers:
                rows += lifecycle.stageable_without_place(contract.name, tier=tier, each=each)
        self.looked[contract.name] = float("-inf") if rows else now
        return self._fresh(contract.name, rows)
