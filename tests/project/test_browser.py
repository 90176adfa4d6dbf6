"""Tests of the browser fixture: page errors fail a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser

from tests.support.browser import PHONE, Visit, _watch

PAGES = {
    "/good": "<title>good</title><link rel=icon href=data:,><p id=wide></p><script src=/wide.js></script>",
    "/inline": "<title>x</title><link rel=icon href=data:,><script>document.title = 'ran'</script>",
    "/errs": "<title>x</title><link rel=icon href=data:,><script src=/err.js></script>",
    "/strays": "<title>x</title><link rel=icon href=data:,><img src=http://elsewhere.invalid/x.png>",
    "/wide.js": "document.getElementById('wide').textContent = innerWidth",
    "/err.js": "nowhere()",
}


class Site(BaseHTTPRequestHandler):
    """Pages whose policy forbids inline scripts."""

    def do_GET(self) -> None:
        body = PAGES[self.path].encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript" if self.path.endswith(".js") else "text/html")
        self.send_header("Content-Security-Policy", "default-src 'self'; img-src * data:")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_page_has_the_requested_width(visit: Visit, site: str) -> None:
    assert str(PHONE[0]) == visit(f"{site}/good", viewport=PHONE).locator("#wide").text_content()


@pytest.mark.parametrize(
    ("path", "message"), [("/inline", "Content Security Policy"), ("/errs", "nowhere is not defined"), ("/strays", "another host")]
)
def test_page_errors_fail_a_test(browser: Browser, site: str, path: str, message: str) -> None:
    errors: list[str] = []
    page = browser.new_page()
    _watch(page, errors, host=site.removeprefix("http://"), forgives=())
    page.goto(site + path)
    page.close()

    assert any(message in error for error in errors), errors
