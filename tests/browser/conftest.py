"""A browser and a server that really commits. Without Chromium these tests are skipped, and the session says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from pytest_django.live_server_helper import LiveServer

from queues import broker
from tests.board.verdicts import Worker, answering

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PASSWORD = "correct horse battery"
VENDOR = Path(__file__).parent / "vendor"

# Playwright's own loop runs in this thread; the tests read the database from it all the same.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"

_MISSING = not Path(CHROMIUM).exists() and shutil.which("chromium") is None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly that nothing was looked at in a browser."""
    if _MISSING:
        terminalreporter.section("BROWSER TESTS NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.line(f"{CHROMIUM} is missing. Install Debian's chromium to run tests/browser.")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start Chromium once."""
    if _MISSING:
        pytest.skip(f"{CHROMIUM} is missing: no page was opened in a browser")
    path = CHROMIUM if Path(CHROMIUM).exists() else shutil.which("chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Let somebody answer when a page asks about a dead letter: there are no workers here, and it waits two seconds."""
    return answering(monkeypatch)


@pytest.fixture
def server(transactional_db: None, monkeypatch: pytest.MonkeyPatch, worker: Worker) -> Iterator[str]:
    """Serve this test's database."""
    monkeypatch.setattr(broker, "ping", lambda: True)
    live = LiveServer("127.0.0.1")
    try:
        yield live.url
    finally:
        live.stop()


@pytest.fixture
def person(transactional_db: None) -> Callable[[str], User]:
    """Return a function that makes a person of a role."""

    def make(role: str, *, username: str = "") -> User:
        user = User.objects.create_user(username or role, password=PASSWORD)
        user.groups.add(Group.objects.get_or_create(name=role)[0])
        return user

    return make


class Visit:
    """One browser window and everything that went wrong in it."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.context, self.base = context, base
        self.page: Page = context.new_page()
        self.errors: list[str] = []
        # A violation of the content security policy is an error in the console.
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, path: str) -> Page:
        """Go to a path and insist that it answers."""
        response = self.page.goto(self.base + path)
        assert response is not None
        assert response.status == 200, path
        return self.page

    def login(self, username: str) -> None:
        """Log in through the form."""
        self.open("/login/")
        self.page.fill("#id_username", username)
        self.page.fill("#id_password", PASSWORD)
        self.page.click("button.primary")
        self.page.wait_for_selector("#region")

    def axe(self) -> list[str]:
        """Return what axe-core finds against WCAG 2.2 A and AA, as rule and element."""
        (source,) = VENDOR.glob("axe-core-*.min.js")
        self.page.evaluate(source.read_text())
        found = self.page.evaluate(
            "axe.run({runOnly: ['wcag2a','wcag2aa','wcag21a','wcag21aa','wcag22aa']}).then(r => r.violations.flatMap("
            "v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 160)} ${n.failureSummary.slice(0, 200)}`)))"
        )
        return [str(one) for one in found]

    def holds_everywhere(self) -> None:
        """Insist that the page holds to WCAG, light and dark, styles nothing by itself and is as narrow as a phone."""
        assert self.axe() == []
        self.page.emulate_media(color_scheme="dark")
        assert self.axe() == []
        assert not self.page.locator("[style]").count()
        self.page.set_viewport_size({"width": 390, "height": 844})
        width = self.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, "no sideways scroll of the page"
        self.page.set_viewport_size({"width": 1440, "height": 900})


@pytest.fixture
def visit(browser: Browser, server: str) -> Iterator[Callable[..., Visit]]:
    """Return a function that opens a window; options are Playwright's for a context."""
    contexts: list[BrowserContext] = []

    def start(**options: object) -> Visit:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})  # type: ignore[arg-type]
        contexts.append(context)
        return Visit(context, server)

    yield start
    for context in contexts:
        context.close()
