"""Where a local stack keeps its files: its directory, its lock, its secrets, and the note by which others join it.

Not here: what runs in it (`stack.py`), and what a crashed run left behind (`leftovers.py`).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobsboard.local import accounts
from jobsboard.local.errors import LocalStackError

CHECKOUT = Path(__file__).resolve().parents[2]
#: A socket's path must fit into sockaddr_un (108 bytes with its end), whatever the checkout is called.
LONGEST_SOCKET_PATH = 107
#: Every process of a stack carries this in its environment, so that a crashed run's processes can be told from others.
MARKER = "JOBSBOARD_STACK"
#: Names another directory for the stack of this checkout: two stacks side by side, and the tests of this package.
OVERRIDE = "JOBSBOARD_STACK_DIR"


@dataclass(frozen=True)
class Secrets:
    """What is drawn once for a stack and kept with it."""

    database_password: str
    broker_password: str
    secret_key: str
    encryption_keys: str
    #: What Jobsboard and the demo's CRM sign their requests with, each its own.
    crm_secret: str
    crm_callback_secret: str
    #: What alerts to the demo's pager are signed with.
    pager_secret: str


@dataclass(frozen=True)
class Layout:
    """The paths of one stack."""

    root: Path

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def sockets(self) -> Path:
        return self.root / "s"

    @property
    def valkey(self) -> Path:
        return self.root / "valkey"

    @property
    def demo(self) -> Path:
        return self.root / "demo"

    @property
    def credentials(self) -> Path:
        return self.root / "credentials.json"

    @property
    def note(self) -> Path:
        return self.root / "stack.json"

    def prepare(self) -> None:
        """Create what is missing below the root."""
        for path in (self.logs, self.sockets, self.valkey):
            path.mkdir(mode=0o700, exist_ok=True)

    def lock(self) -> int | None:
        """Take the stack for this process; None when another process has it.

        The lock lives as long as the descriptor: the kernel lets go of it however the supervisor ends.
        """
        return _flock(self.root / "stack.lock", fcntl.LOCK_EX)

    def lock_users(self, *, exclusive: bool) -> int | None:
        """Hold the running stack for a joined command, or (exclusively) learn that no command uses it any more."""
        return _flock(self.root / "users.lock", fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)

    def read_note(self) -> dict[str, Any] | None:
        """Read how to reach the running stack; None while there is none to join."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return note if isinstance(note, dict) else None

    def write_note(self, note: Mapping[str, Any]) -> None:
        """Publish how to reach the running stack."""
        write_private(self.note, json.dumps(note, indent=2) + "\n")

    def remove_note(self) -> None:
        """Let nobody join from here on."""
        self.note.unlink(missing_ok=True)

    def secrets(self) -> Secrets:
        """Read this stack's secrets, drawing them the first time."""
        path = self.root / "secrets.json"
        kept: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            kept = json.loads(path.read_text(encoding="utf-8"))
        # A stack of an older release has fewer; those that it has must stay: its servers know them.
        drawn = draw_secrets().__dict__
        found = {name: kept.get(name, value) for name, value in drawn.items()}
        if found.keys() - kept.keys():
            write_private(path, json.dumps(found, indent=2) + "\n")
        return Secrets(**found)


def draw_secrets() -> Secrets:
    """Draw new secrets."""
    return Secrets(
        database_password=secrets.token_hex(24),
        broker_password=secrets.token_hex(24),
        secret_key=secrets.token_urlsafe(50),
        # The form of a Fernet key, drawn without importing the library.
        encryption_keys=base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        crm_secret=_webhook_secret(),
        crm_callback_secret=_webhook_secret(),
        pager_secret=_webhook_secret(),
    )


def _webhook_secret() -> str:
    """Draw a secret in the form of Standard Webhooks."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def of_checkout() -> Layout:
    """Find, or make, the directory of this checkout's stack.

    Raises: LocalStackError when no place will do.
    """
    named = os.environ.get(OVERRIDE, "")
    if named:
        path = Path(named).absolute()
        account = accounts.for_postgres()
        if account is not None and not accounts.may_enter(account, path.parent):
            raise LocalStackError(f"{account.name}, which runs PostgreSQL, cannot enter {path.parent} ({OVERRIDE})")
        return _claimed(path)
    digest = hashlib.sha256(os.fsencode(CHECKOUT)).hexdigest()[:8]
    problems = []
    for base in _bases():
        try:
            return _claimed(base / f"jobsboard-{os.geteuid()}-{digest}")
        except LocalStackError as error:
            problems.append(str(error))
    raise LocalStackError("no directory for the local stack: " + "; ".join(problems))


def private_parent() -> tuple[Path, str]:
    """Say where the directories of isolated stacks lie, and how their names begin."""
    problems = []
    for base in _bases():
        if os.access(base, os.W_OK | os.X_OK):
            return base, f"jobsboard-run-{os.geteuid()}-"
        problems.append(str(base))
    raise LocalStackError(f"cannot write to any of {', '.join(problems)}")


@contextlib.contextmanager
def private() -> Iterator[Layout]:
    """Lend a new, locked stack directory, and remove it afterwards."""
    base, prefix = private_parent()
    layout = _claimed(Path(tempfile.mkdtemp(prefix=prefix, dir=base)))
    held = layout.lock()
    try:
        yield layout
    finally:
        remove_tree(layout.root)
        if held is not None:
            os.close(held)


def remove_tree(root: Path) -> None:
    """Remove a stack's directory."""
    shutil.rmtree(root, ignore_errors=True)


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by nobody else at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
    temporary.replace(path)


def _bases() -> list[Path]:
    """List where a stack may lie: on a disk that outlives a reboot first."""
    account = accounts.for_postgres()
    bases = [Path("/var/tmp"), Path(tempfile.gettempdir())]
    return [base for base in bases if base.is_dir() and (account is None or accounts.may_enter(account, base))]


def _claimed(path: Path) -> Layout:
    """Make the directory ours, or refuse it: in a shared parent somebody else may have made it first.

    Raises: LocalStackError.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise LocalStackError(f"{path} belongs to somebody else")
    layout = Layout(root=path)
    longest = len(os.fsencode(layout.sockets / ".s.PGSQL.65535.lock"))
    if longest > LONGEST_SOCKET_PATH:
        raise LocalStackError(f"{path} is too long for a socket below it ({longest} > {LONGEST_SOCKET_PATH} bytes)")
    # Run by root, PostgreSQL's own account has to pass through; it cannot list.
    path.chmod(0o711 if os.geteuid() == 0 else 0o700)
    layout.prepare()
    return layout


def _flock(path: Path, kind: int) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
