"""The comparison finds what is wrong, and excuses only what is open or explained."""

from __future__ import annotations

import uuid
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from jobsboard.demo import journal, mail, partner, place, reconcile
from jobsboard.demo.partner import Entry
from jobsboard.demo.reconcile import BILLING, CRM, DIGEST, SCORING, WELCOME, Row, Seen
from jobsboard.demo.world import World
from queues import lifecycle
from tests.factories import accept, claim, confirmed, evidence, get, make_type

KEY = "jb_" + "3" * 32
NUMBERS = iter(range(1_000_000))


def job(type: str = WELCOME, state: str = "confirmed", **overrides: Any) -> Seen:  # noqa: A002
    return Seen(
        **{"id": f"job-{next(NUMBERS)}", "type": type, "state": state, "key": KEY, "accepted": 100, **overrides}
    )


def line(event: str, **fields: Any) -> dict[str, Any]:
    return {"at": 100.0, "event": event, "key": KEY, **fields}


def mailed(queue_id: str, *, answered: bool = True) -> dict[str, Any]:
    return line("taken", queue_id=queue_id, message_id=mail.message_id(KEY), answered=answered)


def said(outcome: str, *, ref: str = "crm-1", delivered: bool = True) -> list[dict[str, Any]]:
    facts = {"ref": ref, "outcome": outcome, "number": 1}
    sent = [line("delivered", **facts, status=200, said={"result": outcome})] if delivered else []
    return [line("planned", **facts), line("calling", **facts), *sent]


def rows(world: World, *seen: Seen, **options: Any) -> dict[str, Row]:
    return {row.what: row for row in reconcile.compare(world, seen, world, **options)}


def wrong(world: World, *seen: Seen, **options: Any) -> list[str]:
    return [what for what, row in rows(world, *seen, **options).items() if row.wrong]


def excuses(world: World, *seen: Seen, **options: Any) -> set[str]:
    found = {words for row in rows(world, *seen, **options).values() for words, n in row.explained.items() if n}
    return found - {"confirmed", "rejected"}


def test_an_empty_world_agrees_with_an_empty_board() -> None:
    assert wrong(World()) == []


def test_a_welcome_mail_and_its_job() -> None:
    world = World(mails=[mailed("Q1")])
    assert wrong(world, job(ref="Q1")) == []
    assert wrong(world, job(ref="Q2")) == ["welcome mails confirmed: the mail server took them"]
    assert wrong(world, job(state="retrying")) == []
    assert wrong(world, job(state="dead")) == ["welcome mails taken: their jobs are confirmed"]
    assert wrong(world) == ["welcome mails taken: their jobs are confirmed"]
    assert wrong(World(), job(ref="Q1", kind="manual")) == []


def test_a_mail_whose_answer_was_lost_explains_a_dead_job() -> None:
    world = World(mails=[mailed("Q1", answered=False)])
    assert wrong(world, job(state="dead")) == []
    assert excuses(world, job(state="dead")) == {"dead, the mail server's answer was lost"}


def test_what_was_confirmed_before_the_logs_began_is_left_out() -> None:
    world = World(mails=[mailed("Q1")])
    assert wrong(world, job(ref="Q1"), job(key="jb_old", ref="Q0", accepted=10)) == []


def test_a_second_mail_must_have_been_announced() -> None:
    world = World(mails=[mailed("Q1"), mailed("Q2")])
    assert wrong(world, job(ref="Q2", begun=2)) == []
    assert wrong(world, job(ref="Q2", begun=1)) == ["welcome mails taken twice: the job says maybe duplicate"]
    replayed = [job(state="dead"), job(ref="Q2", replay=True)]
    assert wrong(world, *replayed) == [REPLAYED], "it was announced, and it is one effect too many"


REPLAYED = "business keys that were replayed: one effect each"


