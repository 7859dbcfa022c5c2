"""The process table: what `up` and `demo` run beside the servers.

Not here: how processes are supervised. A new process is one entry; a new preparing command is one more.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jobsboard.local.layout import CHECKOUT, Layout, Secrets
from jobsboard.local.ports import LOOPBACK
from jobsboard.local.supervise import TERMINATE, ProcessSpec

MANAGE = (sys.executable, "manage.py")
#: Pool processes for each tier: the more urgent, the more room. Sized for a laptop.
POOL_SIZES = {"tier1": 4, "tier2": 3, "tier3": 2}
#: Servers have the stages 0 and 1 (postgres.py, valkey.py).
BEFORE_WORKERS, APPLICATION, AFTER_ALL = 2, 3, 4
QUICKLY = ((signal.SIGTERM, 5.0),)


class DemoPorts(NamedTuple):
    """Where the demo's CRM and its pager listen: descriptors of sockets, or port numbers."""

    crm: int
    pager: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the process table."""

    name: str
    argv: tuple[str, ...]
    stage: int = APPLICATION
    ready_words: str = ""
    stop: tuple[tuple[signal.Signals, float], ...] = TERMINATE
    pass_fds: tuple[int, ...] = ()

    def spec(self, *, stack: Layout, env: Mapping[str, str]) -> ProcessSpec:
        """Describe the process in this stack."""
        return ProcessSpec(
            name=self.name,
            argv=self.argv,
            env=env,
            cwd=CHECKOUT,
            log=stack.logs / f"{self.name}.log",
            stage=self.stage,
            stop=self.stop,
            pass_fds=self.pass_fds,
            ready_words=self.ready_words,
        )


def demo_environment(env: Mapping[str, str], secrets: Secrets, *, stack: Layout) -> dict[str, str]:
    """Say what the processes of a demo know beside the others: its handlers, directory, CRM and pager."""
    allowed = [one for one in env.get("OUTBOUND_ALLOWED_CIDRS", "").split(",") if one.strip()]
    return {
        "JOBSBOARD_HANDLERS": "jobsboard.demo.handlers",
        "JOBSBOARD_DEMO_DIR": str(stack.demo),
        "CRM_SECRET": secrets.crm_secret,
        "CRM_CALLBACK_SECRET": secrets.crm_callback_secret,
        "PAGER_SECRET": secrets.pager_secret,
        # CRM and pager are on this machine; without these, such targets are refused.
        "OUTBOUND_ALLOWED_CIDRS": ",".join(dict.fromkeys([*allowed, "127.0.0.1/32"])),
        "WEBHOOK_ALLOW_HTTP": "1",
        "WEBHOOK_ALLOWED_PORTS": "*",
    }


def preparations(*, credentials: Path, demo: DemoPorts | None) -> list[tuple[str, ...]]:
    """List the commands that run to their end, in order, before any process starts; ports make it a demo."""
    commands: list[tuple[str, ...]] = [
        (*MANAGE, "migrate", "--no-input", "--verbosity", "1"),
        (*MANAGE, "ensure_admin", "--credentials", str(credentials)),
    ]
    if demo is not None:
        commands.append((*MANAGE, "demo_contracts", "--crm-url", f"http://{LOOPBACK}:{demo.crm}/contacts"))
        commands.append((*MANAGE, "demo_endpoint", "--url", f"http://{LOOPBACK}:{demo.pager}/alerts"))
    return commands


def table(*, web_socket: int, demo: DemoPorts | None, traffic: bool) -> list[Entry]:
    """List the processes; the sockets are listening descriptors that web and the demo's servers inherit."""
    entries = [_web(web_socket), Entry(name="scheduler", argv=(*MANAGE, "scheduler"))]
    entries += [_worker(tier, size) for tier, size in POOL_SIZES.items()]
    if demo is not None:
        entries += [
            Entry(name="mail-server", argv=(*MANAGE, "demo_mail_server"), stage=BEFORE_WORKERS, stop=QUICKLY),
            Entry(
                name="crm",
                argv=(*MANAGE, "demo_crm", "--fd", str(demo.crm)),
                stage=BEFORE_WORKERS,
                stop=QUICKLY,
                pass_fds=(demo.crm,),
            ),
            Entry(
                name="pager",
                argv=(*MANAGE, "demo_pager", "--fd", str(demo.pager)),
                stage=BEFORE_WORKERS,
                stop=QUICKLY,
                pass_fds=(demo.pager,),
            ),
        ]
    if demo is not None and traffic:
        entries.append(Entry(name="traffic", argv=(*MANAGE, "demo_traffic"), stage=AFTER_ALL, stop=QUICKLY))
    return sorted(entries, key=lambda entry: entry.stage)


def _web(web_socket: int) -> Entry:
    argv = [sys.executable, "-m", "gunicorn", "jobsboard.wsgi", "--bind", f"fd://{web_socket}", "--workers", "2"]
    argv += ["--threads", "4", "--timeout", "30", "--graceful-timeout", "10", "--no-control-socket"]
    return Entry(name="web", argv=tuple(argv), pass_fds=(web_socket,))


def _worker(tier: str, size: int) -> Entry:
    argv = [sys.executable, "-m", "celery", "-A", "jobsboard", "worker", "-Q", tier, "-n", f"{tier}@%h"]
    argv += ["-c", str(size), "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "info"]
    return Entry(name=f"worker-{tier}", argv=tuple(argv), ready_words=" ready.")
