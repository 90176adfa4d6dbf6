"""Properties of the page besides chat: load size, safe rendering, speed, keyboard use, path prefixes, and no leaks."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import monotonic

import pytest
from playwright.sync_api import Browser, expect

from tests.clients.conftest import System, serving
from tests.clients.conftest import chat as ask_for
from tests.clients.raw import Raw
from tests.support.browser import PATIENCE_MS, Visit
from tests.support.time_limits import least
from tests.web.conftest import Chat
from tests.web.measures import memory_use, serious_violations

MAX_FIRST_LOAD = 250_000
HOSTILE = """[[fake:chunk_delay=0.01]] <script>window.pwned = 1</script> <img src=x onerror="window.pwned = 2">
[click](javascript:window.pwned=3) [data](data:text/html,<script>window.pwned=4</script>) ![far](https://elsewhere.example/x.png)
<a href="javascript:window.pwned=5" onclick="window.pwned=6">here</a> <svg onload="window.pwned=7"> <iframe srcdoc="<script>1</script>">

```html"><img src=x onerror=window.pwned=8>
<script>window.pwned = 9</script>
```

مرحبا بالعالم \u202e txt.exe https://good.example/page"""


def test_first_load_is_small_and_shifts_no_layout(browser: Browser, system: System) -> None:
    context = browser.new_context()
    page, loaded = context.new_page(), []
    cdp = context.new_cdp_session(page)
    cdp.send("Network.enable")
    cdp.on("Network.loadingFinished", lambda event: loaded.append(event["encodedDataLength"]))
    page.goto(f"http://127.0.0.1:{system.api.port}/", wait_until="networkidle")
    measured = page.evaluate("""() => new Promise(done => {
        const measured = { shift: 0, shown_ms: performance.getEntriesByName("first-contentful-paint")[0]?.startTime };
        new PerformanceObserver(list => { for (const entry of list.getEntries()) measured.shift += entry.value; })
            .observe({ type: "layout-shift", buffered: true });
        setTimeout(() => done({ ...measured, load_ms: performance.getEntriesByType("navigation")[0].loadEventEnd }), 300);
    })""")
    context.close()

    print(f"first load: {sum(loaded) / 1000:.0f} kB on the wire, {measured}")
    assert 50_000 < sum(loaded) < MAX_FIRST_LOAD
    assert measured["shift"] < 0.1


def test_page_follows_the_browsers_language_and_theme(browser: Browser, system: System) -> None:
    context = browser.new_context(locale="zh-CN", color_scheme="dark")
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{system.api.port}/")
    expect(page.get_by_text("请先填写密钥。")).to_be_visible()
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    violations = serious_violations(page)
    context.close()

    assert ("rgb(39, 42, 55)", []) == (colour, violations)


def test_hostile_answer_is_shown_and_runs_no_script(chat: Chat) -> None:
    chat.make("Tea")
    answer = chat.ask(HOSTILE)
    expect(answer.locator("code")).to_be_visible()
    chat.shot("en-desk-9-hostile")
    links = answer.locator("a").evaluate_all("all => all.map(link => [link.protocol, link.rel])")

    assert {("https:", "noopener noreferrer nofollow")} == {tuple(link) for link in links}
    assert 0 == answer.locator("script, img, svg, iframe, [onclick], [onerror], [onload], [style]").count()
    assert "<script>window.pwned = 1</script>" in answer.inner_text()
    assert chat.page.evaluate("window.pwned") is None


def test_typing_stays_fast_while_10000_lines_arrive(chat: Chat, system: System) -> None:
    chat.make("Tea")
    # Submitted through the API: Playwright would type for minutes. The page shows the turn after a reload.
    long = "[[fake:chunk_delay=0.1]]\n" + "\n".join(f"- line **{n}** of a long answer" for n in range(10_000))
    talk = chat.page.evaluate("JSON.parse(localStorage['nowserving.chosen'])")
    order = {"endpoint": "/v1/chat/completions", "conversation": talk, "body": {**ask_for(long), "stream": True}}
    with Raw(system.api.port, "/v1/jobs", order, chat.key) as response:
        assert 202 == response.head().status
    chat.page.reload()
    expect(chat.page.locator(".ticket .markdown")).to_be_visible(timeout=PATIENCE_MS)
    chat.page.evaluate("""() => {
        window.late = [];
        document.querySelector(".composer textarea").addEventListener("keydown", event => {
            const pressed = event.timeStamp;
            requestAnimationFrame(() => window.late.push(performance.now() - pressed));
        });
    }""")
    box = chat.page.locator(".composer textarea")

    def median_ms() -> float:
        chat.page.evaluate("window.late = []")
        box.fill("")
        box.press_sequentially("typing on and on and on", delay=60)
        assert "typing on and on and on" == box.input_value()
        late = sorted(chat.page.evaluate("window.late"))
        print(f"a key is drawn after {late[len(late) // 2]:.0f} ms (half of them), {late[-1]:.0f} ms (the slowest)")
        return float(late[len(late) // 2])

    assert least(median_ms, below=250) < 250
    expect(chat.answers()).to_have_count(1, timeout=2 * PATIENCE_MS)
    expect(chat.answers().get_by_text("line 9999 of a long answer")).to_be_attached()


def test_page_is_usable_by_keyboard_alone(chat: Chat) -> None:
    page = chat.page

    def to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent") == name:
                return
        raise AssertionError(f"Tab does not lead to {name}")

    to("New assistant")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_label("Name", exact=True).focus()
    page.keyboard.type("Tea")
    page.keyboard.press("Enter")
    expect(page.locator(".talk-head h2")).to_have_text("Tea")
    to("Write to Tea")
    page.keyboard.type("by hand")
    page.keyboard.press("Enter")
    expect(chat.answers()).to_have_count(1, timeout=PATIENCE_MS)
    to("What to do with Tea")
    page.keyboard.press("Enter")
    expect(page.get_by_role("menu")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("menu")).to_have_count(0)


def test_exported_conversation_can_be_imported_and_continued(chat: Chat) -> None:
    chat.make("Tea", prompt="You know tea.")
    chat.ask("my name is Green")
    chat.button("Settings").click()
    with chat.page.expect_download() as caught:
        chat.button("Export as JSON").click()
    content = caught.value.path().read_bytes()
    conversations = json.loads(content)["conversations"]
    assert [("Tea", "You know tea.", 2)] == [(item["title"], item["system_prompt"], len(item["messages"])) for item in conversations]

    chat.page.get_by_label("Import").set_input_files({"name": "a.json", "mimeType": "application/json", "buffer": content})
    expect(chat.page.locator(".card-name")).to_have_text(["Tea", "Tea"])
    expect(chat.page.get_by_text("Imported. The first question")).to_be_visible()
    chat.say("who am I?")
    expect(chat.page.get_by_text("echo: who am I?")).not_to_have_count(0, timeout=PATIENCE_MS)
    assert ["assistant", "echo: my name is Green"] in chat.system.calls("who am I?")[-1].before


def test_key_is_kept_per_tab_and_theme_per_browser(chat: Chat) -> None:
    chat.make("Tea")
    chat.button("Settings").click()
    chat.page.get_by_label("Theme").select_option("dark")
    expect(chat.page.locator(".money dl")).to_be_visible()
    assert [] == serious_violations(chat.page)
    chat.shot("en-desk-a-dark")

    assert "rgb(39, 42, 55)" == chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert chat.key not in chat.page.evaluate("JSON.stringify(localStorage) + document.cookie") + chat.page.url
    assert chat.key in chat.page.evaluate("JSON.stringify(sessionStorage)")
    assert chat.key not in chat.system.api.log.read_text()


def test_page_works_under_a_path_prefix(visit: Visit, system: System) -> None:
    with prefixed(system.api.port, "/queue") as port:
        page = visit(f"http://127.0.0.1:{port}/queue/")
        page.locator("#door-key").fill("sk-prefixed")
        page.locator("button.main").click()
        chat = Chat(page, "sk-prefixed", system)
        chat.make("Tea")
        chat.ask("under a prefix")
        page.close()  # before its server stops


def test_page_key_replaces_the_visitors_key(visit: Visit, system: System, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("shared")
    with serving(folder / "api.log", **system.stack.environment(), NOWSERVING_PAGE_KEY="sk-shared-by-all") as api:
        page = visit(f"http://127.0.0.1:{api.port}/")
        expect(page.locator(".cards")).to_be_visible()
        chat = Chat(page, "sk-shared-by-all", system)
        chat.make("Tea")
        chat.ask("a shared key")
        assert chat.key not in page.content() + page.evaluate("JSON.stringify(localStorage) + JSON.stringify(sessionStorage)")
        page.reload()
        expect(page.locator(".card-name")).to_have_text(["Tea"])
        other = visit(f"http://127.0.0.1:{api.port}/")
        expect(other.get_by_text("Nobody here yet.")).to_be_visible()
        for opened in (page, other):
            opened.close()  # before its server stops


def test_hundred_answers_leak_no_memory(chat: Chat) -> None:
    chat.page.clock.install()
    chat.page.reload()
    expect(chat.page.locator(".cards")).to_be_visible()
    cdp = chat.page.context.new_cdp_session(chat.page)
    cdp.send("Performance.enable")
    chat.make("Quiet")
    chat.make("Tea")
    asked = 0

    def ask_until(count: int) -> dict[str, float]:
        nonlocal asked
        chat.page.locator(".card-face", has_text="Tea").click()
        while asked < count:
            for _ in range(10):
                chat.say(f"number {asked}")
                asked += 1
            began = monotonic()
            # Simulated minutes pass while the answers arrive.
            while chat.tickets().count() or chat.page.locator(".composer + .hint").count():
                chat.page.clock.run_for(5_000)
                assert monotonic() - began < 120
            expect(chat.answers().get_by_text(f"echo: number {asked - 1}", exact=True)).to_be_attached(timeout=PATIENCE_MS)
            chat.page.clock.fast_forward("06:00")
        chat.page.locator(".card-face", has_text="Quiet").click()
        expect(chat.page.locator(".message")).to_have_count(0)
        return memory_use(cdp)

    before, after = ask_until(20), ask_until(100)

    print(f"kept after 20 turns {before}, after 100 {after}")
    assert after["JSEventListeners"] <= before["JSEventListeners"] + 20
    assert after["Nodes"] <= before["Nodes"] + 300
    assert after["JSHeapUsedSize"] <= before["JSHeapUsedSize"] + 4_000_000


@contextmanager
def prefixed(port: int, prefix: str) -> Iterator[int]:
    """A proxy that serves this port under a path prefix and nothing else; yields its port."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            upstream.request(self.command, self.path.removeprefix(prefix), body or None, dict(self.headers))
            answer = upstream.getresponse()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            while chunk := answer.read1(65_536):
                self.wfile.write(chunk)
                self.wfile.flush()

        do_POST = do_PATCH = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a page that is closed breaks off what it asked
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
