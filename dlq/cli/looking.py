"""Looking at dead letters from the command line: list, groups, one of them, whether a replay is safe, an export."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, BinaryIO, Final

from dlq import exporting, groups, replaying
from dlq.cli import choosing, printing
from dlq.cli.printing import Refused, Write
from dlq.exporting import By, Wanted
from dlq.groups import GroupFilter
from dlq.plans import selection as plans
from queues import contracts
from queues.models import Job
from queues.redaction import REDACTED, redact
from queues.states import REPLAYABLE

_LIST: Final = ("id", "type", "tier", "reason", "error_class", "message", "attempts", "died_at")


def list_dead_letters(options: dict[str, Any], write: Write) -> None:
    """Print unresolved dead letters, by type and then newest first."""
    found = exporting.pieces(_wanted(options), payload=False, most=options["limit"])
    rows = list(itertools.chain.from_iterable(found))
    if options["json"]:
        printing.document([{k: v for k, v in row.items() if k != "payload"} for row in rows], write)
        return
    printing.table(_LIST, [[row[name] for name in _LIST] for row in rows], write)
    if len(rows) == options["limit"]:
        write(f"The first {len(rows):,}; --limit shows more, export takes them all.")


def list_groups(options: dict[str, Any], write: Write) -> None:
    """Print failure groups, tier 1 first, then by their newest death."""
    chosen = choosing.selection(options)
    wanted = GroupFilter(
        types=choosing.types(), type=chosen.type, tier=chosen.tier, reason=chosen.reason, state=options["state"]
    )
    page = groups.groups(wanted, limit=options["limit"])
    if options["json"]:
        printing.document([vars(row) for row in page.rows], write)
        return
    head = ("id", "tier", "type", "reason", "open", "died", "last", "state", "error", "message", "replay check")
    rows = [
        [row.id, row.tier, row.type, row.reason, row.open, row.died, row.last_at, row.state, row.error_class,
         row.message, _triage(row.triage)]
        for row in page.rows
    ]  # fmt: skip
    printing.table(head, rows, write)
    if page.older is not None:
        write(f"The first {len(rows):,}; --limit shows more.")


def show(options: dict[str, Any], write: Write) -> None:
    """Print one job: why it is dead, its attempts, its payload, redacted."""
    job = choosing.job(options["id"])
    group = groups.group_of(job)
    facts: dict[str, Any] = {
        "id": job.id, "type": job.type, "tier": job.tier, "state": job.state, "reason": job.reason,
        "group": job.group, "dedupe_key": job.dedupe_key, "idempotency_key": job.idempotency_key,
        "contract_version": job.contract_version, "accepted_at": job.accepted_at, "settled_at": job.settled_at,
        "expires_at": job.expires_at, "attempts": job.attempt, "max_attempts": job.attempt_limit,
        "fingerprint": job.fingerprint, "failure_group": None if group is None else group.id,
        "resolution": job.resolution, "resolved_by": job.resolved_by, "replay_of": job.replay_of,
        "replayed_by": job.replayed_by, "root": job.root,
    }  # fmt: skip
    failures = redact([one for one in job.failures if isinstance(one, dict)])
    if options["json"]:
        printing.document({**facts, "payload": _payload(job), "failures": failures}, write)
        return
    printing.facts(facts, write)
    for one in failures:
        words = f"{one.get('error_class')}: {one.get('message')}"
        write(f"attempt {one.get('attempt')}  {printing.line(words)}  ({printing.line(one.get('worker'))})")
    write(f"payload  {json.dumps(_payload(job), ensure_ascii=True)}")


def preflight(options: dict[str, Any], write: Write) -> int:
    """Print whether a replay is safe; returns the exit code: 0 safe, 1 not, or not known."""
    job = choosing.job(options["id"])
    if job.state not in REPLAYABLE:
        raise Refused(f"the job is {job.state}; only dead, expired and cancelled ones are replayed")
    found = replaying.look(job, ask=not options["no_ask"])
    if options["json"]:
        printing.document(printing.verdict_json(found), write)
    else:
        printing.verdict(found, write)
    return 0 if found.verdict == "safe" else 1


def export(options: dict[str, Any], out: BinaryIO, *, actor: str) -> int:
    """Write the export; returns the exit code: 1 when the reader went away."""
    wanted = _wanted(options)
    stream = exporting.stream(wanted, form=options["format"], payload=True, by=By(actor=actor, source="command"))
    try:
        if options["output"] is None:
            _copy(stream, out)
        else:
            with Path(options["output"]).open("wb") as file:
                _copy(stream, file)
    except BrokenPipeError:
        return 1
    except OSError as error:
        raise Refused(f"{options['output']}: {error.strerror}", code=2) from None
    finally:
        # Also when the reader went away: this writes the audit entry.
        stream.close()  # type: ignore[attr-defined]
    return 0


def _copy(stream: Any, out: BinaryIO) -> None:
    for piece in stream:
        out.write(piece)
    out.flush()


def _wanted(options: dict[str, Any]) -> Wanted:
    if options.get("group") is not None:
        raise Refused("dead letters are not listed by group", code=2)
    chosen, now = choosing.selection(options), plans.now()
    return Wanted(
        types=choosing.types(), type=chosen.type, tier=chosen.tier, reason=chosen.reason,
        fingerprint=chosen.fingerprint, since=choosing.moment(options.get("since"), now=now),
        until=choosing.moment(options.get("until"), now=now),
    )  # fmt: skip


def _triage(found: dict[str, Any] | None) -> str:
    if not found or not found.get("looked"):
        return "not looked at"
    verdicts = ", ".join(f"{n} {name}" for name, n in sorted(found["verdicts"].items()))
    return f"{verdicts} of the newest {found['looked']}"


def _payload(job: Job) -> Any:
    if job.payload is None:
        return None
    try:
        pointers = contracts.of_version(job.type, job.contract_version).redact
    except contracts.UnknownContract:
        return REDACTED
    return redact(json.loads(job.payload), pointers=pointers)
