"""Hold the board against the world: what the providers' own logs say happened, and what Jobsboard says happened.

The logs are read before the jobs and after them. What the board calls confirmed must be in the later reading; what the
earlier one has must be known to the board by now, or be work that is still open. Nothing else is excused.
Not here: printing (`manage.py demo_check`).
"""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from jobsboard.demo import mail
from jobsboard.demo.world import World, key_of
from queues.models import Callback, Job
from queues.states import OPEN, JobState, Reason

WELCOME: Final = "onboarding.welcome_email"
CRM: Final = "crm.sync_contact"
SCORING: Final = "scoring.account"
BILLING: Final = "billing.handoff"
DIGEST: Final = "reports.digest"
TYPES: Final = (WELCOME, CRM, SCORING, BILLING, DIGEST)
EXAMPLES: Final = 5
_CUT_OFF: Final = frozenset({Reason.TIME_LIMIT, Reason.POISON, Reason.STALE})


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A job as the board has it."""

    id: str
    type: str
    state: str
    key: str
    reason: str = ""
    accepted: float = 0.0
    begun: int = 1
    replay: bool = False
    probe: bool = False
    kind: str = ""
    ref: str = ""
    late: Sequence[Mapping[str, Any]] = ()
    refused: bool = False
    """A rejection was taken: it is in the row or among its failures."""
    result: Any = None


@dataclass(frozen=True)
class Lineage:
    """A business action: a job and its replays, oldest first. They share their idempotency key."""

    jobs: Sequence[Seen]

    @property
    def newest(self) -> Seen:
        """The job that counts."""
        return self.jobs[-1]

    @property
    def confirmed(self) -> Seen | None:
        """The job that has its outcome."""
        return next((job for job in self.jobs if job.state == JobState.CONFIRMED), None)

    @property
    def open(self) -> bool:
        """Something may still happen."""
        return self.confirmed is None and self.newest.state in OPEN

    @property
    def maybe_duplicate(self) -> bool:
        """The board said that an effect may have happened twice."""
        return any(job.begun > 1 or job.replay for job in self.jobs)

    def knows(self, outcome: str) -> bool:
        """Say whether evidence of this outcome is kept somewhere: as the outcome, or as late evidence."""
        if outcome == "confirmed" and self.confirmed is not None:
            return True
        if outcome == "rejected" and any(job.refused or job.reason == Reason.REJECTED for job in self.jobs):
            return True
        return any(note.get("outcome") == outcome for job in self.jobs for note in job.late)


@dataclass(kw_only=True)
class Row:
    """One comparison. `open` is work still going on; `explained` are other cases, by their explanation."""

    what: str
    outside: int
    board: int
    open: int = 0
    explained: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


Lineages = Mapping[str, Lineage]
Explain = Callable[[str, Lineage], str]


def jobs() -> list[Seen]:
    """Read the demo's jobs, oldest first."""
    fields = (
        "id", "type", "state", "idempotency_key", "reason", "accepted_at", "begun", "replay_of", "probe",
        "evidence", "late_evidence", "rejection", "failures", "result",
    )  # fmt: skip
    return [_seen(row) for row in Job.objects.filter(type__in=TYPES).order_by("id").values(*fields).iterator()]


def _seen(row: Mapping[str, Any]) -> Seen:
    evidence = row["evidence"] or {}
    accepted: dt.datetime = row["accepted_at"]
    return Seen(
        id=str(row["id"]),
        type=row["type"],
        state=row["state"],
        key=row["idempotency_key"],
        reason=row["reason"] or "",
        accepted=accepted.timestamp(),
        begun=row["begun"],
        replay=row["replay_of"] is not None,
        probe=row["probe"],
        kind=evidence.get("kind") or "",
        ref=evidence.get("ref") or "",
        late=row["late_evidence"] or (),
        refused=row["rejection"] is not None
        or any(failure.get("error_class") == "Rejected" for failure in row["failures"]),
        result=row["result"],
    )


def inbox() -> set[str]:
    """Return the references of callbacks that are kept because they fit no job so far."""
    return set(Callback.objects.filter(type=CRM, applied_at=None).values_list("ref", flat=True))


