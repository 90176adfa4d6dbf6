"""A real browser for tests. A page fails its test by a console error, a violation of its Content-Security-Policy or a request to
another host."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

DESK, PHONE = (1280, 800), (390, 844)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
Visit = Callable[..., Page]
# The default timeouts of Playwright, 5 s for expectations and 30 s for clicks, are too short on a loaded machine.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


def find() -> str | None:
    """The path of the machine's own Chromium. The browsers that Playwright downloads are not used."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


# Scope module, not session: while it is open, Playwright runs an event loop in this thread, in which asyncio.run() would fail.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, started once for each test module. Skips the tests when it is not installed (apt-get install chromium)."""
    path = find()
    if path is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """visit(url): a page in a new browser context. At the end of the test it checks that no page had an error.

    viewport: DESK or PHONE. forgives: words of console errors that the test means to cause ("401"). login: (user, password).
    """
    troubles: list[str] = []
    opened = []

    def go(url: str, *, viewport: tuple[int, int] = DESK, forgives: tuple[str, ...] = (), login: tuple[str, str] | None = None) -> Page:
        context = browser.new_context(
            viewport={"width": viewport[0], "height": viewport[1]},
            http_credentials={"username": login[0], "password": login[1]} if login else None,
        )
        context.set_default_timeout(PATIENCE_MS)
        opened.append(context)
        page = context.new_page()
        _watch(page, troubles, host=urlsplit(url).netloc, forgives=forgives)
        page.goto(url)
        return page

    yield go
    for context in opened:
        context.close()
    assert [] == troubles, troubles


def picture(page: Page, path: Path) -> None:
    """Writes a PNG of the whole page."""
    page.screenshot(path=path, full_page=True)


def _watch(page: Page, troubles: list[str], *, host: str, forgives: tuple[str, ...]) -> None:
    def heard(message: ConsoleMessage) -> None:
        # Chromium also reports violations of a Content-Security-Policy here.
        if message.type == "error" and not any(words in message.text for words in forgives):
            troubles.append(f"console: {message.text}")

    def asked(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob", "about") and address.netloc != host:
            troubles.append(f"asked another host: {request.url}")

    page.on("console", heard)
    page.on("pageerror", lambda error: troubles.append(f"uncaught: {error}"))
    page.on("request", asked)
