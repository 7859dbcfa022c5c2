"""`manage.py dlq`: what it prints, refuses and does, and its exit codes (R-01, R-02, R-05)."""

from __future__ import annotations

import getpass
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.management import CommandError

from dlq import replaying
from dlq.cli import planning
from dlq.management.commands.dlq import Command
from dlq.models import PlanItem, ReplayPlan
from dlq.plans import advance
from queues import contract_switches, lifecycle, outside
from queues.models import AuditEntry, Job, OutcomeRollup
from queues.states import Reason
from tests.dlq.deaths import die, fold
from tests.factories import TYPE, accept, claim, confirmed, get, make_type, sql

pytestmark = pytest.mark.django_db
WHY = ("--reason", "the provider is back")


@pytest.fixture(autouse=True)
def _type(monkeypatch: pytest.MonkeyPatch) -> None:
    """A type, and no worker that could be asked."""
    monkeypatch.setattr(outside, "ask_and_wait", lambda ids, **_: {})
    make_type(redact=["/card"])


def run(*args: Any) -> tuple[int, str]:
    """Run the command as a shell does. Shape: (exit code, what it said, with the error's line)."""
    out, err = io.StringIO(), io.StringIO()
    command = Command(stdout=out, stderr=err)
    command._called_from_command_line = True  # type: ignore[attr-defined]
    try:
        options = vars(command.create_parser("manage.py", "dlq").parse_args(list(map(str, args))))
        command.execute(*options.pop("args", ()), **options)
    except CommandError as error:
        return error.returncode, out.getvalue() + err.getvalue() + str(error)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue() + err.getvalue()
    return 0, out.getvalue() + err.getvalue()


def paused() -> None:
    """Let something speak against every replay."""
    contract_switches.set_switch(TYPE, paused=True, actor="ada", reason="x")


def test_list_groups_and_show() -> None:
    """What is dead, of what, and one of them: redacted, and nothing that a terminal would obey."""
    [one] = die(1, message="\x1b[31m password=hunter2 no", group="g1")
    die(2, kind=TYPE, fingerprint="b" * 16, reason="rejected")
    fold()
    code, said = run("list")
    assert (code, len(said.splitlines())) == (0, 4)
    assert str(one) in said
    assert "hunter2" not in said
    assert "\x1b" not in said
    assert [row["id"] for row in json.loads(run("list", "--why", "permanent_error", "--json")[1])] == [str(one)]
    assert json.loads(run("list", "--until", "1d", "--json")[1]) == []
    assert len(json.loads(run("list", "--since", "1d", "--limit", 2, "--json")[1])) == 2
    code, said = run("groups")
    assert (code, len(said.splitlines())) == (0, 3)
    assert "not looked at" in said
    assert {(row["reason"], row["open"]) for row in json.loads(run("groups", "--json")[1])} == {
        ("permanent_error", 1), ("rejected", 2),
    }  # fmt: skip
    code, said = run("show", one)
    assert (code, "attempt 1  Boom:" in said, "hunter2" in said, "failure_group" in said) == (0, True, False, True)
    shown = json.loads(run("show", one, "--json")[1])
    assert (shown["id"], shown["payload"], shown["group"]) == (str(one), {"n": 0}, "g1")


def test_preflight_says_by_its_exit_code_whether_it_is_safe() -> None:
    """0 only when all is known and nothing speaks against it."""
    [one] = die()
    code, said = run("preflight", one)
    assert (code, len(said.splitlines())) == (1, 9)
    assert "UNKNOWN:" in said
    OutcomeRollup.objects.create(
        grain="minute", at=sql("SELECT date_trunc('minute', jobs_now())")[0][0], type=TYPE, tier=2, runs=20
    )
    [fresh] = accept(dedupe_key="k")
    lifecycle.cancel([fresh], reason=Reason.OPERATOR)
    code, said = run("preflight", fresh, "--json", "--no-ask")
    found = json.loads(said)
    assert (code, found["verdict"], len(found["checks"])) == (0, "safe", 8), found
    [waiting] = accept()
    assert run("preflight", waiting)[0] == 1


