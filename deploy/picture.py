"""Makes docs/images/ticket.png: `python -m deploy.picture` starts a stack and photographs a waiting ticket on the chat page.

It needs Chromium on this machine. All jobs run through the small local model, one at a time, so that a queue forms.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, sync_playwright

from deploy.local.stack import Stack

FILE = Path(__file__).resolve().parents[1] / "docs" / "images" / "ticket.png"
KEY = "sk-picture"
MODEL = "smollm2-135m"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = ViewportSize(width=960, height=640)
TIMEOUT_MS = 180_000
# Jobs of other users, which are ahead of the photographed ticket.
USERS = ("ben", "chen", "dora", "emil", "fay", "gus", "hana")
ENVIRONMENT = {"NOWSERVING_PORT": "0", "NOWSERVING_FLOWER_PORT": "0", "NOWSERVING_DEFAULT_MAX_IN_FLIGHT": "1"}


def main() -> None:
    """Starts a stack, fills its queue, takes the picture, stops the stack."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        sys.exit("there is no Chromium on this machine: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="nowserving-picture-") as folder:
        stack = Stack(Path(folder), local_model=True, env=ENVIRONMENT)
        try:
            stack.start()
            _photograph(browser, stack.addresses.api)
        finally:
            stack.stop()
    print(FILE)


def _photograph(browser: str, api: str) -> None:
    """Saves the page with a ticket that waits behind the jobs of other users."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = chromium.new_page(viewport=SIZE, device_scale_factor=2)
        page.set_default_timeout(TIMEOUT_MS)
        _open_assistant(page, api.removesuffix("/v1") + "/")
        _ask(page, "What is the capital of France?")
        page.locator(".message.theirs .bubble:not(.ticket)").wait_for()
        for user in USERS:
            _submit(api, user)
        _ask(page, "And of Italy?")
        # The position is known when the ticket shows its number.
        page.locator(".ticket", has_text="No. ").wait_for()
        FILE.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=FILE)
        chromium.close()


def _open_assistant(page: Page, url: str) -> None:
    page.goto(url)
    page.locator("#door-key").fill(KEY)
    page.locator("button.main").click()
    page.get_by_role("button", name="New assistant", exact=True).click()
    page.get_by_label("Name", exact=True).fill("Geographer")
    page.get_by_label("System prompt", exact=True).fill("Answer in one short sentence.")
    page.get_by_label("Temperature", exact=True).fill("0")
    page.get_by_role("button", name="Save", exact=True).click()


def _ask(page: Page, question: str) -> None:
    box = page.locator(".composer textarea")
    box.fill(question)
    box.press("Enter")


def _submit(api: str, user: str) -> None:
    body = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": "Tell a long story."}]}
    job = {"endpoint": "/v1/chat/completions", "user": user, "body": body}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{api}/jobs", data=json.dumps(job).encode(), headers=headers)
    urllib.request.urlopen(request, timeout=30).close()


if __name__ == "__main__":
    main()
