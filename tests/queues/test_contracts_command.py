"""`manage.py contracts`: what it reads, refuses, changes and answers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from queues.models import AuditEntry, ContractRevision, JobType

SOUND = """
[job_types."billing.receipt"]
tier = 1
key_required = true
key_template = "invoice-{invoice_id}"
window_seconds = 30
hard_limit_seconds = 60
schema = { type = "object", required = ["invoice_id"] }
"""


def write(directory: Path, text: str, *, name: str = "a.toml") -> Path:
    file = directory / name
    file.write_text(text, encoding="utf-8")
    return file


def run(*args: Any) -> tuple[int, str, str]:
    """Run the command. Shape: (exit code, standard output, standard error with the error's line)."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("contracts", *map(str, args), stdout=out, stderr=err)
    except CommandError as error:
        return error.returncode, out.getvalue(), err.getvalue() + str(error)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def test_check_needs_no_database(tmp_path: Path) -> None:
    assert run("check", write(tmp_path, SOUND)) == (0, "1 contracts are in order.\n", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[job_types.x]\nmax_attempt = 3", "x: unknown key max_attempt"),
        ("[job_types.billing.receipt]\ntier = 1", 'is written as [job_types."billing.receipt"]'),
        ("[job_type.x]\ntier = 1", "unknown key job_type;"),
        ("[job_types.x]\ntarget_secret = 's'", "does not belong in a file"),
        ("[job_types.x]\ncallback_secret = 's'", "name a variable in callback_secret_env"),
        ("[job_types.x]\ncallback_secret_old = 's'", "x: unknown key callback_secret_old"),
        ("[job_types.X]\ntier = 1", "'X': Use 1 to 64"),
        ("[job_types]\nx = 1", "x: not a table"),
        ("", "no [job_types"),
        ("job_types = 1", "no [job_types"),
        ("[job_types.x", "not TOML"),
        ("[job_types.x]\ntier = 1\ntier = 2", "not TOML"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    file = write(tmp_path, text)
    code, _, err = run("check", file)
    assert code == 2
    assert err.startswith(f"{file}: ")
    assert words in err
    assert "\n" not in err


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert run("check", tmp_path / "none.toml")[0] == 2
    assert run("check")[0] == 2
    assert run("check", "--dir", tmp_path)[0] == 2
    assert run("check", "--dir", tmp_path / "none")[0] == 2
    (tmp_path / "latin.toml").write_bytes(b"# \xff\n")
    assert run("check", tmp_path / "latin.toml")[0] == 2


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("max_attempts = 0", "max_attempts"),
        ("max_attempts = '3'", "max_attempts"),
        ("backoff_cap_seconds = inf", "backoff_cap_seconds"),
        ("window_seconds = 2026-11-21", "window_seconds"),
        ("key_template = 'x-{uuid}'", "key_template"),
        ("key_required = false", "key_required"),
        ("paused_until = 2030-01-01T00:00:00Z", "paused_until"),
        ("disabled_by = 'me'", "disabled_by"),
        ("success = 'check'\ncheck_every_seconds = 0", "check_every_seconds"),
        ('description = "a\\u0000b"', "description"),
    ],
)
def test_check_names_file_type_and_field(tmp_path: Path, line: str, field: str) -> None:
    name = line.split(" ")[0]
    kept = "\n".join(row for row in SOUND.splitlines() if not row.startswith(name))
    file = write(tmp_path, f"{kept}\n{line}")
    code, _, err = run("check", file)
    assert code == 1
    assert f"{file}: billing.receipt: {field}: " in err


@pytest.mark.django_db
def test_diff_and_sync(tmp_path: Path) -> None:
    file = write(tmp_path, SOUND)
    assert run("diff", file) == (1, "billing.receipt: new\n", "")
    code, out, _ = run("sync", file, "--actor", "deploy", "--reason", "release 7")
    assert code == 0
    assert out.startswith("billing.receipt: version 1 (")
    revision = ContractRevision.objects.get()
    assert (revision.actor, revision.reason) == ("deploy", "release 7")
    assert AuditEntry.objects.get().source == "command"
    assert run("diff", file) == (0, "No differences.\n", "")
    assert run("sync", file)[:2] == (0, "billing.receipt: unchanged\n")
    write(tmp_path, SOUND.replace("30", "45"))
    assert run("diff", file) == (1, "billing.receipt: window_seconds: 30 -> 45\n", "")
    assert run("sync", file)[:2] == (0, "billing.receipt: version 2 (window_seconds)\n")
    assert JobType.objects.get().window_seconds == 45


@pytest.mark.django_db
def test_what_a_file_leaves_out_has_its_default(tmp_path: Path) -> None:
    file = write(tmp_path, SOUND)
    run("sync", file)
    write(tmp_path, SOUND.replace("window_seconds = 30", ""))
    run("sync", file)
    assert JobType.objects.get().window_seconds == 60


@pytest.mark.django_db
def test_sync_drops_no_type_and_touches_no_switch(tmp_path: Path) -> None:
    JobType.objects.create(name="other")
    file = write(tmp_path, SOUND + "\nenabled = true\npaused = false")
    run("sync", file)
    JobType.objects.filter(name="billing.receipt").update(paused=True, paused_reason="provider is down")
    code, out, _ = run("sync", file)
    assert code == 0
    assert "billing.receipt: paused is true and stays so" in out
    row = JobType.objects.get(name="billing.receipt")
    assert (row.paused, row.paused_reason, row.version) == (True, "provider is down", 1)
    assert JobType.objects.filter(name="other").exists()


@pytest.mark.django_db
def test_a_new_type_may_start_paused_with_a_reason(tmp_path: Path) -> None:
    file = write(tmp_path, SOUND + '\npaused = true\npaused_reason = "the provider is not ready"')
    assert run("sync", file, "--actor", "deploy")[0] == 0
    row = JobType.objects.get()
    assert (row.paused, row.paused_reason, row.paused_by) == (True, "the provider is not ready", "deploy")


@pytest.mark.django_db
def test_sync_is_all_or_nothing(tmp_path: Path) -> None:
    one = write(tmp_path, SOUND)
    two = write(tmp_path, "[job_types.broken]\nmax_attempts = 0", name="b.toml")
    assert run("sync", one, two)[0] == 1
    assert run("sync", "--dir", tmp_path)[0] == 1
    assert not JobType.objects.exists()


@pytest.mark.django_db
def test_a_type_in_two_files_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path, SOUND)
    two = write(tmp_path, SOUND, name="b.toml")
    code, _, err = run("sync", one, two)
    assert code == 2
    assert str(one) in err and str(two) in err


@pytest.mark.django_db
def test_sync_saves_what_check_refuses_for_want_of_a_key(tmp_path: Path) -> None:
    file = write(tmp_path, "[job_types.x]\nmax_attempts = 3")
    assert run("check", file)[0] == 1
    code, _, err = run("sync", file)
    assert code == 0
    assert "warning: Retries without a required key" in err
