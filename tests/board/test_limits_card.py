"""Limits, rates, groups and order on the pages of a type and of a job that waits for them."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from queues import contracts, lifecycle, workers
from queues.models import FlowState
from queues.states import Reason
from tests.factories import WORKER, accept, failed, fold_all, make_type, sql

NAME = "mail.send"
URL = f"/types/{NAME}/"


@pytest.fixture(autouse=True)
def _machines(db: None) -> None:
    workers.report("s/1", kind="scheduler", hostname="s", pid=1)
    workers.report("w/1", kind="worker", hostname="w", pid=2, queues=["tier2"], slots=4, busy=1)


def section(client: Client, url: str, name: str) -> str:
    """Return one card of a page; empty when it is not there."""
    page = client.get(url).text
    if f'id="{name}"' not in page:
        return ""
    begun = page[page.index(f'id="{name}"') :]
    return begun[: begun.index("</section>")]


def figures(text: str) -> dict[str, tuple[str, str]]:
    """Return figure → (value, words)."""
    rows = re.findall(r'<li id="limit-(\w+)"[^>]*>.*?<span class="num[^>]*>(.*?)</span><p>(.*?)</p>', text, re.DOTALL)
    return {kind: (re.sub(r"<span.*|<[^>]+>", "", value), words) for kind, value, words in rows}


def test_a_type_without_limits_has_no_card_and_reads_nothing_for_it(viewer: Client) -> None:
    make_type(NAME)
    accept(1, kind=NAME)
    fold_all()
    with CaptureQueriesContext(connection) as captured:
        assert section(viewer, URL, "limits") == ""
    assert not any("jobs_running" in query["sql"] for query in captured)


def test_the_card_says_what_the_contract_says_and_how_much_is_taken(viewer: Client) -> None:
    make_type(NAME, concurrency=2, rate_per_second=0.01, rate_burst=4, group_concurrency=1)
    ids = accept(3, kind=NAME, group="a") + accept(1, kind=NAME, group="b")
    lifecycle.claim_limited(ids, worker=WORKER)
    fold_all()
    text = section(viewer, URL, "limits")
    assert "At most 2 run at the same time. Of one group at most 1 run at the same time." in text
    assert "At most 0.01 a second begin, 4 at once." in text
    found = figures(text)
    assert found["running"] == ("2 of 2", "The next one begins when one of them ends.")
    assert found["tokens"] == ("2 of 4", "Each run that begins takes one; 0.01 a second come back.")
    assert found["groups"] == ("1", "Of 1 group with waiting jobs.")
    assert f'href="/jobs/?state=processing&amp;type={NAME}"' in text
    FlowState.objects.filter(group="").update(tokens=0.96, filled_at=sql("SELECT jobs_now()")[0][0])
    assert figures(section(viewer, URL, "limits"))["tokens"][0] == "0.9 of 4", "of 0.96 tokens none begins"


def test_a_dead_letter_that_blocks_is_one_press_away(viewer: Client) -> None:
    """From the type to its dead letters, from a job behind it to the dead letter itself."""
    make_type(NAME, ordered=True)
    first, second, _ = accept(3, kind=NAME, group="<b>")
    assert figures(section(viewer, URL, "limits"))["held"] == ("0", "By no dead letter.")
    [run] = lifecycle.claim_limited([first], worker=WORKER)
    text = section(viewer, f"/jobs/{second}/", "why")
    assert f'href="/jobs/{first}/"' in text
    assert "is-accepted" in text
    lifecycle.settle([failed(run, reason=Reason.PERMANENT_ERROR)])
    fold_all()
    text = section(viewer, URL, "limits")
    assert figures(text)["held"] == ("1", "By a dead letter: 2 jobs wait behind. Replay, cancel or ignore it.")
    assert f'href="/dlq/?type={NAME}"' in text
    why = section(viewer, URL, "why")
    assert "What stops its jobs</h2>" in why
    assert "1 group is held up by a dead letter" in why
    assert f'href="/dlq/?type={NAME}"' in why
    text = section(viewer, f"/jobs/{second}/", "why")
    assert "which is a dead letter and holds the group up" in text
    assert f'href="/dlq/{first}/"' in text
    assert "is-dead" in text, "it waits for a person"
    assert "<b><b>" not in text


@pytest.mark.parametrize(
    ("limits", "of_type", "of_job"),
    [
        ({"concurrency": 1}, 16, 14),
        ({"ordered": True, "group_concurrency": 1, "concurrency": 1, "rate_per_second": 5}, 18, 14),
    ],
)
def test_statements_of_a_page_with_limits(viewer: Client, limits: dict[str, float], of_type: int, of_job: int) -> None:
    """However many groups and jobs there are."""
    make_type(NAME, **limits)
    ids = accept(3, kind=NAME, group="a")
    lifecycle.claim_limited(ids, worker=WORKER)

    def statements(url: str) -> int:
        fold_all()
        viewer.get(url)
        contracts.forget()  # Else whether they are read again depends on the clock.
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(url).status_code == 200
        return len(captured)

    urls = URL, f"/jobs/{ids[-1]}/"
    few = [statements(url) for url in urls]
    assert few[0] <= of_type
    assert few[1] <= of_job
    for n in range(8):
        accept(5, kind=NAME, group=f"g{n}")
    assert [statements(url) for url in urls] == few
