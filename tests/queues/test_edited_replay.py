"""What an edit keeps of what its editor did not see: a hidden value stays with its place, or the edit is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from queues import contracts
from queues.accept import enqueue
from queues.edited_replay import Edited, prepare
from queues.models import Job
from queues.redaction import redact
from queues.request import PayloadInvalid
from tests.factories import get, make_type

pytestmark = pytest.mark.django_db
LIST = [{"id": 1, "token": "t-1"}, {"id": 2, "token": "t-2"}, {"id": 3, "token": "t-3"}]
HIDDEN = [{"id": n, "token": "[redacted]"} for n in (1, 2, 3)]


def job(payload: Any, *, pointers: list[str] | None = None) -> Job:
    make_type(redact=pointers or [])
    return get(enqueue("test.job", payload).job_id)


def after(edited: Edited) -> Any:
    assert edited.edit.payload is not None
    return json.loads(edited.edit.payload)


def test_a_text_that_hides_a_part_keeps_it_when_nobody_changed_it() -> None:
    one = job({"url": "https://ann:pw-marker@shop.example/x", "note": "api_key=marker-1 was used", "n": 1})
    seen = redact(json.loads(one.payload or ""))
    assert seen["url"] == "https://[redacted]@shop.example/x"
    edited = prepare(one, payload={**seen, "n": 2})
    assert after(edited) == {**json.loads(one.payload or ""), "n": 2}
    assert edited.diff == {"/n": [1, 2]}
    with pytest.raises(PayloadInvalid) as refused:
        prepare(one, payload={**seen, "url": seen["url"].replace("/x", "/y")})
    assert (refused.value.code, refused.value.pointer) == ("redacted_value_submitted", "/payload/url")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (HIDDEN[1:], LIST[1:]),
        ([HIDDEN[2], HIDDEN[0]], [LIST[2], LIST[0]]),
        (HIDDEN[::-1], LIST[::-1]),
        ([{**HIDDEN[0], "id": 9}, *HIDDEN[1:]], [{**LIST[0], "id": 9}, *LIST[1:]]),
        ([*HIDDEN, {"id": 4, "token": "new"}], [*LIST, {"id": 4, "token": "new"}]),
        ([{"id": 4, "token": "new"}, *HIDDEN], [{"id": 4, "token": "new"}, *LIST]),
        ([HIDDEN[1], {**HIDDEN[0], "id": 9}, HIDDEN[2]], None),
        ([{**HIDDEN[1], "id": 9}, HIDDEN[2]], None),
        ([*HIDDEN, HIDDEN[0]], None),
    ],
)
def test_a_hidden_value_never_moves_to_another_item_of_a_list(given: list[Any], kept: list[Any] | None) -> None:
    one = job({"rows": LIST})
    if kept is not None:
        assert after(prepare(one, payload={"rows": given})) == {"rows": kept}
        return
    with pytest.raises(PayloadInvalid) as refused:
        prepare(one, payload={"rows": given})
    assert refused.value.code == "redacted_value_submitted"


def test_items_that_look_alike_keep_their_place_or_are_refused() -> None:
    one = job({"marks": ["a-1", "b-2", "c-3"], "n": 1}, pointers=["/marks/*"])
    seen = ["[redacted]"] * 3
    assert after(prepare(one, payload={"marks": seen, "n": 2}))["marks"] == ["a-1", "b-2", "c-3"]
    assert after(prepare(one, payload={"marks": ["[redacted]", "x", "[redacted]"], "n": 1}))["marks"] == [
        "a-1", "x", "c-3",
    ]  # fmt: skip
    for wrong in (seen[:2], [*seen, "[redacted]"]):
        with pytest.raises(PayloadInvalid):
            prepare(one, payload={"marks": wrong, "n": 1})


def test_a_hidden_name_keeps_its_name() -> None:
    name = "sk_live_abcdefghijkl"
    one = job({name: 1, "n": 1})
    assert list(redact({name: 1})) == ["[redacted]"]
    edited = prepare(one, payload={"[redacted]": 1, "n": 2})
    assert after(edited) == {name: 1, "n": 2}
    assert edited.diff == {"/n": [1, 2]}
    assert name not in json.dumps(prepare(one, payload={"[redacted]": 7, "n": 1}).diff)


def test_a_hidden_value_that_changes_is_told_and_not_shown() -> None:
    one = job({"token": "old-marker", "all": {"a": 1}}, pointers=["/all"])
    edited = prepare(one, payload={"token": "new-marker", "all": {"a": 2}})
    assert after(edited) == {"token": "new-marker", "all": {"a": 2}}
    assert edited.diff == {"/token": ["[redacted]", "[redacted]"], "/all": ["[redacted]", "[redacted]"]}
    assert after(prepare(one, payload={"token": "x", "all": "[redacted]"}))["all"] == {"a": 1}


@pytest.mark.parametrize(
    ("old", "new", "diff"),
    [
        ({"n": 1}, {"n": True}, {"/n": [1, True]}),
        ({"n": 1}, {"n": 1.0}, {"/n": [1, 1.0]}),
        ({"n": None}, {}, {"/n": [None, None]}),
        ({"a": [1, 2]}, {"a": [2, 1]}, {"/a": [[1, 2], [2, 1]]}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {}),
        ({"a/b": {"~": 1}}, {"a/b": {"~": 2}}, {"/a~1b/~0": [1, 2]}),
    ],
)
def test_every_difference_is_told(old: Any, new: Any, diff: dict[str, list[Any]]) -> None:
    found = prepare(job(old), payload=new).diff
    assert json.dumps(found) == json.dumps(diff)


@pytest.mark.parametrize("stars", ["***", "*" * 40])
def test_r_03_stars_are_no_value_unless_they_were_one(stars: str) -> None:
    """R-03."""
    one = job({"token": stars, "shown": stars, "n": 1})
    assert after(prepare(one, payload={"token": "[redacted]", "shown": stars, "n": 2})) == {
        "token": stars, "shown": stars, "n": 2,
    }  # fmt: skip
    for wrong in ({"token": stars}, {"shown": stars, "other": stars}, {"n": stars}, {"n": [stars]}):
        with pytest.raises(PayloadInvalid) as refused:
            prepare(one, payload={"token": "[redacted]", "shown": stars, "n": 1, **wrong})
        assert refused.value.code == "redacted_value_submitted"
    assert after(prepare(one, payload={"n": "**"})) == {"n": "**"}


def test_a_literal_placeholder_of_the_producer_stays() -> None:
    one = job({"text": "[redacted]", "n": 1})
    contracts.forget()
    assert after(prepare(one, payload={"text": "[redacted]", "n": 2})) == {"text": "[redacted]", "n": 2}


def test_a_long_list_is_paired_in_a_moment() -> None:
    rows = [{"id": n, "token": f"t-{n}"} for n in range(2_000)]
    one = job({"rows": rows})
    seen = [{"id": n, "token": "[redacted]"} for n in range(2_000)]
    assert after(prepare(one, payload={"rows": seen[1:]})) == {"rows": rows[1:]}
