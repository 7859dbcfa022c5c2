"""Every page: with and without data, for each role, alone for htmx, 304, its statements, and odd query strings."""

from __future__ import annotations

import re
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from queues import contract_versions, lifecycle, workers
from queues.accept import enqueue
from queues.models import Job
from tests.board.conftest import ClientOf
from tests.board.verdicts import answering
from tests.factories import accept, fold_all, make_type

LISTS = [
    "/",
    "/types/",
    "/jobs/",
    "/dlq/",
    "/dlq/?view=flat",
    "/replays/",
    "/queues/",
    "/dependencies/",
    "/probes/",
    "/schedules/",
    "/alerts/",
    "/webhooks/",
    "/audit/",
]
WITHOUT = ["/replays/", "/dependencies/", "/probes/", "/schedules/", "/alerts/", "/webhooks/", "/audit/"]
"""Pages that have nothing to say of a job."""
ROLES = ["viewer", "operator", "owner", "admin"]


def pages(job: Job) -> list[str]:
    return [*LISTS, f"/types/{job.type}/", f"/jobs/{job.id}/", f"/dlq/{job.id}/"]


@pytest.mark.parametrize("url", LISTS)
def test_pages_render_without_any_data(viewer: Client, url: str) -> None:
    response = viewer.get(url)
    assert response.status_code == 200
    assert 'id="region"' in response.text


@pytest.mark.parametrize("role", ROLES)
def test_pages_render_with_data_for_each_role(client_of: ClientOf, busy: Job, role: str) -> None:
    client = client_of(role)
    for url in pages(busy):
        response = client.get(url)
        assert response.status_code == 200, url
        assert "mail.send" in response.text or url in WITHOUT, url


def test_a_person_without_a_role_sees_nothing(client_of: ClientOf, busy: Job) -> None:
    client = client_of("nobody")
    for url in [*pages(busy), "/search/?q=x", f"/jobs/{busy.id}/replay/"]:
        response = client.get(url)
        assert response.status_code == 403, url
        assert "mail.send" not in response.text


@pytest.mark.parametrize(
    ("url", "most"),
    [
        ("/", 12),
        ("/jobs/", 6),
        ("/jobs/?state=accepted&tier=1", 6),
        ("/jobs/?key=mail-1", 6),
        ("/dlq/", 8),
        ("/dlq/?reason=permanent_error", 7),
        ("/dlq/?view=flat", 6),
        ("/dlq/?view=flat&reason=permanent_error", 6),
        ("/replays/", 6),
        ("/audit/", 6),
        ("/queues/", 11),
        ("/dependencies/", 8),
        ("/probes/", 7),
        ("/schedules/", 6),
        ("/alerts/", 9),
        ("/webhooks/", 8),
        ("/types/", 9),
        ("/types/mail.send/", 15),
        ("/jobs/{id}/", 15),
        ("/dlq/{id}/", 15),
    ],
)
def test_statements_of_a_page(viewer: Client, busy: Job, url: str, most: int) -> None:
    """Five of them are the session, the user, the role, the board, and what fires."""
    url = url.format(id=busy.id)
    viewer.get(url)
    with CaptureQueriesContext(
        connection,
    ) as captured:
        assert viewer.get(url).status_code == 200
    assert len(captured) <= most, "\n".join(query["sql"][:200] for query in captured)
    text = " ".join(query["sql"].lower() for query in captured)
    assert "count(*) from queues_job" not in text


