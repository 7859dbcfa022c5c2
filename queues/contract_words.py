"""What a contract and a tier promise, in plain words. What they may say is decided by `contract_rules`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from queues.contract_flow import flow_words


def promise_sentence(fields: Mapping[str, Any], *, tier_ratio: float | None = None) -> str:
    """Say in plain words what this contract promises."""
    ratio = fields["target_ratio"] if fields["target_ratio"] is not None else tier_ratio
    share = f"{ratio * 100:.4g}% of jobs" if ratio is not None else "Jobs"
    attempts = fields["max_attempts"]
    tries = "one attempt" if attempts == 1 else f"up to {attempts} attempts"
    stale = "expires" if fields["on_stale"] == "expire" else "becomes a dead letter"
    sentences = (
        f"{share} are confirmed within {span(fields['window_seconds'])} of being ready.",
        _proof_words(fields),
        _limit_words(fields),
        f"A job gets {tries}; not settled after {span(fields['max_age_seconds'])} it {stale}.",
        _key_words(fields),
        flow_words(fields),
        _probe_words(fields),
    )
    return " ".join(sentence for sentence in sentences if sentence)


def _proof_words(fields: Mapping[str, Any]) -> str:
    every = f"every {span(fields['check_every_seconds'])}"
    otherwise = {
        "dead": "becomes a dead letter",
        "retry": "is run again",
        "check_again": f"is checked {every} until its max age",
    }[fields["on_unconfirmed"]]
    late = f"A job without that within {span(fields['confirm_within_seconds'])} of its run {otherwise}."
    return {
        "reference": "Done means that the handler returned the reference that the outside world gave. A job whose run "
        f"returned without one {otherwise}.",
        "return": "Done means only that the handler returned; it is shown as unverified.",
        "callback": f"Done means that the provider called back. {late}",
        "check": f"Done means that a check found the outcome in the outside world; it asks {every}. {late}",
    }[fields["success"]]


def _limit_words(fields: Mapping[str, Any]) -> str:
    soft, hard = fields["soft_limit_seconds"], fields["hard_limit_seconds"]
    if soft and hard:
        return f"A run is told to stop after {span(soft)} and is stopped after {span(hard)}."
    if hard:
        return f"A run is stopped after {span(hard)}."
    # A request to a target ends by itself.
    forever = "nothing stops a run that hangs" if fields["handler"] == "python" else ""
    if soft:
        return f"A run is told to stop after {span(soft)}{f'; {forever}' if forever else ''}."
    return f"{forever.capitalize()}." if forever else ""


def _key_words(fields: Mapping[str, Any]) -> str:
    for_long = (
        f"for {span(fields['dedupe_window_seconds'])}"
        if fields["dedupe_window_seconds"]
        else "as long as its job is kept"
    )
    if fields["key_required"]:
        return f"Each job has a key, and one key is accepted once, {for_long}."
    if fields["key_template"]:
        return f"A job's key comes from its payload, and one key is accepted once, {for_long}."
    return "A job sent without a key is accepted each time that it is sent."


def _probe_words(fields: Mapping[str, Any]) -> str:
    every = fields["probe_every_seconds"]
    return f"A probe goes the whole way every {span(every)}." if every else ""


def tier_sentence(fields: Mapping[str, Any], *, types: int, own: int) -> str:
    """Say in plain words what a tier promises. `types` are in it, `own` of them with a share of their own."""
    held = "1 job type is in it" if types == 1 else f"{types or 'No'} job types are in it"
    if own:
        held += f", {own} of them with a share of {'its' if own == 1 else 'their'} own"
    share = f"{fields['target_ratio'] * 100:.4g}% of jobs"
    return (
        f"In tier {fields['number']} ({fields['name']}) {share} are confirmed within the window that their contract "
        f"gives. {held}. From {fields['backlog_limit']:,} waiting jobs on, new ones are "
        f"refused until some are done.{_defer_words(fields.get('defer_after_seconds', 0))}"
    )


def _defer_words(seconds: int) -> str:
    if not seconds:
        return ""
    return f" While its jobs wait longer than {span(seconds)} for a worker, deferrable types of the tiers below wait."


_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def span(seconds: int) -> str:
    """Write a length of time in the largest unit that fits it exactly: 90 seconds, 7 days."""
    for size, word in _UNITS:
        if seconds and seconds % size == 0:
            return f"{seconds // size} {word}{'' if seconds == size else 's'}"
    return "0 seconds"
