"""The local stack: its servers come up alike each time, and nothing of it stays.

Not here: the application that runs on it. Each test has a stack directory of its own, so a developer's demo goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from io import StringIO
from pathlib import Path

import psycopg
import pytest
from django.contrib.auth import authenticate, get_user_model
from django.core.management import call_command

from jobsboard.local import layout, logs, ports, processes, stack
from jobsboard.local.__main__ import main
from jobsboard.local.errors import LocalStackError, UsageError
from jobsboard.local.processes import DemoPorts
from jobsboard.models import ApiKey

Start = Callable[..., subprocess.Popen[str]]
LOCAL = (sys.executable, "-m", "jobsboard.local")
SHOW = """
import os, psycopg
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    names = ("fsync", "synchronous_commit", "full_page_writes", "jit", "TimeZone", "listen_addresses", "data_directory")
    print(*(connection.execute("SHOW " + name).fetchone()[0] for name in names))
"""


@pytest.fixture
def stack_directory() -> Iterator[Path]:
    """Name a directory that PostgreSQL's account can reach, also when the tests run as root."""
    path = layout.private_parent()[0] / f"jobsboard-test-{secrets.token_hex(4)}"
    yield path
    try:
        wait_until(lambda: not processes_of(path), seconds=30)
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start(stack_directory: Path) -> Iterator[Start]:
    """Start the program on the test's directory; whatever happens, it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [*LOCAL, *arguments], env=environment(stack_directory), stdout=subprocess.PIPE, stdin=subprocess.PIPE,
                text=True, preexec_fn=_hears_hangup,
            )
        )  # fmt: skip
        return started[-1]

    yield begin
    for process in started:
        process.terminate()
        process.communicate(timeout=60)


def _hears_hangup() -> None:
    # Under nohup it would be ignored, by what is started here as well.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def run(*arguments: str, stack: Path | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LOCAL, *arguments], env=environment(stack, **extra), capture_output=True, text=True, timeout=100
    )


def environment(stack: Path | None, **extra: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in ("PORT", layout.MARKER, layout.OVERRIDE)}
    return env | ({} if stack is None else {layout.OVERRIDE: str(stack)}) | extra


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def processes_of(stack: Path) -> list[str]:
    """List what runs with the directory among its arguments or in its environment, other than by our own doing."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                arguments, marks = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                if os.fsencode(stack) in arguments or os.fsencode(f"{layout.MARKER}={stack}") in marks:
                    found.append(f"{entry.name} {arguments!r}")
    return found


def wait_for_note(process: subprocess.Popen[str], stack: Path) -> None:
    """Wait until commands can join, or the start has failed."""
    home = layout.Layout(root=stack)
    wait_until(lambda: home.read_note() is not None or process.poll() is not None, seconds=60)
    assert process.poll() is None, "the start failed"


def note_of(stack: Path) -> dict[str, object]:
    found = layout.Layout(root=stack).read_note()
    assert found is not None
    return found


def pid_of(stack: Path, name: str) -> int:
    pids = note_of(stack)["pids"]
    assert isinstance(pids, dict)
    return int(pids[name])


# The command line and the files: no server needed


def test_an_explicit_port_that_is_taken_is_an_error(stack_directory: Path) -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as other:
        port = str(other.getsockname()[1])
        done = run("up", stack=stack_directory, PORT=port)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"jobsboard.local: PORT={port} is taken by another program; choose another, or unset PORT for a free one"
    ]


def test_without_a_port_the_next_free_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORT", raising=False)
    with ports.listen_for_web() as first, ports.listen_for_web() as second:
        assert first.getsockname()[1] != second.getsockname()[1]


@pytest.mark.parametrize("port", ["eighty", "0", "65536", "-1"])
def test_a_port_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("PORT", port)
    with pytest.raises(UsageError, match="not a port number"):
        ports.listen_for_web()


