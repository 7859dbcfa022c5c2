"""`manage.py secrets reseal`: every stored secret under the first key, nothing lost, and what cannot be opened."""

from __future__ import annotations

import io
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command

from queues import contract_versions, secrets_box
from queues.contract_switches import database_now
from queues.models import AuditEntry, JobType

pytestmark = pytest.mark.django_db

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))
SECRET = "a-secret-of-the-shop-0123456789"


def save(name: str, **fields: Any) -> None:
    contract_versions.save(name, fields, actor="ada", reason="because")


def run() -> str:
    out = io.StringIO()
    call_command("secrets", "reseal", "--actor", "ada", "--reason", "a leaked key", stdout=out)
    return out.getvalue()


def opened(name: str) -> list[str | None]:
    row = JobType.objects.get(pk=name)
    stored = (row.target_secret, row.callback_secret, row.callback_secret_old)
    return [secrets_box.open(sealed) if sealed else None for sealed in stored]


def test_every_secret_is_sealed_with_the_first_key(settings: Any) -> None:
    settings.ENCRYPTION_KEYS = [OLD]
    save("both", target_secret=SECRET, callback_secret=SECRET + "1")
    save("both", callback_secret=SECRET + "2")
    save("one", target_secret=SECRET + "3")
    save("none")
    versions = dict(JobType.objects.values_list("name", "version"))
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    assert run() == "Resealed: 2 target_secret, 1 callback_secret, 1 callback_secret_old.\n"
    settings.ENCRYPTION_KEYS = [NEW]
    assert opened("both") == [SECRET, SECRET + "2", SECRET + "1"]
    assert opened("one") == [SECRET + "3", None, None]
    assert dict(JobType.objects.values_list("name", "version")) == versions
    entries = AuditEntry.objects.filter(action="secrets.resealed").order_by("id")
    assert [(e.object_id, e.actor, e.reason, e.source) for e in entries] == [
        ("both", "ada", "a leaked key", "command"), ("one", "ada", "a leaked key", "command"),
    ]  # fmt: skip
    assert entries[0].after == {"resealed": ["target_secret", "callback_secret", "callback_secret_old"]}
    # Again is safe: whoever is not sure runs it twice.
    assert "2 target_secret" in run()


def test_what_cannot_be_opened_is_named_and_left_as_it_is(settings: Any) -> None:
    settings.ENCRYPTION_KEYS = [OLD]
    save("lost", target_secret=SECRET)
    before = JobType.objects.get(pk="lost").target_secret
    settings.ENCRYPTION_KEYS = [NEW]
    save("fine", callback_secret=SECRET)
    with pytest.raises(CommandError, match=r"left as they are: lost \(target_secret\)\.") as caught:
        run()
    assert caught.value.returncode == 1
    after = JobType.objects.get(pk="lost").target_secret
    assert before is not None and after is not None
    assert bytes(before) == bytes(after)
    assert opened("fine") == [None, SECRET, None]
    assert list(AuditEntry.objects.filter(action="secrets.resealed").values_list("object_id", flat=True)) == ["fine"]


def test_an_old_callback_secret_whose_day_is_over_is_dropped(settings: Any) -> None:
    settings.ENCRYPTION_KEYS = [OLD]
    save("one", callback_secret=SECRET)
    settings.ENCRYPTION_KEYS = [NEW]
    # Nothing opens the old one any more, and nobody needs to.
    save("one", callback_secret=SECRET + "2")
    JobType.objects.update(callback_secret_old_until=database_now())
    assert run() == "Resealed: 0 target_secret, 1 callback_secret, 0 callback_secret_old.\n"
    row = JobType.objects.get()
    assert (row.callback_secret_old, row.callback_secret_old_until) == (None, None)


def test_without_a_key_nothing_is_done(settings: Any) -> None:
    save("one", target_secret=SECRET)
    settings.ENCRYPTION_KEYS = []
    with pytest.raises(CommandError, match="ENCRYPTION_KEYS is not set"):
        run()
    assert not AuditEntry.objects.filter(action="secrets.resealed").exists()


def test_no_secret_is_no_trouble(settings: Any) -> None:
    save("one")
    assert run() == "Resealed: 0 target_secret, 0 callback_secret, 0 callback_secret_old.\n"
