"""What the page of a job says about evidence that came late, again or against what is known."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.test import Client

from queues.states import JobState
from tests.factories import make_job, make_type, sql

S = JobState
YES = {"outcome": "confirmed", "kind": "callback", "ref": "re_1", "at": "2026-01-01T00:00:00+00:00"}
NO = {"outcome": "rejected", "kind": "callback", "detail": "<b>bounced</b>", "run": 1}


def _page(viewer: Client, state: JobState, late: list[dict[str, Any]]) -> str:
    make_type()
    job = make_job(state, begun=1, fence=1)
    sql("UPDATE queues_job SET late_evidence = %s::jsonb WHERE id = %s", json.dumps(late), job.id)
    response = viewer.get(f"/jobs/{job.id}/")
    assert response.status_code == 200
    return response.content.decode()


@pytest.mark.parametrize(
    ("state", "late", "titles"),
    [
        (S.DEAD, [YES], ["Confirmed late"]),
        (S.DEAD, [NO, YES, NO], ["Rejected late", "Confirmed late", "Rejected late"]),
        (S.CONFIRMED, [NO, YES], ["Contradicted", "Confirmed again"]),
        (S.RETRYING, [NO], ["An older run was rejected"]),
        (S.DEAD, [], []),
    ],
)
def test_each_piece_is_named(viewer: Client, state: JobState, late: list[dict[str, Any]], titles: list[str]) -> None:
    """I-29: nothing that came is hidden, and nothing is called what it is not."""
    page = _page(viewer, state, late)
    card = page[page.index('aria-labelledby="h-ev"') :]
    shown = re.findall(r"<li><div><b>([^<]+)</b>", card[: card.index("</section>")])
    assert [title for title in shown if title not in ("Proof", "Reference", "In window")] == titles
    assert "<b>bounced</b>" not in page
    assert ("<b>Confirmed late</b>" in page) is (state == S.DEAD and YES in late)
    assert ("Do not replay" in page) is (state == S.DEAD and YES in late)
