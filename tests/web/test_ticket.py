"""Waiting, the point of it all: why and until when, an API that goes and comes, a model that really writes, and what is read aloud."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from deploy.local import probe
from deploy.local.server_process import die_with_parent, free_port, last_lines
from models.access.audit_log import Act
from models.database import db
from models.keys import keys, limits
from models.keys.keys import Limits
from models.ops import limits_and_caps
from tests.clients.conftest import World, serving
from tests.support.browser import DESK, PHONE, Visit
from tests.support.programs.process import until
from tests.support.queue_tools import query
from tests.web.conftest import PATIENCE_MS, Chat, enter
from tests.web.words import WORDS

ARABIC = "مرحبا بالعالم، هذا نص طويل من اليمين إلى اليسار"


def credentials(session: db.Transaction, chat: Chat) -> list[int]:
    """What serves the key behind this chat."""
    pool = keys.authenticate(session, chat.key).pool_id
    return limits.active_credentials(session, [pool])[pool]


def allow(chat: Chat, **limits: int) -> None:
    """The key behind this chat may do so much, from its first question on."""
    with db.begin() as session:
        for number in credentials(session, chat):
            keys.set_limits(session, number, Limits(**limits))


def reserved(words: str) -> int:
    """The tokens that the last job with these words reserved."""
    (found,) = query("SELECT tokens FROM job WHERE convert_from(request, 'UTF8') LIKE :like ORDER BY id DESC LIMIT 1", like=f"%{words}%")
    return int(found.tokens)


@pytest.mark.parametrize(("language", "size"), [("en", DESK), ("zh", PHONE)])
def test_ticket_names_the_blocking_limit_and_its_time(visit: Visit, world: World, language: str, size: tuple[int, int]) -> None:
    words = WORDS[language]
    chat = enter(visit, world, language=language, viewport=size)
    allow(chat, rpm=1)
    chat.make("Tea")
    chat.ask("the first of this minute")
    chat.say("the second")

    expect(chat.tickets()).to_contain_text(words.in_line, timeout=PATIENCE_MS)
    expect(chat.tickets().locator(".hint")).to_have_text(re.compile(words.rpm), timeout=PATIENCE_MS)
    chat.shot(f"{language}-10-why")


def test_ticket_names_the_tokens_per_minute_limit(visit: Visit, world: World, chat: Chat) -> None:
    chat.make("Tea")
    chat.ask("so many tokens")
    other = enter(visit, world)
    allow(other, tpm=reserved("so many tokens") * 3 // 2)
    other.make("Tea")
    other.ask("so many tokens")
    other.make("Coffee")
    other.say("so many tokens")

    expect(other.tickets().locator(".hint")).to_have_text(
        re.compile(r"the key's tokens per minute, free at \d\d:\d\d:\d\d"), timeout=PATIENCE_MS
    )


def test_a_server_that_restarts_keeps_the_ticket(visit: Visit, world: World, tmp_path: Path) -> None:
    port, env = free_port(), world.stack.environment()
    with serving(tmp_path / "before.log", port=port, **env) as api:
        before = World(world.stack, api, api)
        chat = enter(visit, before, forgives=("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_INCOMPLETE", "ERR_EMPTY_RESPONSE"))
        chat.make("Tea")
        chat.say(f"[[fake:hold]] through a restart {chat.key}")
        world.upstream.wait_for_held(1)
        expect(chat.tickets()).to_have_count(1)
    with serving(tmp_path / "after.log", port=port, **env):
        world.upstream.release()
        expect(chat.answers()).to_have_count(1, timeout=2 * PATIENCE_MS)
        chat.page.close()  # before its server goes

    assert 1 == len(world.calls(f"through a restart {chat.key}"))


def test_reading_aloud_can_be_stopped(chat: Chat) -> None:
    chat.page.evaluate("""() => {
        window.said = [];
        window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text; } };
        const voice = { speak: (one) => window.said.push([one.text, one.lang]), cancel: () => window.said.push("quiet") };
        Object.defineProperty(window, "speechSynthesis", { value: voice, configurable: true });
    }""")
    chat.make("Tea")
    chat.ask("read this")
    row = chat.page.locator(".message.theirs").last
    row.hover()
    row.get_by_role("button", name="Read aloud").click()
    row.get_by_role("button", name="Stop reading").click()

    assert ["quiet", ["echo: read this", "en"], "quiet"] == chat.page.evaluate("window.said")


def test_right_to_left_text_is_aligned_right(chat: Chat) -> None:
    chat.make("Tea")
    chat.ask(ARABIC)
    assert "rtl" == chat.mine().last.evaluate("one => getComputedStyle(one).direction")

    line = chat.ask(f"A first line from left to right that is much longer than the second\n\n{ARABIC}").get_by_text(ARABIC)
    left, right = line.evaluate("""one => {
        const words = document.createRange();
        words.selectNodeContents(one);
        const [inside, around] = [words.getBoundingClientRect(), one.getBoundingClientRect()];
        return [inside.left - around.left, around.right - inside.right];
    }""")
    chat.shot("en-desk-11-rtl")
    assert (True, True) == (left > 20, right < 2)


def test_a_small_model_on_this_machine_writes_and_draws(visit: Visit, world: World, tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "model.log").open("wb") as log:
        model = subprocess.Popen(
            [sys.executable, "-m", "deploy.local_model", "--port", str(port)], stdout=log, stderr=log, preexec_fn=die_with_parent
        )
    try:
        until(lambda: probe.http_ok("/v1/models", port=port), what=f"the model: {last_lines(tmp_path / 'model.log')}", within_s=120)
        chat = enter(visit, world)
        with db.begin() as session:
            for number in credentials(session, chat):
                limits_and_caps.change_credential(session, Act(), number, base_url=f"http://127.0.0.1:{port}/v1")
        chat.page.reload()
        expect(chat.page.locator(".cards")).to_be_attached()
        chat.make("Geographer", prompt="Answer in one short sentence.", temperature="0")
        expect(chat.ask("What is the capital of France?")).to_contain_text("Paris")
        chat.shot("en-desk-12-local-model")
    finally:
        model.terminate()
        model.wait()