def compare(before: World, seen: Sequence[Seen], after: World, *, kept: Collection[str] = ()) -> list[Row]:
    """Return every comparison; those with something `wrong` are disagreements. `kept` is the inbox."""
    began, told = after.began, after.probes
    probes = _lineages(job for job in seen if job.probe)
    probing = _probes(before.only(told.__contains__), probes, after.only(told.__contains__), began)
    before, after = (world.only(lambda key: key not in told) for world in (before, after))
    lineages = _lineages(job for job in seen if not job.probe)
    return [
        *_mails(before, lineages[WELCOME], after, began),
        *_callbacks(before, lineages[CRM], kept),
        *_contacts(before, lineages[CRM], after, began),
        *_invoices(before, lineages[BILLING], after, began),
        *_scores(before, lineages[SCORING], after, began),
        *_digests(before, lineages[DIGEST], after, began),
        _replayed(lineages, after, began),
        *_requests(before, {job.id for job in seen if not job.probe}),
        *probing,
    ]


def _lineages(seen: Iterable[Seen]) -> dict[str, Lineages]:
    """Return lineages by type and idempotency key."""
    by_type: dict[str, dict[str, list[Seen]]] = {name: defaultdict(list) for name in TYPES}
    for job in seen:
        by_type[job.type][job.key].append(job)
    return {name: {key: Lineage(found) for key, found in keys.items()} for name, keys in by_type.items()}


def _proven(what: str, lineages: Lineages, began: float, proof: Callable[[str, Seen], bool]) -> Row:
    """Compare in one direction: what the board calls confirmed is so outside."""
    # A person's word has no entry in a provider's log.
    told = [(key, job) for key, one in lineages.items() if (job := one.confirmed) and job.kind != "manual"]
    told = [(key, job) for key, job in told if job.accepted >= began]
    wrong = [job.id for key, job in told if not proof(key, job)]
    return Row(what=what, outside=len(told) - len(wrong), board=len(told), wrong=wrong)


def _known(
    what: str,
    keys: Iterable[str],
    lineages: Lineages,
    known: Callable[[Lineage], bool],
    explain: Explain = lambda key, lineage: "",
) -> Row:
    """Compare in the other direction: what happened outside is known to the board, or explained."""
    row = Row(what=what, outside=0, board=0)
    for key in keys:
        row.outside += 1
        lineage = lineages.get(key)
        if lineage is None:
            row.wrong.append(f"{key}, of which the board knows no job")
        elif known(lineage):
            row.board += 1
        elif lineage.open:
            row.open += 1
        elif words := explain(key, lineage) or _ended(lineage):
            row.explained[words] += 1
        else:
            row.wrong.append(lineage.newest.id)
    return row


def _ended(lineage: Lineage) -> str:
    """Explain what people and the clock do."""
    return "cancelled by somebody" if lineage.newest.state == JobState.CANCELLED else ""


def _confirmed(lineage: Lineage) -> bool:
    return lineage.confirmed is not None


def _doubled(what: str, counts: Mapping[str, int], lineages: Lineages) -> Row:
    return _known(what, [key for key, n in counts.items() if n > 1], lineages, lambda one: one.maybe_duplicate)


def _mails(before: World, lineages: Lineages, after: World, began: float) -> Iterator[Row]:
    taken = {line["queue_id"]: line["message_id"] for line in after.mails}
    yield _proven(
        "welcome mails confirmed: the mail server took them",
        lineages,
        began,
        lambda key, job: taken.get(job.ref) == mail.message_id(key),
    )
    copies = Counter(key_of(line["message_id"]) for line in before.mails)
    lost = {key_of(line["message_id"]) for line in before.mails if not line["answered"]}

    def explain(key: str, lineage: Lineage) -> str:
        # Nobody asked the mail server after the last attempt: the check belongs to a further run.
        return "dead, the mail server's answer was lost" if key in lost and lineage.newest.state == "dead" else ""

    yield _known("welcome mails taken: their jobs are confirmed", copies, lineages, _confirmed, explain)
    yield _doubled("welcome mails taken twice: the job says maybe duplicate", copies, lineages)


