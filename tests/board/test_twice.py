"""Did it happen twice: the card of a type, the list of its signs, the signs of a job; what each costs and escapes."""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobsboard.board import twice
from jobsboard.board.params import Chosen
from queues import confirmation, lifecycle, outcomes
from queues.confirmation import Evidence
from queues.lifecycle import End, Verdict
from queues.models import Job, JobType
from queues.models.outcome import SuspectedDuplicate
from queues.outcomes import Counts
from tests.board.conftest import ClientOf
from tests.factories import accept, claim, confirmed, failed, fold_all, make_type, sql

NAME: Final = "mail.send"
URL: Final = f"/types/{NAME}/twice/"
HOSTILE: Final = "<script>alert(1)</script>\"'&"
KINDS: Final = ("blind_attempt", "second_reference", "contradiction", "confirmed_after_rejection")


def lose(job_id: UUID) -> None:
    [run] = claim([job_id])
    lifecycle.rescue([job_id], dead_runs=[(run.id, run.fence)])


def say(job_id: UUID, outcome: Any, ref: str | None, detail: str = "") -> None:
    confirmation.by_token(job_id, Evidence(outcome=outcome, ref=ref, detail=detail, run=1))


@pytest.fixture
def odd(db: None) -> dict[str, UUID]:
    """A job of each kind of sign, and one with none. Shape: kind → job, "plain" → job."""
    make_type(NAME, tier_id=1, success="callback")
    ids = dict(zip([*KINDS, "plain"], accept(5, kind=NAME), strict=True))
    lose(ids["blind_attempt"])
    runs = {run.id: run for run in claim([ids[kind] for kind in ids if kind != "blind_attempt"])}
    again = claim([ids["blind_attempt"]])[0]
    lifecycle.settle([confirmed(again), confirmed(runs[ids["plain"]])])
    for kind in KINDS[1:]:
        run = runs[ids[kind]]
        lifecycle.settle([End(id=run.id, fence=run.fence, verdict=Verdict.AWAITING, confirm_in=60.0)])
    say(ids["second_reference"], "confirmed", "ref-one")
    say(ids["second_reference"], "confirmed", f"ref-two {HOSTILE}")
    say(ids["contradiction"], "confirmed", "ref-three")
    say(ids["contradiction"], "rejected", None, f"bounced {HOSTILE} password=hunter22")
    say(ids["confirmed_after_rejection"], "rejected", None)
    say(ids["confirmed_after_rejection"], "confirmed", "ref-four")
    fold_all()
    return ids


def card(client: Client, url: str = f"/types/{NAME}/") -> str:
    text = client.get(url).text
    assert text.count('id="twice"') == 1
    return text.split('id="twice"')[1].split("</section>")[0]


def row(text: str, kind: str) -> str:
    return text.split(f'id="twice-{kind}"')[1].split("</li>")[0]


