"""A stack with its chat page, started once for all tests of this package, and the actions of a user on the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Locator, Page, expect

from deploy.checks import web_build as built
from tests.clients.conftest import SETTINGS, System, serving
from tests.support.browser import DESK, PATIENCE_MS, Visit
from tests.support.programs.processes import running
from tests.web.words import WORDS

SHOTS = Path(__file__).resolve().parents[2] / ".screenshots"


@pytest.fixture(scope="package")
def system(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    built.build()
    folder = tmp_path_factory.mktemp("web")
    with running(folder, **SETTINGS) as stack:
        stack.pacer()
        stack.worker(threads=16)
        with serving(folder / "api.log", **stack.environment()) as api:
            yield System(stack, api, api)


@pytest.fixture(autouse=True)
def release_held_calls(system: System) -> Iterator[None]:
    """Release all held calls of the upstream after each test."""
    yield
    system.upstream.release()


@dataclass
class Chat:
    """The page after a user has entered a key."""

    page: Page
    key: str
    system: System
    language: str = "en"

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def make(self, name: str, *, prompt: str = "", temperature: str = "") -> None:
        """Create an assistant and open it. temperature: only on an English page."""
        words = WORDS[self.language]
        self.button(words.new).click()
        self.page.get_by_label(words.name, exact=True).fill(name)
        self.page.get_by_label(words.prompt, exact=True).fill(prompt)
        if temperature:
            self.page.get_by_label("Temperature", exact=True).fill(temperature)
        self.button(words.save).click()
        expect(self.page.locator(".talk-head h2")).to_have_text(name)

    def say(self, text: str) -> None:
        box = self.page.locator(".composer textarea")
        box.fill(text)
        box.press("Enter")

    def answers(self) -> Locator:
        return self.page.locator(".message.theirs .bubble:not(.ticket):not(.trouble)")

    def mine(self) -> Locator:
        return self.page.locator(".message.mine .bubble:not(.trouble)")

    def tickets(self) -> Locator:
        return self.page.locator(".ticket")

    def troubles(self) -> Locator:
        return self.page.locator(".bubble.trouble")

    def ask(self, text: str) -> Locator:
        """Send a message, wait, and return the last answer."""
        before = self.answers().count()
        self.say(text)
        expect(self.answers()).to_have_count(before + 1, timeout=PATIENCE_MS)
        return self.answers().last

    def shot(self, name: str) -> None:
        SHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")


def enter(visit: Visit, system: System, *, key: str | None = None, language: str = "en", **options: Any) -> Chat:
    """Open the page with a new key."""
    key = key or f"sk-{uuid4().hex}"
    page = visit(f"http://127.0.0.1:{system.api.port}/", **options)
    if language == "zh":
        page.get_by_role("button", name="中文").click()
    page.locator("#door-key").fill(key)
    page.locator("button.main").click()
    expect(page.locator(".cards")).to_be_attached()
    return Chat(page, key, system, language)


@pytest.fixture
def chat(visit: Visit, system: System) -> Chat:
    return enter(visit, system, viewport=DESK)
