"""The operators' page in a real browser against a real server: sign-in, live tables, actions, phone layout, prefix, keyboard."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from models.access import operators
from models.database import db
from models.jobs import workers
from models.keys import parking
from models.keys.keys import Limits
from tests.api.server.test_api_server import Api, serving
from tests.support.browser import PHONE, Visit, picture
from tests.support.programs.processes import empty_tables
from tests.support.queue_tools import credential_of, known, query, start, store_limits, submit

TOKEN = "ops-token-of-this-page-0123456789"
HOSTILE = "<img src=x onerror=alert(1)>"
TABS = {
    "Flows": "bert",
    "Jobs": "key ",
    "Credentials": "parked: 401: Incorrect API key",
    "Pools": "own:",
    "Keys": "own · ",
    "Workers": "1 of 64",
    "Lanes": "gpt-4o-mini",
}


@pytest.fixture(scope="module")
def api(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    empty_tables()
    with serving(tmp_path_factory.mktemp("ops") / "api.log", NOWSERVING_OPS_TOKEN=TOKEN) as started:
        yield started


@pytest.fixture(autouse=True)
def scene(api: Api) -> None:
    """Lanes with jobs that wait and run, a parked credential, a user with a hostile name, a worker."""
    empty_tables()
    who = known("sk-scene")
    with db.begin() as session:
        store_limits(session, credential_of(session, who), Limits(rpm=10, tpm=5_000, max_in_flight=4))
    runs = submit(who, model="gpt-4o-mini", flow="anna")
    start(who, runs)
    for n in range(12):
        submit(who, model="gpt-4o-mini", flow=("anna", "bert", HOSTILE)[n % 3])
    query("UPDATE lane SET queued = 12, blocked_by = 'rpm', wake_at = now() + interval '20 s', rpm = 10")
    other = known("sk-parked")
    submit(other, model="gpt-image-1")
    with db.begin() as session:
        parking.park(session, credential_of(session, other), reason="401: Incorrect API key", error=None)
        workers.record_heartbeat(session, "worker0@here", slots=64, jobs=[runs])


def url(api: Api, hash_: str = "") -> str:
    return f"http://127.0.0.1:{api.port}/ops/{hash_}"


def signed_in(visit: Visit, address: str, *, token: str = TOKEN, **more: Any) -> Page:
    page = visit(address, **more)
    page.get_by_label("Operator token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.locator("tbody tr").first.wait_for()
    return page


def turn_to(page: Page, tab: str, words: str) -> None:
    """Waits until the table shows these words."""
    page.get_by_role("link", name=tab, exact=True).click()
    expect(page.locator("caption")).to_have_text(tab)
    expect(page.locator("tbody")).to_contain_text(words)


def test_lanes_are_shown_after_sign_in(api: Api, visit: Visit, tmp_path: Path) -> None:
    page = signed_in(visit, url(api))
    lane = page.locator("tbody tr", has_text="gpt-4o-mini")
    picture(page, tmp_path / "lanes.png")

    expect(lane).to_contain_text("12")
    expect(lane).to_contain_text("9 of 10 req/min left")
    expect(lane).to_contain_text(re.compile("rpm, .* more"))


def test_wrong_token_shows_error_and_is_not_stored(api: Api, visit: Visit) -> None:
    page = visit(url(api), forgives=("401",))
    page.get_by_label("Operator token").fill("ns-wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").get_by_text(re.compile("token", re.I)).wait_for()

    assert {} == page.evaluate("({...sessionStorage, ...localStorage})")


def test_token_stays_in_tab_and_out_of_urls(api: Api, visit: Visit) -> None:
    page = signed_in(visit, url(api))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.locator("tbody tr").first.wait_for()
    page.get_by_role("link", name="Jobs").click()
    page.locator("tbody tr", has_text="job_").first.wait_for()

    assert asked
    assert not any(TOKEN in one for one in [page.url, *asked])
    assert TOKEN not in api.log.read_text()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Operator token")).to_be_visible()
    assert {} == page.evaluate("({...sessionStorage, ...localStorage})")


def test_table_updates_itself(api: Api, visit: Visit) -> None:
    page = signed_in(visit, url(api))
    query("UPDATE lane SET paused_at = now(), paused_reason = 'lunch' WHERE model = 'gpt-4o-mini'")

    expect(page.locator("tbody tr", has_text="gpt-4o-mini")).to_contain_text("paused: lunch")


def test_hidden_tab_sends_no_requests(api: Api, visit: Visit) -> None:
    page = signed_in(visit, url(api))
    page.evaluate("""() => {
        Object.defineProperty(document, 'hidden', {value: true, configurable: true});
        document.dispatchEvent(new Event('visibilitychange'));
    }""")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3_000)
    hidden = list(asked)
    page.evaluate("() => { delete document.hidden; document.dispatchEvent(new Event('visibilitychange')); }")
    with page.expect_request(re.compile("/ops/lanes")):
        pass

    assert [] == hidden


def test_each_tab_shows_its_list(api: Api, visit: Visit, tmp_path: Path) -> None:
    page = signed_in(visit, url(api))
    for tab, words in TABS.items():
        turn_to(page, tab, words)

        expect(page.get_by_role("link", name=tab, exact=True)).to_have_attribute("aria-current", "page")
        picture(page, tmp_path / f"{tab}.png")


def test_user_names_are_never_rendered_as_html(api: Api, visit: Visit) -> None:
    page = signed_in(visit, url(api))
    page.get_by_role("link", name="Flows").click()

    expect(page.locator("tbody")).to_contain_text(HOSTILE)
    assert 0 == page.locator("tbody img").count()


def test_job_search_is_kept_in_url(api: Api, visit: Visit) -> None:
    page = signed_in(visit, url(api, "#jobs"))
    page.get_by_label("User").fill("bert")
    page.get_by_role("button", name="Find").click()
    expect(page.locator("tbody tr")).to_have_count(4)
    page.get_by_label("Status").select_option("running")

    expect(page.get_by_text("No job fits.")).to_be_visible()
    assert page.url.endswith("#jobs?user=bert&status=running")


def test_phone_layout_needs_no_horizontal_scrolling(api: Api, visit: Visit, tmp_path: Path) -> None:
    query("UPDATE pool SET name = 'own:' || repeat('W', 60) WHERE id = (SELECT max(id) FROM pool)")
    page = signed_in(visit, url(api), viewport=PHONE)
    for tab, words in TABS.items():
        turn_to(page, tab, words)
        picture(page, tmp_path / f"{tab}.png")

        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab


def test_page_is_usable_by_keyboard(api: Api, visit: Visit) -> None:
    page = visit(url(api))
    expect(page.get_by_label("Operator token")).to_be_focused()
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    link = page.locator("tbody a").first
    link.focus()
    with page.expect_response(re.compile("/ops/lanes")):
        pass
    page.wait_for_timeout(100)

    assert page.evaluate("document.activeElement.closest('tbody') !== null")


def test_actions_send_reason_and_show_result(api: Api, visit: Visit, tmp_path: Path) -> None:
    page = signed_in(visit, url(api))
    lane = page.locator("tbody tr", has_text="gpt-4o-mini")
    lane.get_by_role("button", name="pause").click()
    page.get_by_label("reason").fill("lunch")
    picture(page, tmp_path / "action.png")
    page.get_by_role("dialog").get_by_role("button", name="pause").click()
    expect(lane).to_contain_text("paused: lunch")
    picture(page, tmp_path / "paused.png")
    lane.get_by_role("button", name="resume").click()
    page.get_by_role("dialog").get_by_role("button", name="resume").click()
    expect(lane).not_to_contain_text("lunch")

    done = [(one.operator, one.action, one.reason) for one in query("SELECT operator, action, reason FROM audit ORDER BY id")]
    assert [("root", "pause", "lunch"), ("root", "resume", None)] == done
    page.get_by_role("link", name="Log").click()
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.locator("tbody")).to_contain_text("lunch")
    picture(page, tmp_path / "log.png")


def test_page_cancels_and_purges_jobs(api: Api, visit: Visit, tmp_path: Path) -> None:
    page = signed_in(visit, url(api, "#jobs?user=bert"))
    row = page.locator("tbody tr").first
    name = row.locator("code").inner_text()
    row.get_by_role("button", name="cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="cancel").click()
    expect(page.locator("tbody tr", has_text=name)).to_contain_text("cancelled")
    page.get_by_role("button", name="purge many…").click()
    page.get_by_role("dialog").get_by_label("user").fill("bert")
    picture(page, tmp_path / "purge.png")
    page.get_by_role("dialog").get_by_role("button", name="purge").click()
    expect(page.locator("tbody .badge.cancelled")).to_have_count(4)

    assert 4 == query("SELECT count(*) AS n FROM job WHERE status = 'cancelled'")[0].n


def test_read_only_operator_cannot_act(api: Api, visit: Visit) -> None:
    with db.begin() as session:
        token = operators.create(session, "reader", role="read")
    page = signed_in(visit, url(api), token=token, forgives=("403",))
    page.locator("tbody tr", has_text="gpt-4o-mini").get_by_role("button", name="pause").click()
    page.get_by_role("dialog").get_by_role("button", name="pause").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("may write")

    assert 0 == query("SELECT count(*) AS n FROM lane WHERE paused_at IS NOT NULL")[0].n


def test_page_reports_lost_server_and_retries(api: Api, visit: Visit) -> None:
    page = signed_in(visit, url(api), forgives=("ERR_",))
    page.route(re.compile("/ops/lanes"), lambda route: route.abort())
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    expect(page.locator("#state")).to_contain_text("next try")
    page.unroute_all()

    expect(page.locator("#state")).to_contain_text("Live", timeout=15_000)


class Proxy(BaseHTTPRequestHandler):
    """A reverse proxy that has the API below /box/."""

    port = 0

    def do_GET(self) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        upstream.request("GET", self.path.removeprefix("/box"), headers=dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        upstream.close()

    def log_message(self, *_: object) -> None:
        return


def test_page_works_behind_proxy_prefix(api: Api, visit: Visit) -> None:
    handler = type("Boxed", (Proxy,), {"port": api.port})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        page = signed_in(visit, f"http://127.0.0.1:{proxy.server_port}/box/ops")

        assert page.url.endswith("/box/ops/")
        expect(page.locator("tbody")).to_contain_text("gpt-4o-mini")
        page.goto("about:blank")
        proxy.shutdown()


def test_page_policy_allows_only_its_own_files(api: Api) -> None:
    for path in ("/ops/", "/ops/page/ops.js"):
        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        policy = answer.headers["Content-Security-Policy"]

        assert 200 == answer.status
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
    assert 404 == api.call("GET", "/ops/page/..")[0]
    assert 404 == api.call("GET", "/ops/page/secrets.txt")[0]