def test_a_replay_adds_no_effect() -> None:
    """One for each business key, whichever job of the lineage had it, and one job that is confirmed."""
    dead, again = job(state="dead"), job(ref="Q1", replay=True)
    world = World(mails=[mailed("Q1")])
    assert wrong(world, dead, again) == []
    assert (rows(world, dead, again)[REPLAYED].outside, rows(world, dead, again)[REPLAYED].board) == (1, 1)
    assert REPLAYED in wrong(World(), dead, again), "confirmed, and nothing was done"
    assert wrong(world, dead, again, replace(again, id="third")) == [REPLAYED], "confirmed twice"
    assert wrong(World(), dead, replace(again, state="retrying")) == []
    assert rows(World(), dead, replace(again, state="retrying"))[REPLAYED].open == 1
    assert "not confirmed, dead" in excuses(World(), dead, replace(again, state="dead"))
    contacts = [job(CRM, "dead", reason="attempts_exhausted"), job(CRM, ref="crm-1", replay=True)]
    told = [*said("confirmed"), line("effect", ref="crm-1")]
    assert wrong(World(crm=told), *contacts) == []
    assert REPLAYED in wrong(World(crm=[*told, line("effect", ref="crm-2")]), *contacts)
    invoices = [job(BILLING, "dead"), job(BILLING, ref="BK-1", replay=True)]
    booked = [Entry(key=KEY, ref="BK-1", refused="", at=101.0)]
    assert wrong(World(handoffs=[(KEY, 100.0)], entries=booked), *invoices) == []
    assert REPLAYED in wrong(World(handoffs=[(KEY, 100.0)], entries=booked * 2), *invoices)


CONFIRMED = "contacts confirmed: the CRM said so, with this reference"


def test_a_contact_is_confirmed_by_what_the_crm_said() -> None:
    world = World(crm=[line("effect", ref="crm-1"), *said("confirmed")])
    assert wrong(world, job(CRM, ref="crm-1")) == []
    assert wrong(world, job(CRM, ref="crm-2")) == [CONFIRMED]
    assert wrong(World(crm=[line("effect", ref="crm-1")]), job(CRM, ref="crm-1")) == [CONFIRMED]
    # Jobsboard asked, and the CRM said that it has it.
    told = World(crm=[line("effect", ref="crm-1"), line("told", ref="crm-1", outcome="confirmed")])
    assert wrong(told, job(CRM, ref="crm-1", kind="check")) == []
    assert wrong(told, job(CRM, ref="crm-2", kind="check")) == [CONFIRMED]
    # It may be on its way: the CRM has no answer yet, and Jobsboard has it already.
    assert wrong(World(crm=said("confirmed", delivered=False)), job(CRM, ref="crm-1")) == []


def test_a_callback_that_was_taken_is_known() -> None:
    world = World(crm=[line("effect", ref="crm-1"), *said("confirmed")])
    lost = job(CRM, "dead", reason="unconfirmed")
    assert wrong(world, lost) == [
        "callbacks 'confirmed' taken: confirmed, or kept as late evidence",
        "contacts dead, unconfirmed: no callback came in time",
    ]
    late = job(CRM, "dead", reason="unconfirmed", late=[{"outcome": "confirmed"}])
    assert wrong(world, late) == []
    assert excuses(world, late) == {"confirmed late", "dead, unconfirmed; confirmed late"}
    assert excuses(world, lost, kept={"crm-1"}) >= {"in the inbox: no run got this reference"}


def test_rejections_and_contradictions() -> None:
    rejected = World(crm=said("rejected"))
    assert wrong(rejected, job(CRM, "dead", reason="rejected")) == []
    assert wrong(rejected, job(CRM, "retrying")) == []
    assert wrong(World(), job(CRM, "dead", reason="rejected")) == ["contacts dead, rejected: the CRM said so"]
    both = World(crm=[*said("confirmed"), *said("rejected")])
    assert wrong(both, job(CRM, ref="crm-1", late=[{"outcome": "rejected"}])) == []
    assert wrong(both, job(CRM, ref="crm-1", refused=True)) == []
    assert wrong(both, job(CRM, ref="crm-1")) == [
        "callbacks 'rejected' taken: rejected, retried, or kept as late evidence",
        "contradictory callbacks taken: both outcomes are kept",
    ]


def test_an_invoice_and_the_books() -> None:
    booked = World(handoffs=[(KEY, 100.0)], entries=[Entry(key=KEY, ref="BK-1", refused="", at=101.0)])
    assert wrong(booked, job(BILLING, ref="BK-1")) == []
    assert wrong(booked, job(BILLING, "awaiting_confirmation")) == []
    assert wrong(booked, job(BILLING, ref="BK-2")) == ["invoices confirmed: they stand in the partner's books"]
    assert wrong(booked, job(BILLING, "dead")) == ["invoices booked: their jobs are confirmed"]
    refused = World(handoffs=[(KEY, 100.0)], entries=[Entry(key=KEY, ref="BK-1", refused="no", at=101.0)])
    assert wrong(refused, job(BILLING, "dead", reason="rejected")) == []
    assert len(wrong(refused, job(BILLING, ref="BK-1"))) == 2


