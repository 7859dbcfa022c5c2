"""The meeting place: weather, ports, logs."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from jobsboard.demo import journal, place


def test_the_weather_is_calm_until_somebody_changes_it() -> None:
    assert place.weather() == place.Weather(kind="calm", since=None)
    place.set_weather("storm")
    storm = place.weather()
    assert (storm.kind, storm.since is not None) == ("storm", True)
    place.set_weather("storm")
    assert place.weather() == storm


def test_outside_a_demo_there_is_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(place.VARIABLE)
    assert not place.is_demo()
    with pytest.raises(ImproperlyConfigured, match="make demo"):
        place.directory()


def test_a_mail_server_that_is_not_up_is_a_connection_error() -> None:
    with pytest.raises(ConnectionError):
        place.mail_port("smtp")
    place.announce_mail(smtp=25, search=80)
    assert (place.mail_port("smtp"), place.mail_port("search")) == (25, 80)


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert list(journal.read(log)) == []
    journal.note(log, "taken", key="a")
    with log.open("a") as file:
        file.write('{"event": "tak')
    assert [(line["event"], line["key"]) for line in journal.read(log)] == [("taken", "a")]
