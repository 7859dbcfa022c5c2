"""How the pages of alerts are read."""

from __future__ import annotations

import re
from typing import Any, Final

from django.test import Client

URL: Final = "/alerts/"
HTMX: Final = {"HX-Request": "true"}
MARKER: Final = '"><img src=x onerror=window.__xss=1>'


def heading(page: str) -> str:
    found = re.search(r"<h1[^>]*>(.*?)</h1>", page, re.S)
    assert found
    return found[1]


def listed(page: str) -> list[int]:
    """Return the alerts of the list, in its order."""
    return [int(pk) for pk in re.findall(r'<tr id="alert-(\d+)"', page)]


def row(page: str, kind: str, pk: int) -> str:
    return page.split(f'id="{kind}-{pk}"')[1].split("</tr>")[0]


def words(markup: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", markup)).strip()


def toast(client: Client, response: Any) -> str:
    """Return what the next page says was done."""
    assert response.status_code == 303, response.text
    found = re.search(r'class="toast[^>]*>.*?<p>(.*?)</p>', client.get(response["Location"]).text, re.S)
    assert found
    return found[1]
