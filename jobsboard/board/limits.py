"""The card "Limits" of a job type: what holds its work back, and how much of that is taken now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse

from queues.contract_flow import flow_words
from queues.outcomes.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the card; `idle`: it holds nothing back now."""

    kind: str
    name: str
    value: str
    words: str
    url: str = ""
    full: bool = False
    idle: bool = False


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the contract says in words, and the figures of now."""

    words: str
    figures: Sequence[Figure]


def card(found: Limits | None, fields: Mapping[str, Any]) -> Card | None:
    """Return the card; None for a type without limits and order. `fields`: those of its contract."""
    if found is None:
        return None
    figures = [_running(found)]
    if found.rate_per_second:
        figures.append(_tokens(found))
    if found.group_limited:
        figures.append(_groups(found))
    if found.ordered and found.ordered_on_failure == "block":
        figures.append(_held(found))
    return Card(words=flow_words(fields), figures=figures)


def _running(found: Limits) -> Figure:
    most = found.concurrency
    return Figure(
        kind="running",
        name="Runs that hold a lease",
        value=f"{found.running:,} of {most:,}" if most else f"{found.running:,}",
        words="The next one begins when one of them ends." if found.at_concurrency else "Of this type, now.",
        url=f"{reverse('jobs')}?{urlencode({'state': 'processing', 'type': found.name})}" if found.running else "",
        full=found.at_concurrency,
        idle=not found.running,
    )


def _tokens(found: Limits) -> Figure:
    tokens = found.tokens or 0.0
    return Figure(
        kind="tokens",
        name="Tokens of its rate",
        # Cut off: with 0.96 of a token none begins.
        value=f"{int(tokens * 10) / 10:,g} of {found.burst:,}",
        words=f"Each run that begins takes one; {found.rate_per_second:g} a second come back.",
        full=tokens < 1,
    )


def _groups(found: Limits) -> Figure:
    full, limit = found.full, max(found.full.busy, found.full.spent)
    of = f"the first {full.looked:,}" if full.at_least else f"{full.looked:,}"
    return Figure(
        kind="groups",
        name="Groups at their limit",
        value=f"{limit:,}",
        words=f"Of {of} group{'' if full.looked == 1 else 's'} with waiting jobs.",
        full=limit > 0,
        idle=not limit,
    )


def _held(found: Limits) -> Figure:
    held, least = found.held, "At least. " if found.held.at_least else ""
    behind = f"{held.jobs:,} job{' waits' if held.jobs == 1 else 's wait'} behind."
    return Figure(
        kind="held",
        name="Groups held up",
        value=f"{held.n:,}",
        words=f"{least}By a dead letter: {behind} Replay, cancel or ignore it." if held.n else "By no dead letter.",
        url=f"{reverse('dead-letters')}?{urlencode({'type': found.name})}" if held.n else "",
        full=held.n > 0,
        idle=not held.n,
    )