def _callbacks(before: World, lineages: Lineages, kept: Collection[str]) -> Iterator[Row]:
    """Compare what the CRM said and was told that it arrived."""
    taken: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in before.crm:
        if line["event"] == "delivered":
            taken[line["key"], line["outcome"]].append(line["ref"])

    def row(what: str, keys: Sequence[str], *outcomes: str) -> Row:
        def explain(key: str, _: Lineage) -> str:
            # The answer to its request was lost, so nobody here knows what it speaks of.
            refs = {ref for outcome in outcomes for ref in taken.get((key, outcome), ())}
            return "in the inbox: no run got this reference" if refs & set(kept) else ""

        return _known(what, keys, lineages, lambda one: all(map(one.knows, outcomes)), explain)

    yield _answers(before)
    positive = [key for key, outcome in taken if outcome == "confirmed"]
    negative = [key for key, outcome in taken if outcome == "rejected"]
    yield row("callbacks 'confirmed' taken: confirmed, or kept as late evidence", positive, "confirmed")
    yield row("callbacks 'rejected' taken: rejected, retried, or kept as late evidence", negative, "rejected")
    both = [key for key in negative if (key, "confirmed") in taken]
    yield row("contradictory callbacks taken: both outcomes are kept", both, "confirmed", "rejected")
    again = [key for key in positive if len(taken[key, "confirmed"]) > 1]
    yield row("callbacks 'confirmed' taken more than once: known once", again, "confirmed")


def _answers(before: World) -> Row:
    """Sum up what the CRM was told: no comparison by itself, the rows below look at each."""
    sent = [line for line in before.crm if line["event"] == "delivered"]
    row = Row(what="callbacks taken, and what they were answered", outside=len(sent), board=len(sent))
    row.explained.update(str(line["said"].get("result", line["status"])) for line in sent)
    return row


def _contacts(before: World, lineages: Lineages, after: World, began: float) -> Iterator[Row]:
    """Compare what the CRM did, and what the board says about it."""
    said = {(line["key"], line["outcome"], line["ref"]) for line in after.crm if line["event"] in ("calling", "told")}
    refused = {key for key, outcome, _ in said if outcome == "rejected"}
    yield _proven(
        "contacts confirmed: the CRM said so, with this reference",
        lineages,
        began,
        lambda key, job: (key, "confirmed", job.ref) in said,
    )
    dead = {key: one for key, one in lineages.items() if one.newest.state == "dead" and one.newest.accepted >= began}
    rejected = [(key, one.newest) for key, one in dead.items() if one.newest.reason == Reason.REJECTED]
    wrong = [job.id for key, job in rejected if key not in refused]
    what = "contacts dead, rejected: the CRM said so"
    yield Row(what=what, outside=len(rejected) - len(wrong), board=len(rejected), wrong=wrong)
    yield _unconfirmed([(key, one) for key, one in dead.items() if one.newest.reason == Reason.UNCONFIRMED], before)
    effects = Counter(line["key"] for line in before.crm if line["event"] == "effect")
    yield _known("contacts written: their jobs are confirmed", effects, lineages, _confirmed, _unheard)
    yield _doubled("contacts written twice: the job says maybe duplicate", effects, lineages)


def _unconfirmed(dead: Sequence[tuple[str, Lineage]], before: World) -> Row:
    taken = {line["key"] for line in before.crm if line["event"] == "delivered" and line["outcome"] == "confirmed"}
    wrong = [one.newest.id for key, one in dead if key in taken and not one.knows("confirmed")]
    n, what = len(dead), "contacts dead, unconfirmed: no callback came in time"
    row = Row(what=what, outside=n - len(wrong), board=n, wrong=wrong)
    row.explained["confirmed late"] = sum(one.knows("confirmed") for _, one in dead)
    return row


def _unheard(key: str, lineage: Lineage) -> str:
    """Explain a contact that stands in the CRM while its job is not confirmed."""
    job = lineage.newest
    if job.state != JobState.DEAD:
        return ""
    return f"dead, {job.reason}" + ("; confirmed late" if lineage.knows("confirmed") else "")


def _invoices(before: World, lineages: Lineages, after: World, began: float) -> Iterator[Row]:
    booked = {entry.key: entry.ref for entry in after.entries if not entry.refused}
    yield _proven(
        "invoices confirmed: they stand in the partner's books",
        lineages,
        began,
        lambda key, job: booked.get(key) == job.ref,
    )
    keys = [entry.key for entry in before.entries if not entry.refused]
    yield _known("invoices booked: their jobs are confirmed", keys, lineages, _confirmed)
    refused = [entry.key for entry in before.entries if entry.refused]
    yield _known(
        "invoices refused: their jobs are dead, rejected",
        refused,
        lineages,
        lambda one: one.newest.reason == Reason.REJECTED,
    )
    handed = Counter(key for key, _ in before.handoffs)
    yield _doubled("invoices handed over twice: the job says maybe duplicate", handed, lineages)