def test_a_score_and_its_result() -> None:
    world = World(scores=[line("scored", score=0.5)])
    assert wrong(world, job(SCORING, result={"score": 0.5})) == []
    assert wrong(world, job(SCORING, result={"score": 0.6})) == [
        "scores confirmed (unverified): the handler computed them"
    ]
    assert wrong(world, job(SCORING, "dead", reason="time_limit")) == []


def test_a_digest_and_its_job() -> None:
    world = World(digests={KEY: "D-1"})
    assert wrong(world, job(DIGEST, ref="D-1")) == []
    assert wrong(world, job(DIGEST, ref="D-2")) == ["digests confirmed: they are written"]
    assert wrong(World(), job(DIGEST, ref="D-1")) == ["digests confirmed: they are written"]
    assert wrong(world) == wrong(world, job(DIGEST, "dead")) == ["digests written: their jobs are confirmed"]
    assert wrong(world, job(DIGEST, "expired", reason="stale")) == []


def test_an_accepted_job_is_on_the_board() -> None:
    seen = job()
    request = line("accepted", type=WELCOME, job_id=seen.id, duplicate=False)
    world = World(requests=[request, {**request, "duplicate": True}])
    assert wrong(world, job(id=seen.id, state="accepted")) == []
    assert len(wrong(world)) == 2


SAW = "probes that a provider saw: the board sent them as such"
HAS = "probes confirmed: the provider knows them as such"


@pytest.mark.parametrize(
    ("world", "probe"),
    [
        (World(mails=[mailed("Q1")]), job(ref="Q1", probe=True)),
        (World(crm=said("confirmed")), job(CRM, ref="crm-1", probe=True)),
        (
            World(handoffs=[(KEY, 100.0)], entries=[Entry(key=KEY, ref="BK-1", refused="", at=101.0)]),
            job(BILLING, ref="BK-1", probe=True),
        ),
        (World(scores=[line("scored", score=0.5)]), job(SCORING, result={"score": 0.5}, probe=True)),
        (World(digests={KEY: "D-1"}), job(DIGEST, ref="D-1", probe=True)),
    ],
)
def test_probes_are_in_lines_of_their_own(world: World, probe: Seen) -> None:
    """Who was told so counts them apart, on both sides; told to one side only, something disagrees."""
    told = replace(world, probes=frozenset({KEY}))
    assert wrong(told, probe) == []
    counted = {what: (row.outside, row.board) for what, row in rows(told, probe).items() if row.outside or row.board}
    assert counted == {SAW: (1, 1), HAS: (1, 1)}
    assert wrong(told) == [SAW], "a probe that nobody sent"
    assert SAW in wrong(told, replace(probe, probe=False)), "a job of a customer that went out as a probe"
    assert HAS in wrong(world, probe), "the provider was not told"
    assert wrong(World(probes=frozenset({KEY})), probe) == [HAS], "the provider has nothing"


@pytest.mark.django_db
def test_the_command_reads_the_real_jobs_and_disagrees_by_its_exit_code() -> None:
    make_type(WELCOME, success="reference")
    first, second = accept(2, kind=WELCOME)
    for run, ref in zip(claim([first, second]), ("Q1", "Q2"), strict=True):
        lifecycle.settle([confirmed(run, ref)])
    keys = {evidence(job_id)["ref"]: get(job_id).idempotency_key for job_id in (first, second)}
    log = place.mail_log()
    journal.note(log, "taken", queue_id="Q1", message_id=mail.message_id(keys["Q1"]), answered=True)
    with pytest.raises(CommandError, match="1 of .* counts disagree"):
        call_command("demo_check", stdout=StringIO(), stderr=StringIO())
    journal.note(log, "taken", queue_id="Q2", message_id=mail.message_id(keys["Q2"]), answered=True)
    out = StringIO()
    call_command("demo_check", stdout=out)
    assert "2 jobs and 0 probes; all" in out.getvalue()
    partner.hand_over(key=f"jb_{uuid.uuid4().hex}", invoice="INV-1", amount_cents=1)
    call_command("demo_check", stdout=StringIO())