def words(markup: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", markup)).strip()


def listed(client: Client, query: str = "") -> list[str]:
    """Return the ends of the ids of the jobs in the list, in its order."""
    return re.findall(r'<tr id="sign-\d+">.*?<th scope="row"><a class="name mono" href="/jobs/([0-9a-f-]+)/"',
                      client.get(URL + query).text)  # fmt: skip


def test_the_card_says_what_was_seen_and_what_it_can_prove(viewer: Client, odd: dict[str, UUID]) -> None:
    seen = card(viewer)
    for kind in KINDS:
        line = row(seen, kind)
        assert f'href="{URL}?range=6h&amp;kind={kind}"' in line
        assert re.search(r">1<span", line)
    assert "may as well have done nothing" in row(seen, "blind_attempt")
    assert "a strong sign" in row(seen, "second_reference")
    assert "3 strong signs. And 1 attempt began without knowing" in seen
    assert "answers with one reference leaves no sign here" in seen


def test_zero_is_grey_and_without_runs_there_is_no_data(viewer: Client, db: None) -> None:
    make_type(NAME, tier_id=1)
    quiet = card(viewer)
    assert "there is nothing to tell by" in quiet
    assert all(row(quiet, kind).startswith(' class="mute"') and "no data" in row(quiet, kind) for kind in KINDS)
    lifecycle.settle([confirmed(run) for run in claim(accept(3, kind=NAME))])
    fold_all()
    fine = card(viewer)
    assert "Nothing that can be seen here says so" in fine
    for kind in KINDS:
        assert row(fine, kind).startswith(' class="mute"') and ">0<" in row(fine, kind)
        assert "href" not in row(fine, kind) and "bad" not in row(fine, kind)


def _counts(**values: int) -> Counts:
    return Counts(**{"accepted": 1000, "runs": 1000, **values})


@pytest.mark.parametrize(
    ("counts", "contract", "key", "says", "doubt"),
    [
        ({"duplicates": 3, "retries": 500}, {}, False, "the key catches it", False),
        ({"retries": 50}, {"key_required": True}, True, "5% of the runs are retries", True),
        ({"retries": 49}, {"key_required": True}, True, "None were sent, as far as the keys can tell", False),
        ({"retries": 99, "runs": 99}, {"key_required": True}, True, "None were sent", False),
        ({"retries": 500}, {}, True, "is the key stable?", True),
        ({"retries": 500}, {"key_template": "order-{n}"}, False, "is the key stable?", True),
        ({}, {}, False, "No key is required, and none was sent", False),
        ({}, {}, True, "None were sent, as far as the keys can tell", False),
        ({"accepted": 0, "runs": 0}, {}, False, "Nothing was sent in this range", False),
    ],
)
def test_how_the_suppression_rate_reads(
    db: None, counts: dict[str, int], contract: dict[str, Any], key: bool, says: str, doubt: bool
) -> None:
    kind: JobType = make_type(NAME, **contract)
    if key:
        accept(kind=NAME, dedupe_key="a")
    chosen = Chosen(span=outcomes.Span.of("6h", now=outcomes.board().now), name="6h")
    made = twice.card(_counts(**counts), kind, chosen)
    assert says in made.reading
    assert made.doubt == doubt


def test_the_rate_stands_beside_it(viewer: Client, db: None) -> None:
    make_type(NAME, tier_id=1, key_required=True)
    for _ in range(3):
        accept(kind=NAME, dedupe_key="a")
    fold_all()
    line = words(row(card(viewer), "suppressed"))
    assert "2 66.6% of what was sent, 1 accepted. Producers send again" in line


def test_the_list_has_each_sign_with_its_job_and_filters(viewer: Client, odd: dict[str, UUID]) -> None:
    text = viewer.get(URL).text
    assert listed(viewer) == [str(odd[kind]) for kind in reversed(KINDS)]
    assert str(odd["plain"]) not in text
    assert "Run 2 began after WorkerLost: how that had ended was not known." in words(text)
    assert "known was ref-one" in words(text)
    assert "Confirmed, and it had been rejected: ref-four ." in words(text)
    for kind in KINDS:
        assert listed(viewer, f"?kind={kind}&range=6h") == [str(odd[kind])]
    assert listed(viewer, "?from=2026-01-01T00:00Z&to=2026-01-02T00:00Z") == []


def test_a_figure_leads_to_exactly_what_it_counts(viewer: Client, odd: dict[str, UUID]) -> None:
    for kind in KINDS:
        link = re.search(r'href="([^"]+)"', row(card(viewer), kind))
        assert link is not None
        text = viewer.get(link[1].replace("&amp;", "&")).text
        assert len(re.findall(r'id="sign-\d+"', text)) == 1
        assert str(odd[kind]) in text


def test_hostile_words_are_escaped_and_secrets_hidden(viewer: Client, odd: dict[str, UUID]) -> None:
    for url in (URL, f"/jobs/{odd['second_reference']}/", f"/jobs/{odd['contradiction']}/"):
        text = viewer.get(url).text
        assert "<script>alert(1)" not in text
        assert "hunter22" not in text
    assert "&lt;script&gt;alert(1)" in viewer.get(URL).text
    assert "password=[redacted]" in viewer.get(URL).text


def test_a_kind_that_does_not_exist_is_explained(viewer: Client, odd: dict[str, UUID]) -> None:
    text = viewer.get(f"{URL}?kind=nope&after=x&range=99y").text
    assert "kind “nope” does not exist, cleared" in text
    assert "the page mark is not one of this list" in text
    assert len(listed(viewer, "?kind=nope")) == 4
    assert "No signs match" in viewer.get(f"{URL}?kind=contradiction&after=1").text
    for bad in ("%00", "%ff"):
        assert viewer.get(f"{URL}?kind={bad}").status_code == 400


def test_pages_of_the_list(viewer: Client, odd: dict[str, UUID], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twice, "PAGE", 3)
    first = viewer.get(URL).text
    assert len(listed(viewer)) == 3
    older = re.search(r'rel="next" href="\?after=(\d+)"', first)
    assert older is not None
    assert listed(viewer, f"?after={older[1]}") == [str(odd["blind_attempt"])]
    assert 'rel="next"' not in viewer.get(f"{URL}?after={older[1]}").text


def test_a_sign_outlives_its_job(viewer: Client, odd: dict[str, UUID]) -> None:
    sql("UPDATE queues_suspectedduplicate SET job_id = jobs_uuid7() WHERE kind = 'contradiction'")
    text = viewer.get(f"{URL}?kind=contradiction").text
    assert "pruned" in text
    assert 'class="name mono"' not in text


def test_the_page_of_a_job_names_its_own_signs(viewer: Client, odd: dict[str, UUID]) -> None:
    text = viewer.get(f"/jobs/{odd['second_reference']}/").text
    assert "Second reference" in text.split('id="signs"')[1].split("</section>")[0]
    assert 'id="signs"' not in viewer.get(f"/jobs/{odd['plain']}/").text


def test_the_page_of_a_job_names_the_signs_of_its_kin(viewer: Client, db: None) -> None:
    make_type(NAME, tier_id=1, on_worker_lost="dead")
    [parent] = accept(kind=NAME)
    lose(parent)
    child = lifecycle.replay(parent, by="jane")
    assert child is not None
    lifecycle.settle([failed(claim([child])[0])])
    for job_id in (parent, child):
        text = viewer.get(f"/jobs/{job_id}/").text.split('id="signs"')[1].split("</section>")[0]
        assert "Run 1 began after a run of the job that it replays" in text
        assert (f'href="/jobs/{child}/"' in text) == (job_id == parent)


@pytest.mark.parametrize("n", [1, 40])
def test_the_list_costs_the_same(viewer: Client, odd: dict[str, UUID], n: int) -> None:
    """Session, user, role, board, signs, their jobs, what fires."""
    made = SuspectedDuplicate.objects.get(kind="contradiction")
    SuspectedDuplicate.objects.bulk_create(
        SuspectedDuplicate(type=NAME, tier=1, kind=made.kind, job_id=made.job_id, fence=1, at=made.at) for _ in range(n)
    )
    viewer.get(URL)
    with CaptureQueriesContext(connection) as captured:
        assert viewer.get(URL).status_code == 200
    assert len(captured) == 7, "\n".join(query["sql"][:150] for query in captured)


def test_the_card_costs_one_statement_at_most(viewer: Client, odd: dict[str, UUID]) -> None:
    def statements() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert 'id="twice"' in viewer.get(f"/types/{NAME}/").text
        return len(captured)

    statements()
    optional = statements()
    JobType.objects.filter(name=NAME).update(key_required=True)
    assert optional - statements() == 1


def test_who_may_see_it(client_of: ClientOf, odd: dict[str, UUID]) -> None:
    assert client_of("viewer").get(URL).status_code == 200
    assert client_of("nobody").get(URL).status_code == 403
    assert client_of("viewer").get("/types/no.such/twice/").status_code == 404
    assert client_of("viewer").post(URL).status_code == 405
    assert Client().get(URL).status_code == 302


def test_an_unchanged_poll_is_304(viewer: Client, odd: dict[str, UUID]) -> None:
    tag = viewer.get(URL, headers={"HX-Request": "true"})["HX-PTag"]
    response = viewer.get(URL, headers={"HX-Request": "true", "HX-PTag": tag})
    if response.status_code == 200:  # the quarter of a minute was over in between
        response = viewer.get(URL, headers={"HX-Request": "true", "HX-PTag": response["HX-PTag"]})
    assert (response.status_code, response.content) == (304, b"")
    assert Job.objects.count() == 5
