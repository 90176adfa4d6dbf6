"""Hostile pages in a real Chromium: one whose name is rebound to this machine, and one that posts to it across origins."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, sync_playwright
from werkzeug.serving import make_server

from api.app import create_app
from tests.support.browser import find
from tests.support.http_tools import CHAT, stored

pytestmark = pytest.mark.usefixtures("database")
EVIL = "evil.example"
# Newer browsers ask their user before a page may call this machine; older ones, and Firefox, do not.
CHECKS = "LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests,PrivateNetworkAccessSendPreflights"
JOB = json.dumps(CHAT)
SUBMIT = f"""url => fetch(url + "/v1/jobs", {{method: "POST", body: {json.dumps(JOB)},
    headers: {{"Content-Type": "application/json", "Authorization": "Bearer sk-any"}}}}).then(answer => answer.status, () => "refused")"""
# A simple request: the browser asks no one before it sends it, and the page cannot read the answer.
SIMPLE = f"""url => fetch(url + "/v1/jobs", {{method: "POST", mode: "no-cors", body: {json.dumps(JOB)}}}).then(() => "sent")"""


@pytest.fixture
def server() -> Iterator[int]:
    """The API on loopback with open keys; its port."""
    made = make_server("127.0.0.1", 0, create_app(), threaded=True)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made.server_port
    made.shutdown()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of Chromium for which every name is this machine, as after a rebinding."""
    if (path := find()) is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    args = ["--no-sandbox", "--disable-dev-shm-usage", f"--host-resolver-rules=MAP {EVIL} 127.0.0.1", f"--disable-features={CHECKS}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=args)
        yield browser.new_page()
        browser.close()


def open_hostile(page: Page, port: int) -> None:
    """The hostile page is open at this port. Its first answer came from the attacker's own server; all others come from ours."""
    page.route(f"http://{EVIL}:{port}/hostile", lambda route: route.fulfill(content_type="text/html", body="<title>hostile</title>"))
    page.goto(f"http://{EVIL}:{port}/hostile")


@pytest.mark.parametrize(("settings", "status", "jobs"), [({}, 421, 0), ({"allowed_hosts": "*"}, 202, 1)])
def test_a_rebound_page_submits_nothing_unless_every_name_is_allowed(
    server: int, page: Page, override: Callable[..., None], settings: dict[str, str], status: int, jobs: int
) -> None:
    override(**settings)
    open_hostile(page, server)

    assert (status, jobs) == (page.evaluate(SUBMIT, ""), stored())


@pytest.mark.parametrize(("settings", "result", "jobs"), [({}, "refused", 0), ({"cors_origins": "*"}, 202, 1)])
def test_a_page_of_another_origin_submits_nothing_unless_its_origin_is_allowed(
    server: int, page: Page, override: Callable[..., None], settings: dict[str, str], result: object, jobs: int
) -> None:
    override(**settings)
    open_hostile(page, server + 1)

    assert (result, jobs) == (page.evaluate(SUBMIT, f"http://127.0.0.1:{server}"), stored())


def test_a_request_without_a_preflight_is_refused_by_its_origin(server: int, page: Page, caplog: pytest.LogCaptureFixture) -> None:
    open_hostile(page, server + 1)
    with caplog.at_level(logging.WARNING, logger="api.server.cors"):
        assert "sent" == page.evaluate(SIMPLE, f"http://127.0.0.1:{server}")

    assert [f"http://{EVIL}:{server + 1}"] == [record.origin for record in caplog.records if hasattr(record, "origin")]
