"""What the demo's providers and producers wrote down themselves, read at one moment.

Not here: holding it against the board (`reconcile`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Final, Self

from jobsboard.demo import digest, partner, place
from jobsboard.demo.journal import Line, read

# The first log line is written a moment after the first job was accepted.
_SLACK: Final = 10.0


def key_of(message_id: str) -> str:
    """Return the idempotency key that a mail's Message-ID was made of."""
    return message_id.strip("<>").partition("@")[0]


@dataclass(frozen=True, kw_only=True)
class World:
    """What the outside world wrote down, at one moment."""

    mails: Sequence[Line] = ()
    crm: Sequence[Line] = ()
    scores: Sequence[Line] = ()
    requests: Sequence[Line] = ()
    handoffs: Sequence[tuple[str, float]] = ()
    entries: Sequence[partner.Entry] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    """Idempotency key → reference."""
    probes: Set[str] = frozenset()
    """Idempotency keys of what the providers were told to be probes."""

    @classmethod
    def now(cls) -> Self:
        """Read the logs."""
        mails, crm, scores = (list(read(log())) for log in (place.mail_log, place.crm_log, place.score_log))
        told = {line["key"] for line in (*crm, *scores) if line.get("probe")}
        digests = digest.written()
        told |= {key for key, one in digests.items() if one["probe"]}
        told |= {key_of(line["message_id"]) for line in mails if line.get("probe")}
        return cls(
            mails=mails,
            crm=crm,
            scores=scores,
            probes=frozenset(told | partner.probe_keys()),
            requests=list(read(place.traffic_log())),
            handoffs=partner.handoffs(),
            entries=partner.entries(),
            digests={key: one["ref"] for key, one in digests.items()},
        )

    def only(self, wanted: Callable[[str], bool]) -> Self:
        """Return the part of it that is about some idempotency keys; of the producers' log everything."""
        return replace(
            self,
            mails=[line for line in self.mails if wanted(key_of(line["message_id"]))],
            crm=[line for line in self.crm if wanted(line.get("key", ""))],
            scores=[line for line in self.scores if wanted(line["key"])],
            handoffs=[one for one in self.handoffs if wanted(one[0])],
            entries=[one for one in self.entries if wanted(one.key)],
            digests={key: ref for key, ref in self.digests.items() if wanted(key)},
        )

    @property
    def began(self) -> float:
        """When the first of the logs begins: what the board knows from before was somebody else's demo."""
        first = [lines[0]["at"] for lines in (self.mails, self.crm, self.scores, self.requests) if lines]
        first += [at for _, at in self.handoffs[:1]]
        return min(first, default=0.0) - _SLACK