def _scores(before: World, lineages: Lineages, after: World, began: float) -> Iterator[Row]:
    computed = {(line["key"], line["score"]) for line in after.scores}

    def same(key: str, job: Seen) -> bool:
        return isinstance(job.result, Mapping) and (key, job.result.get("score")) in computed

    yield _proven("scores confirmed (unverified): the handler computed them", lineages, began, same)
    counts = Counter(line["key"] for line in before.scores)
    yield _known("scores computed: their jobs are confirmed", counts, lineages, _confirmed, _cut_off)
    yield _doubled("scores computed twice: the job says maybe duplicate", counts, lineages)


def _cut_off(key: str, lineage: Lineage) -> str:
    return f"the run ended after it: {lineage.newest.reason}" if lineage.newest.reason in _CUT_OFF else ""


def _digests(before: World, lineages: Lineages, after: World, began: float) -> Iterator[Row]:
    refs = after.digests
    yield _proven("digests confirmed: they are written", lineages, began, lambda key, job: refs.get(key) == job.ref)
    yield _known("digests written: their jobs are confirmed", before.digests, lineages, _confirmed, _cut_off)


def _replayed(lineages: Mapping[str, Lineages], after: World, began: float) -> Row:
    """Count effects outside by business key, over all jobs of a lineage: a replay must not add one."""
    effects = Counter(key_of(line["message_id"]) for line in after.mails)
    effects.update(line["key"] for line in after.crm if line["event"] == "effect")
    effects.update(entry.key for entry in after.entries if not entry.refused)
    row = Row(what="business keys that were replayed: one effect each", outside=0, board=0)
    for name in (WELCOME, CRM, BILLING):
        for key, one in lineages[name].items():
            if len(one.jobs) < 2 or one.jobs[0].accepted < began:
                continue
            row.outside += effects[key]
            ended = [job for job in one.jobs if job.state == JobState.CONFIRMED and job.kind != "manual"]
            row.board += len(ended)
            row.open += one.open
            row.explained[f"not confirmed, {one.newest.state}"] += one.confirmed is None and not one.open
            if effects[key] > 1 or len(ended) > 1 or (ended and not effects[key]):
                row.wrong.append(one.newest.id)
    return row


def _probes(before: World, lineages: Mapping[str, Lineages], after: World, began: float) -> Iterator[Row]:
    """Compare probes, which are in no line above: whoever was told that it is one, and what the board confirmed."""
    mails = {(key_of(line["message_id"]), line["queue_id"]) for line in after.mails}
    called = {(line["key"], line["ref"]) for line in after.crm if line["event"] in ("calling", "told")}
    booked = {(entry.key, entry.ref) for entry in after.entries}
    computed = {line["key"] for line in after.scores}
    proofs: Mapping[str, Callable[[str, Seen], bool]] = {
        WELCOME: lambda key, job: (key, job.ref) in mails,
        CRM: lambda key, job: (key, job.ref) in called,
        BILLING: lambda key, job: (key, job.ref) in booked,
        SCORING: lambda key, job: key in computed,
        DIGEST: lambda key, job: after.digests.get(key) == job.ref,
    }
    known = {key: lineage for keys in lineages.values() for key, lineage in keys.items()}
    yield _known(
        "probes that a provider saw: the board sent them as such", sorted(before.probes), known, lambda _: True
    )
    yield _proven(
        "probes confirmed: the provider knows them as such",
        known,
        began,
        lambda key, job: proofs[job.type](key, job),
    )


def _requests(before: World, known: set[str]) -> Iterator[Row]:
    for what, duplicate in (
        ("requests accepted: the board has the job", False),
        ("requests sent again: the board has the first one's job", True),
    ):
        ids = [line["job_id"] for line in before.requests if line["duplicate"] is duplicate]
        wrong = [job_id for job_id in ids if job_id not in known]
        yield Row(what=what, outside=len(ids), board=len(ids) - len(wrong), wrong=wrong)