def test_replay_prints_the_checks_and_replays() -> None:
    """By the system user, or who is named; the source is command."""
    one, two = die(2)
    code, said = run("replay", one, *WHY)
    child = Job.objects.get(replay_of=one)
    assert (code, said.splitlines()[-1]) == (0, f"Replayed as {child.id}")
    assert "Not known whether it is done" in said
    entry = AuditEntry.objects.get(action="job.replayed")
    assert (entry.actor, entry.source, entry.reason) == (getpass.getuser(), "command", WHY[1])
    code, said = run("replay", two, *WHY, "--as", "ann", "--json")
    assert (code, json.loads(said)["replay_of"]) == (0, str(two))
    assert AuditEntry.objects.filter(action="job.replayed", actor="ann").count() == 1


def test_what_speaks_against_it_refuses_unless_anyway() -> None:
    """Exit code 1, and nothing is done; what cannot be undone is not done with --anyway either."""
    [one] = die()
    paused()
    code, said = run("replay", one, *WHY)
    assert (code, "FAIL  Type is paused" in said, "--anyway" in said) == (1, True, True)
    assert not Job.objects.filter(replay_of=one).exists()
    assert run("replay", one, *WHY, "--anyway")[0] == 0
    code, said = run("replay", one, *WHY, "--anyway")
    assert (code, "was replayed as" in said) == (1, True)


def test_r_02_the_holder_of_the_key_is_named() -> None:
    """R-02."""
    [keyed] = accept(dedupe_key="k2")
    lifecycle.cancel([keyed], reason=Reason.OPERATOR)
    [holder] = accept()
    sql("UPDATE queues_dedupekey SET job_id = %s WHERE key = 'k2'", holder)
    code, said = run("replay", keyed, *WHY, "--anyway")
    assert (code, f"({holder})" in said) == (1, True), said


def test_a_verdict_that_changes_meanwhile_replays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was printed is what the person saw; another answer at the moment of the replay refuses."""
    [one] = die()
    real = replaying.look

    def look_then_pause(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        paused()
        return found

    monkeypatch.setattr(replaying, "look", look_then_pause)
    code, said = run("replay", one, *WHY, "--anyway")
    assert (code, "Type is paused: was pass, now fail" in said) == (1, True), said
    assert not Job.objects.filter(replay_of=one).exists()


def test_an_edited_replay(tmp_path: Path) -> None:
    """Another payload from a file, another key; what is no JSON or breaks the contract is refused."""
    one, two, three = die(3)
    file = tmp_path / "payload.json"
    file.write_text('{"n": 7}')
    code, said = run("replay", one, *WHY, "--payload", file)
    assert (code, "Note: The provider gets the same idempotency key" in said) == (0, True)
    assert Job.objects.get(replay_of=one).payload == '{"n": 7}'
    assert run("replay", two, *WHY, "--key", "other")[0] == 0
    assert Job.objects.get(replay_of=two).dedupe_key == "other"
    file.write_text('{"n": 7')
    assert run("replay", three, *WHY, "--payload", file)[0] in (1, 2)
    file.write_text('{"n": "[redacted]"}')
    assert run("replay", three, *WHY, "--payload", file)[0] == 1
    assert run("replay", three, *WHY, "--payload", tmp_path / "none")[0] == 2
    assert not Job.objects.filter(replay_of=three).exists()


def test_a_plan_for_a_filter() -> None:
    """It counts against what was expected, takes pace and stop rule, and is found again."""
    die(3)
    code, said = run("replay", "--type", TYPE, "--expect", 2, *WHY)
    assert (code, "3 jobs are selected now, not 2" in said) == (1, True)
    code, said = run("replay", "--type", TYPE, "--expect", 3, "--rate", 5, "--stop", 0, "--json", *WHY, "--as", "ann")
    made = json.loads(said)
    plan = ReplayPlan.objects.get()
    assert (code, made["id"], plan.rate_per_second, plan.stop_on_failure_ratio) == (0, str(plan.id), 5, 0)
    assert (plan.created_by, plan.source, plan.selection["type"]) == ("ann", "command", TYPE)
    assert str(plan.id) in run("plan")[1]
    for verb, state in (("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
        assert run("plan", plan.id, f"--{verb}")[0] == 2, "a reason is needed"
        assert run("plan", plan.id, f"--{verb}", *WHY)[0] == 0
        assert ReplayPlan.objects.get().state == state
    assert run("plan", plan.id, "--resume", *WHY)[0] == 1
    code, said = run("plan", plan.id)
    assert (code, "aborted" in said, "3 skipped" in said) == (0, True, True)


def test_waiting_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how far it is whenever that changes, and its exit code is what became of it."""
    ids = die(2)

    class Scheduler:
        """Does one step of every plan, and all of its replays, each time that somebody waits."""

        def wait(self, seconds: float) -> bool:
            sql("UPDATE dlq_replayplan SET paced_at = paced_at - interval '2 s'")
            sql("UPDATE dlq_planitem SET looked_at = looked_at - interval '10 s'")
            children = list(Job.objects.filter(replay_of__in=ids, state="accepted").values_list("id", flat=True))
            if children:
                lifecycle.settle([confirmed(one) for one in claim(children)])
            for plan in ReplayPlan.objects.all():
                advance.advance(plan.id)
            return False

    monkeypatch.setattr(planning, "threading", SimpleNamespace(Event=Scheduler))
    code, said = run("replay", *ids, *WHY, "--wait")
    lines = said.splitlines()
    assert (code, lines[-1]) == (0, "finished: 2 replayed, 2 confirmed"), said
    assert lines[1].startswith("running: 0 replayed")
    dead = die(1, fingerprint="e" * 16)
    plan = json.loads(run("cancel", "--why", "permanent_error", "--expect", 1, "--dry-run", "--json", *WHY)[1])
    assert run("plan", plan["id"], "--wait")[0] == 0
    assert get(dead[0]).resolution == "open"


