"""Waiting on the page: reason and time, a restarting API, a real local model, reading aloud, and right-to-left text."""

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
from tests.clients.conftest import System, serving
from tests.support.browser import DESK, PHONE, Visit
from tests.support.programs.process import until
from tests.support.queue_tools import query, store_limits
from tests.web.conftest import PATIENCE_MS, Chat, enter
from tests.web.words import WORDS

ARABIC = "مرحبا بالعالم، هذا نص طويل من اليمين إلى اليسار"


def credentials(session: db.Transaction, chat: Chat) -> list[int]:
    """The credentials behind this chat's key."""
    pool = keys.authenticate(session, chat.key).pool_id
    return limits.active_credentials(session, [pool])[pool]


def set_limits(chat: Chat, **limits: int) -> None:
    """Set limits of this chat's key before its first question."""
    with db.begin() as session:
        for credential_id in credentials(session, chat):
            store_limits(session, credential_id, Limits(**limits))


def reserved_tokens(text: str) -> int:
    """The tokens that the last job with these words reserved."""
    (row,) = query("SELECT tokens FROM job WHERE convert_from(request, 'UTF8') LIKE :like ORDER BY id DESC LIMIT 1", like=f"%{text}%")
    return int(row.tokens)


@pytest.mark.parametrize(("language", "size"), [("en", DESK), ("zh", PHONE)])
def test_ticket_names_the_blocking_limit_and_its_time(visit: Visit, system: System, language: str, size: tuple[int, int]) -> None:
    words = WORDS[language]
    chat = enter(visit, system, language=language, viewport=size)
    set_limits(chat, rpm=1)
    chat.make("Tea")
    chat.ask("the first of this minute")
    chat.say("the second")

    expect(chat.tickets()).to_contain_text(words.in_line, timeout=PATIENCE_MS)
    expect(chat.tickets().locator(".hint")).to_have_text(re.compile(words.rpm), timeout=PATIENCE_MS)
    chat.shot(f"{language}-10-why")


def test_ticket_names_the_tokens_per_minute_limit(visit: Visit, system: System, chat: Chat) -> None:
    chat.make("Tea")
    chat.ask("so many tokens")
    other = enter(visit, system)
    set_limits(other, tpm=reserved_tokens("so many tokens") * 3 // 2)
    other.make("Tea")
    other.ask("so many tokens")
    other.make("Coffee")
    other.say("so many tokens")

    expect(other.tickets().locator(".hint")).to_have_text(
        re.compile(r"the key's tokens per minute, free at \d\d:\d\d:\d\d"), timeout=PATIENCE_MS
    )


def test_ticket_survives_a_restart_of_the_api(visit: Visit, system: System, tmp_path: Path) -> None:
    port, env = free_port(), system.stack.environment()
    with serving(tmp_path / "before.log", port=port, **env) as api:
        before = System(system.stack, api, api)
        chat = enter(visit, before, forgives=("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_INCOMPLETE", "ERR_EMPTY_RESPONSE"))
        chat.make("Tea")
        chat.say(f"[[fake:hold]] through a restart {chat.key}")
        system.upstream.wait_for_held(1)
        expect(chat.tickets()).to_have_count(1)
    with serving(tmp_path / "after.log", port=port, **env):
        system.upstream.release()
        expect(chat.answers()).to_have_count(1, timeout=2 * PATIENCE_MS)
        chat.page.close()  # before its server stops

    assert 1 == len(system.calls(f"through a restart {chat.key}"))


def test_reading_aloud_can_be_stopped(chat: Chat) -> None:
    chat.page.evaluate("""() => {
        window.spoken = [];
        window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text; } };
        const voice = { speak: (text) => window.spoken.push([text.text, text.lang]), cancel: () => window.spoken.push("quiet") };
        Object.defineProperty(window, "speechSynthesis", { value: voice, configurable: true });
    }""")
    chat.make("Tea")
    chat.ask("read this")
    row = chat.page.locator(".message.theirs").last
    row.hover()
    row.get_by_role("button", name="Read aloud").click()
    row.get_by_role("button", name="Stop reading").click()

    assert ["quiet", ["echo: read this", "en"], "quiet"] == chat.page.evaluate("window.spoken")


def test_right_to_left_text_is_aligned_right(chat: Chat) -> None:
    chat.make("Tea")
    chat.ask(ARABIC)
    assert "rtl" == chat.mine().last.evaluate("element => getComputedStyle(element).direction")

    line = chat.ask(f"A first line from left to right that is much longer than the second\n\n{ARABIC}").get_by_text(ARABIC)
    left, right = line.evaluate("""element => {
        const range = document.createRange();
        range.selectNodeContents(element);
        const [inside, around] = [range.getBoundingClientRect(), element.getBoundingClientRect()];
        return [inside.left - around.left, around.right - inside.right];
    }""")
    chat.shot("en-desk-11-rtl")
    assert (True, True) == (left > 20, right < 2)


def test_local_model_answers_on_the_page(visit: Visit, system: System, tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "model.log").open("wb") as log:
        model = subprocess.Popen(
            [sys.executable, "-m", "deploy.local_model", "--port", str(port)], stdout=log, stderr=log, preexec_fn=die_with_parent
        )
    try:
        until(lambda: probe.http_ok("/v1/models", port=port), what=f"the model: {last_lines(tmp_path / 'model.log')}", within_s=120)
        chat = enter(visit, system)
        with db.begin() as session:
            for credential_id in credentials(session, chat):
                limits_and_caps.change_credential(session, Act(), credential_id, base_url=f"http://127.0.0.1:{port}/v1")
        chat.page.reload()
        expect(chat.page.locator(".cards")).to_be_attached()
        chat.make("Geographer", prompt="Answer in one short sentence.", temperature="0")
        expect(chat.ask("What is the capital of France?")).to_contain_text("Paris")
        chat.shot("en-desk-12-local-model")
    finally:
        model.terminate()
        model.wait()