def test_statements_do_not_grow_with_jobs_or_types(viewer: Client, busy: Job) -> None:
    def statements(url: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(url).status_code == 200
        return len(captured)

    urls = pages(busy)
    before = [statements(url) for url in urls]
    for index in range(6):
        make_type(f"more.{index}")
        accept(9, kind=f"more.{index}")
    fold_all()
    assert [statements(url) for url in urls] <= before


@pytest.mark.parametrize("url", LISTS)
def test_htmx_gets_the_region_alone(viewer: Client, busy: Job, url: str) -> None:
    whole, alone = viewer.get(url), viewer.get(url, headers={"HX-Request": "true"})
    assert "<html" in whole.text
    assert "<html" not in alone.text
    assert alone.text.lstrip().startswith('<div class="stack" id="region"')
    assert "HX-Request" in whole["Vary"]
    restored = viewer.get(url, headers={"HX-Request": "true", "HX-History-Restore-Request": "true"})
    assert "<html" in restored.text


def test_an_unchanged_poll_is_304_and_costs_one_statement_beside_the_login(viewer: Client, busy: Job) -> None:
    for url in pages(busy):
        headers = {"HX-Request": "true"}
        tag = viewer.get(url, headers=headers)["HX-PTag"]
        with CaptureQueriesContext(connection) as captured:
            response = viewer.get(url, headers={**headers, "HX-PTag": tag})
        if response.status_code == 200:  # the quarter of a minute was over in between
            response = viewer.get(url, headers={**headers, "HX-PTag": response["HX-PTag"]})
        else:
            assert len(captured) == 4
        assert response.status_code == 304
        assert response.content == b""


def test_the_tag_changes_with_what_can_be_seen(viewer: Client, client_of: ClientOf, busy: Job) -> None:
    def tag(client: Client, url: str) -> str:
        return client.get(url, headers={"HX-Request": "true"})["HX-PTag"]

    first = tag(viewer, "/jobs/")
    assert tag(viewer, "/jobs/?state=dead") != first
    assert tag(client_of("operator"), "/jobs/") != first
    lifecycle.touch_board()
    after = viewer.get("/jobs/", headers={"HX-Request": "true", "HX-PTag": first})
    assert after.status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "state=unknown", "state=confirmed%27+OR+1%3D1--", "state[]=x", "type=wellcome_email", "tier=9", "tier=-1",
        "tier=1e3", "range=99y", "range=", "after=xyz", "before=..", "after=1&before=2", "page=-1", "o=?",
        "sort=password",
        "from=yesterday", "from=10000-01-01", "from=1990-01-01&to=2020-01-01", "to=9999-12-31T23:59:59%2B14:00",
        "reason=nope", "key=" + "k" * 300, "group=%C3%A9", "refresh=1", "action=nope", "object=x", "source=y",
        "actor=%27%3B--", "id=" + "9" * 150, "lag=7", "version=x", "type=a&type=b", "show=none", "after=%F0%9F%92%A3",
    ],
)  # fmt: skip
def test_unknown_values_are_cleared_and_said(viewer: Client, busy: Job, query: str) -> None:
    """Q-01 to Q-06."""
    for url in pages(busy):
        response = viewer.get(f"{url}?{query}")
        assert response.status_code == 200, f"{url}?{query}"


def test_a_cleared_value_is_explained(viewer: Client, busy: Job) -> None:
    page = viewer.get("/jobs/?type=wellcome_email&after=bad").text
    assert "type “wellcome_email” does not exist, cleared" in page
    assert "the page mark is not one of this list" in page


@pytest.mark.parametrize(
    "query", ["q=%00", "q=%ff", "key=a%00b", "type=%00", "%00=x", "key=" + "k" * 2_000, "&".join(["a=1"] * 1_001)]
)
def test_impossible_characters_and_sizes_are_400(viewer: Client, busy: Job, query: str) -> None:
    """Q-02, Q-03: a page that says so, never 500."""
    for url in [*LISTS, "/types/mail.send/", "/search/"]:
        response = viewer.get(f"{url}?{query}")
        assert response.status_code == 400, f"{url}?{query[:60]}"
        assert "could not be read" in response.text
    # The page of one job takes no parameters.
    assert viewer.get(f"/jobs/{busy.id}/?{query}").status_code in (200, 400)


def test_missing_objects_are_404(viewer: Client, busy: Job) -> None:
    for url in (f"/jobs/{uuid4()}/", f"/dlq/{uuid4()}/", "/types/no.such/", "/types/%00/", "/jobs/not-an-id/"):
        assert viewer.get(url).status_code == 404, url