def test_a_plan_that_takes_too_long_is_left_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_POLL_SECONDS", 0.01)
    die(1)
    code, said = run("replay", "--type", TYPE, "--expect", 1, *WHY, "--wait", "--timeout", "0.03")
    assert (code, "it goes on" in said) == (1, True)
    assert ReplayPlan.objects.get().state == "running"


def test_cancel_and_ignore() -> None:
    """One at once, several by a plan; waiting ones where that is said."""
    one, two, three, four = die(4)
    assert run("cancel", one, *WHY) == (0, "Cancelled; it stays dead\n")
    assert run("cancel", one, *WHY) == (0, "It was cancelled before\n")
    assert run("ignore", two, *WHY) == (0, "Ignored\n")
    assert run("ignore", one, *WHY)[0] == 1
    assert (get(one).resolution, get(two).resolution) == ("cancelled", "ignored")
    [waiting, other] = accept(2)
    assert run("cancel", waiting, *WHY) == (0, "Cancelled\n")
    assert run("ignore", other, *WHY)[0] == 1
    code, said = run("ignore", three, four, three, *WHY)
    plan = ReplayPlan.objects.get(action="ignore")
    assert (code, plan.total) == (0, 2), said
    assert run("cancel", "--type", TYPE, "--waiting", "--expect", 1, *WHY)[0] == 0
    chosen = ReplayPlan.objects.get(action="cancel")
    assert PlanItem.objects.get(plan_id=chosen.id).job_id == other


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("nothing",),
        ("list", "--tier", "4"),
        ("list", "--limit", "0"),
        ("list", "--since", "yesterday"),
        ("list", "--type", "nope"),
        ("list", "--why", "nope"),
        ("show",),
        ("show", "abc"),
        ("preflight", "1,1"),
        ("replay",),
        ("replay", *WHY),
        ("replay", "abc", *WHY),
        ("replay", "--type", TYPE, *WHY),
        ("replay", "--type", TYPE, "--expect", "1", "--rate", "501", *WHY),
        ("replay", "--type", TYPE, "--expect", "1", "--stop", "2", *WHY),
        ("replay", "--type", TYPE, "--expect", "1", "--key", "k", *WHY),
        ("replay", "--type", TYPE, "--expect", "1"),
        ("replay", "--type", TYPE, "--expect", "1", "--reason", "x" * 1001),
        ("plan", "abc"),
        ("export", "--format", "xml"),
        ("export", "--output", "/nowhere/at/all"),
    ],
)
def test_r_05_what_means_nothing_is_exit_code_2(args: tuple[str, ...]) -> None:
    """R-05: and nothing is changed."""
    die()
    code, said = run(*args)
    assert code == 2, said
    assert not ReplayPlan.objects.exists()
    assert not Job.objects.filter(replay_of__isnull=False).exists()


def test_what_is_not_there_is_refused() -> None:
    """Exit code 1."""
    none = uuid4()
    for args in (
        ("show", none), ("preflight", none), ("replay", none, *WHY), ("cancel", none, *WHY), ("plan", none),
        ("replay", none, uuid4(), *WHY), ("plan", UUID(int=1), "--abort", *WHY),
    ):  # fmt: skip
        assert run(*args)[0] == 1, args