def test_a_second_stack_in_the_same_directory_is_refused(
    stack_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(layout.OVERRIDE, str(stack_directory))
    held = layout.of_checkout().lock()
    assert held is not None
    try:
        assert main(["up"]) == 2
    finally:
        os.close(held)
    assert "runs already" in capsys.readouterr().err


def test_secrets_are_drawn_once_and_are_for_the_owner_alone(
    stack_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(layout.OVERRIDE, str(stack_directory))
    home = layout.of_checkout()
    assert home.secrets() == layout.of_checkout().secrets()
    assert (home.root / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert home.root.stat().st_mode & 0o066 == 0


def test_secrets_that_an_older_release_did_not_draw_are_added_and_the_others_stay(
    stack_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers of a stack know its passwords: new ones would lock us out."""
    monkeypatch.setenv(layout.OVERRIDE, str(stack_directory))
    home = layout.of_checkout()
    whole = home.secrets()
    kept = {name: value for name, value in whole.__dict__.items() if not name.startswith("crm_")}
    layout.write_private(home.root / "secrets.json", json.dumps(kept))
    added = home.secrets()
    assert {name: added.__dict__[name] for name in kept} == kept
    assert added.crm_secret.startswith("whsec_")
    assert len({added.crm_secret, added.crm_callback_secret, whole.crm_secret}) == 3
    assert home.secrets() == added


def test_only_a_demo_has_a_crm_and_may_reach_loopback(stack_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(layout.OVERRIDE, str(stack_directory))
    home = layout.of_checkout()
    plain = {entry.name for entry in processes.table(web_socket=3, demo=None, traffic=True)}
    demo = {entry.name: entry for entry in processes.table(web_socket=3, demo=DemoPorts(crm=4, pager=5), traffic=True)}
    assert demo.keys() - plain == {"mail-server", "crm", "pager", "traffic"}
    assert (demo["crm"].pass_fds, demo["pager"].pass_fds) == ((4,), (5,))
    assert len(processes.preparations(credentials=home.credentials, demo=None)) == 2
    own = {"OUTBOUND_ALLOWED_CIDRS": "10.0.0.0/8"}
    env = processes.demo_environment(own, home.secrets(), stack=home)
    assert env["OUTBOUND_ALLOWED_CIDRS"] == "10.0.0.0/8,127.0.0.1/32"
    # Whatever joins a demo knows what its processes know.
    assert env.keys() <= set(stack.SHARED_NAMES)


def test_a_port_is_kept_if_it_can_be_had() -> None:
    with ports.listen() as first:
        port = first.getsockname()[1]
        with ports.listen(rather=port) as other:
            assert other.getsockname()[1] != port
    with ports.listen(rather=port) as again:
        assert again.getsockname()[1] == port


def test_a_directory_too_long_for_a_socket_is_refused(stack_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack_directory.mkdir(mode=0o711)
    monkeypatch.setenv(layout.OVERRIDE, str(stack_directory / ("x" * 100)))
    with pytest.raises(LocalStackError, match="too long for a socket"):
        layout.of_checkout()


def test_a_directory_that_is_a_link_is_refused(stack_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack_directory.mkdir(mode=0o711)
    link = stack_directory / "link"
    link.symlink_to(stack_directory)
    monkeypatch.setenv(layout.OVERRIDE, str(link))
    with pytest.raises(LocalStackError, match="belongs to somebody else"):
        layout.of_checkout()


def test_a_log_that_grows_too_large_is_moved_aside_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    descriptor = logs.appended(path)
    try:
        os.write(descriptor, b"x" * 101)
        assert logs.bound(path, most_bytes=100)
        assert not logs.bound(path, most_bytes=100)
        os.write(descriptor, b"after")
    finally:
        os.close(descriptor)
    assert path.read_bytes() == b"after"
    assert path.with_name("web.log.1").read_bytes() == b"x" * 101


# Servers


@pytest.mark.acceptance
def test_isolated_servers_are_durable_and_gone_afterwards_twice_in_a_row() -> None:
    directories = set()
    for _ in range(2):
        done = run("isolated", "--", "python", "-c", SHOW)
        assert done.returncode == 0, done.stderr
        *settings, data = done.stdout.split()
        assert settings == ["on", "on", "on", "off", "UTC", "127.0.0.1"]
        stack = Path(data).parent
        assert not stack.exists()
        assert not processes_of(stack)
        directories.add(stack)
    assert len(directories) == 2


@pytest.mark.acceptance
@pytest.mark.parametrize(("command", "code"), [(("sh", "-c", "exit 7"), 7), (("sh", "-c", "kill -9 $$"), 137)])
def test_the_exit_code_of_the_command_is_passed_on(command: tuple[str, ...], code: int) -> None:
    assert run("isolated", "--", *command).returncode == code


@pytest.mark.acceptance
def test_a_command_that_does_not_exist_ends_like_in_a_shell() -> None:
    done = run("isolated", "--", "no-such-command")
    assert (done.returncode, "no-such-command" in done.stderr) == (127, True)


@pytest.mark.acceptance
def test_what_the_command_leaves_behind_is_ended(stack_directory: Path) -> None:
    done = run("isolated", "--", "sh", "-c", f"setsid sleep 1000 {stack_directory} & echo started")
    assert done.stdout.split() == ["started"]
    assert not processes_of(stack_directory)


@pytest.mark.acceptance
def test_a_killed_supervisor_leaves_nothing_and_the_next_start_finds_its_data(
    stack_directory: Path, start: Start
) -> None:
    first = start("--", "sleep", "1000")
    wait_for_note(first, stack_directory)
    with psycopg.connect(str(note_of(stack_directory)["DATABASE_URL"])) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    program = os.readlink(f"/proc/{pid_of(stack_directory, 'postgres')}/exe")
    assert any(Path(program).is_relative_to(place) for place in (Path(sys.prefix), stack_directory)), program
    assert len(processes_of(stack_directory)) >= 3

    first.kill()
    first.communicate()
    # At once: the second start meets servers that are still ending.
    read = "import os, psycopg; print(psycopg.connect(os.environ['DATABASE_URL']).execute('TABLE kept').fetchone()[0])"
    again = run("--", "python", "-c", read, stack=stack_directory)
    assert (again.returncode, again.stdout.strip()) == (0, "42"), again.stderr
    wait_until(lambda: not processes_of(stack_directory), seconds=5)


@pytest.mark.acceptance
def test_a_killed_supervisor_takes_its_processes_with_it(stack_directory: Path, start: Start) -> None:
    first = start("--", "sleep", "1000")
    wait_for_note(first, stack_directory)
    first.kill()
    first.communicate()
    wait_until(lambda: not processes_of(stack_directory), seconds=5)


@pytest.mark.acceptance
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_everything(stack_directory: Path, start: Start, number: signal.Signals) -> None:
    running = start("--", "sleep", "1000")
    wait_for_note(running, stack_directory)
    running.send_signal(number)
    running.communicate(timeout=30)
    # The code of the command: Ctrl-C reaches it as it is, the others end it with SIGTERM.
    assert running.returncode == 128 + (signal.SIGINT if number is signal.SIGINT else signal.SIGTERM)
    assert not processes_of(stack_directory)
    assert not (stack_directory / "stack.json").exists()


@pytest.mark.acceptance
def test_a_command_joins_the_running_stack_and_may_outlive_its_owner(stack_directory: Path, start: Start) -> None:
    owner = start("--", "sh", "-c", "read line")
    wait_for_note(owner, stack_directory)
    url = str(note_of(stack_directory)["DATABASE_URL"])
    joined = start("--", "sh", "-c", "echo $DATABASE_URL; exec sleep 2")
    assert joined.stdout is not None
    assert joined.stdout.readline().strip() == url
    # The joined command still holds the servers when the owner's own command is over.
    owner.communicate("\n", timeout=30)
    assert joined.wait(timeout=0.5) == 0
    assert not processes_of(stack_directory)


@pytest.mark.acceptance
def test_a_dead_server_comes_back_on_its_port(stack_directory: Path, start: Start) -> None:
    running = start("--", "sleep", "1000")
    wait_for_note(running, stack_directory)
    url = str(note_of(stack_directory)["DATABASE_URL"])
    os.kill(pid_of(stack_directory, "postgres"), signal.SIGKILL)
    os.kill(pid_of(stack_directory, "valkey"), signal.SIGKILL)

    def answers() -> bool:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=2) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
        return False

    wait_until(answers, seconds=20)
    running.terminate()
    running.communicate(timeout=30)
    assert not processes_of(stack_directory)


# The application on top


@pytest.mark.acceptance
def test_up_says_when_it_serves_and_leaves_nothing(stack_directory: Path, start: Start) -> None:
    for _ in range(2):
        running = start("up")
        assert running.stdout is not None
        words = dict(word.split("=", 1) for word in running.stdout.readline().split()[1:])
        kept = json.loads((stack_directory / "credentials.json").read_text())
        assert (words["password"], words["api_key"]) == (kept["password"], kept["api_key"])
        os.kill(pid_of(stack_directory, "web"), signal.SIGKILL)
        wait_until(partial(serves, words["url"]), seconds=20)
        running.terminate()
        running.communicate(timeout=60)
        assert running.returncode == 0
        assert not processes_of(stack_directory)


def serves(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        return b" 200 " in connection.recv(100)
    return False


@pytest.mark.django_db
def test_the_administrator_and_the_key_stay_the_same_and_are_reset_when_they_no_longer_fit(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"

    def ensured() -> dict[str, str]:
        out = StringIO()
        call_command("ensure_admin", credentials=path, stdout=out)
        found: dict[str, str] = json.loads(path.read_text())
        assert not any(found[secret] in out.getvalue() for secret in ("password", "api_key"))
        return found

    first = ensured()
    assert path.stat().st_mode & 0o777 == 0o600
    user = get_user_model().objects.get(username="admin")
    user.set_password("changed by hand, long enough")
    user.save()
    assert ensured() == first
    assert authenticate(username="admin", password=first["password"]) is not None

    ApiKey.objects.all().delete()
    again = ensured()
    assert again["password"] == first["password"]
    assert again["api_key"] != first["api_key"]