def test_nothing_changes_on_get(operator: Client, dead: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q-08."""
    answering(monkeypatch)
    for verb in ("replay", "edit", "close", "ignore", "cancel"):
        for headers in ({}, {"HX-Request": "true"}):
            assert operator.get(f"/dlq/{dead.id}/{verb}/", headers=headers).status_code == 200
    dead.refresh_from_db()
    assert dead.resolution == "open"


def test_search_leads_on(viewer: Client, busy: Job) -> None:
    assert viewer.get("/search/", {"q": str(busy.id)})["Location"] == f"/jobs/{busy.id}/"
    assert viewer.get("/jobs/", {"q": str(busy.id)})["Location"] == f"/jobs/{busy.id}/"
    assert viewer.get("/search/", {"q": "mail.send"})["Location"] == "/types/mail.send/"
    assert viewer.get("/search/", {"q": "poison"})["Location"] == "/dlq/?reason=poison"
    assert viewer.get("/search/", {"q": "a b&c"})["Location"] == "/jobs/?key=a+b%26c"
    assert viewer.get("/search/", {"q": "//evil.example"})["Location"].startswith("/jobs/?")


def test_a_viewer_sees_the_shape_of_a_payload_and_an_operator_its_redacted_values(client_of: ClientOf) -> None:
    make_type("mail.send", redact=["/to"])
    job = enqueue("mail.send", {"to": "kim@shop.example", "greeting": "hello-marker", "password": "hunter2-marker"})
    viewer, operator = client_of("viewer"), client_of("operator")
    seen = viewer.get(f"/jobs/{job.job_id}/").text
    assert "greeting" in seen
    assert "hello-marker" not in seen
    read = operator.get(f"/jobs/{job.job_id}/").text
    assert "hello-marker" in read
    for secret in ("kim@shop.example", "hunter2-marker"):
        assert secret not in seen
        assert secret not in read


def test_an_erased_payload_is_said(viewer: Client, busy: Job) -> None:
    Job.objects.filter(id=busy.id).update(payload=None, erased_at=busy.settled_at)
    page = viewer.get(f"/dlq/{busy.id}/").text
    assert "payload was erased" in page
    assert "Replay anyway" not in page


def test_only_who_may_act_is_offered_to(client_of: ClientOf, dead: Job) -> None:
    assert f"/dlq/{dead.id}/close/" not in client_of("viewer").get(f"/dlq/{dead.id}/").text
    assert f"/dlq/{dead.id}/close/" in client_of("operator").get(f"/dlq/{dead.id}/").text


def test_the_overview_says_when_nobody_works(viewer: Client, busy: Job) -> None:
    assert "No scheduler is running" not in viewer.get("/").text
    workers.sign_off("w/1")
    workers.sign_off("s/1")
    page = viewer.get("/").text
    assert "No worker on tier 1" in page
    assert "No scheduler is running" in page


def test_the_contract_shows_its_versions_and_their_difference(viewer: Client) -> None:
    contract_versions.save("mail.send", {"success": "return"}, actor="ann", reason="first")
    contract_versions.save("mail.send", {"max_attempts": 9}, actor="ann", reason="relay restarts")
    page = viewer.get("/types/mail.send/").text
    assert re.search(r"max_attempts: <mark>5</mark>.*max_attempts: <mark>9</mark>", page)
    assert "relay restarts" in page
    assert "v1" in viewer.get("/types/mail.send/?version=1").text


def test_pages_go_on_and_back_by_signed_marks(viewer: Client) -> None:
    make_type("mail.send")
    accept(120, kind="mail.send")
    fold_all()

    def ids(page: str) -> list[str]:
        return re.findall(r'<tr id="job-([0-9a-f-]{36})"', page)

    for query in ("", "&type=mail.send", "&state=accepted", "&tier=2"):
        first = viewer.get(f"/jobs/?x{query}").text
        seen, page = ids(first), first
        while older := re.search(r'rel="next" href="([^"]+)"', page):
            page = viewer.get("/jobs/" + older[1].replace("&amp;", "&")).text
            seen += ids(page)
        assert len(seen) == len(set(seen)) == 120, query
        assert seen == sorted(seen, reverse=True)
        newer = re.search(r'rel="prev" href="([^"]+)"', page)
        assert newer
        assert ids(viewer.get("/jobs/" + newer[1].replace("&amp;", "&")).text) == seen[50:100]


def test_a_mark_of_another_filter_is_refused(viewer: Client) -> None:
    make_type("mail.send")
    accept(60, kind="mail.send")
    mark = re.search(r"after=([^&\"]+)", viewer.get("/jobs/").text)
    assert mark
    assert "not one of this list" in viewer.get(f"/jobs/?tier=2&after={mark[1]}").text
